"""The solvers of shares problems by name; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from types import MappingProxyType

from solvers.named import solve_named
from solvers.shares.check import broken_answer
from solvers.shares.problem import Shares, SharesLimits, SharesProblem

SHARES_SOLVERS = MappingProxyType(
    {
        "mathopt": "solvers.shares.mathopt",  # linear or mixed-integer programme, HiGHS through OR-Tools MathOpt
        "pulp": "solvers.shares.pulp_cbc",  # linear or mixed-integer programme, CBC through PuLP
        "exhaustive": "solvers.shares.exhaustive",  # every division into whole units, for small problems
    }
)
"""The module of each solver, with its `solve`."""


def divide(problem: SharesProblem, *, solver: str = "mathopt", limits: SharesLimits | None = None) -> Shares:
    """Return a solver's answer to a shares problem, checked.

    Args:
        problem: The problem.
        solver: A name in `SHARES_SOLVERS`.
        limits: How far it may go; the defaults of `SharesLimits` if not given.

    Raises:
        ValueError: There is no such solver.
        SolverError: The solver stopped with neither an answer nor a proof that there is none.
    """
    run: Callable[[SharesProblem, SharesLimits], Shares] = solve_named(solver, SHARES_SOLVERS)
    answer = run(problem, limits or SharesLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
