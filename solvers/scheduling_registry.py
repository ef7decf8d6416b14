"""The solvers of scheduling problems by name; a solver's libraries are imported when it runs."""

from collections.abc import Callable
from types import MappingProxyType

from solvers.named import solve_named
from solvers.scheduling import Orders, SchedulingLimits, SchedulingProblem

OrderR = tuple[tuple[int, ...], ...]

SCHEDULERS = MappingProxyType(
    {
        "cp-sat": "solvers.scheduling_cpsat",
        "exhaustive": "solvers.scheduling_exhaustive",
    }
)
"""The module of each solver, with its `solve`."""


def schedule(
    problem: SchedulingProblem,
    *,
    solver: str = "cp-sat",
    limits: SchedulingLimits | None = None,
    hint_R: OrderR = (),
) -> Orders:
    """Return a solver's answer to a scheduling problem.

    Args:
        problem: The problem.
        solver: A name in `SCHEDULERS`.
        limits: How far it may go; the defaults of `SchedulingLimits` if not given.
        hint_R: Orders to start from; empty for none.

    Raises:
        ValueError: There is no such solver, or the hint breaks a constraint.
        SolverError: The solver stopped with neither orders nor a proof that there are none.
    """
    run: Callable[[SchedulingProblem, SchedulingLimits, OrderR], Orders] = solve_named(solver, SCHEDULERS)
    return run(problem, limits or SchedulingLimits(), hint_R)
