"""How long a pipeline takes, without running every micro-batch.

In their steady phase 1F1B and the interleaved schedule repeat: each period every rank runs one group of micro-batches
forward and one backward through each of its chunks. Starts are maxima of sums (`planner.schedules.simulate`), so once
every operation of a period has ended one and the same time after its like in the period before, it does so in every
period that follows: the recurrence commutes with adding a constant (Baccelli, Cohen, Olsder and Quadrat,
"Synchronization and Linearity", 1992, chapter 3). A step with more micro-batches is then longer by that time for each
group more.

A short step is simulated, twice as long until the last periods of its steady phase repeat, or until it is the whole
step. Every operation waits for ones of its own period or of the two before it; both of these are compared.

Arrays name their axes: R pipeline ranks, K operations of one rank.
"""

from dataclasses import dataclass

import numpy as np

from planner.layout import Schedule
from planner.schedules.orders import num_warmup, operation_order, repeating_microbatches
from planner.schedules.simulate import StageTimes, Timeline, simulate

COMPARED_PERIODS = 2
"""Periods that must repeat the ones before them."""

REPEAT_TOLERANCE = 1e-11
"""By which share of a period the times of its operations may differ from those of the one before and count as equal:
sums of a few thousand terms, rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """A step of fewer micro-batches, and how often its last period comes again in the whole step.

    Args:
        timeline: The simulated step.
        group: Micro-batches of a period.
        more_periods: Periods that are left out.
        period_seconds: What each of them takes; 0 where none is left out.
    """

    timeline: Timeline
    group: int
    more_periods: int
    period_seconds: float

    @property
    def span_seconds(self) -> float:
        """Return when the last rank of the whole step ends, its last extra included."""
        return float(self.timeline.rank_end_seconds_R.max()) + self.more_periods * self.period_seconds


def span_seconds(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int, times: StageTimes) -> float:
    """Return when the last rank of `simulate` ends, its last extra included.

    Args:
        schedule: The schedule.
        pp: Pipeline ranks.
        vpp: Chunks of each rank.
        num_microbatches: Micro-batches of the step.
        times: What one micro-batch costs on each virtual stage.

    Raises:
        ValueError: The schedule does not run at these degrees, or the times are not for as many stages.
    """
    return steady(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches, times=times).span_seconds


def steady(schedule: Schedule, *, pp: int, vpp: int, num_microbatches: int, times: StageTimes) -> Steady:
    """Return the shortest step tried whose last periods repeat; arguments and errors are those of `span_seconds`."""
    group = pp if schedule is Schedule.INTERLEAVED else 1
    # One period to settle in; the compared periods and those before them come behind.
    short = repeating_microbatches(schedule, pp=pp, vpp=vpp) + group * (COMPARED_PERIODS + 1)
    while short < num_microbatches:
        timeline = simulate(operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=short), times)
        period_seconds = _period_seconds(timeline, schedule, group=group)
        if period_seconds is not None:
            more = (num_microbatches - short) // group
            return Steady(timeline=timeline, group=group, more_periods=more, period_seconds=period_seconds)
        short *= 2
    timeline = simulate(operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches), times)
    return Steady(timeline=timeline, group=group, more_periods=0, period_seconds=0.0)


def _period_seconds(timeline: Timeline, schedule: Schedule, *, group: int) -> float | None:
    """Return the time of a period, where the last ones of the steady phase take equally long on every rank."""
    order = timeline.order
    period = 2 * group * order.vpp
    warmup_R = [
        num_warmup(schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, rank=rank)
        for rank in range(order.pp)
    ]
    stop_R = 2 * order.num_microbatches * order.vpp - np.array(warmup_R)
    last_RK = stop_R[:, np.newaxis] - np.arange(period * (COMPARED_PERIODS + 1), 0, -1)
    end_RK = np.take_along_axis(timeline.end_seconds_RK, last_RK, axis=1)
    gained_RK = end_RK[:, period:] - end_RK[:, :-period]
    found = float(gained_RK[0, -1])
    return None if (abs(gained_RK - found) > REPEAT_TOLERANCE * found).any() else found
