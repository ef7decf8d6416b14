"""The solvers of shares problems by name, with what each can do; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import cast

from solvers.shares.check import broken_answer
from solvers.shares.problem import Shares, SharesLimits, SharesProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesSolver:
    """One solver and its capabilities.

    Args:
        module: The module with its `solve`.
        any_share: It divides things that have no units.
        description: What it is, in one phrase.
    """

    module: str
    any_share: bool
    description: str


SHARES_SOLVERS = MappingProxyType(
    {
        "mathopt": SharesSolver(
            module="solvers.shares.mathopt",
            any_share=True,
            description="linear or mixed-integer programme, HiGHS through OR-Tools MathOpt",
        ),
        "pulp": SharesSolver(
            module="solvers.shares.pulp_cbc",
            any_share=True,
            description="linear or mixed-integer programme, CBC through PuLP",
        ),
        "exhaustive": SharesSolver(
            module="solvers.shares.exhaustive",
            any_share=False,
            description="every division into whole units, for small problems",
        ),
    }
)


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
    if solver not in SHARES_SOLVERS:
        raise ValueError(f"there is no solver {solver!r}; there are {', '.join(SHARES_SOLVERS)}")
    run = cast("Callable[[SharesProblem, SharesLimits], Shares]", import_module(SHARES_SOLVERS[solver].module).solve)
    answer = run(problem, limits or SharesLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
