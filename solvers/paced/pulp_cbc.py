"""Paced shares through PuLP and the CBC it ships."""

from solvers.mip_pulp import NAME, minimise
from solvers.paced.mip import solve_with
from solvers.paced.problem import PacedProblem
from solvers.shares.problem import Shares, SharesLimits


def solve(problem: PacedProblem, limits: SharesLimits) -> Shares:
    """Return the best shares that CBC finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
