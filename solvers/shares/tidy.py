"""Of the answers that last as long, the one in which least is done: a second programme behind the first.

The chains of the first become rooms that hold what it found, and all of them together are what is minimised. So
nothing is moved that the longest chains would hide, and between things that cost the same room the one goes elsewhere
that is used less.
"""

from dataclasses import replace

from solvers.errors import SolverError
from solvers.shares.problem import Chain, Room, Shares, SharesLimits, SharesProblem
from solvers.shares.registry import divide
from solvers.solution import OPTIMALITY_TOLERANCE, Status

LOOSENED = OPTIMALITY_TOLERANCE / 10
"""Part by which phases may last longer than was found: room for solvers' tolerances."""


def tidied(problem: SharesProblem, answer: Shares, *, solver: str, limits: SharesLimits) -> Shares:
    """Return the answer in which least is done of those that last as long, but for `LOOSENED`.

    Where the solver finds nothing within the limits, the answer stays as it is.

    Args:
        problem: The problem.
        answer: Its answer.
        solver: A name in `solvers.shares.registry.SHARES_SOLVERS`.
        limits: How far the solver may go.
    """
    if answer.status is Status.INFEASIBLE:
        return answer
    assert answer.objective is not None
    assert answer.bound is not None
    seconds_P = problem.seconds_P(answer.share_O)
    total_O = [
        sum(problem.weight_P[chain.phase] * chain.seconds_O[option] for chain in problem.chains)
        for option in range(problem.num_options)
    ]
    least = replace(
        problem,
        weight_P=(1.0,),
        chains=(Chain(name="all", phase=0, fixed_seconds=0.0, seconds_O=tuple(total_O)),),
        rooms=(
            *problem.rooms,
            *(
                Room(
                    name=f"{chain.name} of phase {chain.phase}",
                    capacity=seconds_P[chain.phase] * (1 + LOOSENED),
                    fixed=chain.fixed_seconds,
                    use_O=chain.seconds_O,
                )
                for chain in problem.chains
            ),
        ),
    )
    try:
        found = divide(least, solver=solver, limits=limits)
    except SolverError:
        return answer
    if found.status is Status.INFEASIBLE:
        return answer
    objective = problem.objective(found.share_O)
    return replace(answer, share_O=found.share_O, objective=objective, bound=min(answer.bound, objective))
