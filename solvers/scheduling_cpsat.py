"""The scheduling problem as a constraint programme, for CP-SAT.

Sets
    N, R, A   as in `solvers.scheduling`

Variables
    s[i]       start of operation i, in ticks                               integer, 0 to the horizon
    f[r], e[r] first start and last end of rank r                           integer
    S          the span                                                     integer

Objective
    minimise S                                                              _model

Constraints
    (1)  the intervals [s[i], s[i] + d[i]] of a rank do not overlap         _no_overlap
    (2)  s[j] >= s[i] + d[i] + lag(i, j) for each pair                      _model
    (3)  what starts have added and ends have freed is within capacity      _memory
    (4)  f[r] <= s[i], s[i] + d[i] <= e[r], e[r] - f[r] <= S                _model
    (5)  S is at least what is known from elsewhere                         _model

A tick is a `TICKS`-th of the hint's span. Times are rounded down, so that the programme is a relaxation: a bound on its
span, in ticks, is one on the span. Orders are read from its starts, and their span is computed from the exact times; it
is at most a tick for each operation and lag above the best, and the answer optimal only where rounding leaves no gap.
Operations of no tick can start at once and so come out in orders that do not hold; then the hint stands.
"""

from itertools import pairwise
from math import floor

from ortools.sat.python import cp_model

from solvers.errors import SolverError
from solvers.scheduling import Orders, SchedulingLimits, SchedulingProblem, no_orders
from solvers.scheduling_check import broken_constraints, sequence, span_seconds
from solvers.solution import OPTIMALITY_TOLERANCE, Status

NAME = "cp-sat"
TICKS = 10_000
SEED = 1


def solve(problem: SchedulingProblem, limits: SchedulingLimits, hint_R: tuple[tuple[int, ...], ...] = ()) -> Orders:
    """Return the best orders that CP-SAT finds, or the hint if that is better.

    Args:
        problem: The problem.
        limits: How far it may go.
        hint_R: Orders to start from; empty for none.

    Raises:
        SolverError: It stopped with nothing.
        ValueError: The hint breaks a constraint.
    """
    if hint_R and (broken := broken_constraints(problem, hint_R)):
        raise ValueError(f"the hint breaks {', '.join(broken)}")
    listed = sequence(problem, ())
    if listed is None:
        return no_orders(NAME)
    known = span_seconds(problem, hint_R) if hint_R else sum(problem.seconds_N)
    programme = _Programme(problem, unit_seconds=(known / TICKS) or 1.0)
    if hint_R:
        programme.hint(hint_R)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = limits.max_deterministic_seconds
    # Both take most of the time here and prove nothing: the LP relaxation of orders is as weak as the longest path.
    solver.parameters.linearization_level = 0
    solver.parameters.cp_model_probing_level = 0
    status = solver.solve(programme.model)
    if status == cp_model.INFEASIBLE and not hint_R:
        return no_orders(NAME)
    known_statuses = (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN)
    assert status in known_statuses, f"orders that hold are no solution of the programme: {solver.status_name(status)}"
    found: list[tuple[float, tuple[tuple[int, ...], ...]]] = []
    nothing, limit = (
        solver.status_name(status).lower(),
        f"max_deterministic_seconds = {limits.max_deterministic_seconds}",
    )
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        order_R = programme.order_R([solver.value(start) for start in programme.starts], listed)
        # What is shorter than a tick has no length here: what it frees may be taken before.
        if broken := broken_constraints(problem, order_R):
            nothing, limit = f"orders that break {', '.join(broken)}", f"ticks of {programme.unit_seconds:g} s"
        else:
            found.append((span_seconds(problem, order_R), order_R))
    if hint_R:
        found.append((known, hint_R))
    if not found:
        raise SolverError(solver=NAME, status=nothing, limit=limit)
    span, order_R = min(found)
    proved = max(0.0, solver.best_objective_bound) * programme.unit_seconds
    bound = min(span, max(proved, problem.least_span_seconds))
    optimal = span - bound <= OPTIMALITY_TOLERANCE * span
    return Orders(
        solver=NAME,
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        order_R=order_R,
        span_seconds=span,
        bound_seconds=bound,
    )


