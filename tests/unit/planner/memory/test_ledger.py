"""The ledger of one case, by hand, and each of its rules."""

from dataclasses import replace

import pytest

from planner.frameworks.capabilities import DEEPSPEED, MEGATRON, Capabilities
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.memory.ledger import memory_ledger, memory_limit_bytes, peak_memory_bytes, peaks_of_ranks
from planner.memory.saved import activation_peaks
from planner.memory.state_bytes import state_bytes
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import Phase
from planner.ranks.placement import PlacedModel, place
from planner.requests.workload import DType, Optimizer, Precision, TrainWorkload
from planner.search.splits.rank_peaks import RankPeaks
from tests.builders import tiny_dense_model, tiny_layout, tiny_workload

MIB = 1 << 20
LLAMA_70B = load_bundled("llama-3.1-70b")
RUN = TrainWorkload(seq_len=4096, global_batch_size=512, precision=Precision.BF16)
LAYOUT = Layout(
    tp=8,
    sequence_parallel=True,
    pp=4,
    vpp=1,
    dp=2,
    zero_stage=1,
    micro_batch_size=1,
    num_microbatches=256,
    schedule=Schedule.ONE_F_ONE_B,
    recompute=Recompute(granularity=Granularity.NONE),
    overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False),
    stages=stages_from_counts((20, 20, 20, 20)),
)

# One layer on one of 8 ranks: qkv 8192 x (8192 + 2 x 1024), proj 8192 x 8192, gate and up 8192 x 28672 each, down, and
# two norms that every rank holds whole.
LAYER = (8192 * 10240 + 8192 * 8192 + 3 * 8192 * 28672) // 8 + 2 * 8192
TABLE = 129_024 // 8 * 8192  # 128,256 rows padded to a multiple of 128 x 8
STAGE_0 = 20 * LAYER + TABLE
STAGE_3 = 20 * LAYER + TABLE + 8192

# What one layer keeps of one micro-batch of 4096 tokens; a rank has 512 of them between the linear layers.
RESIDUAL = 4 * 512 * 8192 * 2  # input and output of both norms
ATTENTION = 4096 * (1024 + 128 + 128 + 1024) * 2 + 4096 * 8 * 4  # q, k, v, output, log-sum-exp of 8 heads
FEED_FORWARD = 4096 * (2 * 3584 + 3584) * 2
KEPT = RESIDUAL + ATTENTION + FEED_FORWARD


def placed(
    layout: Layout = LAYOUT,
    *,
    model: ModelSpec = LLAMA_70B,
    workload: TrainWorkload = RUN,
    capabilities: Capabilities = MEGATRON,
) -> PlacedModel:
    return place(model, build_graph(model, workload), layout, workload, capabilities)


def ledger(
    layout: Layout = LAYOUT,
    *,
    model: ModelSpec = LLAMA_70B,
    workload: TrainWorkload = RUN,
    rank: int = 0,
    capabilities: Capabilities = MEGATRON,
) -> dict[str, int]:
    """Return the terms of one rank at the worst moment of forward and backward."""
    lines = memory_ledger(placed(layout, model=model, workload=workload, capabilities=capabilities))
    first = layout.first_global_rank(rank)
    return {line.term: line.num_bytes for line in lines if (line.rank, line.phase) == (first, Phase.FORWARD_BACKWARD)}


def test_the_70b_ledger_of_the_first_stage_by_hand() -> None:
    assert (LAYER, STAGE_0, KEPT) == (106_971_136, 2_271_543_296, 140_640_256)
    terms = ledger()
    assert terms["weights"] == 4_543_086_592 == 2 * STAGE_0
    assert terms["gradients"] == 9_086_173_184 == 4 * STAGE_0
    assert terms["master weights"] == 4_543_086_592 == 4 * STAGE_0 // 2
    assert terms["optimizer moments"] == 9_086_173_184 == 8 * STAGE_0 // 2
    assert terms["activations"] == 11_251_220_480 == 4 * 20 * KEPT  # 4 micro-batches in flight
    assert terms["context and libraries"] == 604 * MIB
    assert terms["workspaces"] == 96 * MIB
    # All 64 ranks, tp 8, dp 2, all ranks for the gradient norm, pp 4.
    assert terms["communicators"] == (688 + 688 + 544 + 688 + 688) * MIB
    assert terms["pipeline buffers"] == 2 * 512 * 8192 * 2
    # Gradients around fc1, the widest layer: its gathered input twice, its output.
    assert terms["backward temporaries"] == 4096 * (8192 + 7168 + 8192) * 2
    lost = terms["activations"] + terms["pipeline buffers"] + terms["backward temporaries"]
    assert terms["fragmentation"] == round(0.12 * lost)


