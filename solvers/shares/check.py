"""Recomputes from scratch whether shares keep every constraint, and how long everything lasts."""

from collections.abc import Iterator

from solvers.shares.problem import Shares, SharesProblem
from solvers.solution import OPTIMALITY_TOLERANCE, Status

SLACK = 1e-7
"""What sums may differ by, as a part of what they are held against: CBC writes its answers with so many digits."""


def broken_constraints(problem: SharesProblem, share_O: tuple[float, ...]) -> tuple[str, ...]:
    """Return every constraint that shares break; empty when they keep all."""
    if len(share_O) != len(problem.thing_O):
        return (f"(1) {len(share_O)} shares of {len(problem.thing_O)} options",)
    return (*_whole(problem, share_O), *_in_units(problem, share_O), *_within(problem, share_O))


def _whole(problem: SharesProblem, share_O: tuple[float, ...]) -> Iterator[str]:
    for option, share in enumerate(share_O):
        if not 0 <= share <= 1:
            yield f"(1) option {option} has the share {share}"
    for thing in range(len(problem.units_T)):
        total = 0.0
        for owner, share in zip(problem.thing_O, share_O, strict=True):
            total += share if owner == thing else 0.0
        if abs(total - 1) > SLACK:
            yield f"(1) the shares of thing {thing} sum to {total}"


def _in_units(problem: SharesProblem, share_O: tuple[float, ...]) -> Iterator[str]:
    for option, share in enumerate(share_O):
        units = problem.units_T[problem.thing_O[option]]
        if units and abs(share * units - round(share * units)) > SLACK * units:
            yield f"(2) option {option} has {share * units} of {units} units"


def _within(problem: SharesProblem, share_O: tuple[float, ...]) -> Iterator[str]:
    for room in problem.rooms:
        used = room.fixed
        for use, share in zip(room.use_O, share_O, strict=True):
            used += use * share
        if used > room.capacity * (1 + SLACK):
            yield f"(3) {room.name} holds {used} of {room.capacity}"


def broken_answer(problem: SharesProblem, answer: Shares) -> tuple[str, ...]:
    """Return what is wrong with an answer: broken constraints, or an objective that is not its shares'."""
    if answer.status is Status.INFEASIBLE:
        return ()
    broken = broken_constraints(problem, answer.share_O)
    if broken:
        return broken
    value = 0.0
    for phase, weight in enumerate(problem.weight_P):
        longest = 0.0
        for chain in problem.chains:
            if chain.phase == phase:
                spent = sum(each * share for each, share in zip(chain.seconds_O, answer.share_O, strict=True))
                longest = max(longest, chain.fixed_seconds + spent)
        value += weight * longest
    assert answer.objective is not None
    assert answer.bound is not None
    if abs(value - answer.objective) > OPTIMALITY_TOLERANCE * max(value, 1e-12):
        return (f"objective: it is {value}, not {answer.objective}",)
    if answer.bound > value * (1 + OPTIMALITY_TOLERANCE):
        return (f"bound: {answer.bound} is above {value}, which was reached",)
    return ()
