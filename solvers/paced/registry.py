"""The solvers of paced shares by name; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from types import MappingProxyType

from solvers.named import solve_named
from solvers.paced.check import broken_answer
from solvers.paced.problem import PacedProblem
from solvers.shares.problem import Shares, SharesLimits

PACED_SOLVERS = MappingProxyType(
    {
        "mathopt": "solvers.paced.mathopt",  # linear or mixed-integer programme, HiGHS through OR-Tools MathOpt
        "pulp": "solvers.paced.pulp_cbc",  # linear or mixed-integer programme, CBC through PuLP
        "exhaustive": "solvers.paced.exhaustive",  # every division into whole units, for small problems
    }
)
"""The module of each solver, with its `solve`."""


def divide_paced(problem: PacedProblem, *, solver: str = "mathopt", limits: SharesLimits | None = None) -> Shares:
    """Return a solver's answer to a paced problem, checked.

    Args:
        problem: The problem.
        solver: A name in `PACED_SOLVERS`.
        limits: How far it may go; the defaults of `SharesLimits` if not given.

    Raises:
        ValueError: There is no such solver.
        SolverError: The solver stopped with neither an answer nor a proof that there is none.
    """
    run: Callable[[PacedProblem, SharesLimits], Shares] = solve_named(solver, PACED_SOLVERS)
    answer = run(problem, limits or SharesLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
