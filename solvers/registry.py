"""The solvers by name, with what each can do; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import cast

from solvers.problem import Limits, Problem
from solvers.solution import Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """One solver and its capabilities.

    Args:
        module: The module with its `solve`.
        shares_ranks: It takes problems in which a rank runs several stages.
    """

    module: str
    shares_ranks: bool

    def run(self, problem: Problem, limits: Limits) -> Solution:
        """Return this solver's answer."""
        run = cast("Callable[[Problem, Limits], Solution]", import_module(self.module).solve)
        return run(problem, limits)


SOLVERS = MappingProxyType(
    {
        # Exact dynamic programme, one stage a rank.
        "dp": Solver(module="solvers.dp", shares_ranks=False),
        # Mixed-integer programmes: HiGHS through OR-Tools MathOpt, CBC through PuLP.
        "mathopt": Solver(module="solvers.mip_mathopt", shares_ranks=True),
        "pulp": Solver(module="solvers.mip_pulp", shares_ranks=True),
        # Every choice, for small problems.
        "exhaustive": Solver(module="solvers.exhaustive", shares_ranks=True),
    }
)


def solve(problem: Problem, *, solver: str = "dp", limits: Limits | None = None) -> Solution:
    """Return a solver's answer to a problem.

    Args:
        problem: The problem.
        solver: A name in `SOLVERS`.
        limits: How far it may go; the defaults of `Limits` if not given.

    Raises:
        ValueError: There is no such solver, or it does not take such a problem.
        SolverError: The solver stopped with neither a solution nor a proof that there is none.

    """
    if solver not in SOLVERS:
        raise ValueError(f"there is no solver {solver!r}; there are {', '.join(SOLVERS)}")
    entry = SOLVERS[solver]
    if problem.shares_ranks and not entry.shares_ranks:
        able = ", ".join(name for name, other in SOLVERS.items() if other.shares_ranks)
        raise ValueError(f"solver {solver!r} needs a rank of its own for every stage; use one of {able}")
    return entry.run(problem, limits or Limits())
