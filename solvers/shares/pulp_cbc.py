"""Shares through PuLP and the CBC it ships."""

from solvers.mip_pulp import NAME, minimise
from solvers.shares.mip import solve_with
from solvers.shares.problem import Shares, SharesLimits, SharesProblem


def solve(problem: SharesProblem, limits: SharesLimits) -> Shares:
    """Return the best shares that CBC finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
