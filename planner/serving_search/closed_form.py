"""What an engine bears within the targets, in closed form: what ranks every candidate, role by role.

All figures are means; a target for a percentile is held against the mean here, so that the closed form only bounds
such an engine from above, and the simulation of the chosen ones says what it bears.

A prefill engine is a queue with one server and fixed service (Pollaczek and Khinchine): at a load u of its capacity a
prompt waits u / (2 (1 - u)) of its own time. A decode engine's step grows with its batch B, and bears
B / ((output - 1) step(B)) requests a second, times the tokens that an answer gets from a step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from planner.serving.steady import Steady, at_concurrency, by_the_clock, late_seconds, prefill_seconds
from planner.serving_plans.layout import Role
from planner.serving_plans.request import Arrivals
from planner.serving_search.candidates import Candidate

BUSIEST = 0.95
"""Largest load of a queue that is planned: beyond it waiting grows without bound at any disturbance."""

BISECTIONS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """An engine at a load.

    Args:
        candidate: The engine.
        role: What it does.
        batch: Requests that run at once on a data-parallel rank.
        seqs: The planned batch that it is told.
        requests_per_second: Of the whole engine.
        tpot_seconds: Mean; 0 of prefill.
        ttft_seconds: Mean; of decode that of its first step.
        concurrency: Requests under way in a closed loop, of the whole engine; 0 by the clock.
    """

    candidate: Candidate
    role: Role
    batch: float
    seqs: int
    requests_per_second: float
    tpot_seconds: float
    ttft_seconds: float
    concurrency: int = 0

    @property
    def per_gpu(self) -> float:
        """Return the requests a second of a GPU."""
        return self.requests_per_second / self.candidate.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Targets as one role sees them, in seconds; infinite where there is none."""

    ttft: float = math.inf
    tpot: float = math.inf
    e2e: float = math.inf

    def admit(self, *, ttft: float, tpot: float, output: float) -> bool:
        """Return whether means keep them."""
        return ttft <= self.ttft and tpot <= self.tpot and ttft + tpot * (output - 1) <= self.e2e


def allowed_of(candidate: Candidate) -> Allowed:
    """Return the request's targets."""
    given = candidate.ground.request.workload.targets.given
    return Allowed(**given)


def in_a_loop(candidate: Candidate, role: Role = Role.BOTH) -> bool:
    """Return whether requests come when others end; to the pools of a split plan they come by the clock."""
    return role is Role.BOTH and candidate.ground.request.workload.arrivals in {Arrivals.CLOSED, Arrivals.OFFLINE}


def state_at(candidate: Candidate, batch: float) -> Steady:
    """Return the steady state of a data-parallel rank with so many running answers."""
    steady = at_concurrency if in_a_loop(candidate) else by_the_clock
    return steady(candidate.costs, candidate.most_seats, candidate.ground.mean.load, batch)


def seats_for(candidate: Candidate, batch: float, role: Role = Role.BOTH) -> int:
    """Return the planned batch of an engine whose running answers are so many in the mean.

    With arrivals by the clock their number varies like a Poisson variable: three of its deviations find a seat.
    """
    closed = in_a_loop(candidate, role)
    seqs = math.ceil(batch) if closed else math.ceil(batch + 3 * math.sqrt(batch))
    return candidate.told(max(1, min(seqs, candidate.most_seqs)))


def best_of_both(candidate: Candidate, *, near: float | None = None) -> Point | None:
    """Return the most that an engine bears that does everything; None where no batch keeps the targets.

    Args:
        candidate: The engine.
        near: The batch of an engine that differs little, where one is known: the search begins there.
    """
    allowed = allowed_of(candidate)
    output = candidate.ground.mean.output
    closed = in_a_loop(candidate)

    def keeps(batch: float) -> bool:
        state = state_at(candidate, batch)
        return not state.saturated and allowed.admit(ttft=state.ttft_seconds, tpot=state.tpot_seconds, output=output)

    batch = _largest(keeps, least=1.0 if closed else 1e-2, most=float(candidate.most_seqs), whole=closed, near=near)
    return None if batch is None else both_at(candidate, batch)


