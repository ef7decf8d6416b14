"""The cost table: what it holds for a layer, and its memory bound at the edge."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.communication import gradient_norm_reduction, optimizer_traffic
from planner.costs import CostTable, Shape
from planner.graph import graph_parameters
from planner.layers import build_graph
from planner.layout import Granularity, Recompute
from planner.memory import memory_ledger, peak_memory_bytes
from planner.placement import shard_model
from planner.pricing import price_steps
from planner.sharding import Sharding
from planner.space import Points
from planner.specs import ModelSpec
from planner.workload import TrainWorkload
from profiles.analytic import AnalyticCostModel
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.small_spaces import SmallSpace


def small_space(model: ModelSpec | None = None, workload: TrainWorkload | None = None) -> SmallSpace:
    return SmallSpace(model or tiny_dense_model(), workload or tiny_workload(), two_node_cluster())


SPACE = small_space()


def only(points: Points, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Points:
    """Return one point that the mask selects."""
    first = np.zeros(len(points), dtype=np.bool_)
    first[np.flatnonzero(mask)[0]] = True
    return points.where(first)


def test_a_layer_costs_its_steps_and_what_each_choice_runs_again() -> None:
    table = SPACE.table
    costs = table.shape(Shape(tp=2, sequence_parallel=True, micro_batch_size=4))
    sharding = Sharding(tp=2, sequence_parallel=True, cp=1, micro_batch_size=4, seq_len=128)
    layer = shard_model(SPACE.graph, sharding).blocks[0][1]
    seconds = costs.blocks_D[0]
    assert seconds.forward_seconds == price_steps(layer.forward, table.cost_model).total_seconds
    backward = price_steps(layer.backward, table.cost_model).total_seconds
    for choice, found in zip(table.recomputes, seconds.backward_seconds_R, strict=True):
        again = price_steps(layer.recomputed_steps(choice), table.cost_model).total_seconds
        assert found == backward + again
    full = table.recomputes.index(Recompute(granularity=Granularity.FULL))
    assert seconds.backward_seconds_R[full] == pytest.approx(backward + seconds.forward_seconds, rel=1e-12)
    assert costs.whole_layer_seconds == pytest.approx(seconds.forward_seconds, rel=1e-12)


def test_the_work_of_a_micro_batch_is_all_layers_and_both_ends() -> None:
    costs = SPACE.table.shape(Shape(tp=1, sequence_parallel=False, micro_batch_size=1))
    block, ends = costs.blocks_D[0], (costs.embedding, costs.head)
    expected = 4 * (block.forward_seconds + block.backward_seconds_R[0])
    expected += sum(end.forward_seconds + end.backward_seconds_R[0] for end in ends)
    assert costs.work_seconds_R[0] == pytest.approx(expected, rel=1e-12)


def test_a_shape_is_priced_once() -> None:
    shape = Shape(tp=1, sequence_parallel=False, micro_batch_size=1)
    assert SPACE.table.shape(shape) is SPACE.table.shape(shape)


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
    limits = range(1 << 30, 5 << 30, 200_000_000)
    capacities = [SPACE.table.capacity_layers_X(SPACE.points, limit_bytes=limit) for limit in limits]
    for fewer, more in pairwise(capacities):
        assert (fewer <= more).all()
    assert (capacities[0] < 4).all()
    assert (capacities[-1] >= 4).all()


def test_no_points_have_no_costs() -> None:
    nothing = SPACE.points.where(np.zeros(len(SPACE.points), dtype=np.bool_))
    assert len(SPACE.table.bounds(nothing).step_seconds_X) == 0
    assert len(SPACE.table.fits_X(nothing, limit_bytes=1)) == 0


def test_recomputing_raises_the_bound_on_time() -> None:
    points = SPACE.points
    bound_X = SPACE.table.bounds(points).step_seconds_X
    assert (bound_X > 0).all()
    alike = (points.tp_X == 1) & (points.pp_X == 1) & (points.micro_batch_size_X == 2) & (points.zero_stage_X == 0)
    alike &= points.recompute_layers_X == 0
    by_choice = dict(zip(points.recompute_X[alike].tolist(), bound_X[alike].tolist(), strict=True))
    assert by_choice[0] < by_choice[1] < by_choice[2]


def test_a_tied_table_counts_once_without_a_pipeline() -> None:
    tied = replace(tiny_dense_model(), tie_word_embeddings=True)
    graph = build_graph(tied, tiny_workload())
    table = CostTable(
        model=tied,
        graph=graph,
        workload=tiny_workload(),
        cost_model=AnalyticCostModel(two_node_cluster()),
        recomputes=SPACE.table.recomputes,
    )
    facts = table.shape(Shape(tp=1, sequence_parallel=False, micro_batch_size=1)).layer_bytes()
    assert facts["head trainable"] - facts["lone head trainable"] == 512 * 64


def wide_run() -> SmallSpace:
    """Return a space whose activations outweigh its weights: 8 layers of 4 times 1024 tokens and 512 features."""
    model = replace(tiny_dense_model(num_layers=8), hidden_size=512)
    return small_space(model, replace(tiny_workload(), seq_len=1024, global_batch_size=32))


def test_an_interleaved_point_fits_just_where_its_one_split_does() -> None:
    space = wide_run()
    points = space.points
    interleaved = np.flatnonzero((points.vpp_X > 1) & (points.zero_stage_X <= 1))
    assert len(interleaved) > 50
    for index in interleaved:
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
        elements = graph_parameters(SPACE.model, SPACE.graph) // pp
        expected = cost_model.compute(optimizer_traffic(elements, layout, SPACE.workload)).seconds
        expected += cost_model.collective(gradient_norm_reduction(layout)).seconds
        assert SPACE.table.bounds(point).tail_seconds_X[0] == pytest.approx(expected, rel=1e-12)
