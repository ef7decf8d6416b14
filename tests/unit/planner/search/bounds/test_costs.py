"""The cost table: what it holds for a layer, and its memory bound at the edge."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.blocks import DenseFeedForward
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.specs import BlockRun, ModelSpec
from planner.ranks.communication import gradient_norm_reduction, optimizer_traffic
from planner.ranks.placement import shard_model
from planner.ranks.pricing import price_steps
from planner.ranks.shard import Elements
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step
from planner.requests.workload import TrainWorkload
from planner.search.bounds.costs import CostTable
from planner.search.space.points import Points
from profiles.analytic import AnalyticCostModel
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace


def small_space(model: ModelSpec | None = None, workload: TrainWorkload | None = None) -> SmallSpace:
    return SmallSpace(model or tiny_dense_model(), workload or tiny_workload(), two_node_cluster())


SPACE = small_space()
LONE = Sharding(tp=1, sequence_parallel=False, micro_batch_size=1, seq_len=128)


def only(points: Points, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Points:
    """Return one point that the mask selects."""
    first = np.zeros(len(points), dtype=np.bool_)
    first[np.flatnonzero(mask)[0]] = True
    return points.where(first)


def test_a_layer_costs_its_steps_and_what_each_choice_runs_again() -> None:
    table = SPACE.table
    sharding = Sharding(tp=2, sequence_parallel=True, micro_batch_size=4, seq_len=128)
    costs = table.shape(sharding)
    layer = shard_model(SPACE.graph, sharding).layers[0]
    seconds = costs.blocks_D[0]

    def pass_seconds(*steps: Step, regions: int = 0) -> float:
        """Return what the kernels take, or the host's launches and restarts if they take longer."""
        kernels = price_steps(steps, table.cost_model).total_seconds
        launches = sum(step.num_launches for step in steps) + 30 * regions
        return max(kernels, launches * table.cost_model.launch_seconds)

    assert seconds.forward_seconds == pytest.approx(pass_seconds(*layer.forward), rel=1e-12)
    for choice, found in zip(table.recomputes, seconds.backward_seconds_R, strict=True):
        if choice.is_per_layer:  # at least what the cheapest choice of a layer takes
            assert found == min(seconds.backward_seconds_R)
            continue
        regions = 1 if choice.granularity is Granularity.FULL else len(choice.modules)
        expected = pass_seconds(*layer.backward, *layer.recomputed_steps(choice), regions=regions)
        assert found == pytest.approx(expected, rel=1e-12)
    more = pass_seconds(*layer.backward, *layer.forward, regions=1) - pass_seconds(*layer.backward)
    assert costs.whole_layer_seconds == pytest.approx(more, rel=1e-12)


def test_a_small_layer_waits_for_the_host_and_a_large_one_does_not() -> None:
    table = SPACE.table
    for micro_batch_size, waits in ((1, True), (4096, False)):
        sharding = Sharding(tp=1, sequence_parallel=False, micro_batch_size=micro_batch_size, seq_len=128)
        layer = shard_model(SPACE.graph, sharding).layers[0]
        kernels = price_steps(layer.forward, table.cost_model).total_seconds
        assert (table.shape(sharding).blocks_D[0].forward_seconds > kernels * (1 + 1e-12)) == waits


def test_the_work_of_a_micro_batch_is_all_layers_and_both_ends() -> None:
    costs = SPACE.table.shape(LONE)
    block, ends = costs.blocks_D[0], (costs.embedding, costs.head)
    expected = 4 * (block.forward_seconds + block.backward_seconds_R[0])
    expected += sum(end.forward_seconds + end.backward_seconds_R[0] for end in ends)
    assert costs.work_seconds_R[0] == pytest.approx(expected, rel=1e-12)


def test_a_shape_is_priced_once() -> None:
    assert SPACE.table.shape(LONE) is SPACE.table.shape(replace(LONE))


