"""Laws of the search: its bounds are below everything they stand for, its account is complete, its plans fit."""

import math
from dataclasses import fields, replace
from itertools import islice

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import evaluate
from planner.layout import Granularity, Layout
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan, Status
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import TrainWorkload
from planner.search.search import search
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Points
from planner.search.splits.candidates import Candidate, PointBound, Rejected
from profiles.hardware import Cluster
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.laws.test_cost_laws import improved
from tests.small_spaces import (
    EVERY_DEGREE,
    NO_LIMIT_BYTES,
    SmallSpace,
    mixed_models,
    models,
    points_of_small_spaces,
    spaces,
    workloads,
)

LAWS = settings(max_examples=examples(few=15, many=60), deadline=None, derandomize=True)
SEARCH_LAWS = settings(
    max_examples=examples(few=4, many=12), deadline=None, derandomize=True
)  # each example searches a space or two
ROUNDING = 1e-12


def priced(space: SmallSpace, layout: Layout) -> tuple[int, float]:
    """Return (peak bytes, step seconds) of a placed layout, by the independent evaluator."""
    evaluation = evaluate(space.place(layout), space.table.cost_model)
    return evaluation.peak_memory_bytes, evaluation.step_seconds


def alone(space: SmallSpace, index: int) -> Points:
    return space.points.where(np.arange(len(space.points)) == index)


def bound_of(space: SmallSpace, index: int, *, limit_bytes: int) -> PointBound:
    bounds = space.table.bounds(alone(space, index), limit_bytes=limit_bytes)
    return PointBound(
        pipeline_seconds=float(bounds.pipeline_seconds_X[0]), tail_seconds=float(bounds.tail_seconds_X[0])
    )


@LAWS
@given(point=points_of_small_spaces())
def test_bounds_are_sound_for_every_split_at_every_limit_that_some_split_just_meets(
    point: tuple[SmallSpace, int],
) -> None:
    space, index = point
    prices = [priced(space, split) for split in space.splits(space.layout(index))]
    for limit in sorted({peak for peak, _ in prices} | {NO_LIMIT_BYTES}):
        fastest = min(seconds for peak, seconds in prices if peak <= limit)
        assert space.table.fits_X(alone(space, index), limit_bytes=limit)[0]
        assert bound_of(space, index, limit_bytes=limit).step_seconds <= fastest * (1 + ROUNDING)


@LAWS
@given(point=points_of_small_spaces(), data=st.data())
def test_a_points_price_is_right_even_where_memory_is_just_enough(
    point: tuple[SmallSpace, int], data: st.DataObject
) -> None:
    space, index = point
    layout = space.layout(index)
    prices = [priced(space, split) for split in space.splits(layout)]
    # The limit is the exact peak of some split, or one byte less than all of them need.
    least = min(peak for peak, _ in prices)
    limit = data.draw(st.sampled_from([peak for peak, _ in prices] + [least - 1]))
    fitting = [seconds for peak, seconds in prices if peak <= limit]
    bound = bound_of(space, index, limit_bytes=limit)
    outcome = space.pricer(limit).price(layout, bound=bound, ceiling_seconds=math.inf)
    if fitting:
        below = outcome.bound_seconds if isinstance(outcome, Rejected) else outcome.lower_bound_seconds
        assert below <= min(fitting) * (1 + ROUNDING)
    else:
        assert isinstance(outcome, Rejected)
        assert not outcome.fits
    if isinstance(outcome, Candidate):
        peak, seconds = priced(space, outcome.layout)
        assert peak == outcome.peak_memory_bytes <= limit
        assert math.isclose(seconds, outcome.step_seconds, rel_tol=1e-9)


