"""The rule of thumb: the least tensor and pipeline parallelism that fits and is not starved, nothing else tried."""

from dataclasses import replace
from functools import cache

import pytest

from planner.layout import ContextKind, Granularity, Layout, even_counts, stages_from_counts
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.request import Bounds, Constraints, Target
from planner.search.baseline import baseline_layout
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.small_spaces import EVERY_DEGREE, SmallSpace


def heavy_model() -> ModelSpec:
    """Return a model of some 0.8 GB of states a layer, so that memory decides."""
    model = tiny_dense_model()
    block = model.runs[0].block
    assert isinstance(block.feed_forward, DenseFeedForward)
    wide = replace(block.feed_forward, intermediate_size=1 << 18)
    return replace(model, runs=(BlockRun(block=replace(block, feed_forward=wide), count=4),))


def heavy_experts() -> ModelSpec:
    """Return a model of 8 experts a layer that are a quarter as wide."""
    expert = DenseFeedForward(intermediate_size=1 << 16, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=8, experts_per_token=2, expert=expert, router=Router())
    block = replace(tiny_dense_model().runs[0].block, feed_forward=experts)
    return replace(tiny_dense_model(), runs=(BlockRun(block=block, count=4),))


# 4 sequences: at tp 1 every pipeline has fewer micro-batches than stages.
FOUR = replace(tiny_workload(), global_batch_size=4)
NAMES = ("dense", "experts", "long")


@cache
def space_of(name: str) -> SmallSpace:
    """Return the space of dense layers, of experts, or of sequences of which 4 ranks may have 1024 tokens each."""
    long = Constraints(degrees={"tp": Bounds(minimum=1)})
    return SmallSpace(
        heavy_experts() if name == "experts" else heavy_model(),
        replace(FOUR, seq_len=4096) if name == "long" else FOUR,
        two_node_cluster(),
        target=Target.MEGATRON,
        constraints=long if name == "long" else EVERY_DEGREE,
    )


def thumb_layouts(space: SmallSpace) -> list[Layout]:
    """Return every layout that the rule allows, in its order, from the degrees alone."""

    def is_allowed(layout: Layout) -> bool:
        # Without experts ep and etp are 1, and edp says nothing.
        replicas = max(layout.dp * layout.cp, layout.edp if space.model.has_experts else 1)
        return (
            layout.vpp == layout.micro_batch_size == layout.etp == layout.state_replicas == layout.secondary_shard == 1
            and layout.tp <= 4  # the fast domain
            and layout.recompute.num_layers is None
            and (layout.zero_stage == 1 or replicas == 1)
            and layout.sequence_parallel == (layout.tp > 1)
            and layout.cp_kind in (None, ContextKind.RING)
            and (layout.cp == 1 or space.workload.seq_len >= (2048 if space.model.has_experts else 1024) * layout.cp)
        )

    def order(layout: Layout) -> tuple[int, ...]:
        starved = layout.num_microbatches < layout.pp
        recompute = space.table.recomputes.index(layout.recompute)
        return (starved, recompute, abs(layout.ep - 4), layout.cp, layout.tp, layout.pp)

    layouts = [space.layout(index) for index in range(len(space.points))]
    allowed = sorted((layout for layout in layouts if is_allowed(layout)), key=order)
    return [replace(thumb, stages=stages_from_counts(even_counts(4, thumb.pp))) for thumb in allowed]


@cache
def peaks_of(name: str) -> list[tuple[int, Layout]]:
    """Return every layout that the rule allows, in its order, with what it needs."""
    space = space_of(name)
    return [(peak_memory_bytes(memory_ledger(space.place(layout))), layout) for layout in thumb_layouts(space)]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_first_of_its_order_that_fits_even_just(name: str) -> None:
    space = space_of(name)
    for limit in sorted({peak for peak, _ in peaks_of(name)}):
        expected = next(layout for size, layout in peaks_of(name) if size <= limit)
        assert baseline_layout(space.pricer(limit), space.cluster) == expected, limit


@pytest.mark.parametrize("name", NAMES)
def test_nothing_fits_below_the_least_peak(name: str) -> None:
    least = min(size for size, _ in peaks_of(name))
    assert baseline_layout(space_of(name).pricer(least - 1), space_of(name).cluster) is None


def test_with_ample_memory_it_is_data_parallelism_alone() -> None:
    space = SmallSpace(heavy_model(), tiny_workload(), two_node_cluster())
    layout = baseline_layout(space.pricer(), space.cluster)
    assert layout is not None
    assert (layout.tp, layout.pp, layout.dp, layout.zero_stage, layout.micro_batch_size) == (1, 1, 8, 1, 1)
    assert layout.recompute.granularity is Granularity.NONE


def test_experts_are_spread_over_one_fast_domain() -> None:
    space = SmallSpace(heavy_experts(), tiny_workload(), two_node_cluster(), target=Target.MEGATRON)
    layout = baseline_layout(space.pricer(), space.cluster)
    assert layout is not None
    assert (layout.tp, layout.pp, layout.dp, layout.ep, layout.etp, layout.edp) == (1, 1, 8, 4, 1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_memory_pressure_leads_to_more_than_one_answer(name: str) -> None:
    space = space_of(name)
    limits = sorted({size for size, _ in peaks_of(name)})
    limits = limits[:: max(len(limits) // 8, 1)]
    assert len({baseline_layout(space.pricer(limit), space.cluster) for limit in limits}) >= 3


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [(8, 4, (2, 2, 2, 2)), (10, 4, (2, 3, 3, 2)), (9, 4, (2, 3, 2, 2)), (11, 4, (3, 3, 3, 2)), (3, 3, (1, 1, 1))],
)
def test_even_counts_leave_the_ends_light(num_layers: int, num_stages: int, counts: tuple[int, ...]) -> None:
    assert even_counts(num_layers, num_stages) == counts
