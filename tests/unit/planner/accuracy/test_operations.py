"""Single operations are predicted as kernel benchmarks run them."""

import pytest

from planner.accuracy.measurements import Kind, Row
from planner.accuracy.operations import OperationPrediction, OperationPredictor
from planner.accuracy.tables import Basis, Tables
from profiles.kernels.operations import FORMATS
from tests.unit.planner.accuracy.kernel_cells import EXPERTS, GEMM, KERNELS, LATENT, PREFILL, REDUCE

SURFACE = Tables(basis=Basis.SURFACE)


def row(**cells: str) -> Row:
    return Row(id="0", line=2, cells=cells)


def predicted(kind: Kind, cells: dict[str, str], tables: Tables = SURFACE) -> OperationPrediction:
    (found,) = OperationPredictor(kind, tables).predict([row(**cells)])
    return found


NO_FP8 = (
    "a kernel in fp8 cannot be priced: a100-sxm-80gb has no fp8 rate in the catalogue"
    " Use one of bf16, fp16, fp32, int8, tf32."
)


def test_a_large_product_runs_near_the_datasheet_rate_in_a_burst() -> None:
    found = predicted(Kind.GEMM, GEMM)
    assert found.error is None
    assert found.measured_us == 1500
    assert found.predicted_us is not None
    assert 0.65 < 2 * 8192**3 / 989.4e12 * 1e6 / found.predicted_us < 0.95


@pytest.mark.parametrize(
    ("kind", "cells", "message"),
    [
        (Kind.GEMM, {**GEMM, "dtype": "int3_wo"}, f"format 'int3_wo' is not one of {', '.join(FORMATS)}"),
        (Kind.GEMM, {**GEMM, "dtype": ""}, "dtype is empty"),
        (Kind.GEMM, {**GEMM, "system": "abacus"}, "hardware 'abacus' is no GPU of the catalogue"),
        (Kind.GEMM, {**GEMM, "m": ""}, "m is empty"),
        (Kind.COLLECTIVES, {**REDUCE, "op": "gossip"}, "op 'gossip' is no collective"),
        (Kind.COLLECTIVES, {**REDUCE, "library": "mpi"}, "library 'mpi' has no price"),
        (Kind.COLLECTIVES, {**REDUCE, "library": "custom:vLLM"}, "library 'custom:vLLM' has no table on this GPU"),
        (
            Kind.COLLECTIVES,
            {**REDUCE, "variant": "env-config-2"},
            "variant 'env-config-2' sends over TCP sockets, untuned: it has no price",
        ),
        (Kind.COLLECTIVES, {**REDUCE, "num_gpus": "16"}, "16 GPUs do not stand on 1 nodes of 8"),
        (Kind.COLLECTIVES, {**REDUCE, "num_nodes": "3"}, "8 GPUs cannot fill 3 nodes alike"),
        (
            Kind.MOE,
            {**EXPERTS, "distribution": "lumpy"},
            "distribution 'lumpy' is neither balanced nor power_law_<exponent>",
        ),
        (Kind.MOE, {**EXPERTS, "moe_ep_size": "3"}, "8 experts cannot be dealt to ep = 3 ranks"),
        (
            Kind.MOE_EXCHANGE,
            {"system": "h100_sxm", "comm_backend": "deepep", "latency_us": "9"},
            "comm_backend 'deepep': exchanges of experts' tokens have no price",
        ),
        (Kind.MLA, {**LATENT, "phase": "dreaming"}, "phase 'dreaming' is not one of context, generation"),
        (Kind.ATTENTION_PREFILL, {**PREFILL, "num_kv_heads": "5"}, "num_heads 32 is no multiple of num_kv_heads 5"),
        (
            Kind.ATTENTION_PREFILL,
            {**PREFILL, "kv_cache_dtype": "int2"},
            "kv_cache_dtype 'int2' is not one of bfloat16, float16, fp8, int8",
        ),
        (
            Kind.ATTENTION_PREFILL,
            {**PREFILL, "system": "a100_sxm", "attn_dtype": "fp8"},
            NO_FP8,
        ),
    ],
)
def test_what_has_no_price_says_why(kind: Kind, cells: dict[str, str], message: str) -> None:
    found = predicted(kind, cells)
    assert (found.error, found.predicted_us) == (message, None)


def test_a_collective_inside_a_node_is_bound_by_its_links() -> None:
    found = predicted(Kind.COLLECTIVES, REDUCE)
    assert found.predicted_us is not None
    assert found.measured_us is None
    bus_bandwidth = 1e9 * 2 * 7 / 8 / (found.predicted_us * 1e-6)
    assert 300e9 < bus_bandwidth < 450e9


@pytest.mark.parametrize("system", ["h100_sxm", "a100_sxm", "h200_sxm", "b200_sxm", "gb200", "l40s", "mi300x"])
@pytest.mark.parametrize("kind", list(KERNELS))
@pytest.mark.parametrize("basis", [Basis.TABLES, Basis.SURFACE])
def test_every_kind_has_a_price_on_every_gpu_without_the_columns_that_may_be_missing(
    kind: Kind, system: str, basis: Basis
) -> None:
    found = predicted(kind, {**KERNELS[kind], "system": system}, Tables(basis=basis))
    assert found.error is None
    assert found.predicted_us is not None
    assert found.predicted_us > 0
    measured = basis is Basis.TABLES and system in {"h100_sxm", "a100_sxm", "h200_sxm"}
    assert (found.source == "analytic") is not measured, found.note


@pytest.mark.parametrize("kind", [Kind.GEMM, Kind.ATTENTION_PREFILL, Kind.ATTENTION_DECODE, Kind.MOE])
def test_analytic_prices_are_within_half_of_what_h100_takes(kind: Kind) -> None:
    tables, surface = (predicted(kind, KERNELS[kind], Tables(basis=basis)) for basis in (Basis.TABLES, Basis.SURFACE))
    assert tables.predicted_us is not None
    assert surface.predicted_us == pytest.approx(tables.predicted_us, rel=0.5)


def test_latent_attention_is_a_context_or_a_generation_by_what_it_sees() -> None:
    generation = predicted(Kind.MLA, LATENT)
    assert generation.predicted_us == predicted(Kind.MLA, {**LATENT, "phase": "generation"}).predicted_us
    context = {**LATENT, "isl": "4096", "kv_len": "", "step": "0"}
    assert (
        predicted(Kind.MLA, context).predicted_us == predicted(Kind.MLA, {**context, "phase": "context"}).predicted_us
    )


def test_rows_of_a_file_are_predicted_by_the_other_rows() -> None:
    sizes = [str(1024 * step) for step in range(1, 9)]
    cells = [{**GEMM, "m": m, "n": n, "latency_us": "1e3"} for m in sizes for n in sizes]
    rows = [Row(id=str(index), line=index, cells=entry) for index, entry in enumerate(cells)]
    found = OperationPredictor(Kind.GEMM, Tables(basis=Basis.LEFT_OUT, parts=4)).predict(rows)
    assert [entry.row.id for entry in found] == [row.id for row in rows]
    assert {entry.source for entry in found} <= {"interpolated", "extrapolated"}
    inner = [entry.predicted_us for entry in found if entry.source == "interpolated" and entry.predicted_us]
    # Every row says 1 ms whatever its size: only the other rows can teach that.
    assert inner
    assert sum(abs(predicted_us / 1e3 - 1) < 0.2 for predicted_us in inner) > 0.8 * len(inner)