@LAWS
@given(point=points_of_small_spaces(), data=st.data(), granularity=st.sampled_from((None, *Granularity)))
def test_no_mesh_is_dropped_that_has_a_use_which_fits(
    point: tuple[SmallSpace, int], data: st.DataObject, granularity: Granularity | None
) -> None:
    space, index = point
    split = data.draw(st.sampled_from(list(space.splits(space.layout(index)))))
    limit, _ = priced(space, split)
    allowed = None if granularity is None else (granularity.value,)
    scope = replace(space.scope, constraints=replace(space.scope.constraints, recompute=allowed))
    every = enumerate_layouts(scope)
    found = enumerate_layouts(scope, may_fit=lambda points: space.table.fits_X(points, limit_bytes=limit))
    assert found.considered == every.considered
    assert sum(found.pruned.values()) + len(found.points) + found.unfit == every.considered
    kept = set(map(tuple, columns_of(found.points)))
    dropped = [row for row in map(tuple, columns_of(every.points)) if row not in kept]
    if allowed is None or split.recompute.granularity.value in allowed:
        assert tuple(columns_of(alone(space, index))[0]) in kept
    assert len(dropped) + len(found.unsimulated) <= found.unfit + len(every.unsimulated)


@LAWS
@given(point=points_of_small_spaces())
def test_no_mesh_is_dropped_at_the_least_memory_that_a_use_of_it_needs(point: tuple[SmallSpace, int]) -> None:
    space, index = point
    points = space.points
    mesh = ("tp", "cp", "ulysses", "pp", "ep", "etp", "vpp")
    alike_X = points.recompute_X == points.recompute_X.max()
    alike_X &= points.micro_batch_size_X == 1
    for name in mesh:
        column_X = getattr(points, f"{name}_X")
        alike_X &= column_X == column_X[index]
    frugal = np.flatnonzero(alike_X).tolist()
    assume(frugal)
    least = min(priced(space, split)[0] for use in frugal for split in space.splits(space.layout(use)))
    found = enumerate_layouts(space.scope, may_fit=lambda some: space.table.fits_X(some, limit_bytes=least))
    kept = {tuple(row) for row in columns_of(found.points)}
    assert {tuple(columns_of(alone(space, use))[0]) for use in frugal} <= kept


def columns_of(points: Points) -> list[list[int]]:
    """Return every number of each point."""
    rows: list[list[int]] = np.stack([getattr(points, entry.name) for entry in fields(points)], axis=1).tolist()
    return rows


@settings(max_examples=examples(few=6, many=20), deadline=None, derandomize=True)
@given(space=spaces(), seed=st.integers(0, 1000), part=st.floats(1.0, 1.2))
def test_many_points_are_bounded_together_as_each_is_alone(space: SmallSpace, seed: int, part: float) -> None:
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(space.points), size=min(len(space.points), 60), replace=False)
    points = space.points.where(chosen)
    limit = int(part * priced(space, next(space.splits(space.layout(int(chosen[0])))))[0])
    fits_X = space.table.fits_X(points, limit_bytes=limit)
    together_X = space.table.bounds(points, limit_bytes=limit).step_seconds_X
    for place, index in enumerate(chosen.tolist()):
        assert fits_X[place] == space.table.fits_X(alone(space, index), limit_bytes=limit)[0]
        found = bound_of(space, index, limit_bytes=limit).step_seconds
        assert math.isclose(together_X[place], found, rel_tol=1e-12)


def request(workload: TrainWorkload, *, headroom: float = 0.0) -> PlanRequest:
    return PlanRequest(
        workload=workload,
        constraints=Constraints(),
        memory_headroom=headroom,
        target=Target.ANY,
        objective=Objective.STEP_TIME,
    )


def sized(cluster: Cluster, memory_bytes: int) -> Cluster:
    return replace(cluster, device=replace(cluster.device, memory_bytes=memory_bytes))


def best_seconds(plan: Plan) -> float:
    return plan.best.step_seconds if plan.plans else math.inf


MEMORIES = st.integers(2_000_000_000, 4_500_000_000)  # what the libraries alone take, to what is ample here


