"""Whatever stands in the cells of a measured run, it is predicted or refused with a reason."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.accuracy.measurements import Kind, Row
from planner.accuracy.operations import OperationPredictor
from planner.accuracy.tables import Basis, Tables
from planner.accuracy.training import TrainingPredictor
from tests.examples import examples
from tests.unit.planner.accuracy.kernel_cells import KERNELS
from tests.unit.planner.accuracy.rows import RUN, run_row

HOSTILE = st.sampled_from(
    ("", "0", "-1", "nan", "inf", "1e300", "1e12", "1099511627776", "3", "7.0", "1.5", "x" * 5000, "\x00", "true", "16")
)
COLUMNS = (*RUN, "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "experts", "topk", "vpp", "cp", "ep", "etp")
TEXTS = ("optimizer", "recompute", "flash_attention", "notes", "peak_mem_gb", "tokens_per_s_per_gpu", "tflops_per_gpu")


@settings(max_examples=examples(few=120, many=300), deadline=None, derandomize=True)
@given(changes=st.dictionaries(st.sampled_from((*COLUMNS, *TEXTS)), HOSTILE, min_size=1, max_size=3))
def test_a_row_with_mutated_cells_is_predicted_or_says_why_not(changes: dict[str, str]) -> None:
    found = TrainingPredictor().predict(run_row(**changes))
    if found.error is None:
        assert found.predicted_step_seconds is not None
        assert math.isfinite(found.predicted_step_seconds)
        assert found.predicted_step_seconds > 0
    else:
        assert 0 < len(found.error) < 600


@settings(max_examples=examples(few=120, many=400), deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(KERNELS)),
    changes=st.dictionaries(st.integers(0, 20), HOSTILE, min_size=1, max_size=3),
    basis=st.sampled_from([Basis.TABLES, Basis.SURFACE]),
)
def test_a_kernel_row_with_mutated_cells_is_predicted_or_says_why_not(
    kind: Kind, changes: dict[int, str], basis: Basis
) -> None:
    cells = dict(KERNELS[kind])
    columns = (*cells, "framework", "version", "kernel_source", "moe_tp_size", "moe_ep_size", "variant")
    cells |= {columns[place % len(columns)]: text for place, text in changes.items()}
    (found,) = OperationPredictor(kind, Tables(basis=basis)).predict([Row(id="0", line=2, cells=cells)])
    if found.error is None:
        assert found.predicted_us is not None
        assert math.isfinite(found.predicted_us)
        assert found.predicted_us > 0
        assert found.source
    else:
        assert 0 < len(found.error) < 600
