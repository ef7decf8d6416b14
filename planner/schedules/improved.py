"""Orders of split backward passes as a scheduling problem, for the solvers of such.

Every pass is an operation of its rank. A forward pass adds its activations, the gradient of the input leaves what that
of the weights needs, which frees the rest. Every rank takes the micro-batches in turn, each kind of pass by itself: so
do all published orders, and it leaves the solver far less to look at. What the solver proves holds for such orders
alone.
"""

from planner.schedules.passes import Pass, PassKind, PassOrder, PassTimes, run
from planner.schedules.split_bounds import Memory, lower_bound_seconds
from solvers.scheduling import Pair, SchedulingLimits, SchedulingProblem
from solvers.scheduling_registry import schedule

KINDS = (PassKind.FORWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT)

MOST_OPERATIONS = 160
"""Passes that a problem may have; of more the solver makes nothing within its limit."""

LIMITS = SchedulingLimits(max_deterministic_seconds=0.5)
"""What one problem may take of CP-SAT's own clock: a choice, as several layouts may each ask for it."""


def improved(order: PassOrder, times: PassTimes, memory: Memory) -> tuple[PassOrder, float]:
    """Return the better of an order and of what the solver makes of it, and a span that none in turn undercuts.

    Args:
        order: One stage a rank, every backward pass split.
        times: What passes take.
        memory: What they keep.

    Raises:
        solvers.errors.SolverError: The solver stopped with nothing, which an order within memory does not let it.
    """
    passes = _passes(order.pp, order.num_microbatches)
    number = {entry: index for index, entry in enumerate(passes)}
    found = schedule(
        scheduling_problem(order.pp, order.num_microbatches, times, memory),
        limits=LIMITS,
        hint_R=tuple(tuple(number[entry] for entry in order.passes(rank)) for rank in range(order.pp)),
    )
    assert found.bound_seconds is not None, "there are orders, as there is a hint"
    blocks_R = tuple(tuple((passes[index],) for index in operations) for operations in found.order_R)
    better = PassOrder(
        name=order.name,
        rank_of_stage_V=order.rank_of_stage_V,
        chains=order.chains,
        microbatches_of_chain=order.microbatches_of_chain,
        blocks_R=blocks_R,
    )
    return min((order, better), key=lambda entry: run(entry, times).span_seconds), found.bound_seconds


def scheduling_problem(pp: int, num_microbatches: int, times: PassTimes, memory: Memory) -> SchedulingProblem:
    """Return the problem of the best order."""
    passes = _passes(pp, num_microbatches)
    number = {entry: index for index, entry in enumerate(passes)}
    pairs: list[Pair] = []
    added: list[int] = []
    for kind, rank, index in passes:
        own = number[Pass(kind, rank, index)]
        whole, kept = memory.activation_bytes_R[rank], memory.weight_gradient_bytes_R[rank]
        added.append({PassKind.FORWARD: whole, PassKind.INPUT_GRADIENT: kept - whole}.get(kind, -kept))
        if index + 1 < num_microbatches:
            pairs.append(Pair(before=own, after=number[Pass(kind, rank, index + 1)]))
        if kind is PassKind.WEIGHT_GRADIENT:
            continue
        follower = KINDS[KINDS.index(kind) + 1]
        pairs.append(Pair(before=own, after=number[Pass(follower, rank, index)]))
        other = rank + 1 if kind is PassKind.FORWARD else rank - 1
        if 0 <= other < pp:
            lag = times.transfer_seconds_V[min(rank, other)]
            pairs.append(Pair(before=own, after=number[Pass(kind, other, index)], lag_seconds=lag))
    return SchedulingProblem(
        rank_N=tuple(entry.stage for entry in passes),
        seconds_N=tuple(times.seconds(entry) for entry in passes),
        added_bytes_N=tuple(added),
        pairs=tuple(pairs),
        capacity_bytes_R=memory.limit_bytes_R,
        least_span_seconds=lower_bound_seconds(times, memory, num_microbatches),
    )


def _passes(pp: int, num_microbatches: int) -> list[Pass]:
    """Return every pass of a step, by rank and micro-batch."""
    return [Pass(kind, rank, index) for rank in range(pp) for index in range(num_microbatches) for kind in KINDS]
