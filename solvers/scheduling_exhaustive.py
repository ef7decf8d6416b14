"""The oracle of scheduling: every combination of orders. For a handful of operations."""

from collections.abc import Iterator
from itertools import product
from math import prod

from solvers.errors import SolverError
from solvers.scheduling import Orders, SchedulingLimits, SchedulingProblem, no_orders
from solvers.scheduling_check import broken_constraints, span_seconds
from solvers.solution import Status

NAME = "exhaustive"


def solve(problem: SchedulingProblem, limits: SchedulingLimits, hint_R: tuple[tuple[int, ...], ...] = ()) -> Orders:
    """Return the best of all orders, the first of equals; the hint is not needed.

    Raises:
        SolverError: There are more combinations than the limit allows.
    """
    del hint_R
    every = [tuple(_orders(problem, rank)) for rank in range(problem.num_ranks)]
    number = prod(map(len, every))
    if number > limits.max_points:
        raise SolverError(solver=NAME, status=f"{number} orders", limit=f"max_points = {limits.max_points}")
    best: tuple[float, tuple[tuple[int, ...], ...]] | None = None
    for order_R in product(*every):
        if not broken_constraints(problem, order_R):
            span = span_seconds(problem, order_R)
            if best is None or span < best[0]:
                best = span, order_R
    if best is None:
        return no_orders(NAME)
    return Orders(solver=NAME, status=Status.OPTIMAL, order_R=best[1], span_seconds=best[0], bound_seconds=best[0])


def _orders(problem: SchedulingProblem, rank: int) -> Iterator[tuple[int, ...]]:
    """Yield every order of a rank that keeps the pairs inside it and its memory."""
    operations = problem.operations(rank)
    before = {
        operation: {pair.before for pair in problem.pairs if pair.after == operation and pair.before in operations}
        for operation in operations
    }

    def extended(done: tuple[int, ...], held: int) -> Iterator[tuple[int, ...]]:
        if len(done) == len(operations):
            yield done
        for operation in operations:
            now = held + problem.added_bytes_N[operation]
            if operation not in done and before[operation] <= set(done) and now <= problem.capacity_bytes_R[rank]:
                yield from extended((*done, operation), now)

    return extended((), 0)