def both_at(candidate: Candidate, batch: float) -> Point:
    """Return an engine that does everything, with so many running answers on each data-parallel rank."""
    closed = in_a_loop(candidate)
    state = state_at(candidate, batch)
    dp = candidate.shape.dp
    return Point(
        candidate=candidate,
        role=Role.BOTH,
        batch=batch,
        seqs=seats_for(candidate, batch),
        requests_per_second=state.requests_per_second * dp,
        tpot_seconds=state.tpot_seconds,
        ttft_seconds=state.ttft_seconds,
        concurrency=round(batch) * dp if closed else 0,
    )


def best_of_prefill(candidate: Candidate, *, first_seconds: float) -> Point | None:
    """Return the most prompts that an engine bears; None where even one alone is late.

    Args:
        candidate: The engine.
        first_seconds: Its part of the time to the first token; infinite without a target.
    """
    load = candidate.ground.mean.load
    late = late_seconds(candidate.costs, candidate.most_seats, load)
    room = first_seconds - late
    alone = prefill_seconds(candidate.costs, candidate.most_seats, load)
    if room < alone:
        return None
    waits = (room - alone) / alone
    busy = BUSIEST if math.isinf(waits) else min(BUSIEST, 2 * waits / (1 + 2 * waits))
    if busy <= 0:
        return None
    rate = busy / alone
    wait = alone * busy / (2 * (1 - busy))
    batch = rate * (wait + alone)
    return Point(
        candidate=candidate,
        role=Role.PREFILL,
        batch=batch,
        seqs=seats_for(candidate, batch, Role.PREFILL),
        requests_per_second=rate * candidate.shape.dp,
        tpot_seconds=0.0,
        ttft_seconds=alone + wait + late,
    )


def best_of_decode(candidate: Candidate) -> Point | None:
    """Return the most answers that an engine bears; None where even one alone is slow."""
    allowed = allowed_of(candidate)
    load = candidate.ground.mean.load
    context = load.prompt + load.cached + load.output / 2
    behind = max(load.output - 1, 1.0)

    def step(batch: float) -> float:
        return candidate.costs.seconds(decodes=batch, context=context)

    gain = candidate.costs.answering.gain
    most = allowed.tpot if math.isinf(allowed.e2e) else min(allowed.tpot, allowed.e2e / behind)
    batch = _largest(lambda batch: step(batch) / gain <= most, least=1.0, most=float(candidate.most_seqs), whole=True)
    if batch is None:
        return None
    # Seats for the batch's fluctuation are kept: the batch in the mean leaves three deviations free.
    mean = batch if batch < candidate.most_seqs else max(1.0, (math.sqrt(batch + 2.25) - 1.5) ** 2)
    seconds = step(mean)
    return Point(
        candidate=candidate,
        role=Role.DECODE,
        batch=mean,
        seqs=seats_for(candidate, mean, Role.DECODE),
        requests_per_second=mean * gain / (behind * seconds) * candidate.shape.dp,
        tpot_seconds=seconds / gain,
        ttft_seconds=seconds,
    )


def _largest(
    keeps: Callable[[float], bool], *, least: float, most: float, whole: bool, near: float | None = None
) -> float | None:
    """Return the largest value that keeps a condition which small ones keep and large ones do not.

    Args:
        keeps: Whether a value keeps it.
        least: The least value.
        most: The largest.
        whole: Values are whole numbers.
        near: A whole value to begin at: steps away from it double until the condition changes.
    """
    if most < least:
        return None
    if whole and near is not None:
        low, high = _around(keeps, least=least, most=most, near=min(max(near, least), most))
    else:
        low, high = (least, most) if keeps(least) else (None, least)
        if low is not None and keeps(most):
            return most
    if low is None:
        return None
    for _ in range(BISECTIONS):
        if whole and high - low <= 1:
            break
        middle = (low + high) // 2 if whole else math.sqrt(low * high)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _around(keeps: Callable[[float], bool], *, least: float, most: float, near: float) -> tuple[float | None, float]:
    """Return a value that keeps a condition and a larger one that does not, or is beyond the largest.

    The first is None where the least does not keep it.
    """
    step = 1.0
    if keeps(near):
        while near < most:
            further = min(near + step, most)
            if not keeps(further):
                return near, further
            near, step = further, 2 * step
        return most, most + 1
    while near > least:
        further = max(near - step, least)
        if keeps(further):
            return further, near
        near, step = further, 2 * step
    return None, least
