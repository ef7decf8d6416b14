"""Of the paced answers that last as long, the one in which least is done: `solvers.shares.tidy` with links as rooms."""

from dataclasses import replace

from solvers.paced.problem import PacedProblem
from solvers.shares.problem import Room, Shares, SharesLimits
from solvers.shares.tidy import LOOSENED, tidied
from solvers.solution import Status


def tidied_paced(problem: PacedProblem, answer: Shares, *, solver: str, limits: SharesLimits) -> Shares:
    """Return the answer in which least is done of those whose phases all last as long, but for rounding.

    Where the solver finds nothing within the limits, the answer stays as it is.

    Args:
        problem: The problem.
        answer: Its answer.
        solver: A name in `solvers.shares.registry.SHARES_SOLVERS`.
        limits: How far the solver may go.
    """
    if answer.status is Status.INFEASIBLE:
        return answer
    pace = problem.pace(answer.share_O) * (1 + LOOSENED)
    links = tuple(Room(name=link.name, capacity=pace, fixed=0.0, use_O=link.seconds_O) for link in problem.links)
    unpaced = replace(problem.shares, rooms=(*problem.shares.rooms, *links))
    objective = problem.shares.objective(answer.share_O)
    phases = replace(answer, status=Status.FEASIBLE, objective=objective, bound=min(answer.bound or 0.0, objective))
    found = tidied(unpaced, phases, solver=solver, limits=limits)
    assert answer.bound is not None
    objective = problem.objective(found.share_O)
    return replace(answer, share_O=found.share_O, objective=objective, bound=min(answer.bound, objective))