class _Programme:
    """The programme of one problem.

    Args:
        problem: The problem.
        unit_seconds: A tick.
    """

    def __init__(self, problem: SchedulingProblem, *, unit_seconds: float) -> None:
        self.problem = problem
        self.unit_seconds = unit_seconds
        self._ticks = [floor(seconds / unit_seconds) for seconds in problem.seconds_N]
        self._lags = [floor(pair.lag_seconds / unit_seconds) for pair in problem.pairs]
        self._horizon = sum(self._ticks) + sum(self._lags)
        self.model = cp_model.CpModel()
        self.starts = [self.model.new_int_var(0, self._horizon, f"s_{index}") for index in range(len(self._ticks))]
        least = floor(problem.least_span_seconds / unit_seconds)
        self.span = self.model.new_int_var(min(least, self._horizon), self._horizon, "S")
        self._no_overlap()
        self._memory()
        for pair, lag in zip(problem.pairs, self._lags, strict=True):
            self.model.add(self.starts[pair.after] >= self.starts[pair.before] + self._ticks[pair.before] + lag)
        for rank in range(problem.num_ranks):
            first = self.model.new_int_var(0, self._horizon, f"f_{rank}")
            last = self.model.new_int_var(0, self._horizon, f"e_{rank}")
            for operation in problem.operations(rank):
                self.model.add(first <= self.starts[operation])
                self.model.add(last >= self.starts[operation] + self._ticks[operation])
            self.model.add(last - first <= self.span)
        self.model.minimize(self.span)

    def _no_overlap(self) -> None:
        """Add constraint (1)."""
        for rank in range(self.problem.num_ranks):
            self.model.add_no_overlap(
                self.model.new_fixed_size_interval_var(self.starts[operation], self._ticks[operation], f"i_{operation}")
                for operation in self.problem.operations(rank)
            )

    def _memory(self) -> None:
        """Add constraint (3)."""
        for rank, capacity in enumerate(self.problem.capacity_bytes_R):
            operations = [entry for entry in self.problem.operations(rank) if self.problem.added_bytes_N[entry]]
            if not operations:
                continue
            changes = [self.problem.added_bytes_N[operation] for operation in operations]
            times = [
                self.starts[operation] + (self._ticks[operation] if change < 0 else 0)
                for operation, change in zip(operations, changes, strict=True)
            ]
            freed = sum(change for change in changes if change < 0)
            self.model.add_reservoir_constraint(times, changes, freed, capacity)

    def hint(self, order_R: tuple[tuple[int, ...], ...]) -> None:
        """Start from orders, each operation as early as these let it."""
        listed = sequence(self.problem, order_R)
        assert listed is not None, "a hint has been checked"
        before = {after: operation for order in order_R for operation, after in pairwise(order)}
        starts = [0] * len(self.starts)
        for operation in listed:
            waits = [
                starts[pair.before] + self._ticks[pair.before] + lag
                for pair, lag in zip(self.problem.pairs, self._lags, strict=True)
                if pair.after == operation
            ]
            if operation in before:
                waits.append(starts[before[operation]] + self._ticks[before[operation]])
            starts[operation] = max(waits, default=0)
            self.model.add_hint(self.starts[operation], starts[operation])

    def order_R(self, starts: list[int], listed: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the orders that starts stand for; of those that start together, what others wait for comes first."""
        place = {operation: index for index, operation in enumerate(listed)}
        return tuple(
            tuple(
                sorted(
                    self.problem.operations(rank),
                    key=lambda operation: (starts[operation], self._ticks[operation] > 0, place[operation]),
                )
            )
            for rank in range(self.problem.num_ranks)
        )
