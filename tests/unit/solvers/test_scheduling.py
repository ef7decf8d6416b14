"""Scheduling: the span by hand, each constraint broken alone, and CP-SAT against every order."""

import random
from dataclasses import replace

import pytest

from solvers.errors import SolverError
from solvers.scheduling import Orders, Pair, SchedulingLimits, SchedulingProblem, no_orders
from solvers.scheduling_check import broken_constraints, findings, span_seconds
from solvers.scheduling_registry import SCHEDULERS, schedule
from solvers.solution import Status

# Operations 0 and 1 on rank 0, 2 and 3 on rank 1: 0 is needed by 2 after 1 s, 3 by 1 after 2 s.
TWO_RANKS = SchedulingProblem(
    rank_N=(0, 0, 1, 1),
    seconds_N=(2.0, 3.0, 4.0, 1.0),
    added_bytes_N=(5, -5, 7, -7),
    pairs=(
        Pair(before=0, after=2, lag_seconds=1.0),
        Pair(before=2, after=3),
        Pair(before=3, after=1, lag_seconds=2.0),
    ),
    capacity_bytes_R=(5, 7),
)
IN_ORDER = ((0, 1), (2, 3))


def jobs(seed: int, *, ranks: int = 2, number: int = 2, capacity: int = 3) -> SchedulingProblem:
    """Return some jobs that go over all ranks and back, with a chore left on each rank."""
    draw = random.Random(seed)
    operations = [(rank, job, kind) for rank in range(ranks) for job in range(number) for kind in range(3)]
    index = {key: position for position, key in enumerate(operations)}
    pairs = []
    for rank, job, kind in operations:
        if kind < 2:
            pairs.append(Pair(before=index[rank, job, kind], after=index[rank, job, kind + 1]))
            other = rank + 1 if kind == 0 else rank - 1
            if 0 <= other < ranks:
                lag = draw.choice((0.0, 0.25, 0.5))
                pairs.append(Pair(before=index[rank, job, kind], after=index[other, job, kind], lag_seconds=lag))
    return SchedulingProblem(
        rank_N=tuple(rank for rank, _, _ in operations),
        seconds_N=tuple(draw.choice((1.0, 1.5, 2.0, 3.0)) for _ in operations),
        added_bytes_N=tuple((2, -1, -1)[kind] for _, _, kind in operations),
        pairs=tuple(pairs),
        capacity_bytes_R=(capacity,) * ranks,
    )


def test_the_span_by_hand() -> None:
    # Rank 0: 2, then 1 + 4 + 1 + 2 until 3 is there, then 3. Rank 1 lasts 5 in between.
    assert span_seconds(TWO_RANKS, IN_ORDER) == 13.0


def test_the_span_lets_ranks_start_late() -> None:
    # Rank 1 could start at 0 and wait for 10 s; started as late as it can it lasts 2 s, as long as rank 0 for its 10.
    late = SchedulingProblem(
        rank_N=(0, 1, 1),
        seconds_N=(10.0, 1.0, 1.0),
        added_bytes_N=(0, 0, 0),
        pairs=(Pair(before=0, after=2),),
        capacity_bytes_R=(0, 0),
    )
    assert span_seconds(late, ((0,), (1, 2))) == 10.0


def test_ranks_that_need_one_another_share_a_circle() -> None:
    # Rank 0's first is needed by rank 1's last after 5 s, and the other way round: the ends are 1 + 5 + 1 s behind the
    # other's start, whenever that is.
    crossed = SchedulingProblem(
        rank_N=(0, 0, 1, 1),
        seconds_N=(1.0,) * 4,
        added_bytes_N=(0,) * 4,
        pairs=(Pair(before=0, after=3, lag_seconds=5.0), Pair(before=2, after=1, lag_seconds=5.0)),
        capacity_bytes_R=(0, 0),
    )
    assert span_seconds(crossed, ((0, 1), (2, 3))) == 7.0


@pytest.mark.parametrize(
    ("order_R", "capacity", "broken"),
    [
        (IN_ORDER, (5, 7), ()),
        (((0, 1), (2,)), (5, 7), ("order",)),
        (((0, 1), (2, 2)), (5, 7), ("order",)),
        (((1, 0), (2, 3)), (5, 7), ("circle",)),
        (IN_ORDER, (4, 7), ("memory",)),
    ],
)
def test_each_constraint_alone(
    order_R: tuple[tuple[int, ...], ...], capacity: tuple[int, ...], broken: tuple[str, ...]
) -> None:
    assert broken_constraints(replace(TWO_RANKS, capacity_bytes_R=capacity), order_R) == broken


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("capacity", [2, 3, 4])
def test_cp_sat_finds_what_looking_at_every_order_finds(seed: int, capacity: int) -> None:
    problem = jobs(seed, capacity=capacity)
    oracle, found = schedule(problem, solver="exhaustive"), schedule(problem)
    assert oracle.status is Status.OPTIMAL
    assert oracle.span_seconds is not None
    assert found.bound_seconds is not None
    # Spans differ by quarters of a second, far more than rounding to ticks does; the bound is off by that rounding.
    assert found.span_seconds == pytest.approx(oracle.span_seconds, rel=1e-9)
    assert 0.99 * oracle.span_seconds <= found.bound_seconds <= oracle.span_seconds * (1 + 1e-9)
    assert findings(problem, found) == findings(problem, oracle) == ()


