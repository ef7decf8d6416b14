"""The oracle of fleets: every composition. For a handful of options."""

from itertools import product
from math import prod

from solvers.errors import SolverError
from solvers.fleet import Fleet, FleetLimits, FleetProblem, Goal, no_fleet
from solvers.fleet_check import broken_constraints
from solvers.solution import Status

NAME = "exhaustive"


def solve(problem: FleetProblem, limits: FleetLimits) -> Fleet:
    """Return the best of all compositions: of equals the cheapest, then the first.

    Raises:
        SolverError: There are more compositions than the limit allows.
    """
    number = prod(most + 1 for most in problem.most_O)
    if number > limits.max_points:
        raise SolverError(solver=NAME, status=f"{number} compositions", limit=f"max_points = {limits.max_points}")
    best: tuple[tuple[float, float], tuple[int, ...]] | None = None
    for count_O in product(*(range(most + 1) for most in problem.most_O)):
        if broken_constraints(problem, count_O):
            continue
        cost, served = problem.cost(count_O), problem.served(count_O)
        key = (-served, cost) if problem.goal is Goal.MOST_SERVED else (cost, -served)
        if best is None or key < best[0]:
            best = key, count_O
    if best is None:
        return no_fleet(NAME)
    value = abs(best[0][0])
    return Fleet(solver=NAME, status=Status.OPTIMAL, count_O=best[1], objective=value, bound=value)
