"""Paced shares through OR-Tools MathOpt and the HiGHS it bundles."""

from solvers.mip_mathopt import NAME, minimise
from solvers.paced.mip import solve_with
from solvers.paced.problem import PacedProblem
from solvers.shares.problem import Shares, SharesLimits


def solve(problem: PacedProblem, limits: SharesLimits) -> Shares:
    """Return the best shares that HiGHS finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
