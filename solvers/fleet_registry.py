"""The solvers of fleet problems by name; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from types import MappingProxyType

from solvers.fleet import Fleet, FleetLimits, FleetProblem
from solvers.fleet_check import broken_answer
from solvers.named import solve_named

FLEET_SOLVERS = MappingProxyType(
    {
        "mathopt": "solvers.fleet_mathopt",  # mixed-integer programme, HiGHS through OR-Tools MathOpt
        "pulp": "solvers.fleet_pulp",  # mixed-integer programme, CBC through PuLP
        "exhaustive": "solvers.fleet_exhaustive",  # every composition, for small problems
    }
)
"""The module of each solver, with its `solve`."""


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
    run: Callable[[FleetProblem, FleetLimits], Fleet] = solve_named(solver, FLEET_SOLVERS)
    answer = run(problem, limits or FleetLimits())
    broken = broken_answer(problem, answer)
    assert not broken, f"{solver}: {broken}"
    return answer
