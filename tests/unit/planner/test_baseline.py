"""The rule of thumb: the least tensor and pipeline parallelism that fits and is not starved, nothing else tried."""

from dataclasses import replace

import pytest

from planner.baseline import baseline_layout
from planner.layout import Granularity, Layout, even_counts, stages_from_counts
from planner.memory import memory_ledger, peak_memory_bytes
from planner.space import divisors
from planner.specs import BlockRun, ModelSpec
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.small_spaces import SmallSpace


def heavy_model() -> ModelSpec:
    """Return a model of some 0.8 GB of states a layer, so that memory decides."""
    model = tiny_dense_model()
    block = model.runs[0].block
    assert block.feed_forward is not None
    wide = replace(block.feed_forward, intermediate_size=1 << 18)
    return replace(model, runs=(BlockRun(block=replace(block, feed_forward=wide), count=4),))


# 4 sequences: at tp 1 every pipeline has fewer micro-batches than stages.
SPACE = SmallSpace(heavy_model(), replace(tiny_workload(), global_batch_size=4), two_node_cluster())


def peak(layout: Layout) -> int:
    return peak_memory_bytes(memory_ledger(SPACE.place(layout)))


def thumb_layouts() -> list[Layout]:
    """Return every layout that the rule allows, in its order, from the degrees alone."""
    by_degrees = {}
    for index in range(len(SPACE.points)):
        layout = SPACE.layout(index)
        plain = layout.vpp == 1 and layout.micro_batch_size == 1 and layout.recompute.num_layers is None
        sharded = layout.zero_stage == 1 or layout.dp == 1
        if plain and sharded and layout.sequence_parallel == (layout.tp > 1):
            by_degrees[layout.recompute, layout.tp, layout.pp] = layout
    allowed = [  # the fast domain has 4 GPUs
        thumb
        for starved in (False, True)
        for recompute in SPACE.table.recomputes
        for tp in (1, 2, 4)
        for pp in divisors(8 // tp)
        if (thumb := by_degrees.get((recompute, tp, pp))) is not None and (thumb.num_microbatches < thumb.pp) == starved
    ]
    return [replace(thumb, stages=stages_from_counts(even_counts(4, thumb.pp))) for thumb in allowed]


PEAKS = [(peak(layout), layout) for layout in thumb_layouts()]


@pytest.mark.parametrize("limit", sorted({peak for peak, _ in PEAKS}))
def test_it_is_the_first_of_its_order_that_fits_even_just(limit: int) -> None:
    expected = next(layout for size, layout in PEAKS if size <= limit)
    assert baseline_layout(SPACE.pricer(limit), SPACE.cluster) == expected


def test_nothing_fits_below_the_least_peak() -> None:
    least = min(size for size, _ in PEAKS)
    assert baseline_layout(SPACE.pricer(least - 1), SPACE.cluster) is None


def test_with_ample_memory_it_is_data_parallelism_alone() -> None:
    space = SmallSpace(heavy_model(), tiny_workload(), two_node_cluster())
    layout = baseline_layout(space.pricer(), space.cluster)
    assert layout is not None
    assert (layout.tp, layout.pp, layout.dp, layout.zero_stage, layout.micro_batch_size) == (1, 1, 8, 1, 1)
    assert layout.recompute.granularity is Granularity.NONE


def test_memory_pressure_leads_to_more_than_one_answer() -> None:
    answers = {baseline_layout(SPACE.pricer(size), SPACE.cluster) for size, _ in PEAKS}
    assert len(answers) >= 3


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "counts"),
    [(8, 4, (2, 2, 2, 2)), (10, 4, (2, 3, 3, 2)), (9, 4, (2, 3, 2, 2)), (11, 4, (3, 3, 3, 2)), (3, 3, (1, 1, 1))],
)
def test_even_counts_leave_the_ends_light(num_layers: int, num_stages: int, counts: tuple[int, ...]) -> None:
    assert even_counts(num_layers, num_stages) == counts
