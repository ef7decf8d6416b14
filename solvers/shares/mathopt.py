"""Shares through OR-Tools MathOpt and the HiGHS it bundles."""

from solvers.mip_mathopt import NAME, minimise
from solvers.shares.mip import solve_with
from solvers.shares.problem import Shares, SharesLimits, SharesProblem


def solve(problem: SharesProblem, limits: SharesLimits) -> Shares:
    """Return the best shares that HiGHS finds."""
    return solve_with(minimise, problem, limits, solver=NAME)
