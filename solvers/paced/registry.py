"""The solvers of paced shares by name, with what each can do; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from importlib import import_module
from types import MappingProxyType
from typing import cast

from solvers.paced.check import broken_answer
from solvers.paced.problem import PacedProblem
from solvers.shares.problem import Shares, SharesLimits
from solvers.shares.registry import SharesSolver

PACED_SOLVERS = MappingProxyType(
    {
        "mathopt": SharesSolver(
            module="solvers.paced.mathopt",
            any_share=True,
            description="linear or mixed-integer programme, HiGHS through OR-Tools MathOpt",
        ),
        "pulp": SharesSolver(
            module="solvers.paced.pulp_cbc",
            any_share=True,
            description="linear or mixed-integer programme, CBC through PuLP",
        ),
        "exhaustive": SharesSolver(
            module="solvers.paced.exhaustive",
            any_share=False,
            description="every division into whole units, for small problems",
        ),
    }
)


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
    if solver not in PACED_SOLVERS:
        raise ValueError(f"there is no solver {solver!r}; there are {', '.join(PACED_SOLVERS)}")
    run = cast("Callable[[PacedProblem, SharesLimits], Shares]", import_module(PACED_SOLVERS[solver].module).solve)
    answer = run(problem, limits or SharesLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