def test_nothing_fits_where_a_job_does_not() -> None:
    problem = jobs(0, capacity=1)
    assert {schedule(problem, solver=solver).status for solver in SCHEDULERS} == {Status.INFEASIBLE}


@pytest.mark.parametrize("solver", SCHEDULERS)
def test_operations_that_wait_for_one_another_in_a_circle_have_no_orders(solver: str) -> None:
    circle = replace(TWO_RANKS, pairs=(Pair(before=0, after=2), Pair(before=2, after=0)))
    answer = schedule(circle, solver=solver)
    assert answer == no_orders(solver)
    assert findings(circle, answer) == ()


def short(added_bytes_N: tuple[int, ...], pairs: tuple[tuple[int, int], ...]) -> SchedulingProblem:
    """Return one long operation on a rank of its own, and some that are much shorter than a tick on another."""
    number = len(added_bytes_N)
    return SchedulingProblem(
        rank_N=(*(0,) * number, 1),
        seconds_N=(*(1e-9,) * number, 1.0),
        added_bytes_N=(*added_bytes_N, 0),
        pairs=tuple(Pair(before=before, after=after) for before, after in pairs),
        capacity_bytes_R=(5, 0),
    )


def test_what_is_shorter_than_a_tick_waits_all_the_same() -> None:
    problem = short((0, 0, 0), ((2, 1), (1, 0)))
    found = schedule(problem)
    assert found.order_R == ((2, 1, 0), (3,))
    assert found.span_seconds == 1.0


def test_orders_that_would_break_memory_within_a_tick_are_not_told() -> None:
    # 5 bytes are there, and two operations free 5 each that two others take; CP-SAT sees all at one time.
    problem = short((-5, -5, 5, 5), ())
    with pytest.raises(
        SolverError, match=r"^cp-sat stopped with status orders that break memory under ticks of 0.0001 s"
    ):
        schedule(problem)
    hint = ((0, 1, 2, 3), (4,))
    assert schedule(problem, hint_R=hint).order_R == hint
    assert schedule(problem, solver="exhaustive").order_R == hint


def test_a_search_without_time_has_nothing_to_show() -> None:
    with pytest.raises(
        SolverError, match=r"^cp-sat stopped with status unknown under max_deterministic_seconds = 0.0 "
    ):
        schedule(jobs(0), limits=SchedulingLimits(max_deterministic_seconds=0.0))


def test_a_hint_is_never_lost_and_the_bound_holds() -> None:
    problem = jobs(3, ranks=3, number=4, capacity=4)
    # One job after the other, wherever it goes.
    hint = tuple(
        tuple(sorted(problem.operations(rank), key=lambda index: (index // 3 % 4, index % 3))) for rank in range(3)
    )
    started = span_seconds(problem, hint)
    found = schedule(problem, hint_R=hint, limits=SchedulingLimits(max_deterministic_seconds=0.05))
    assert found.span_seconds is not None
    assert found.bound_seconds is not None
    assert found.bound_seconds <= found.span_seconds <= started
    assert findings(problem, found) == ()
    assert schedule(problem, hint_R=hint, limits=SchedulingLimits(max_deterministic_seconds=0.05)) == found


def test_what_is_known_of_the_span_ends_the_search() -> None:
    problem = jobs(3)
    best = schedule(problem, solver="exhaustive")
    assert best.span_seconds is not None
    known = replace(problem, least_span_seconds=best.span_seconds)
    found = schedule(known, hint_R=best.order_R)
    assert found.status is Status.OPTIMAL
    assert found.bound_seconds == best.span_seconds


def test_bad_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no solver 'guess'; there are cp-sat, exhaustive"):
        schedule(TWO_RANKS, solver="guess")
    with pytest.raises(ValueError, match="the hint breaks circle"):
        schedule(TWO_RANKS, hint_R=((1, 0), (2, 3)))
    with pytest.raises(SolverError, match="400 orders"):
        schedule(jobs(0, capacity=9), solver="exhaustive", limits=SchedulingLimits(max_points=10))
    with pytest.raises(ValueError, match="wait for one another in a circle"):
        span_seconds(TWO_RANKS, ((1, 0), (2, 3)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seconds_N": (1.0,)}, "not of as many operations"),
        ({"seconds_N": (-1.0, 1.0, 1.0, 1.0)}, "a time is negative or not finite"),
        ({"capacity_bytes_R": (1,)}, "every rank has a capacity and an operation"),
        ({"capacity_bytes_R": (1, -1)}, "a capacity is negative"),
        ({"pairs": (Pair(before=0, after=9),)}, "names an operation that is not there"),
    ],
)
def test_problems_are_checked(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TWO_RANKS, **changed)  # type: ignore[arg-type]


def test_answers_are_checked() -> None:
    answer = schedule(TWO_RANKS, solver="exhaustive")
    assert findings(TWO_RANKS, replace(answer, span_seconds=14.0, bound_seconds=14.0)) == (
        "the span is 13.0, not 14.0",
    )
    assert findings(TWO_RANKS, replace(answer, order_R=((1, 0), (2, 3)))) == ("constraint circle is broken",)
    for changed, message in (
        ({"bound_seconds": 20.0}, "exceeds span"),
        ({"bound_seconds": 1.0}, "is not optimal"),
        ({"span_seconds": None}, "have a span and a bound"),
        ({"status": Status.INFEASIBLE}, "an infeasible problem has no orders"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(answer, **changed)
    assert isinstance(answer, Orders)
