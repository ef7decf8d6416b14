"""Fleets: solvers agree with exhaustive search, and the checker finds what is broken."""

import random
from dataclasses import replace
from typing import Any

import pytest

from solvers.errors import SolverError
from solvers.fleet import Fleet, FleetLimits, FleetProblem, Goal, Part, no_fleet
from solvers.fleet_check import broken_answer, broken_constraints
from solvers.fleet_mip import solve_with
from solvers.fleet_registry import FLEET_SOLVERS, compose
from solvers.mip import Answer
from solvers.solution import Status

SOLVERS = tuple(name for name in FLEET_SOLVERS if name != "exhaustive")


def small_fleet(seed: int, goal: Goal) -> FleetProblem:
    draw = random.Random(seed)
    options = draw.randint(1, 5)
    uses = [[float(draw.choice((1, 2, 4))) for _ in range(options)]]
    if draw.random() < 0.5:
        uses.append([draw.choice((0.0, 1.5, 3.0)) for _ in range(options)])
    return FleetProblem(
        part_O=tuple(draw.choice(tuple(Part)) for _ in range(options)),
        rate_O=tuple(draw.uniform(0.5, 9.0) for _ in range(options)),
        cost_O=tuple(float(draw.randint(1, 5)) for _ in range(options)),
        use_RO=tuple(map(tuple, uses)),
        capacity_R=tuple(float(draw.randint(2, 9)) for _ in uses),
        goal=goal,
        demand=draw.uniform(1.0, 25.0) if goal is Goal.LEAST_COST else 0.0,
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("seed", range(12))
def test_every_solver_agrees_with_exhaustive_search(seed: int, goal: Goal, solver: str) -> None:
    problem = small_fleet(seed, goal)
    best = compose(problem, solver="exhaustive")
    found = compose(problem, solver=solver)
    assert found.status == best.status
    assert broken_answer(problem, found) == ()
    if best.objective is not None:
        assert found.objective == pytest.approx(best.objective, rel=1e-7)
        assert found.bound == pytest.approx(best.objective, rel=1e-6)
        if goal is Goal.MOST_SERVED:
            assert problem.cost(found.count_O) == pytest.approx(problem.cost(best.count_O))


def test_small_fleets_are_of_both_kinds() -> None:
    statuses = {compose(small_fleet(seed, Goal.LEAST_COST), solver="exhaustive").status for seed in range(12)}
    assert statuses == {Status.OPTIMAL, Status.INFEASIBLE}


def halves() -> FleetProblem:
    """Return ten places: first halves serve 6 in 2 of them, second halves 3 in 1, and whole servers 2.2 in 2."""
    return FleetProblem(
        part_O=(Part.WHOLE, Part.FIRST, Part.SECOND),
        rate_O=(2.2, 6.0, 3.0),
        cost_O=(2.0, 2.0, 1.0),
        use_RO=((2.0, 2.0, 1.0),),
        capacity_R=(10.0,),
        goal=Goal.MOST_SERVED,
    )


@pytest.mark.parametrize("solver", FLEET_SOLVERS)
def test_a_mix_of_whole_servers_and_halves_beats_either(solver: str) -> None:
    # Two first halves and four second ones serve 12 in 8 places, and a whole server fits into the two that are left.
    problem = halves()
    found = compose(problem, solver=solver)
    alone = compose(replace(problem, rate_O=(2.2, 0.0, 0.0)), solver=solver)
    split = compose(replace(problem, rate_O=(0.0, 6.0, 3.0)), solver=solver)
    assert alone.objective == pytest.approx(11.0)
    assert split.objective == pytest.approx(12.0)
    assert found.objective == pytest.approx(14.2)
    assert found.count_O == (1, 2, 4)


@pytest.mark.parametrize("solver", FLEET_SOLVERS)
def test_servers_that_serve_nothing_more_are_left_out(solver: str) -> None:
    # One first half serves 6, which two second halves carry; a third would have a place and nothing to do.
    problem = replace(halves(), rate_O=(0.0, 6.0, 3.0), capacity_R=(5.0,))
    assert compose(problem, solver=solver).count_O == (0, 1, 2)


@pytest.mark.parametrize("solver", FLEET_SOLVERS)
@pytest.mark.parametrize("demand", [1e-9, 1e-4, 1.0])
@pytest.mark.parametrize(("rates", "count_O"), [((20.0, 0.0, 0.0), (1, 0, 0)), ((0.0, 60.0, 30.0), (0, 1, 1))])
def test_a_demand_far_below_every_rate_takes_a_server(
    rates: tuple[float, float, float], count_O: tuple[int, ...], demand: float, solver: str
) -> None:
    # A demand within a solver's tolerance of nothing is a demand all the same.
    problem = replace(halves(), rate_O=rates, goal=Goal.LEAST_COST, demand=demand)
    assert compose(problem, solver=solver).count_O == count_O


def test_more_of_a_resource_never_serves_less() -> None:
    served = [compose(replace(halves(), capacity_R=(float(places),))).objective or 0.0 for places in range(1, 14)]
    assert served == sorted(served)


def test_every_constraint_bites() -> None:
    problem = replace(halves(), goal=Goal.LEAST_COST, demand=6.0)
    assert broken_constraints(problem, (3, 0, 0)) == ()
    assert broken_constraints(problem, (5, 0, 0)) == ()
    assert broken_constraints(problem, (6, 0, 0)) == ("resources: 12.0 of resource 0 are used, 10.0 are there",)
    assert broken_constraints(problem, (2, 0, 0)) == ("demand: 4.4 are served of 6.0",)
    assert broken_constraints(problem, (0, 3, 0)) == ("demand: 0.0 are served of 6.0",)
    assert broken_constraints(problem, (-1, 2, 3)) != ()
    assert broken_constraints(problem, (3, 0)) == ("counts: 2 counts of 3 options",)


def test_an_answer_that_lies_is_found_out() -> None:
    problem = halves()
    lying = Fleet(solver="x", status=Status.OPTIMAL, count_O=(5, 0, 0), objective=12.0, bound=12.0)
    assert broken_answer(problem, lying) == ("objective: it is 11.0, not 12.0",)
    assert broken_answer(problem, no_fleet("x")) == ()
    crowded = replace(lying, count_O=(6, 0, 0), objective=13.2, bound=13.2)
    assert broken_answer(problem, crowded) == ("resources: 12.0 of resource 0 are used, 10.0 are there",)


def test_a_composition_of_a_search_that_was_cut_off_is_feasible_with_its_bound() -> None:
    # Five whole servers serve 11; the programme counts in the largest rate, 6, and bounds at 2.5 of them.
    stopped = Answer(status=Status.FEASIBLE, values=(5.0, 0.0, 0.0, 0.0), bound=-2.5)
    found = solve_with(lambda _model, _limits: stopped, halves(), FleetLimits(), solver="x")
    assert found == Fleet(solver="x", status=Status.FEASIBLE, count_O=(5, 0, 0), objective=11.0, bound=15.0)


@pytest.mark.parametrize("solver", FLEET_SOLVERS)
def test_without_options_nothing_is_served_and_no_demand_is_met(solver: str) -> None:
    nothing = FleetProblem(part_O=(), rate_O=(), cost_O=(), use_RO=((),), capacity_R=(8.0,), goal=Goal.MOST_SERVED)
    assert compose(nothing, solver=solver) == Fleet(
        solver=solver, status=Status.OPTIMAL, count_O=(), objective=0.0, bound=0.0
    )
    wanted = replace(nothing, goal=Goal.LEAST_COST, demand=1.0)
    assert compose(wanted, solver=solver) == no_fleet(solver)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": Status.INFEASIBLE}, "an infeasible problem has no counts, objective or bound"),
        ({"bound": None}, "an answer that is optimal has an objective and a bound"),
        ({"bound": 12.0}, "11.0 with a bound of 12.0 is not optimal"),
    ],
)
def test_a_status_that_does_not_match_its_proof_is_refused(changes: dict[str, Any], message: str) -> None:
    sound = Fleet(solver="x", status=Status.OPTIMAL, count_O=(5, 0, 0), objective=11.0, bound=11.0)
    with pytest.raises(ValueError, match=message):
        replace(sound, **changes)


def test_exhaustive_search_says_where_it_stops() -> None:
    with pytest.raises(SolverError, match="max_points = 10"):
        compose(halves(), solver="exhaustive", limits=FleetLimits(max_points=10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_O": (1.0,)}, "not of as many options"),
        ({"capacity_R": ()}, "every resource"),
        ({"cost_O": (1.0, -1.0, 1.0)}, "negative or not finite"),
        ({"use_RO": ((0.0, 2.0, 1.0),)}, "takes nothing"),
        ({"demand": 3.0}, "go together"),
    ],
)
def test_a_damaged_problem_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(halves(), **changes)


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="there is no solver 'best'; there are mathopt, pulp, exhaustive"):
        compose(halves(), solver="best")
