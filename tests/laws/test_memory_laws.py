"""Laws of the ledger: weights add up, sharding saves, recomputation saves memory and costs time."""

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings

from planner.layout import Granularity, Layout
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.graph import Mesh, Module, Weight
from planner.models.parameter_counts import graph_parameters
from planner.plans.plan import Phase
from planner.ranks.pricing import price_steps
from planner.ranks.sharding import padded_vocab_size
from planner.search.space.dimensions import divisors, recompute_choices
from tests.examples import examples
from tests.small_spaces import SmallSpace, placed_layouts

LAWS = settings(max_examples=examples(few=20, many=50), deadline=None, derandomize=True)
SPLIT_BY_ZERO = ("weights", "gradients", "master weights", "optimizer moments")


def terms(space: SmallSpace, layout: Layout, phase: Phase, rank: int = 0) -> dict[str, int]:
    lines = memory_ledger(space.place(layout))
    return {line.term: line.num_bytes for line in lines if line.phase is phase and line.rank == rank}


@LAWS
@given(placed=placed_layouts())
def test_the_weights_of_all_ranks_are_the_model_plus_replicas_padding_and_a_second_table(
    placed: tuple[SmallSpace, Layout],
) -> None:
    space, layout = placed
    model, graph, tp, etp = space.model, space.graph, layout.tp, layout.etp
    blocks = [weight for block in model.blocks for weight in graph.blocks[block].weights]
    whole = [*graph.embedding.weights, *blocks, *graph.head.weights]
    own = [weight for weight in whole if not weight.shared_with_embedding]
    assert sum(weight.num_elements for weight in own) == graph_parameters(model, graph)
    vocab = padded_vocab_size(model.vocab_size, tp, divisor=space.capabilities.vocab_divisor)

    def padded(weight: Weight) -> int:
        if weight.vocab_dim is None:
            return weight.num_elements
        return weight.num_elements // model.vocab_size * vocab

    def on_all_ranks(weight: Weight) -> int:
        """Return the elements on one replica of the model: tp times etp ranks, over which each is split or not."""
        ranks = etp if weight.mesh is Mesh.EXPERT else tp
        return padded(weight) * (1 if weight.split_dim is not None else ranks)

    held = space.place(layout)
    elements = [held.elements(rank) for rank in range(layout.pp)]
    dense = sum(on_all_ranks(weight) for weight in own if weight.mesh is Mesh.DENSE)
    # Across a pipeline the head's rank needs the embedding table too, once however often it uses it.
    if layout.pp > 1 and model.copies_embedding:
        dense += max(on_all_ranks(weight) for weight in whole if weight.shared_with_embedding)
    expert = sum(on_all_ranks(weight) for weight in own if weight.mesh is Mesh.EXPERT)
    assert tp * sum(part.dense for part in elements) == dense
    assert etp * layout.ep * sum(part.expert for part in elements) == expert


@LAWS
@given(placed=placed_layouts())
def test_a_higher_zero_stage_never_holds_more_of_what_it_splits(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    whole = replace(layout, state_replicas=1, secondary_shard=1)
    stages = [terms(space, replace(whole, zero_stage=stage), Phase.OPTIMIZER_STEP) for stage in range(4)]
    for fewer, more in pairwise(stages):
        assert all(more[name] <= fewer[name] for name in SPLIT_BY_ZERO)
    elements = space.place(layout).elements(0)
    ranks, expert_ranks = layout.dp * layout.cp, layout.edp if elements.expert else 1
    for name in SPLIT_BY_ZERO:
        assert stages[0][name] <= max(ranks, expert_ranks) * stages[3][name]
        assert min(ranks, expert_ranks if elements.expert else ranks) * (stages[3][name] - 2) <= stages[0][name]


@LAWS
@given(placed=placed_layouts())
def test_shards_in_groups_hold_between_what_all_ranks_split_and_the_whole(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    zero = max(layout.zero_stage, 1)
    spread = replace(layout, zero_stage=zero, state_replicas=1, secondary_shard=1)
    groups = [groups for groups in divisors(layout.dp * layout.cp) if layout.edp % groups == 0]
    held = [terms(space, replace(spread, state_replicas=number), Phase.OPTIMIZER_STEP) for number in groups]
    whole = terms(space, replace(spread, zero_stage=0), Phase.OPTIMIZER_STEP)
    for fewer, more in pairwise(held):
        assert all(fewer[name] <= more[name] for name in SPLIT_BY_ZERO)
    assert all(held[-1][name] <= whole[name] for name in SPLIT_BY_ZERO)
    if not space.model.has_experts:
        assert all(held[-1][name] == whole[name] for name in SPLIT_BY_ZERO)


@LAWS
@given(placed=placed_layouts())
def test_recomputing_never_keeps_more_and_never_takes_less_time(placed: tuple[SmallSpace, Layout]) -> None:
    space, layout = placed
    cost_model = space.table.cost_model
    for layer in space.place(layout).rank_model.layers:
        for choice in recompute_choices(space.graph, space.workload, space.capabilities):
            if choice.is_per_layer:
                continue
            runs_again = bool(layer.recomputed_operators(choice))
            assert layer.saved_bytes(choice) <= layer.all_saved_bytes
            again = price_steps(layer.recomputed_steps(choice), cost_model).total_seconds
            assert (again > 0) == runs_again
            # Frozen experts keep the input of their activation alone, which is all that recomputing it would save.
            frozen = space.workload.lora is not None and choice.modules == (Module.MOE_ACTIVATION.value,)
            if runs_again and not frozen:
                assert layer.saved_bytes(choice) < layer.all_saved_bytes
            if choice.granularity is not Granularity.SELECTIVE:
                assert runs_again == (choice.granularity is Granularity.FULL)


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
