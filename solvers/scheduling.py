"""The scheduling problem: operations on ranks, one after the other, in the order that shortens the span.

Sets
    N   operations, each on one rank
    R   ranks
    A   pairs of operations (i, j): j starts no earlier than a lag after the end of i

Decisions
    the order of each rank's operations

Objective
    minimise the span: the largest, over the ranks, of the time from the start of a rank's first operation to the end of
    its last, starts chosen as late as that takes

Constraints, each with the function of `solvers.scheduling_check` that recomputes it
    (1)  every operation is in its rank's order once                                                     order
    (2)  orders and pairs do not go round in a circle                                                    circle
    (3)  what the operations of a rank have added, in its order, never exceeds the rank's capacity       memory

The span of given orders is exact: let l(a, b) be the longest path from rank a's first operation to the end of rank b's
last. Each (a, b) asks for (end of b) - (start of a) >= l(a, b), so that ranks can start with no span above S if and
only if no circle of ranks has a mean l above S. The span is the largest mean of a circle; orders can be repeated that
often if ranks never wait for all others.
"""

from dataclasses import dataclass

from solvers.solution import OPTIMALITY_TOLERANCE, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """`after` starts no earlier than `lag_seconds` after the end of `before`."""

    before: int
    after: int
    lag_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingProblem:
    """Operations, what they wait for and what they keep.

    Args:
        rank_N: Rank of each operation.
        seconds_N: How long it takes.
        added_bytes_N: What it adds to its rank's memory as it starts, or frees (negative) as it ends.
        pairs: What waits for what.
        capacity_bytes_R: Memory of each rank.
        least_span_seconds: No orders have a shorter span, as is known from elsewhere; 0 where nothing is known.
    """

    rank_N: tuple[int, ...]
    seconds_N: tuple[float, ...]
    added_bytes_N: tuple[int, ...]
    pairs: tuple[Pair, ...]
    capacity_bytes_R: tuple[int, ...]
    least_span_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check lengths and signs."""
        if not len(self.rank_N) == len(self.seconds_N) == len(self.added_bytes_N):
            raise ValueError("ranks, seconds and bytes are not of as many operations")
        if set(self.rank_N) != set(range(len(self.capacity_bytes_R))):
            raise ValueError("every rank has a capacity and an operation")
        if not all(
            0.0 <= seconds < float("inf") for seconds in (*self.seconds_N, *(p.lag_seconds for p in self.pairs))
        ):
            raise ValueError("a time is negative or not finite")
        if min(self.capacity_bytes_R) < 0:
            raise ValueError("a capacity is negative")
        known = range(len(self.rank_N))
        if not all(pair.before in known and pair.after in known for pair in self.pairs):
            raise ValueError("a pair names an operation that is not there")

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks."""
        return len(self.capacity_bytes_R)

    def operations(self, rank: int) -> tuple[int, ...]:
        """Return the operations of a rank."""
        return tuple(index for index, of in enumerate(self.rank_N) if of == rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingLimits:
    """How far a solver may go; counts, so that equal problems have equal answers.

    Args:
        max_points: Combinations of orders that an exhaustive search looks at.
        max_deterministic_seconds: What CP-SAT counts as time, alike on every machine.
    """

    max_points: int = 1_000_000
    max_deterministic_seconds: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The answer to a scheduling problem.

    Args:
        solver: Name of the solver.
        status: Optimal: span and bound agree within `OPTIMALITY_TOLERANCE`. Infeasible: proved that no orders exist.
        order_R: Operations of each rank, in order; empty when infeasible.
        span_seconds: Their span; None when infeasible.
        bound_seconds: No orders have a shorter one; None when infeasible.
    """

    solver: str
    status: Status
    order_R: tuple[tuple[int, ...], ...]
    span_seconds: float | None
    bound_seconds: float | None

    def __post_init__(self) -> None:
        """Check that status, span and bound belong together."""
        if self.status is Status.INFEASIBLE:
            if self.order_R or self.span_seconds is not None or self.bound_seconds is not None:
                raise ValueError("an infeasible problem has no orders, span or bound")
            return
        if self.span_seconds is None or self.bound_seconds is None:
            raise ValueError(f"orders that are {self.status} have a span and a bound")
        if self.bound_seconds > self.span_seconds:
            raise ValueError(f"bound {self.bound_seconds} exceeds span {self.span_seconds}")
        gap = self.span_seconds - self.bound_seconds
        if self.status is Status.OPTIMAL and gap > OPTIMALITY_TOLERANCE * self.span_seconds:
            raise ValueError(f"a gap of {gap} seconds is not optimal")


def no_orders(solver: str) -> Orders:
    """Return the answer that no orders exist."""
    return Orders(solver=solver, status=Status.INFEASIBLE, order_R=(), span_seconds=None, bound_seconds=None)