def test_the_last_stage_holds_the_head_and_one_micro_batch() -> None:
    terms = ledger(rank=3)
    assert terms["weights"] == 2 * STAGE_3
    assert terms["activations"] == 20 * KEPT
    # fp32 softmax and its copy, their gradient in 16 bit, input and output of the final norm.
    logits = 4096 * 129_024 // 8
    assert terms["logits and loss"] == 4 * logits + 4 * logits + 2 * logits + 2 * 512 * 8192 * 2
    assert "backward temporaries" not in terms


@pytest.mark.parametrize(("rank", "in_flight"), [(0, 4), (1, 3), (2, 2), (3, 1)])
def test_a_rank_keeps_as_many_micro_batches_as_ranks_from_it_on(rank: int, in_flight: int) -> None:
    assert ledger(rank=rank)["activations"] == in_flight * 20 * KEPT
    few = replace(LAYOUT, num_microbatches=2)
    assert ledger(few, rank=rank)["activations"] == min(in_flight, 2) * 20 * KEPT


def test_interleaving_keeps_the_warm_up_of_every_chunk() -> None:
    stages = stages_from_counts((10,) * 8)
    layout = replace(
        LAYOUT,
        vpp=2,
        schedule=Schedule.INTERLEAVED,
        stages=stages,
        overlap=replace(LAYOUT.overlap, p2p=True),
    )
    assert ledger(layout)["activations"] == (2 * 3 + 4 + 1) * 10 * KEPT
    assert ledger(layout)["pipeline buffers"] == 2 * ledger()["pipeline buffers"]


def test_recomputing_n_layers_of_each_stage_keeps_their_inputs_alone() -> None:
    partial = replace(LAYOUT, recompute=Recompute(granularity=Granularity.FULL, num_layers=5))
    whole = replace(LAYOUT, recompute=Recompute(granularity=Granularity.FULL))
    layer_input = 512 * 8192 * 2
    assert ledger(partial)["activations"] == 4 * (5 * layer_input + 15 * KEPT)
    assert ledger(whole)["activations"] == 4 * 20 * layer_input
    again = KEPT - layer_input
    assert ledger(whole)["backward temporaries"] == again + ledger()["backward temporaries"]
    too_many = replace(LAYOUT, recompute=Recompute(granularity=Granularity.FULL, num_layers=99))
    assert ledger(too_many)["activations"] == ledger(whole)["activations"]


def test_each_zero_stage_splits_one_thing_more_and_whole_tensors_wait_on_their_way() -> None:
    model = load_bundled("llama-3.1-8b")
    alone = replace(
        LAYOUT,
        tp=1,
        sequence_parallel=False,
        pp=1,
        dp=8,
        num_microbatches=64,
        schedule=Schedule.NO_PIPELINE,
        stages=stages_from_counts((32,)),
    )
    parameters = 8_030_261_248
    names = ("master weights", "optimizer moments", "gradients", "weights")
    terms = [ledger(replace(alone, zero_stage=stage), model=model) for stage in range(4)]
    whole = (4 * parameters, 8 * parameters, 4 * parameters, 2 * parameters)
    divided = ((1, 1, 1, 1), (8, 8, 1, 1), (8, 8, 8, 1), (8, 8, 8, 8))
    for found, groups in zip(terms, divided, strict=True):
        assert tuple(found[name] for name in names) == tuple(
            size // group for size, group in zip(whole, groups, strict=True)
        )
    # Embedding and head stay whole; 500M elements of layers are gathered ahead; 1e9 elements of fp32 gradients wait
    # beside one layer's in bf16.
    layer = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    ends = 2 * 128_256 * 4096 + 4096
    assert terms[3]["gathered parameters"] == 2 * (ends + 500_000_000)
    assert "gathered parameters" not in terms[2]
    assert terms[2]["gradients to reduce"] == terms[3]["gradients to reduce"] == 4 * 1_000_000_000 + 2 * layer
    assert "gradients to reduce" not in terms[1]


