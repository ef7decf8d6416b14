"""The bands of classes of operations against the record that the repository holds."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.accuracy.measurements import Kind, read_measurements
from planner.accuracy.operations import OperationPredictor
from planner.accuracy.scores import Errors, errors_of, operation_errors
from planner.accuracy.tables import Basis, Tables
from profiles.catalogue import load_preset
from profiles.measured import KernelCosts
from profiles.slowed import OperationClass
from profiles.store import shipped_profile
from profiles.tables import TableKind, TableRow

GEMM = Path(__file__).parents[2] / "examples" / "measured-kernels" / "gemm.csv"
PRESETS = {"h100-sxm-80gb": "dgx-h100", "a100-sxm-80gb": "dgx-a100"}


def test_the_band_of_products_is_what_four_of_five_timings_lie_within() -> None:
    rows = read_measurements(GEMM).rows
    found = operation_errors(OperationPredictor(Kind.GEMM, Tables(basis=Basis.SURFACE)).predict(rows))
    assert found is not None
    assert found.count == 3296
    assert OperationClass.PRODUCTS.band.value == pytest.approx(found.four_of_five, abs=0.006)


def found_of(kind: TableKind, wanted: Callable[[TableRow], bool]) -> Errors:
    """Return how far the shipped timings of one kind lie from the analytic price, GPUs weighing the same."""
    pairs: list[tuple[str, float, float]] = []
    for device, preset in PRESETS.items():
        profile = shipped_profile(device)
        assert profile is not None
        costs = KernelCosts(load_preset(preset).to_cluster(), None)
        for row in filter(wanted, profile.rows(kind)):
            query = costs.query(kind, row.shape, row.implementation)
            pairs.append((device, query.analytic_seconds, row.seconds))
    found = errors_of(pairs)
    assert found is not None
    return found


def test_the_band_of_attention_is_what_four_of_five_long_timings_lie_within() -> None:
    # The shipped tables hold 7,290 of the 7,336 timings.
    found = found_of(
        TableKind.ATTENTION_PREFILL, lambda row: row.shape.words[0] == "bfloat16" and row.shape.sizes[1] >= 1024
    )
    assert (found.count, found.groups) == (7290, 2)
    assert OperationClass.ATTENTION.band.value == pytest.approx(found.four_of_five, abs=0.006)


def test_four_of_five_large_collectives_inside_a_node_lie_within_their_band() -> None:
    found = found_of(
        TableKind.COLLECTIVES,
        lambda row: row.implementation.framework == "nccl" and row.shape.sizes[-1] >= 1_000_000,
    )
    assert (found.count, found.groups) == (260, 2)
    assert found.four_of_five < OperationClass.INSIDE.band.value
