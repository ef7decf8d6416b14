"""Recomputes from scratch whether paced shares keep every constraint, and how long everything lasts."""

from solvers.paced.problem import PacedProblem
from solvers.shares.check import broken_constraints
from solvers.shares.problem import Shares
from solvers.solution import OPTIMALITY_TOLERANCE, Status


def broken_answer(problem: PacedProblem, answer: Shares) -> tuple[str, ...]:
    """Return what is wrong with an answer: broken constraints, or an objective that is not its shares'."""
    if answer.status is Status.INFEASIBLE:
        return ()
    broken = broken_constraints(problem.shares, answer.share_O)
    if broken:
        return broken
    value = _lasts(problem, answer.share_O)
    assert answer.objective is not None
    assert answer.bound is not None
    if abs(value - answer.objective) > OPTIMALITY_TOLERANCE * max(value, 1e-12):
        return (f"objective: it is {value}, not {answer.objective}",)
    if answer.bound > value * (1 + OPTIMALITY_TOLERANCE):
        return (f"bound: {answer.bound} is above {value}, which was reached",)
    return ()


def _lasts(problem: PacedProblem, share_O: tuple[float, ...]) -> float:
    busy: dict[int, float] = {}
    for phase, rank in enumerate(problem.rank_P):
        longest = 0.0
        for chain in problem.shares.chains:
            if chain.phase == phase:
                spent = sum(each * share for each, share in zip(chain.seconds_O, share_O, strict=True))
                longest = max(longest, chain.fixed_seconds + spent)
        busy[rank] = busy.get(rank, 0.0) + problem.shares.weight_P[phase] * longest
    pace = max(busy.values(), default=0.0)
    for link in problem.links:
        pace = max(pace, sum(each * share for each, share in zip(link.seconds_O, share_O, strict=True)))
    return problem.periods * pace + sum(busy.values())
