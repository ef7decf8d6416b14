"""Recomputes from scratch what a solver says of a scheduling problem: constraints (1) to (3), and the span."""

from collections.abc import Sequence
from itertools import pairwise
from math import inf

from solvers.scheduling import Orders, SchedulingProblem
from solvers.solution import OPTIMALITY_TOLERANCE, Status

OrderR = Sequence[Sequence[int]]


def broken_constraints(problem: SchedulingProblem, order_R: OrderR) -> tuple[str, ...]:
    """Return the names of the constraints that orders break: "order", "circle", "memory"."""
    if any(sorted(order) != list(problem.operations(rank)) for rank, order in enumerate(order_R)) or (
        len(order_R) != problem.num_ranks
    ):
        return ("order",)
    broken = [] if sequence(problem, order_R) is not None else ["circle"]
    for order, capacity in zip(order_R, problem.capacity_bytes_R, strict=True):
        held = 0
        for operation in order:
            held += problem.added_bytes_N[operation]
            if held > capacity and "memory" not in broken:
                broken.append("memory")
    return tuple(broken)


def sequence(problem: SchedulingProblem, order_R: OrderR) -> tuple[int, ...] | None:
    """Return all operations, each behind all that it waits for; None if they go round in a circle."""
    waits: list[int] = [0] * len(problem.rank_N)
    followers: list[list[int]] = [[] for _ in problem.rank_N]
    for before, after in [
        *((pair.before, pair.after) for pair in problem.pairs),
        *(pair for order in order_R for pair in pairwise(order)),
    ]:
        followers[before].append(after)
        waits[after] += 1
    ready = [operation for operation, number in enumerate(waits) if not number]
    found: list[int] = []
    while ready:
        operation = ready.pop()
        found.append(operation)
        for after in followers[operation]:
            waits[after] -= 1
            if not waits[after]:
                ready.append(after)
    return tuple(found) if len(found) == len(waits) else None


def span_seconds(problem: SchedulingProblem, order_R: OrderR) -> float:
    """Return the span of orders: the largest mean of a circle of ranks (Karp, Discrete Mathematics 23, 1978).

    Raises:
        ValueError: The operations wait for one another in a circle.
    """
    listed = sequence(problem, order_R)
    if listed is None:
        raise ValueError("the operations of these orders wait for one another in a circle")
    sources: list[list[tuple[int, float]]] = [[] for _ in problem.rank_N]
    for pair in problem.pairs:
        sources[pair.after].append((pair.before, pair.lag_seconds))
    for order in order_R:
        for before, after in pairwise(order):
            sources[after].append((before, 0.0))
    ranks = range(problem.num_ranks)
    longest = [_longest_to_ends(problem, order_R, listed, sources, order[0]) for order in order_R]
    # Karp: the longest walks of exactly k steps from any rank, k up to their number.
    walks = [[0.0] * len(ranks)]
    for _ in ranks:
        last = walks[-1]
        walks.append([max(last[rank] + longest[rank][other] for rank in ranks) for other in ranks])
    number = len(ranks)
    return max(
        min(
            (walks[number][rank] - walks[steps][rank]) / (number - steps)
            for steps in range(number)
            if walks[steps][rank] > -inf
        )
        for rank in ranks
        if walks[number][rank] > -inf
    )


def _longest_to_ends(
    problem: SchedulingProblem,
    order_R: OrderR,
    listed: Sequence[int],
    sources: Sequence[Sequence[tuple[int, float]]],
    first: int,
) -> list[float]:
    """Return the longest path from the start of an operation to the end of each rank's last; -inf without any."""
    ends = [-inf] * len(problem.rank_N)
    for operation in listed:
        start = 0.0 if operation == first else -inf
        start = max([start, *(ends[before] + lag for before, lag in sources[operation])])
        ends[operation] = start + problem.seconds_N[operation]
    return [ends[order[-1]] for order in order_R]


def findings(problem: SchedulingProblem, answer: Orders) -> tuple[str, ...]:
    """Return what is wrong with an answer; nothing for a sound one."""
    if answer.status is Status.INFEASIBLE:
        return ()
    broken = broken_constraints(problem, answer.order_R)
    if broken:
        return tuple(f"constraint {name} is broken" for name in broken)
    span = span_seconds(problem, answer.order_R)
    assert answer.span_seconds is not None, "feasible orders have a span"
    if abs(span - answer.span_seconds) > OPTIMALITY_TOLERANCE * span:
        return (f"the span is {span}, not {answer.span_seconds}",)
    return ()