def test_deepspeed_has_queues_of_its_own_and_pads_vocabularies_to_tp_alone() -> None:
    whole = replace(
        LAYOUT,
        tp=1,
        sequence_parallel=False,
        pp=1,
        dp=64,
        zero_stage=3,
        num_microbatches=8,
        schedule=Schedule.NO_PIPELINE,
        stages=stages_from_counts((80,)),
    )
    ends = (2 * 128_256 + 1) * 8192
    layer = 8192 * 10240 + 8192 * 8192 + 3 * 8192 * 28672 + 2 * 8192
    # 855 M elements a layer: Megatron-FSDP gathers two, more than its 500 M; DeepSpeed two, more than its 1 G.
    for capabilities in (MEGATRON, DEEPSPEED):
        assert ledger(whole, capabilities=capabilities)["gathered parameters"] == 2 * (ends + 2 * layer)
    small = load_bundled("llama-3.1-8b")
    one_node = replace(whole, dp=8, num_microbatches=64, stages=stages_from_counts((32,)))
    terms = ledger(one_node, model=small, capabilities=DEEPSPEED)
    assert terms["gathered parameters"] == 2 * ((2 * 128_256 + 1) * 4096 + 1_000_000_000)
    small_layer = 4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096
    assert terms["gradients to reduce"] == 4 * 500_000_000 + 2 * small_layer
    # 128,256 rows over 8 ranks: Megatron-LM pads them to a multiple of 1024, DeepSpeed needs not.
    cut = replace(LAYOUT, zero_stage=1)
    difference = ledger(cut)["weights"] - ledger(cut, capabilities=DEEPSPEED)["weights"]
    assert difference == 2 * (129_024 - 128_256) // 8 * 8192


def test_groups_of_shards_hold_what_their_ranks_split_and_a_second_copy_is_held_beside() -> None:
    model = load_bundled("llama-3.1-8b")
    whole = replace(
        LAYOUT,
        tp=1,
        sequence_parallel=False,
        pp=1,
        dp=16,
        zero_stage=3,
        num_microbatches=32,
        schedule=Schedule.NO_PIPELINE,
        stages=stages_from_counts((32,)),
    )
    names = ("master weights", "optimizer moments", "gradients", "weights")
    once, twice = (ledger(replace(whole, state_replicas=groups), model=model) for groups in (1, 2))
    assert [twice[name] for name in names] == [2 * once[name] for name in names]
    second = ledger(replace(whole, secondary_shard=8), model=model)
    assert second["secondary weights"] == 2 * 8_030_261_248 // 8
    assert [second[name] for name in names] == [once[name] for name in names]


def test_context_parallelism_splits_states_and_sequences() -> None:
    apart = replace(LAYOUT, dp=1, cp=2, num_microbatches=512)
    terms = ledger(apart)
    assert terms["optimizer moments"] == ledger()["optimizer moments"]  # over dp x cp, two ranks either way
    assert 2 * terms["activations"] == ledger()["activations"]
    ring = 4 * 2048 * 2 * 128 * 2  # keys and values on their way and their gradients: one head of 128 a rank
    attention = 2048 * (1024 + 1024 + 128 + 128) * 2
    fc1 = 2048 * (8192 + 7168 + 8192) * 2
    assert terms["backward temporaries"] == max(attention + ring, fc1)


def test_a_stage_of_no_layers_holds_its_end_alone() -> None:
    empty = replace(LAYOUT, stages=stages_from_counts((0, 27, 27, 26)))
    terms = ledger(empty)
    assert terms["weights"] == 2 * TABLE
    assert terms["activations"] == terms["backward temporaries"] == 0
    last = ledger(replace(LAYOUT, stages=stages_from_counts((27, 27, 26, 0))), rank=3)
    assert last["weights"] == 2 * (TABLE + 8192)
    assert last["activations"] == 0
    assert last["logits and loss"] == ledger(rank=3)["logits and loss"]


def test_16_bit_gradients_are_copied_to_fp32_for_the_update() -> None:
    model = tiny_dense_model()

    def update_bytes(workload: TrainWorkload) -> int:
        lines = memory_ledger(placed(tiny_layout(), model=model, workload=workload))
        wanted = (0, Phase.OPTIMIZER_STEP, "fp32 gradients")
        return sum(line.num_bytes for line in lines if (line.rank, line.phase, line.term) == wanted)

    half = replace(tiny_workload(), gradient_dtype=DType.BF16)
    elements = placed(tiny_layout(), model=model, workload=tiny_workload()).elements(0).total
    assert update_bytes(tiny_workload()) == 0
    assert update_bytes(half) == 4 * elements // 2
    assert update_bytes(replace(half, moment_dtype=DType.BF16)) == 0  # the precision-aware optimizer reads them as is


