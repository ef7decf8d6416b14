"""Fleets through PuLP and the CBC it ships."""

from solvers.fleet import Fleet, FleetLimits, FleetProblem
from solvers.fleet_mip import solve_with
from solvers.mip_pulp import NAME, minimise


def solve(problem: FleetProblem, limits: FleetLimits) -> Fleet:
    """Return the best composition that CBC finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
