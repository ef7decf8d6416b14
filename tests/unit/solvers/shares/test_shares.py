"""Shares of things: what a problem refuses, what a checker finds, and what answers say of themselves."""

from dataclasses import replace

import pytest

from solvers.errors import SolverError
from solvers.mip import Answer, LinearModel
from solvers.problem import Limits
from solvers.shares.check import broken_answer, broken_constraints
from solvers.shares.mip import solve_with
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


def test_an_answer_that_no_tidier_one_lasts_as_long_as_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    # What holds within the checker's slack may be too long for another solver by its own tolerance.
    nothing = Shares(solver="mathopt", status=Status.INFEASIBLE)
    answer = divide(ONE)
    monkeypatch.setattr("solvers.shares.tidy.divide", lambda *_, **__: nothing)
    assert tidied(ONE, answer, solver="mathopt", limits=SharesLimits()) is answer


# A whole thing of 2 units beside one of any share: what rounding takes of the room, the other leaves.
BESIDE = SharesProblem(
    thing_O=(0, 0, 1, 1),
    units_T=(2, 0),
    weight_P=(1.0,),
    chains=(Chain(name="bring", phase=0, fixed_seconds=0.0, seconds_O=(0.0, 1.0, 0.0, 1.0)),),
    rooms=(Room(name="fast", capacity=100.0, fixed=0.0, use_O=(100.0, 0.0, 100.0, 0.0)),),
)


class Told:
    """A backend that says what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[LinearModel] = []

    def __call__(self, model: LinearModel, limits: Limits) -> Answer:
        assert limits.max_nodes == SharesLimits().max_nodes
        self.asked.append(model)
        return self.answers.pop(0)


NEARLY = Answer(status=Status.OPTIMAL, values=(0.99999, 1.00001, 0.500005, 0.499995, 1.0), bound=1000.0)


def test_the_other_shares_are_solved_for_again_beside_rounded_units() -> None:
    backend = Told(NEARLY, replace(NEARLY, values=(1.0, 1.0, 0.5, 0.5, 1.0)))
    answer = solve_with(backend, BESIDE, SharesLimits(), solver="x")
    assert answer == Shares(solver="x", status=Status.OPTIMAL, share_O=(0.5, 0.5, 0.5, 0.5), objective=1.0, bound=1.0)
    first, again = backend.asked
    assert again.columns == first.columns
    assert again.rows[: len(first.rows)] == first.rows
    kept = [(row.name, row.terms, row.lower, row.upper) for row in again.rows[len(first.rows) :]]
    assert kept == [("kept_0", ((0, 1.0),), 1.0, 1.0), ("kept_1", ((1, 1.0),), 1.0, 1.0)]


@pytest.mark.parametrize("again", [Answer(status=Status.INFEASIBLE), NEARLY], ids=["nothing", "as before"])
def test_rounded_units_that_no_other_shares_go_with_are_no_answer(again: Answer) -> None:
    message = r"^x stopped with status shares that break \(3\) fast holds 100\.0005 of 100\.0 under max_nodes = 100000 "
    with pytest.raises(SolverError, match=message):
        solve_with(Told(NEARLY, again), BESIDE, SharesLimits(), solver="x")


def test_a_room_says_what_it_holds_and_a_relaxed_problem_forgets_its_units() -> None:
    assert ONE.rooms[0].used((0.4, 0.6)) == 40.0
    assert replace(ONE, units_T=(4,)).relaxed == ONE


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
    assert broken_answer(ONE, replace(sound, share_O=(0.5, 0.5))) == ("(3) fast holds 50.0 of 40.0",)
    second = Chain(name="rest", phase=1, fixed_seconds=2.0, seconds_O=(0.0, 0.0))
    twice = replace(ONE, weight_P=(3.0, 1.0), chains=(*ONE.chains, second))
    assert broken_answer(twice, replace(sound, objective=6.5)) == ()


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
