"""The memory of a layout that the user names."""

from dataclasses import replace

import pytest

from planner.errors import InputError
from planner.layout import Granularity, even_counts
from planner.models.bundled import load_bundled
from planner.plans.plan import MemoryLine, Phase
from planner.requests.workload import Precision, TrainWorkload
from planner.search.mem import Degrees, memory_table
from profiles.catalogue import load_device

DEGREES = Degrees(
    tp=8,
    sequence_parallel=True,
    pp=4,
    vpp=1,
    dp=2,
    zero_stage=1,
    micro_batch_size=1,
    num_microbatches=8,
    recompute=Granularity.NONE,
)
WORKLOAD = TrainWorkload(seq_len=8192, global_batch_size=16, precision=Precision.BF16)
MODEL = load_bundled("llama-3.1-70b")
H100 = load_device("h100-sxm-80gb")


def term_bytes(lines: tuple[MemoryLine, ...], term: str, *, rank: int) -> int:
    return sum(
        line.num_bytes
        for line in lines
        if line.term == term and line.rank == rank and line.phase is Phase.FORWARD_BACKWARD
    )


def test_weights_and_states_are_what_the_shapes_say() -> None:
    table = memory_table(MODEL, H100, WORKLOAD, DEGREES, memory_headroom=0.0)
    # 20 layers of the second pipeline rank: projections over 8 GPUs, two norms whole.
    layer = (8192 * (8192 + 2 * 1024) + 8192 * 8192 + 3 * 8192 * 28672) // 8 + 2 * 8192
    assert term_bytes(table.lines, "weights", rank=16) == 20 * layer * 2
    assert term_bytes(table.lines, "gradients", rank=16) == 20 * layer * 4
    assert term_bytes(table.lines, "optimizer moments", rank=16) == 20 * layer * 8 // 2


def test_the_limit_leaves_the_headroom_free() -> None:
    table = memory_table(MODEL, H100, WORKLOAD, DEGREES, memory_headroom=0.5)
    assert table.limit_bytes == H100.memory_bytes // 2
    assert not table.fits
    assert memory_table(MODEL, H100, WORKLOAD, DEGREES, memory_headroom=0.0).fits


def test_full_recompute_keeps_less() -> None:
    kept = memory_table(MODEL, H100, WORKLOAD, DEGREES, memory_headroom=0.0)
    dropped = memory_table(MODEL, H100, WORKLOAD, replace(DEGREES, recompute=Granularity.FULL), memory_headroom=0.0)
    assert term_bytes(dropped.lines, "activations", rank=0) < term_bytes(kept.lines, "activations", rank=0) // 4


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [(8, 4, (2, 2, 2, 2)), (10, 4, (2, 3, 3, 2)), (3, 3, (1, 1, 1)), (7, 1, (7,))],
)
def test_layers_are_spread_evenly(num_layers: int, num_stages: int, counts: tuple[int, ...]) -> None:
    assert even_counts(num_layers, num_stages) == counts


@pytest.mark.parametrize(
    ("degrees", "rule"),
    [
        (replace(DEGREES, tp=128), "num_attention_heads is not a multiple of tp"),
        (replace(DEGREES, pp=81), "more pipeline stages than layers"),
        (replace(DEGREES, vpp=21), "more virtual stages than layers"),
        (
            replace(DEGREES, vpp=2, num_microbatches=6),
            "interleaving needs a number of micro-batches that is a multiple of pp",
        ),
        (replace(DEGREES, cp=3), "seq_len is not a multiple of 2 cp"),
        (replace(DEGREES, ep=2), "ep and etp lay out routed experts, and it has none"),
        (replace(DEGREES, pp=1, vpp=2), "virtual stages need pp of at least 2"),
    ],
)
def test_a_layout_that_breaks_a_rule_is_refused(degrees: Degrees, rule: str) -> None:
    with pytest.raises(InputError) as caught:
        memory_table(MODEL, H100, WORKLOAD, degrees, memory_headroom=0.0)
    assert caught.value.message.startswith("llama-3.1-70b cannot be laid out like this: ")
    assert rule in caught.value.message
    assert caught.value.hint == "Change one of the degrees."


def test_what_some_framework_cannot_run_is_laid_out_all_the_same() -> None:
    whole, sharded = (
        memory_table(MODEL, H100, WORKLOAD, replace(DEGREES, zero_stage=stage), memory_headroom=0.0) for stage in (1, 2)
    )
    of_gradients = [term_bytes(table.lines, "gradients", rank=0) for table in (whole, sharded)]
    assert of_gradients[0] == 2 * of_gradients[1]


def test_recompute_layer_by_layer_is_left_to_the_search() -> None:
    with pytest.raises(InputError, match=r"^What is recomputed of each layer is a choice of the search\.") as caught:
        memory_table(MODEL, H100, WORKLOAD, replace(DEGREES, recompute=Granularity.PER_LAYER), memory_headroom=0.0)
    assert caught.value.hint == (
        "Give none, selective or full; `shardwright plan` with `target: any` searches the rest."
    )


def test_both_grids_are_over_the_same_gpus() -> None:
    experts = load_bundled("qwen3-30b-a3b")
    legal = replace(DEGREES, tp=4, pp=2, dp=4, ep=16, num_microbatches=4)
    table = memory_table(experts, H100, WORKLOAD, legal, memory_headroom=0.0)
    assert (table.layout.edp, table.layout.dp) == (1, 4)
    with pytest.raises(InputError, match=r"^etp \* ep = 32 does not divide tp \* cp \* dp = 16\."):
        memory_table(experts, H100, WORKLOAD, replace(legal, ep=32), memory_headroom=0.0)


def test_a_precision_that_the_gpu_lacks_is_refused() -> None:
    for precision, gpu, why in (
        (Precision.FP8_DELAYED, "a100-sxm-80gb", "it has no fp8 matrix units"),
        (Precision.FP8_MXFP8, "h100-sxm-80gb", r"MXFP8 needs compute capability 10\.x"),
    ):
        workload = replace(WORKLOAD, precision=precision)
        with pytest.raises(InputError, match=rf"`precision` = {precision} does not run on {gpu}: {why}"):
            memory_table(MODEL, load_device(gpu), workload, DEGREES, memory_headroom=0.0)
