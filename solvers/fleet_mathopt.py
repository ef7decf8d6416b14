"""Fleets through OR-Tools MathOpt and the HiGHS it bundles."""

from solvers.fleet import Fleet, FleetLimits, FleetProblem
from solvers.fleet_mip import solve_with
from solvers.mip_mathopt import NAME, minimise


def solve(problem: FleetProblem, limits: FleetLimits) -> Fleet:
    """Return the best composition that HiGHS finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
