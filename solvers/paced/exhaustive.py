"""The oracle of paced shares: every division of things into whole units. For a handful of options."""

from solvers.paced.problem import PacedProblem
from solvers.shares.exhaustive import best_of_all
from solvers.shares.problem import Shares, SharesLimits


def solve(problem: PacedProblem, limits: SharesLimits) -> Shares:
    """Return the best of all divisions; of equals the first.

    Raises:
        SolverError: There are more divisions than the limit allows, or a thing takes any share.
    """
    return best_of_all(problem.shares, limits, problem.objective)
