"""Paced shares: what sets the pace, what a problem refuses, and what a checker finds in a tampered answer."""

from dataclasses import replace

import pytest

from solvers.errors import SolverError
from solvers.paced.check import broken_answer
from solvers.paced.problem import Link, PacedProblem
from solvers.paced.registry import PACED_SOLVERS, divide_paced
from solvers.paced.tidy import tidied_paced
from solvers.shares.problem import Chain, Room, Shares, SharesLimits, SharesProblem
from solvers.solution import Status

# Two ranks of one layer each. What a layer saves (10) is kept, swapped in 4 seconds beside 2 of work, or computed again
# in 3 seconds behind it. Rank 0 has room for 5, rank 1 for everything; both copy over one socket, 1 second for each.
ONE = PacedProblem(
    shares=SharesProblem(
        thing_O=(0, 0, 0, 1, 1, 1),
        units_T=(4, 4),
        weight_P=(1.0, 1.0),
        chains=(
            Chain(name="work", phase=0, fixed_seconds=2.0, seconds_O=(0.0, 0.0, 3.0, 0.0, 0.0, 0.0)),
            Chain(name="copy", phase=0, fixed_seconds=0.0, seconds_O=(0.0, 4.0, 0.0, 0.0, 0.0, 0.0)),
            Chain(name="work", phase=1, fixed_seconds=2.0, seconds_O=(0.0, 0.0, 0.0, 0.0, 0.0, 3.0)),
            Chain(name="copy", phase=1, fixed_seconds=0.0, seconds_O=(0.0, 0.0, 0.0, 0.0, 4.0, 0.0)),
        ),
        rooms=(
            Room(name="GPU 0", capacity=5.0, fixed=0.0, use_O=(10.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
            Room(name="GPU 1", capacity=10.0, fixed=0.0, use_O=(0.0, 0.0, 0.0, 10.0, 0.0, 0.0)),
            Room(name="host", capacity=10.0, fixed=0.0, use_O=(0.0, 10.0, 0.0, 0.0, 10.0, 0.0)),
        ),
    ),
    rank_P=(0, 1),
    links=(Link(name="socket", seconds_O=(0.0, 1.0, 0.0, 0.0, 1.0, 0.0)),),
    periods=7.0,
)
EVERY = tuple(PACED_SOLVERS)
LINK_TIMES = 12.0


@pytest.mark.parametrize("solver", EVERY)
def test_what_hides_is_swapped_and_nothing_waits(solver: str) -> None:
    answer = divide_paced(ONE, solver=solver)
    assert answer.status is Status.OPTIMAL
    assert answer.objective == pytest.approx(7 * 2 + 2 + 2)
    assert answer.share_O[:3] == pytest.approx((0.5, 0.5, 0.0))


@pytest.mark.parametrize("solver", EVERY)
def test_without_room_on_the_host_tokens_are_computed_again_and_set_the_pace(solver: str) -> None:
    rooms = (*ONE.shares.rooms[:2], replace(ONE.shares.rooms[2], capacity=2.5))
    answer = divide_paced(replace(ONE, shares=replace(ONE.shares, rooms=rooms)), solver=solver)
    # A quarter goes to the host; another quarter costs 3 / 4 of a second, in every period and once more.
    assert answer.share_O[:3] == pytest.approx((0.5, 0.25, 0.25))
    assert answer.objective == pytest.approx(7 * 2.75 + 2.75 + 2)


@pytest.mark.parametrize("solver", EVERY)
def test_a_link_that_ranks_share_sets_the_pace_where_it_is_slowest(solver: str) -> None:
    slow = replace(ONE.links[0], seconds_O=tuple(LINK_TIMES * seconds for seconds in ONE.links[0].seconds_O))
    problem = replace(ONE, links=(slow,))
    answer = divide_paced(problem, solver=solver)
    # Half of the tokens keep the socket for 6 seconds, none of them rank 0 for 3.5; a quarter 3 seconds and 2.75.
    assert answer.share_O == pytest.approx((0.5, 0.25, 0.25, 1.0, 0.0, 0.0))
    assert problem.pace(answer.share_O) == pytest.approx(3.0)
    assert answer.objective == pytest.approx(7 * 3.0 + 2.75 + 2)


@pytest.mark.parametrize("solver", EVERY)
def test_what_fits_nowhere_is_infeasible(solver: str) -> None:
    full = Room(name="all", capacity=1.0, fixed=0.0, use_O=(2.0, 2.0, 2.0, 0.0, 0.0, 0.0))
    problem = replace(ONE, shares=replace(ONE.shares, rooms=(full,)))
    assert divide_paced(problem, solver=solver) == Shares(solver=solver, status=Status.INFEASIBLE)


def test_the_tidy_answer_swaps_nothing_for_its_own_sake() -> None:
    needless = Shares(
        solver="x", status=Status.OPTIMAL, share_O=(0.5, 0.5, 0.0, 0.5, 0.5, 0.0), objective=18.0, bound=18.0
    )
    assert broken_answer(ONE, needless) == ()
    found = tidied_paced(ONE, needless, solver="mathopt", limits=SharesLimits())
    assert found.share_O == pytest.approx((0.5, 0.5, 0.0, 1.0, 0.0, 0.0))
    assert found.status is Status.OPTIMAL
    nothing = Shares(solver="x", status=Status.INFEASIBLE)
    assert tidied_paced(ONE, nothing, solver="mathopt", limits=SharesLimits()) is nothing


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"share_O": (0.5, 0.5)}, "(1) 2 shares of 6 options"),
        ({"share_O": (0.5, 0.25, 0.0, 1.0, 0.0, 0.0)}, "(1) the shares of thing 0 sum to 0.75"),
        ({"share_O": (0.4, 0.6, 0.0, 1.0, 0.0, 0.0)}, "(2) option 0 has 1.6 of 4 units"),
        ({"share_O": (0.75, 0.25, 0.0, 1.0, 0.0, 0.0)}, "(3) GPU 0 holds 7.5 of 5.0"),
        ({"share_O": (0.0, 1.0, 0.0, 0.75, 0.25, 0.0)}, "(3) host holds 12.5 of 10.0"),
        ({"share_O": (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)}, "objective: it is 42.0, not 18.0"),
        ({"objective": 18.1}, "objective: it is 18.0, not 18.1"),
        ({"status": Status.FEASIBLE, "bound": 18.1, "objective": 18.0}, "bound: 18.1 is above 18.0, which was reached"),
    ],
)
def test_the_checker_rejects_tampered_answers(change: dict[str, tuple[float, ...]], broken: str) -> None:
    sound = Shares(
        solver="x", status=Status.FEASIBLE, share_O=(0.5, 0.5, 0.0, 1.0, 0.0, 0.0), objective=18.0, bound=17.0
    )
    assert broken_answer(ONE, sound) == ()
    assert broken in broken_answer(ONE, replace(sound, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_P": (0,)}, "1 ranks of 2 phases"),
        ({"rank_P": (0, 2)}, "every rank needs a phase"),
        ({"links": (Link(name="socket", seconds_O=(1.0,)),)}, "every link needs 6 numbers"),
        ({"periods": -1.0}, "seconds and periods are finite and at least 0"),
    ],
)
def test_problems_hold_together(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ONE, **change)  # type: ignore[arg-type]


def test_solvers_that_are_not_there_and_too_many_divisions_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no solver 'simplex'; there are mathopt, pulp, exhaustive"):
        divide_paced(ONE, solver="simplex")
    with pytest.raises(SolverError, match="225 divisions under max_points = 100"):
        divide_paced(ONE, solver="exhaustive", limits=SharesLimits(max_points=100))
