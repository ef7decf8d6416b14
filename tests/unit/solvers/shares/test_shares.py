"""Shares of things: what a problem refuses, what a checker finds, and what answers say of themselves."""

from dataclasses import replace

import pytest

from solvers.errors import SolverError
from solvers.shares.check import broken_answer, broken_constraints
from solvers.shares.problem import Chain, Room, Shares, SharesLimits, SharesProblem
from solvers.shares.registry import divide
from solvers.shares.tidy import tidied
from solvers.solution import Status

# A thing of 100 on a fast place that holds 40, brought from a slow one for 2 seconds as a whole; 1 second of work.
ONE = SharesProblem(
    thing_O=(0, 0),
    units_T=(0,),
    weight_P=(3.0,),
    chains=(
        Chain(name="work", phase=0, fixed_seconds=1.0, seconds_O=(0.0, 0.0)),
        Chain(name="bring", phase=0, fixed_seconds=0.0, seconds_O=(0.0, 2.0)),
    ),
    rooms=(
        Room(name="fast", capacity=40.0, fixed=0.0, use_O=(100.0, 0.0)),
        Room(name="slow", capacity=100.0, fixed=0.0, use_O=(0.0, 100.0)),
    ),
)
BOTH = ("mathopt", "pulp")


@pytest.mark.parametrize("solver", BOTH)
def test_what_fits_is_kept_and_the_rest_is_brought(solver: str) -> None:
    answer = divide(ONE, solver=solver)
    assert answer.status is Status.OPTIMAL
    assert answer.share_O == pytest.approx((0.4, 0.6))
    assert answer.objective == pytest.approx(3 * 1.2)


@pytest.mark.parametrize("solver", [*BOTH, "exhaustive"])
def test_units_are_whole(solver: str) -> None:
    answer = divide(replace(ONE, units_T=(4,)), solver=solver)
    assert answer.share_O == (0.25, 0.75)
    assert answer.objective == pytest.approx(3 * 1.5)


@pytest.mark.parametrize("solver", [*BOTH, "exhaustive"])
def test_what_fits_nowhere_is_infeasible(solver: str) -> None:
    full = replace(ONE, units_T=(4,), rooms=(ONE.rooms[0], replace(ONE.rooms[1], capacity=50.0)))
    assert divide(full, solver=solver) == Shares(solver=solver, status=Status.INFEASIBLE)
    beforehand = replace(ONE, units_T=(4,), rooms=(replace(ONE.rooms[0], fixed=41.0), ONE.rooms[1]))
    assert divide(beforehand, solver=solver).status is Status.INFEASIBLE


def test_the_tidy_answer_brings_nothing_that_work_would_hide() -> None:
    roomy = replace(ONE, rooms=(replace(ONE.rooms[0], capacity=70.0), ONE.rooms[1]))
    hidden = Shares(solver="mathopt", status=Status.OPTIMAL, share_O=(0.5, 0.5), objective=3.0, bound=3.0)
    assert broken_answer(roomy, hidden) == ()
    found = tidied(roomy, hidden, solver="mathopt", limits=SharesLimits())
    assert found.share_O == pytest.approx((0.7, 0.3))
    assert found.objective == pytest.approx(3.0)
    nothing = Shares(solver="mathopt", status=Status.INFEASIBLE)
    assert tidied(roomy, nothing, solver="mathopt", limits=SharesLimits()) is nothing


def test_an_answer_that_cannot_be_tidied_within_the_limits_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: object, **__: object) -> Shares:
        raise SolverError(solver="mathopt", status="no_solution_found", limit="max_nodes = 1")

    answer = divide(ONE)
    monkeypatch.setattr("solvers.shares.tidy.divide", stops)
    assert tidied(ONE, answer, solver="mathopt", limits=SharesLimits(max_nodes=1)) is answer


@pytest.mark.parametrize(
    ("share_O", "broken"),
    [
        ((0.4,), "(1) 1 shares of 2 options"),
        ((0.4, 0.5), "(1) the shares of thing 0 sum to 0.9"),
        ((-0.2, 1.2), "(1) option 0 has the share -0.2"),
        ((0.3, 0.7), "(2) option 0 has 1.2 of 4 units"),
        ((0.5, 0.5), "(3) fast holds 50.0 of 40.0"),
    ],
)
def test_the_checker_finds_what_is_broken(share_O: tuple[float, ...], broken: str) -> None:
    assert broken in broken_constraints(replace(ONE, units_T=(4,)), share_O)


def test_the_checker_finds_a_wrong_objective_and_a_wrong_bound() -> None:
    sound = Shares(solver="x", status=Status.FEASIBLE, share_O=(0.25, 0.75), objective=4.5, bound=4.0)
    assert broken_answer(ONE, sound) == ()
    assert broken_answer(ONE, replace(sound, objective=4.6)) == ("objective: it is 4.5, not 4.6",)
    assert broken_answer(ONE, replace(sound, bound=4.6)) == ("bound: 4.6 is above 4.5, which was reached",)


def test_answers_are_not_called_optimal_beside_a_lower_bound() -> None:
    with pytest.raises(ValueError, match=r"4\.5 with the bound 4\.0 is not optimal"):
        Shares(solver="x", status=Status.OPTIMAL, share_O=(0.25, 0.75), objective=4.5, bound=4.0)
    with pytest.raises(ValueError, match="an answer that is feasible has an objective and a bound"):
        Shares(solver="x", status=Status.FEASIBLE, share_O=(0.25, 0.75))
    with pytest.raises(ValueError, match="an infeasible problem has no shares"):
        Shares(solver="x", status=Status.INFEASIBLE, share_O=(1.0, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thing_O": (0, 1)}, "every thing needs an option"),
        ({"weight_P": ()}, "a chain is of a phase that is not there"),
        ({"weight_P": (-1.0,)}, "seconds, uses and weights are finite and at least 0"),
        ({"thing_O": (0, 0, 0)}, "every chain and room needs 3 numbers"),
    ],
)
def test_problems_hold_together(change: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ONE, **change)  # type: ignore[arg-type]


def test_the_oracle_says_what_it_cannot_do() -> None:
    with pytest.raises(SolverError, match="things of any share"):
        divide(ONE, solver="exhaustive")
    with pytest.raises(SolverError, match="101 divisions under max_points = 100"):
        divide(replace(ONE, units_T=(100,)), solver="exhaustive", limits=SharesLimits(max_points=100))
    with pytest.raises(ValueError, match="there is no solver 'simplex'; there are mathopt, pulp, exhaustive"):
        divide(ONE, solver="simplex")