def test_a_tied_table_is_held_twice_only_across_a_pipeline() -> None:
    tied = replace(tiny_dense_model(), tie_word_embeddings=True)
    alone = replace(tiny_layout(), pp=1, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((4,)))
    layer = (64 * 128 + 64 * 64 + 3 * 64 * 160) // 2 + 2 * 64
    table = 512 // 2 * 64
    whole = placed(alone, model=tied, workload=tiny_workload())
    cut = placed(tiny_layout(), model=tied, workload=tiny_workload())
    assert whole.elements(0).total == 4 * layer + table + 64
    assert cut.elements(0).total == 2 * layer + table
    assert cut.elements(1).total == 2 * layer + table + 64


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (tiny_workload(), (2, 4, 4, 8)),
        (replace(tiny_workload(), gradient_dtype=DType.BF16), (2, 2, 4, 8)),
        (replace(tiny_workload(), optimizer=Optimizer.SGD), (2, 4, 4, 4)),
        # Precision-aware Adam keeps only the 16 bits of the fp32 master that the bf16 weight lacks.
        (replace(tiny_workload(), moment_dtype=DType.BF16), (2, 4, 2, 4)),
        (replace(tiny_workload(), moment_dtype=DType.FP8), (2, 4, 2, 2)),
        (replace(tiny_workload(), precision=Precision.FP16, moment_dtype=DType.BF16), (2, 4, 4, 4)),
    ],
)
def test_bytes_of_a_trainable_element(workload: TrainWorkload, expected: tuple[int, ...]) -> None:
    found = state_bytes(workload)
    assert (found.weight, found.gradient, found.master, found.moments) == expected


def test_fp8_runs_hold_two_more_copies_of_each_linear_weight() -> None:
    terms = ledger(workload=replace(RUN, precision=Precision.FP8_DELAYED))
    assert terms["fp8 weight copies"] == 2 * 20 * (LAYER - 2 * 8192)
    assert terms["weights"] == 2 * STAGE_0


def test_moments_are_made_at_the_first_step_and_activations_gone_at_its_end() -> None:
    terms: dict[Phase, set[str]] = {phase: set() for phase in Phase}
    for line in memory_ledger(placed()):
        terms[line.phase].add(line.term)
    assert "optimizer moments" not in terms[Phase.INITIALISATION]
    assert terms[Phase.OPTIMIZER_STEP] - terms[Phase.INITIALISATION] == {"optimizer moments"}
    assert "activations" in terms[Phase.FORWARD_BACKWARD] - terms[Phase.OPTIMIZER_STEP]


def test_the_peak_adds_up_and_the_limit_leaves_the_headroom() -> None:
    assert peak_memory_bytes(memory_ledger(placed())) == sum(ledger().values())
    assert memory_limit_bytes(80_000_000_000, 0.05) == 76_000_000_000
    assert memory_limit_bytes(80_000_000_000, 0.0) == 80_000_000_000


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("counts", [(20, 20, 20, 20), (19, 21, 22, 18), (17, 20, 22, 21)])
def test_peaks_that_are_asked_for_one_split_after_another_are_those_of_the_ledger(
    zero_stage: int, counts: tuple[int, ...]
) -> None:
    peaks = RankPeaks()
    for layers in (counts, counts[::-1], counts):
        found = placed(replace(LAYOUT, zero_stage=zero_stage, stages=stages_from_counts(layers)))
        assert tuple(peaks.of_all(found)) == peaks_of_ranks(memory_ledger(found))
        assert [peaks.of_rank(found, rank) for rank in range(4)] == list(peaks.of_all(found))


def test_chunks_of_a_rank_may_change_places_only_in_what_is_in_flight() -> None:
    peaks, of_first_rank = RankPeaks(), set()
    for counts in ((9, 10, 10, 10, 11, 10, 10, 10), (11, 10, 10, 10, 9, 10, 10, 10)):
        stages = stages_from_counts(counts)
        found = placed(replace(LAYOUT, vpp=2, schedule=Schedule.INTERLEAVED, stages=stages))
        assert tuple(peaks.of_all(found)) == peaks_of_ranks(memory_ledger(found))
        of_first_rank.add(activation_peaks(found)[0])
    assert len(of_first_rank) == 2
