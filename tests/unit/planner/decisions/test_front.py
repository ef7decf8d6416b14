"""The front of memory and time, against every layout and every split of a small space."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest

from planner.decisions.front import front_of
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.plans.choices import Front
from planner.plans.plan import Plan
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import TrainWorkload
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, prepare
from planner.search.search import search
from planner.search.splits.candidates import Pricer
from planner.search.visit import Visit
from tests.builders import tiny_workload, two_node_cluster, wide_dense_model
from tests.small_spaces import SmallSpace

STEPS = 40

Priced = tuple[int, float]
"""Peak bytes and seconds of a step."""


CLUSTER = two_node_cluster()
RUN: TrainWorkload = replace(tiny_workload(), seq_len=2048)
REQUEST = PlanRequest(
    workload=RUN,
    constraints=Constraints(
        degrees={
            "micro_batch_size": Bounds(allowed=(1,)),
            "vpp": Bounds(allowed=(1,)),
            "tp": Bounds(allowed=(2, 4)),
            "zero_stage": Bounds(allowed=(0, 1)),
            "cp": Bounds(allowed=(1,)),
        }
    ),
    memory_headroom=0.0,
    target=Target.ANY,
    objective=Objective.STEP_TIME,
)


@cache
def planned() -> Plan:
    return search(wide_dense_model(), CLUSTER, REQUEST, top=1)


@cache
def front() -> Front:
    return front_of(planned(), num_steps=STEPS, watch=ignore)


@cache
def everything() -> tuple[Priced, ...]:
    """Return memory and time of every layout of the space under every split of its layers that fits."""
    return tuple(_priced())


def _priced() -> Iterator[Priced]:
    ground = prepare(planned().model, CLUSTER, REQUEST)
    space = SmallSpace(planned().model, RUN, CLUSTER, constraints=REQUEST.constraints)
    pricer = Pricer(ground.table, limit_bytes=ground.limit_bytes)
    for index in range(len(space.points)):
        for layout in space.splits(space.layout(index)):
            peak = peak_memory_bytes(memory_ledger(space.place(layout)))
            if peak <= ground.limit_bytes:
                yield peak, pricer.prices(layout).step_seconds(layout)


def test_the_space_has_something_to_weigh() -> None:
    assert len(everything()) > 100
    assert len(front().points) >= 5


def test_each_point_is_beaten_by_nothing_in_both() -> None:
    for point in front().points:
        assert point.gap == 0.0
        for peak, seconds in everything():
            better = seconds < point.step_seconds * (1 - 1e-9)
            assert not (better and peak <= point.limit_bytes)


def test_everything_is_matched_by_a_point_up_to_the_step_of_memory() -> None:
    for peak, seconds in everything():
        assert any(
            point.step_seconds <= seconds * (1 + 1e-9) and point.peak_memory_bytes <= peak + front().step_bytes
            for point in front().points
        )


def test_points_fall_in_memory_and_rise_in_time_from_the_best_plan() -> None:
    points = front().points
    assert points[0].layout == planned().best.layout
    peaks = [point.peak_memory_bytes for point in points]
    seconds = [point.step_seconds for point in points]
    assert peaks == sorted(set(peaks), reverse=True)
    assert seconds == sorted(set(seconds))
    assert all(point.peak_memory_bytes <= point.limit_bytes for point in points)
    assert all(point.bound_seconds <= point.step_seconds for point in points)


def test_it_ends_where_nothing_fits() -> None:
    assert front().open_below_bytes is None
    least = min(peak for peak, _ in everything())
    assert front().points[-1].peak_memory_bytes <= least + front().step_bytes


def test_a_plan_with_as_much_memory_as_a_point_is_as_fast() -> None:
    for point in front().points[1::3]:
        device = replace(CLUSTER.device, memory_bytes=point.limit_bytes)
        alone = search(planned().model, replace(CLUSTER, device=device), REQUEST, top=1)
        assert alone.best.step_seconds == pytest.approx(point.step_seconds, rel=1e-9)


def test_finer_steps_keep_to_the_front_and_are_no_fewer() -> None:
    finer = front_of(planned(), num_steps=4 * STEPS, watch=ignore)
    assert len(finer.points) >= len(front().points)
    assert finer.step_bytes == pytest.approx(front().step_bytes / 4, rel=1e-6)


def test_where_a_search_decides_nothing_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Ground.visit
    calls: list[int] = []

    def undecided(ground: Ground, *, top: int, watch: Watch, limit_bytes: int) -> Visit:
        calls.append(limit_bytes)
        seen = looked(ground, top=top, watch=watch, limit_bytes=limit_bytes)
        return seen if len(calls) == 1 else replace(seen, candidates=(), unsettled=3)

    monkeypatch.setattr(Ground, "visit", undecided)
    stopped = front_of(planned(), num_steps=STEPS, watch=ignore)
    assert len(stopped.points) == 2
    assert stopped.open_below_bytes == calls[-1]
