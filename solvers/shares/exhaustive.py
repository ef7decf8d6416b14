"""The oracle of shares: every division of things into whole units. For a handful of options."""

from collections.abc import Callable, Iterator
from itertools import product
from math import comb, prod

from solvers.errors import SolverError
from solvers.shares.check import broken_constraints
from solvers.shares.problem import Shares, SharesLimits, SharesProblem
from solvers.solution import Status

NAME = "exhaustive"


def solve(problem: SharesProblem, limits: SharesLimits) -> Shares:
    """Return the best of all divisions; of equals the first.

    Raises:
        SolverError: There are more divisions than the limit allows, or a thing takes any share.
    """
    return best_of_all(problem, limits, problem.objective)


def best_of_all(
    problem: SharesProblem, limits: SharesLimits, objective: Callable[[tuple[float, ...]], float]
) -> Shares:
    """Return the best of all divisions that a problem allows, by any objective; of equals the first.

    Raises:
        SolverError: There are more divisions than the limit allows, or a thing takes any share.
    """
    options_T = [
        tuple(option for option, owner in enumerate(problem.thing_O) if owner == thing)
        for thing in range(len(problem.units_T))
    ]
    if not all(problem.units_T):
        raise SolverError(solver=NAME, status="things of any share", limit="whole units only")
    number = prod(
        comb(units + len(options) - 1, len(options) - 1)
        for units, options in zip(problem.units_T, options_T, strict=True)
    )
    if number > limits.max_points:
        raise SolverError(solver=NAME, status=f"{number} divisions", limit=f"max_points = {limits.max_points}")
    best: tuple[float, tuple[float, ...]] | None = None
    divisions = (
        tuple(_divisions(units, len(options))) for units, options in zip(problem.units_T, options_T, strict=True)
    )
    for chosen in product(*divisions):
        share_O = [0.0] * problem.num_options
        for units, options, division in zip(problem.units_T, options_T, chosen, strict=True):
            for option, count in zip(options, division, strict=True):
                share_O[option] = count / units
        shares = tuple(share_O)
        if broken_constraints(problem, shares):
            continue
        value = objective(shares)
        if best is None or value < best[0]:
            best = value, shares
    if best is None:
        return Shares(solver=NAME, status=Status.INFEASIBLE)
    return Shares(solver=NAME, status=Status.OPTIMAL, share_O=best[1], objective=best[0], bound=best[0])


def _divisions(units: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to divide so many units into so many parts, in order."""
    if parts == 1:
        yield (units,)
        return
    for first in range(units + 1):
        for rest in _divisions(units - first, parts - 1):
            yield (first, *rest)
