"""Recomputes from scratch whether a composition keeps every constraint of a fleet problem, and its objective."""

from collections.abc import Iterator

from solvers.fleet import Fleet, FleetProblem, Goal
from solvers.solution import OPTIMALITY_TOLERANCE, Status

SLACK = 1e-9
"""What sums of fractions may exceed a capacity by, as a part of it."""


def broken_constraints(problem: FleetProblem, count_O: tuple[int, ...]) -> tuple[str, ...]:
    """Return every constraint that counts break; empty when they keep all."""
    if len(count_O) != problem.num_options:
        return (f"counts: {len(count_O)} counts of {problem.num_options} options",)
    return (*_counts(count_O), *_resources(problem, count_O), *_demand(problem, count_O))


def _counts(count_O: tuple[int, ...]) -> Iterator[str]:
    for option, count in enumerate(count_O):
        if not isinstance(count, int) or count < 0:
            yield f"counts: option {option} has {count} servers"


def _resources(problem: FleetProblem, count_O: tuple[int, ...]) -> Iterator[str]:
    for index, (row, capacity) in enumerate(zip(problem.use_RO, problem.capacity_R, strict=True)):
        used = sum(use * count for use, count in zip(row, count_O, strict=True))
        if used > capacity * (1 + SLACK):
            yield f"resources: {used} of resource {index} are used, {capacity} are there"


def _demand(problem: FleetProblem, count_O: tuple[int, ...]) -> Iterator[str]:
    if problem.goal is not Goal.LEAST_COST:
        return
    whole = first = second = 0.0
    for part, rate, count in zip(problem.part_O, problem.rate_O, count_O, strict=True):
        whole += rate * count if part == "whole" else 0.0
        first += rate * count if part == "first" else 0.0
        second += rate * count if part == "second" else 0.0
    served = whole + min(first, second)
    if served < problem.demand * (1 - SLACK):
        yield f"demand: {served} are served of {problem.demand}"


def broken_answer(problem: FleetProblem, answer: Fleet) -> tuple[str, ...]:
    """Return what is wrong with an answer: broken constraints, or an objective that is not its counts'."""
    if answer.status is Status.INFEASIBLE:
        return ()
    broken = broken_constraints(problem, answer.count_O)
    if broken:
        return broken
    if problem.goal is Goal.LEAST_COST:
        value = sum(cost * count for cost, count in zip(problem.cost_O, answer.count_O, strict=True))
    else:
        value = problem.served(answer.count_O)
    assert answer.objective is not None
    if abs(value - answer.objective) > OPTIMALITY_TOLERANCE * max(abs(value), 1e-12):
        return (f"objective: it is {value}, not {answer.objective}",)
    return ()
