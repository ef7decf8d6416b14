"""Laws of the ledger: weights add up, sharding saves, recomputation saves memory and costs time."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings

from planner.graph import graph_parameters
from planner.layout import Granularity, Layout
from planner.memory import memory_ledger, peak_memory_bytes
from planner.plan import Phase
from planner.pricing import price_steps
from planner.sharding import padded_vocab_size
from planner.space import recompute_choices
from tests.small_spaces import SmallSpace, placed_layouts

LAWS = settings(max_examples=50, deadline=None, derandomize=True)
SPLIT_BY_ZERO = ("weights", "gradients", "master weights", "optimizer moments")


def terms(space: SmallSpace, layout: Layout, phase: Phase, rank: int = 0) -> dict[str, int]:
    lines = memory_ledger(space.place(layout))
    return {line.term: line.num_bytes for line in lines if line.phase is phase and line.rank == rank}


@LAWS
@given(placed=placed_layouts())
def test_the_weights_of_all_ranks_are_the_model_plus_replicas_padding_and_a_second_tied_table(
    placed: tuple[SmallSpace, Layout],
) -> None:
    space, layout = placed
    model, graph, tp = space.model, space.graph, layout.tp
    blocks = [weight for block in model.blocks for weight in graph.blocks[block].weights]
    whole = [*graph.embedding.weights, *blocks, *graph.head.weights]
    vocab = padded_vocab_size(model.vocab_size, tp)
    expected = graph_parameters(model, graph)
    expected += (tp - 1) * sum(weight.num_elements for weight in whole if weight.split_dim is None)
    untied = 1 + (not model.tie_word_embeddings)
    expected += (vocab - model.vocab_size) * (untied * model.hidden_size + model.lm_head_bias)
    if model.tie_word_embeddings and layout.pp > 1:
        expected += vocab * model.hidden_size
    held = space.place(layout)
    assert tp * sum(held.elements(rank) for rank in range(layout.pp)) == expected


@LAWS
@given(placed=placed_layouts())
def test_a_higher_zero_stage_never_holds_more_of_what_it_splits(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    stages = [terms(space, replace(layout, zero_stage=stage), Phase.OPTIMIZER_STEP) for stage in range(4)]
    for fewer, more in pairwise(stages):
        assert all(more[name] <= fewer[name] for name in SPLIT_BY_ZERO)
    for name in SPLIT_BY_ZERO:
        assert stages[0][name] <= layout.dp * stages[3][name] < stages[0][name] + layout.dp


@LAWS
@given(placed=placed_layouts())
def test_recomputing_never_keeps_more_and_never_takes_less_time(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    cost_model = space.table.cost_model
    for _, layer in space.place(layout).rank_model.blocks:
        for choice in recompute_choices(space.workload):
            assert layer.saved_bytes(choice) <= layer.all_saved_bytes
            again = price_steps(layer.recomputed_steps(choice), cost_model).total_seconds
            assert (again > 0) == (choice.granularity is not Granularity.NONE)
            if choice.granularity is not Granularity.NONE:
                assert layer.saved_bytes(choice) < layer.all_saved_bytes


@LAWS
@given(placed=placed_layouts())
def test_the_peak_is_the_largest_phase_of_the_heaviest_rank(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    lines = memory_ledger(space.place(layout))
    ranks = {line.rank for line in lines}
    assert ranks == {layout.first_global_rank(rank) for rank in range(layout.pp)}
    totals = [
        sum(line.num_bytes for line in lines if line.rank == rank and line.phase is phase)
        for rank in ranks
        for phase in Phase
    ]
    assert peak_memory_bytes(lines) == max(totals)
    assert all(line.num_bytes >= 0 and line.source for line in lines)
