"""Laws of what a rank holds: hybrid sharding, second copies, fp8 copies, and multi-token prediction."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.frameworks.capabilities import ANY
from planner.frameworks.overheads import GROUP_COMMUNICATOR_BYTES, PAIR_COMMUNICATOR_BYTES
from planner.layout import Granularity, Layout, Recompute, even_counts, stages_from_counts
from planner.memory.ledger import memory_ledger
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.required_flops import layer_flops
from planner.models.specs import ModelSpec, MultiTokenPrediction
from planner.plans.plan import Phase
from planner.ranks.communication import data_parallel_traffic, optimizer_traffic, shard_ranks
from planner.ranks.placement import PlacedModel, place
from planner.ranks.shard import Elements
from planner.ranks.sharding import padded_vocab_size
from planner.requests.workload import Precision
from planner.search.splits.formulate import skeleton
from profiles.ops import CollectiveKind
from tests.kinds import SEQ_LEN, even_workload, every_model, handmade_models, model_cases

LAWS = settings(max_examples=60, deadline=None)
MODELS = {model.name: model for model in every_model()}
STATES = ("master weights", "optimizer moments")


def layout_of(
    model: ModelSpec,
    *,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    cp: int = 1,
    ep: int = 1,
    zero_stage: int = 1,
    state_replicas: int = 1,
    secondary_shard: int = 1,
) -> Layout:
    """Return a layout with its layers placed evenly."""
    layout = skeleton(
        tp=tp,
        sequence_parallel=tp > 1,
        pp=pp,
        vpp=1,
        dp=dp,
        cp=cp,
        ep=ep,
        zero_stage=zero_stage,
        state_replicas=state_replicas,
        secondary_shard=secondary_shard,
        micro_batch_size=1,
        num_microbatches=2 * pp,
        recompute=Recompute(granularity=Granularity.NONE),
    )
    return replace(layout, stages=stages_from_counts(even_counts(model.num_layers, pp)))


def placed_as(model: ModelSpec, layout: Layout, *, precision: Precision = Precision.BF16) -> PlacedModel:
    workload = even_workload(precision=precision)
    return place(model, build_graph(model, workload), layout, workload, ANY)


def held(placed: PlacedModel, *, rank: int = 0) -> dict[str, int]:
    """Return the bytes of every term of one pipeline rank in forward and backward."""
    first = placed.layout.first_global_rank(rank)
    return {
        line.term: line.num_bytes
        for line in memory_ledger(placed)
        if line.rank == first and line.phase is Phase.FORWARD_BACKWARD
    }


@LAWS
@given(
    model=st.sampled_from(handmade_models()),
    zero_stage=st.sampled_from((1, 2, 3)),
    ep=st.sampled_from((1, 2)),
)
def test_more_groups_that_each_hold_all_states_hold_more_and_reduce_in_smaller_groups(
    model: ModelSpec, zero_stage: int, ep: int
) -> None:
    layouts = [
        layout_of(model, dp=16, ep=ep, zero_stage=zero_stage, state_replicas=replicas) for replicas in (1, 2, 4, 8)
    ]
    assert shard_ranks(layouts[0], zero_stage=1) == (16, 16 // ep), "one group is plain sharding"
    for fewer, more in pairwise(layouts):
        before, after = held(placed_as(model, fewer)), held(placed_as(model, more))
        for name in STATES:
            assert before[name] < after[name] <= 2 * before[name], name
        assert after["weights"] >= before["weights"]
        assert after["gradients"] >= before["gradients"]
        updated = [
            optimizer_traffic(Elements(dense=10**6, expert=10**6), layout, even_workload()).num_bytes
            for layout in (fewer, more)
        ]
        assert updated[0] < updated[1]
    sharded = held(placed_as(model, replace(layouts[0], zero_stage=0)))
    for name in STATES:
        assert held(placed_as(model, layouts[-1]))[name] <= sharded[name]


@st.composite
def hybrids(draw: st.DrawFn) -> Layout:
    """Return a layout whose states are split in groups, one or more of them."""
    return layout_of(
        handmade_models()[0],
        tp=draw(st.sampled_from((1, 2, 4))),
        cp=draw(st.sampled_from((1, 2))),
        dp=draw(st.sampled_from((8, 16))),
        zero_stage=draw(st.sampled_from((1, 2, 3))),
        state_replicas=draw(st.sampled_from((1, 2, 4))),
    )


@LAWS
@given(layout=hybrids(), dense=st.integers(1, 10**9))
def test_gradients_are_scattered_inside_a_group_and_each_part_summed_over_the_groups(
    layout: Layout, dense: int
) -> None:
    tp, replicas = layout.tp, layout.state_replicas
    traffic = data_parallel_traffic(Elements(dense=dense), layout, even_workload())
    group = layout.dp * layout.cp // replicas
    scatter, *sums = traffic.reduce
    assert (scatter.kind, scatter.size, scatter.stride) == (CollectiveKind.REDUCE_SCATTER, group, tp)
    assert scatter.buffer_bytes == 4 * dense
    assert len(sums) == (replicas > 1), "one group has nobody to sum with"
    for part in sums:
        assert (part.kind, part.size, part.stride) == (CollectiveKind.ALL_REDUCE, replicas, tp * group)
        assert part.buffer_bytes == math.ceil(4 * dense / group)
    ((gather),) = traffic.gather
    assert (gather.kind, gather.size, gather.buffer_bytes) == (CollectiveKind.ALL_GATHER, group, 2 * dense)


@LAWS
@given(model=st.sampled_from(handmade_models()), near=st.sampled_from((2, 4, 8)), ep=st.sampled_from((1, 2, 4)))
def test_a_second_copy_costs_memory_and_gathers_nearer_in_backward(model: ModelSpec, near: int, ep: int) -> None:
    plain = layout_of(model, dp=16, ep=ep, zero_stage=3)
    copied = replace(plain, secondary_shard=near)
    before, after = held(placed_as(model, plain)), held(placed_as(model, copied))
    assert "secondary weights" not in before
    elements = placed_as(model, plain).elements(0)
    experts_over = min(near, plain.edp)
    expected = math.ceil(2 * elements.dense / near) + math.ceil(2 * elements.expert / experts_over)
    assert after.pop("secondary weights") == expected
    opened = after.pop("communicators") - before.pop("communicators")
    assert opened == (PAIR_COMMUNICATOR_BYTES if near == 2 else GROUP_COMMUNICATOR_BYTES), "the second copy's own group"
    assert after == before, "nothing else changes"
    traffic = data_parallel_traffic(elements, copied, even_workload())
    assert [part.size for part in traffic.gather] == [
        size for size, count in ((16, elements.dense), (plain.edp, elements.expert)) if count
    ]
    assert [part.size for part in traffic.gather_again] == [
        size for size, count in ((near, elements.dense), (experts_over, elements.expert)) if count
    ]
    assert [part.buffer_bytes for part in traffic.gather_again] == [part.buffer_bytes for part in traffic.gather]


COPIES = {
    Precision.FP8_DELAYED: 2.0,
    Precision.FP8_TENSORWISE: 2.0,
    Precision.FP8_BLOCKWISE: 2.0 + 2 * 4 / 128**2,
    Precision.FP8_MXFP8: 2.0 + 2 / 32,
}


@pytest.mark.parametrize("name", model_cases())
def test_fp8_weights_are_kept_twice_with_the_scales_of_their_recipe(name: str) -> None:
    model = MODELS[name]
    graph = build_graph(model, even_workload())
    operands = sum(
        run.count * sum(weight.num_elements for weight in graph.blocks[run.block].weights if weight.gemm_operand)
        for run in model.runs
    )
    operands += sum(weight.num_elements for weight in graph.head.weights if weight.gemm_operand)
    kept = {
        precision: held(placed_as(model, layout_of(model), precision=precision)).get("fp8 weight copies", 0)
        for precision in Precision
    }
    assert kept[Precision.BF16] == kept[Precision.FP16] == 0
    assert kept[Precision.FP8_DELAYED] == kept[Precision.FP8_TENSORWISE] == 2 * operands
    for precision, each in COPIES.items():
        assert kept[precision] == math.ceil(each * operands), precision
    assert kept[Precision.FP8_MXFP8] - kept[Precision.FP8_DELAYED] == math.ceil(operands / 16)


def without_prediction(model: ModelSpec) -> ModelSpec:
    return replace(model, mtp=None)


def predicting(model: ModelSpec, num_modules: int) -> ModelSpec:
    """Return the model with modules that run its last block."""
    return replace(model, mtp=MultiTokenPrediction(num_modules=num_modules, block=model.runs[-1].block))


@pytest.mark.parametrize("name", model_cases())
def test_each_prediction_module_costs_the_same_parameters_and_flops(name: str) -> None:
    model = without_prediction(MODELS[name])
    workload = even_workload()
    graphs = [build_graph(model, workload)] + [build_graph(predicting(model, n), workload) for n in (1, 2, 3)]
    models = [model, *(predicting(model, n) for n in (1, 2, 3))]
    parameters = [graph_parameters(spec, graph) for spec, graph in zip(models, graphs, strict=True)]
    flops = [layer_flops(graph.head, SEQ_LEN) for graph in graphs]
    for series in (parameters, flops):
        assert {after - before for before, after in pairwise(series)} == {series[1] - series[0]}
    # A block, a projection of twice the width, three norms: of the stream, of the embedding, at the end.
    block = sum(weight.num_elements for weight in graphs[0].blocks[model.runs[-1].block].weights)
    hidden = model.hidden_size
    assert parameters[1] - parameters[0] == block + 2 * hidden**2 + 3 * model.norm.num_vectors * hidden
    of_block = layer_flops(graphs[0].blocks[model.runs[-1].block], SEQ_LEN)
    assert flops[1] - flops[0] == of_block + flops[0] + 6 * SEQ_LEN * 2 * hidden**2


@LAWS
@given(model=st.sampled_from(tuple(MODELS.values())), tp=st.sampled_from((1, 2)), modules=st.integers(0, 2))
def test_the_last_stage_has_a_copy_of_the_embedding_exactly_where_it_reads_one_of_another_stage(
    model: ModelSpec, tp: int, modules: int
) -> None:
    spec = predicting(model, modules) if modules else without_prediction(model)
    table = padded_vocab_size(spec.vocab_size, tp) // tp * spec.hidden_size
    one, two = (placed_as(spec, layout_of(spec, tp=tp, pp=pp)) for pp in (1, 2))
    whole = one.elements(0).total
    stages = two.elements(0).total + two.elements(1).total
    assert stages - whole == (table if spec.copies_embedding else 0)
    assert spec.copies_embedding == (modules > 0 or spec.tie_word_embeddings)
    # The copy is trained as the table itself is, and its gradient is summed with it.
    assert two.rank_model.shared_table_elements == stages - whole
