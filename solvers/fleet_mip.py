"""The fleet problem as a mixed-integer programme, for any solver that takes one.

Sets
    O, R     as in `solvers.fleet`

Variables
    n[o]     servers of option o                                                      integer, 0 to most[o]
    h        what the halves serve together                                           >= 0

Objective
    MOST_SERVED   minimise - (sum of rate[o] n[o] over whole options + h), then, in a second programme, the cost with at
                  least so much served                                                _model
    LEAST_COST    minimise the sum of cost[o] n[o]                                    _model

Constraints, in the numbers of `solvers.fleet`
    (1)  sum over o of use[r,o] n[o] <= capacity[r]                                   _resource_rows
    (2)  bounds of n[o]                                                               _model
    (3)  sum of rate[o] n[o] over whole options + h >= demand                         _served_row
         h <= sum of rate[o] n[o] over first halves, and over second halves           _half_rows

Rates are divided by the largest one and costs likewise, so that solvers' absolute tolerances are small beside them. To
a demand no rate counts for more than the demand: one such server serves it alone either way, so (3) admits the same
counts, and a demand far below every rate is not lost in a tolerance.
"""

from dataclasses import replace

from solvers.fleet import Fleet, FleetLimits, FleetProblem, Goal, Part, no_fleet
from solvers.fleet_check import broken_constraints
from solvers.mip import Backend, Column, LinearModel, Row
from solvers.problem import Limits
from solvers.solution import OPTIMALITY_TOLERANCE, Status

GIVEN_UP = 1e-9
"""Part of what is served that the second programme may give up for a lower cost: less than any tolerance."""


def solve_with(backend: Backend, problem: FleetProblem, limits: FleetLimits, *, solver: str) -> Fleet:
    """Return the best composition that a solver of linear models finds.

    Args:
        backend: The solver.
        problem: The problem.
        limits: How far it may go.
        solver: What the answer calls it.

    Raises:
        SolverError: It stopped with nothing.
    """
    if not problem.num_options:
        empty = problem.goal is Goal.MOST_SERVED
        return (
            Fleet(solver=solver, status=Status.OPTIMAL, count_O=(), objective=0.0, bound=0.0)
            if empty
            else no_fleet(solver)
        )
    if problem.goal is Goal.LEAST_COST:
        return _solved(backend, problem, limits, solver=solver)
    first = _solved(backend, problem, limits, solver=solver)
    if first.status is not Status.OPTIMAL or not first.objective:
        return first
    cheaper = replace(problem, goal=Goal.LEAST_COST, demand=first.objective * (1 - GIVEN_UP))
    second = _solved(backend, cheaper, limits, solver=solver)
    if second.status is Status.INFEASIBLE or problem.cost(second.count_O) >= problem.cost(first.count_O):
        return first
    return replace(first, count_O=second.count_O, objective=problem.served(second.count_O))


def _solved(backend: Backend, problem: FleetProblem, limits: FleetLimits, *, solver: str) -> Fleet:
    model, unit = _model(problem)
    answer = backend(model, Limits(max_nodes=limits.max_nodes))
    if answer.status is Status.INFEASIBLE:
        return no_fleet(solver)
    count_O = tuple(round(value) for value in answer.values[: problem.num_options])
    broken = broken_constraints(problem, count_O)
    assert not broken, f"{solver} broke {broken}"
    most_served = problem.goal is Goal.MOST_SERVED
    objective = problem.served(count_O) if most_served else problem.cost(count_O)
    told = objective if answer.bound is None else abs(answer.bound) * unit
    # A bound is of the programme's own rounding; it is never worse than what was found.
    bound = max(told, objective) if most_served else min(told, objective)
    close = abs(bound - objective) <= OPTIMALITY_TOLERANCE * max(objective, 1e-12)
    optimal = answer.status is Status.OPTIMAL and close
    if optimal:
        bound = objective
    return Fleet(
        solver=solver,
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        count_O=count_O,
        objective=objective,
        bound=bound,
    )


def _model(problem: FleetProblem) -> tuple[LinearModel, float]:
    """Return the programme, and what 1 of its objective stands for."""
    most_served = problem.goal is Goal.MOST_SERVED
    if not most_served:
        problem = replace(problem, rate_O=tuple(min(rate, problem.demand) for rate in problem.rate_O))
    rate_unit, cost_unit = max((*problem.rate_O, 0.0)) or 1.0, max((*problem.cost_O, 0.0)) or 1.0
    columns = [
        Column(
            name=f"n_{option}",
            upper=float(most),
            is_integer=True,
            objective=(-rate / rate_unit if part is Part.WHOLE else 0.0) if most_served else cost / cost_unit,
        )
        for option, (part, rate, cost, most) in enumerate(
            zip(problem.part_O, problem.rate_O, problem.cost_O, problem.most_O, strict=True)
        )
    ]
    halves = sum(problem.rate_O[o] / rate_unit * problem.most_O[o] for o in range(problem.num_options))
    columns.append(Column(name="h", upper=halves, is_integer=False, objective=-1.0 if most_served else 0.0))
    rows = [*_resource_rows(problem), *_half_rows(problem, rate_unit)]
    if not most_served:
        rows.append(_served_row(problem, rate_unit))
    return LinearModel(columns=tuple(columns), rows=tuple(rows)), rate_unit if most_served else cost_unit


def _resource_rows(problem: FleetProblem) -> list[Row]:
    rows = []
    for index, (row, capacity) in enumerate(zip(problem.use_RO, problem.capacity_R, strict=True)):
        unit = max((*row, 0.0)) or 1.0
        terms = tuple((option, use / unit) for option, use in enumerate(row) if use)
        rows.append(Row(name=f"resource_{index}", terms=terms, upper=capacity / unit))
    return rows


def _half_rows(problem: FleetProblem, rate_unit: float) -> list[Row]:
    h = problem.num_options
    return [
        Row(
            name=f"half_{part}",
            terms=(
                (h, 1.0),
                *((o, -problem.rate_O[o] / rate_unit) for o in range(h) if problem.part_O[o] is part),
            ),
            upper=0.0,
        )
        for part in (Part.FIRST, Part.SECOND)
    ]


def _served_row(problem: FleetProblem, rate_unit: float) -> Row:
    h = problem.num_options
    whole = ((o, problem.rate_O[o] / rate_unit) for o in range(h) if problem.part_O[o] is Part.WHOLE)
    return Row(name="served", terms=(*whole, (h, 1.0)), lower=problem.demand / rate_unit)
