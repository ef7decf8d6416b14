"""The solvers of fleet problems by name, with what each can do; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import cast

from solvers.fleet import Fleet, FleetLimits, FleetProblem
from solvers.fleet_check import broken_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSolver:
    """One solver and its capabilities.

    Args:
        module: The module with its `solve`.
        description: What it is, in one phrase.
    """

    module: str
    description: str


FLEET_SOLVERS = MappingProxyType(
    {
        "mathopt": FleetSolver(
            module="solvers.fleet_mathopt",
            description="mixed-integer programme, HiGHS through OR-Tools MathOpt",
        ),
        "pulp": FleetSolver(
            module="solvers.fleet_pulp",
            description="mixed-integer programme, CBC through PuLP",
        ),
        "exhaustive": FleetSolver(
            module="solvers.fleet_exhaustive",
            description="every composition, for small problems",
        ),
    }
)


def compose(problem: FleetProblem, *, solver: str = "mathopt", limits: FleetLimits | None = None) -> Fleet:
    """Return a solver's answer to a fleet problem, checked.

    Args:
        problem: The problem.
        solver: A name in `FLEET_SOLVERS`.
        limits: How far it may go; the defaults of `FleetLimits` if not given.

    Raises:
        ValueError: There is no such solver.
        SolverError: The solver stopped with neither an answer nor a proof that there is none.
    """
    if solver not in FLEET_SOLVERS:
        raise ValueError(f"there is no solver {solver!r}; there are {', '.join(FLEET_SOLVERS)}")
    run = cast("Callable[[FleetProblem, FleetLimits], Fleet]", import_module(FLEET_SOLVERS[solver].module).solve)
    answer = run(problem, limits or FleetLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