@SEARCH_LAWS
@given(model=models(), workload=workloads(), memory_bytes=MEMORIES)
def test_a_plan_accounts_for_every_point_and_keeps_its_promises(
    model: ModelSpec, workload: TrainWorkload, memory_bytes: int
) -> None:
    cluster = sized(two_node_cluster(), memory_bytes)
    plan = search(model, cluster, request(workload), top=3)
    account = plan.search
    assert sum(account.pruned.values()) + account.simulated == account.considered
    assert account.simulated <= account.legal <= account.considered
    if not plan.plans:
        assert plan.status is Status.INFEASIBLE
        assert plan.infeasible is not None
        assert plan.infeasible.shortfall_bytes > 0
        return
    seconds = [planned.step_seconds for planned in plan.plans]
    assert seconds == sorted(seconds)
    assert plan.bound is not None
    assert plan.gap is not None
    assert plan.bound <= seconds[0] * (1 + ROUNDING)
    assert (plan.status is Status.OPTIMAL) == (plan.gap <= 1e-6)
    for planned in plan.plans:
        assert planned.peak_memory_bytes <= planned.memory_limit_bytes == memory_bytes
        assert math.isclose(planned.step_seconds, planned.reevaluated_step_seconds, rel_tol=1e-9)
        assert planned.layout.world_size == cluster.world_size
        assert planned.layout.global_batch_size == workload.global_batch_size
        assert sum(stage.num_layers for stage in planned.layout.stages) == model.num_layers
    if plan.baseline is not None:
        assert plan.baseline.peak_memory_bytes <= memory_bytes
        assert plan.best.step_seconds <= plan.baseline.step_seconds * (1 + ROUNDING)


@SEARCH_LAWS
@given(model=models(), workload=workloads(), memory_bytes=MEMORIES, more=st.floats(1.0, 2.0))
def test_more_memory_never_worsens_the_best_plan(
    model: ModelSpec, workload: TrainWorkload, memory_bytes: int, more: float
) -> None:
    """States go to the hosts only where nothing fits without, so what is in one place is held against its like."""
    cluster = two_node_cluster()
    on_gpus = replace(request(workload), constraints=Constraints(optimizer_offload=(0.0,)))
    small = search(model, sized(cluster, memory_bytes), on_gpus, top=1)
    assume(small.plans)
    large = search(model, sized(cluster, int(memory_bytes * more)), on_gpus, top=1)
    assert best_seconds(large) <= best_seconds(small) * (1 + ROUNDING)


@SEARCH_LAWS
@given(model=models(), workload=workloads(), link=st.sampled_from(("nvlink", "rail")), factor=st.floats(1.0, 8.0))
def test_a_faster_link_never_worsens_the_best_plan(
    model: ModelSpec, workload: TrainWorkload, link: str, factor: float
) -> None:
    cluster = two_node_cluster()
    before = search(model, cluster, request(workload), top=1)
    after = search(model, improved(cluster, link, factor), request(workload), top=1)
    assert best_seconds(after) <= best_seconds(before) * (1 + ROUNDING)


@settings(max_examples=examples(few=2, many=5), deadline=None, derandomize=True)
@given(model=models(), workload=workloads(), memory_bytes=MEMORIES)
def test_searching_again_gives_the_same_plan(model: ModelSpec, workload: TrainWorkload, memory_bytes: int) -> None:
    cluster = sized(two_node_cluster(), memory_bytes)
    assert search(model, cluster, request(workload)) == search(model, cluster, request(workload))


@settings(max_examples=examples(few=4, many=12), deadline=None, derandomize=True)
@given(
    model=mixed_models(most_layers=5),
    workload=workloads(),
    ample=st.floats(1.0, 1.1),
    seed=st.integers(0, 1000),
)
def test_no_layout_of_mixed_layers_on_any_grid_beats_the_bound(
    model: ModelSpec, workload: TrainWorkload, ample: float, seed: int
) -> None:
    space = SmallSpace(model, workload, two_node_cluster())
    assume(len(space.points))
    generator = np.random.default_rng(seed)
    most = examples(few=60, many=300)
    chosen = generator.choice(len(space.points), size=min(len(space.points), most), replace=False).tolist()
    some = [priced(space, split) for index in chosen for split in islice(space.splits(space.layout(index)), 5)]
    # The limit is near the least that any of them needs.
    limit = int(min(peak for peak, _ in some) * ample)
    constrained = replace(request(workload), constraints=EVERY_DEGREE)
    plan = search(model, sized(space.cluster, limit), constrained, top=1)
    assert plan.bound is not None
    assert plan.bound <= min(seconds for peak, seconds in some if peak <= limit) * (1 + ROUNDING)
    peak, seconds = priced(space, plan.best.layout)
    assert peak == plan.best.peak_memory_bytes <= limit
    assert math.isclose(seconds, plan.best.step_seconds, rel_tol=1e-9)
