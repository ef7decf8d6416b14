"""Single operations are predicted as kernel benchmarks run them."""

import pytest

from planner.accuracy.measurements import Kind, Row
from planner.accuracy.operations import OperationPredictor


def row(**cells: str) -> Row:
    return Row(id="0", line=2, cells=cells)


GEMM = {"system": "h100_sxm", "dtype": "bfloat16", "m": "8192", "n": "8192", "k": "8192", "latency_us": "1500"}
REDUCE = {
    "system": "h100_sxm",
    "op": "all_reduce",
    "num_gpus": "8",
    "num_nodes": "1",
    "bytes": "1e9",
    "library": "nccl",
}


def test_a_large_product_runs_near_the_datasheet_rate_in_a_burst() -> None:
    found = OperationPredictor(Kind.GEMM).predict(row(**GEMM))
    assert found.error is None
    assert found.measured_us == 1500
    assert found.predicted_us is not None
    assert 0.65 < 2 * 8192**3 / 989.4e12 * 1e6 / found.predicted_us < 0.95


@pytest.mark.parametrize(
    ("kind", "cells", "message"),
    [
        (Kind.GEMM, {**GEMM, "dtype": "int4_wo"}, "dtype 'int4_wo' has no surface"),
        (Kind.GEMM, {**GEMM, "system": "abacus"}, "hardware 'abacus' is no GPU of the catalogue"),
        (Kind.GEMM, {**GEMM, "m": ""}, "m is empty"),
        (Kind.COLLECTIVES, {**REDUCE, "op": "gossip"}, "op 'gossip' is no collective"),
        (Kind.COLLECTIVES, {**REDUCE, "library": "custom:vLLM"}, "library 'custom:vLLM' has no price"),
        (Kind.COLLECTIVES, {**REDUCE, "num_gpus": "16"}, "16 GPUs do not stand on 1 nodes of 8"),
        (Kind.COLLECTIVES, {**REDUCE, "num_nodes": "2"}, "8 GPUs on 2 nodes do not fill nodes of 8"),
        (Kind.MOE, {}, "moe has no kernel model yet"),
    ],
)
def test_what_has_no_price_says_why(kind: Kind, cells: dict[str, str], message: str) -> None:
    found = OperationPredictor(kind).predict(row(**cells))
    assert (found.error, found.predicted_us) == (message, None)


def test_a_collective_inside_a_node_is_bound_by_its_links() -> None:
    found = OperationPredictor(Kind.COLLECTIVES).predict(row(**REDUCE))
    assert found.predicted_us is not None
    assert found.measured_us is None
    bus_bandwidth = 1e9 * 2 * 7 / 8 / (found.predicted_us * 1e-6)
    assert 300e9 < bus_bandwidth < 450e9
