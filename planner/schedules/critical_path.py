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

from planner.arrays import FloatArray, IntArray
from planner.layout import Schedule
from planner.schedules.orders import OperationOrder, num_warmup, operation_order
from planner.schedules.simulate import StageTimes, simulate
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
        weight = _passed(whole.order, whole.longest_chain())
    return CriticalPath(span_seconds=found.span_seconds, forward_V=weight[0], backward_V=weight[1])


def _passed(order: OperationOrder, chain: IntArray) -> FloatArray:
    """Return how often forward and backward of each virtual stage are on a chain, `(2, V)`."""
    passes = order.kinds.pass_O[order.kinds.kind_RK.ravel()[chain]]
    counted = np.bincount(passes // 2, minlength=2 * order.num_stages)
    return counted.reshape(order.num_stages, 2).T.astype(np.float64)


def _weights(found: Steady, schedule: Schedule) -> FloatArray | None:
    """Return how often forward and backward of each virtual stage are on the chain of the whole step, `(2, V)`.

    None where the periods that were simulated do not say what comes again.
    """
    order, chain = found.timeline.order, found.timeline.longest_chain()
    weight = _passed(order, chain)
    if not found.more_periods:
        return weight
    # Somewhere in the steady phase the chain passes the same operation of two periods: what lies between comes again.
    positions = 2 * found.group * order.vpp
    total = order.num_microbatches * order.vpp
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    warmup_R = [
        num_warmup(schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, rank=rank)
        for rank in range(order.pp)
    ]
    flats: list[int] = chain.tolist()
    for index, flat in enumerate(flats):
        rank, position = divmod(flat, 2 * total)
        if not warmup_R[rank] <= position < 2 * total - warmup_R[rank]:
            continue
        key = (rank, position % positions)
        if key in seen:
            first, later = seen[key]
            periods = (later - position) / positions
            return weight + _passed(order, chain[first:index]) * (found.more_periods / periods)
        seen[key] = (index, position)
    return None