@pytest.mark.parametrize("pp", [1, 2, 4])
def test_the_memory_bound_is_met_by_the_lightest_split_and_broken_a_little_below(pp: int) -> None:
    points = SPACE.points
    point = only(points, (points.pp_X == pp) & (points.vpp_X == 1) & (points.recompute_layers_X == 0))
    index = int(np.flatnonzero((points.pp_X == pp) & (points.vpp_X == 1) & (points.recompute_layers_X == 0))[0])
    splits = SPACE.splits(SPACE.layout(index))
    least = min(peak_memory_bytes(memory_ledger(SPACE.place(split))) for split in splits)
    fits_X = SPACE.table.fits_X
    assert fits_X(point, limit_bytes=least + 1_000_000)[0]
    assert fits_X(point, limit_bytes=least)[0]
    # Sound always, and close where layers are alike: a layer of this model takes about a megabyte.
    assert not fits_X(point, limit_bytes=least - 2_000_000)[0]


def test_more_memory_never_holds_fewer_layers() -> None:
    limits = range(1 << 30, 8 << 30, 400_000_000)
    capacities = [SPACE.table.capacity_layers_X(SPACE.points, limit_bytes=limit) for limit in limits]
    for fewer, more in pairwise(capacities):
        assert (fewer <= more).all()
    assert (capacities[0] < 4).all()
    assert (capacities[-1] >= 4).all()


def test_no_points_have_no_costs() -> None:
    nothing = SPACE.points.where(np.zeros(len(SPACE.points), dtype=np.bool_))
    assert len(SPACE.table.bounds(nothing, limit_bytes=1).step_seconds_X) == 0
    assert len(SPACE.table.fits_X(nothing, limit_bytes=1)) == 0


def test_recomputing_raises_the_bound_on_time() -> None:
    points = SPACE.points
    bound_X = SPACE.table.bounds(points, limit_bytes=NO_LIMIT_BYTES).step_seconds_X
    assert (bound_X > 0).all()
    alike = (
        (points.tp_X == 1)
        & (points.cp_X == 1)
        & (points.pp_X == 1)
        & (points.micro_batch_size_X == 2)
        & (points.zero_stage_X == 0)
    )
    alike &= points.recompute_layers_X == 0
    by_choice = dict(zip(points.recompute_X[alike].tolist(), bound_X[alike].tolist(), strict=True))
    nothing, mlp, per_layer, whole = (by_choice[choice] for choice in range(4))
    assert nothing == per_layer < mlp < whole


def test_a_tied_table_counts_once_without_a_pipeline() -> None:
    tied = replace(tiny_dense_model(), tie_word_embeddings=True)
    graph = build_graph(tied, tiny_workload())
    table = CostTable(
        model=tied,
        graph=graph,
        workload=tiny_workload(),
        cost_model=AnalyticCostModel(two_node_cluster()),
        recomputes=SPACE.table.recomputes,
        capabilities=MEGATRON,
    )
    head = table.shape(LONE).rank_model.head_elements
    assert head(pp=2).dense - head(pp=1).dense == 512 * 64


def wide_run() -> SmallSpace:
    """Return a space whose activations outweigh its weights: 8 layers of 4 times 1024 tokens and 512 features."""
    model = replace(tiny_dense_model(num_layers=8), hidden_size=512)
    return small_space(model, replace(tiny_workload(), seq_len=1024, global_batch_size=32))


@pytest.mark.parametrize("step_bytes", [60_000_000, pytest.param(20_000_000, marks=pytest.mark.slow)])
def test_less_memory_never_lowers_the_bound_on_time(step_bytes: int) -> None:
    space = wide_run()
    points = space.points
    limits = (*range(3_300_000_000, 4_200_000_000, step_bytes), NO_LIMIT_BYTES)
    for less, more in pairwise(limits):
        fits_X = space.table.fits_X(points, limit_bytes=less)
        tight_X, loose_X = (
            space.table.bounds(points, limit_bytes=limit).pipeline_seconds_X[fits_X] for limit in (less, more)
        )
        assert (tight_X >= loose_X * (1 - 1e-12)).all()


