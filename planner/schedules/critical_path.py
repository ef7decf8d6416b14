"""The longest chain of passes that wait for one another: what a step's length is made of.

It begins with the step and ends with its last pass. Every operation of it starts when the one before it has ended and
a gap or a transfer has passed (`planner.schedules.simulate`), so that its times add up to the span. With other times
of the same stages the same chain is still a path, and no longer than the span is then: its weights say what a change
of a stage brings at least.

Where only a few periods of a step were simulated (`planner.schedules.span`), the part of the chain that comes again in
every period is counted as often as the whole step has it.
"""

from dataclasses import dataclass, replace

import numpy as np

from planner.layout import Schedule
from planner.schedules.orders import num_warmup, operation_order
from planner.schedules.simulate import FloatArray, StageTimes, Timeline, operation_seconds, simulate, sources_RK
from planner.schedules.span import Steady, steady


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CriticalPath:
    """How often each time lies on the longest chain of a step.

    Args:
        span_seconds: Its length: the span of the step.
        forward_V: Forward passes of each virtual stage.
        backward_V: Backward passes.
    """

    span_seconds: float
    forward_V: FloatArray
    backward_V: FloatArray


def critical_path(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int, times: StageTimes) -> CriticalPath:
    """Return the longest chain of a step; arguments and errors are those of `planner.schedules.span.span_seconds`."""
    found = steady(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches, times=times)
    weight = _weights(found, schedule)
    if weight is None:
        whole = simulate(operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches), times)
        found = replace(found, timeline=whole, more_periods=0)
        weight = _passed(whole, _chain(whole))
    return CriticalPath(span_seconds=found.span_seconds, forward_V=weight[0], backward_V=weight[1])


def _chain(timeline: Timeline) -> list[tuple[int, int]]:
    """Return the (rank, position) of every operation of the chain, from the last to the first."""
    order = timeline.order
    num_positions = order.is_backward_RK.shape[1]
    seconds = operation_seconds(order, timeline.times)
    end_N = timeline.end_seconds_RK.ravel()
    gap_N, transfer_N = seconds.gap_before_RK.ravel(), seconds.transfer_in_RK.ravel()
    source_N = sources_RK(order).ravel()
    flat = int(timeline.rank_end_seconds_R.argmax()) * num_positions + num_positions - 1
    chain: list[tuple[int, int]] = []
    while flat >= 0:
        rank, position = divmod(flat, num_positions)
        chain.append((rank, position))
        before, source = flat - 1 if position else -1, int(source_N[flat])
        free = (end_N[before] if before >= 0 else 0.0) + gap_N[flat]
        ready = (end_N[source] if source >= 0 else 0.0) + transfer_N[flat]
        flat = before if free > ready else source
    return chain


def _passed(timeline: Timeline, chain: list[tuple[int, int]]) -> FloatArray:
    """Return how often forward and backward of each virtual stage are on a chain, `(2, V)`."""
    order = timeline.order
    rank_N, position_N = np.array(chain, dtype=np.int64).reshape(-1, 2).T
    weight = np.zeros((2, order.num_stages))
    at_N = (order.is_backward_RK[rank_N, position_N].astype(np.int64), order.stage_RK[rank_N, position_N])
    np.add.at(weight, at_N, 1.0)
    return weight


def _weights(found: Steady, schedule: Schedule) -> FloatArray | None:
    """Return how often forward and backward of each virtual stage are on the chain of the whole step, `(2, V)`.

    None where the periods that were simulated do not say what comes again.
    """
    timeline = found.timeline
    order, chain = timeline.order, _chain(timeline)
    weight = _passed(timeline, chain)
    if not found.more_periods:
        return weight
    # Somewhere in the steady phase the chain passes the same operation of two periods: what lies between comes again.
    positions = 2 * found.group * order.vpp
    total = order.num_microbatches * order.vpp
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    for index, (rank, position) in enumerate(chain):
        warmup = num_warmup(schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, rank=rank)
        if not warmup <= position < 2 * total - warmup:
            continue
        key = (rank, position % positions)
        if key in seen:
            first, later = seen[key]
            periods = (later - position) / positions
            repeated: FloatArray = weight + _passed(timeline, chain[first:index]) * (found.more_periods / periods)
            return repeated
        seen[key] = (index, position)
    return None