def test_the_bound_on_time_knows_that_the_first_ranks_have_no_room_for_their_share() -> None:
    space = wide_run()
    points = space.points
    # With 4 micro-batches in flight on the first rank and 1 on the last, 1, 2, 2 and 3 layers need least.
    chosen = (points.pp_X == 4) & (points.vpp_X == 1) & (points.tp_X * points.cp_X == 1)
    chosen &= (points.micro_batch_size_X == 1) & (points.recompute_X == 0) & (points.recompute_layers_X == 0)
    index = int(np.flatnonzero(chosen & (points.zero_stage_X == 1))[0])
    point = points.where(np.arange(len(points)) == index)
    peaks = {
        tuple(stage.num_layers for stage in split.stages): peak_memory_bytes(memory_ledger(space.place(split)))
        for split in space.splits(space.layout(index))
    }
    least = min(peaks, key=lambda counts: peaks[counts])
    assert least == (1, 2, 2, 3)
    tight, loose = (
        space.table.bounds(point, limit_bytes=limit).pipeline_seconds_X[0] for limit in (peaks[least], NO_LIMIT_BYTES)
    )
    assert tight > 1.05 * loose


def two_kinds(*, heavy_first: bool) -> SmallSpace:
    """Return a space of 2 heavy and 6 light layers, of some 64 MB and 1 MB of weights, gradients and states."""
    light = tiny_dense_model().runs[0].block
    assert isinstance(light.feed_forward, DenseFeedForward)
    heavy = replace(light, feed_forward=replace(light.feed_forward, intermediate_size=1 << 14))
    runs = [BlockRun(block=heavy, count=2), BlockRun(block=light, count=6)]
    model = replace(tiny_dense_model(), runs=tuple(runs if heavy_first else reversed(runs)))
    return small_space(model, replace(tiny_workload(), global_batch_size=8))


@pytest.mark.parametrize("heavy_first", [True, False])
def test_heavy_layers_among_light_ones_are_counted_by_what_they_need(heavy_first: bool) -> None:
    space = two_kinds(heavy_first=heavy_first)
    points = space.points
    chosen = (points.pp_X == 2) & (points.vpp_X == 1) & (points.tp_X == 1) & (points.zero_stage_X == 0)
    index = int(np.flatnonzero(chosen & (points.micro_batch_size_X == 1))[0])
    peaks = {
        split.stages[0].num_layers: peak_memory_bytes(memory_ledger(space.place(split)))
        for split in space.splits(space.layout(index))
    }
    point = points.where(np.arange(len(points)) == index)
    # The bound does not know the order of the layers: it finds room for one heavy layer on each rank. Where the heavy
    # layers come first that can be had; where they come last only with 7 of 8 layers on the first rank.
    least = min(peaks.values())
    assert peaks[1 if heavy_first else 7] == least
    assert space.table.fits_X(point, limit_bytes=least)[0]
    assert not space.table.fits_X(point, limit_bytes=least - (1_000 if heavy_first else 10_000_000))[0]


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_an_interleaved_point_fits_just_where_its_one_split_does(every: int) -> None:
    space = wide_run()
    points = space.points
    interleaved = np.flatnonzero((points.vpp_X > 1) & (points.zero_stage_X <= 1))
    assert len(interleaved) > 50
    for index in interleaved[::every]:
        (split,) = space.splits(space.layout(int(index)))
        peak = peak_memory_bytes(memory_ledger(space.place(split)))
        point = points.where(np.arange(len(points)) == index)
        assert space.table.fits_X(point, limit_bytes=peak)[0]
        assert not space.table.fits_X(point, limit_bytes=peak * 9 // 10)[0]


def test_the_tail_is_the_gradient_norm_and_the_optimizer_step_of_an_average_rank() -> None:
    points = SPACE.points
    cost_model = SPACE.table.cost_model
    for pp in (1, 2, 4):
        point = only(points, (points.pp_X == pp) & (points.zero_stage_X == 0) & (points.tp_X == 1))
        index = int(np.flatnonzero((points.pp_X == pp) & (points.zero_stage_X == 0) & (points.tp_X == 1))[0])
        layout = SPACE.layout(index)
        elements = Elements(dense=graph_parameters(SPACE.model, SPACE.graph) // pp)
        expected = cost_model.compute(optimizer_traffic(elements, layout, SPACE.workload)).seconds
        expected += cost_model.collective(gradient_norm_reduction(layout)).seconds
        tail_X = SPACE.table.bounds(point, limit_bytes=NO_LIMIT_BYTES).tail_seconds_X
        assert tail_X[0] == pytest.approx(expected, rel=1e-12)
