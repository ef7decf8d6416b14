"""What an engine bears within the targets, by simulation: percentiles, attainment, saturation.

One data-parallel rank is simulated with its share of the requests; the ranks of an engine and the engines of a pool
differ only in which requests they are dealt. Requests of the start are not counted, nor those of the end: as many as
run at once. What an engine bears is searched from its closed form, up and down, with the same draws at every load, so
that the answer is as reproducible as a formula.

A load saturates an engine if the wait for the first token grows with the time of arrival by more than `GROWTH` seconds
a second: a queue that gets r and serves c grows by r / c - 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.arrays import FloatArray
from planner.serving.simulate import Simulation, simulate
from planner.serving_plans.layout import Role
from planner.serving_plans.plan import Served, Spread
from planner.serving_plans.request import Arrivals, Targets
from planner.serving_search.closed_form import Point, in_a_loop
from planner.serving_search.traffic import requests_at_rate, requests_in_loop, requests_of_trace

WAVES = 6
"""Requests of a simulation, in batches."""
FEWEST, MOST = 400, 20_000
"""Requests of a simulation, at least and at most."""
TRACED = 1_000
"""Recorded requests of a rank by which it is searched what an engine bears, unless more are needed: those that come
fastest. What a plan says of its requests is of all that are recorded."""
GROWTH = 0.05
"""Growth of the wait for the first token, in seconds a second of arrivals, above which an engine is saturated."""
STEP = 1.1
"""First step off the closed form's load, up or twice down."""
PRECISION = 0.02
"""Part of the load that an engine bears within which it is known."""
TRIES = 12
"""Loads that are tried at most: an engine that bears less than a thousandth of the closed form's load is left out."""
MOST_OVER = 2.0
"""Times the closed form's load up to which loads are tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of the requests that count, in seconds; axis N: requests in order of arrival."""

    arrival_N: FloatArray
    ttft_N: FloatArray
    tpot_N: FloatArray
    e2e_N: FloatArray
    requests_per_second: float
    preempted: float
    refused: int
    mean_batch: float


def times_of(point: Point, *, whole: bool = False) -> Times:
    """Return the times of requests that an engine serves at a point's load.

    Args:
        point: The engine at its load.
        whole: All of a trace, not its fastest stretch alone.
    """
    candidate, dp = point.candidate, point.candidate.shape.dp
    count = int(min(MOST, max(FEWEST, WAVES * math.ceil(point.batch))))
    request = candidate.ground.request
    if in_a_loop(candidate, point.role):
        concurrency = max(1, round(point.batch))
        count = max(count, 4 * concurrency)
        lists = [requests_in_loop(request, count=count, concurrency=concurrency)]
    elif request.workload.arrivals is Arrivals.TRACE:
        most = None if whole else max(TRACED, count)
        lists = list(requests_of_trace(request, count=count, per_second=point.requests_per_second / dp, most=most))
    else:
        lists = [requests_at_rate(request, count=count, per_second=point.requests_per_second / dp)]
    seats = candidate.seats(point.seqs)
    runs = [simulate(requests, costs=candidate.costs, seats=seats, role=point.role) for requests in lists]
    return _counted(runs, point, dp=dp)


def _counted(runs: Sequence[Simulation], point: Point, *, dp: int) -> Times:
    counts = [len(run.arrival_N) for run in runs]
    inside = [
        _behind_the_start(run, edge=min(math.ceil(point.batch), count // 4))
        for run, count in zip(runs, counts, strict=True)
    ]

    def of(metric: Callable[[Simulation], FloatArray]) -> FloatArray:
        return np.concatenate([metric(run)[inside_N] for run, inside_N in zip(runs, inside, strict=True)])

    e2e_N = of(lambda run: run.end_N - run.arrival_N)
    rate = point.requests_per_second
    if in_a_loop(point.candidate, point.role) and len(e2e_N):
        rate = round(point.batch) * dp / float(e2e_N.mean())  # Little's law
    return Times(
        arrival_N=of(lambda run: run.arrival_N),
        ttft_N=of(lambda run: run.ttft_N),
        tpot_N=of(lambda run: run.tpot_N),
        e2e_N=e2e_N,
        requests_per_second=rate,
        preempted=sum(run.preempted for run in runs) / sum(counts),
        refused=sum(run.refused for run in runs),
        mean_batch=float(np.average([run.mean_batch for run in runs], weights=counts)),
    )


def _behind_the_start(run: Simulation, *, edge: int) -> NDArray[np.bool_]:
    """Return which requests count: those that ended, without so many of the start and of the end."""
    places_N = np.arange(len(run.arrival_N))
    return ~np.isnan(run.end_N) & (places_N >= edge) & (places_N < len(places_N) - edge)


def served_of(times: Times, targets: Targets, *, in_loop: bool) -> Served:
    """Return what becomes of requests, from their times."""
    kept_N = np.ones(len(times.ttft_N), dtype=bool)
    measured = {"ttft": times.ttft_N, "tpot": np.nan_to_num(times.tpot_N), "e2e": times.e2e_N}
    for name, seconds in targets.given.items():
        kept_N &= measured[name] <= seconds
    return Served(
        requests_per_second=times.requests_per_second,
        ttft=spread(times.ttft_N, targets.percentile),
        tpot=spread(times.tpot_N[~np.isnan(times.tpot_N)], targets.percentile),
        e2e=spread(times.e2e_N, targets.percentile),
        attainment=float(kept_N.mean()) if len(kept_N) else 0.0,
        saturated=not in_loop and _grows(times),
        preempted=times.preempted,
        refused=times.refused,
        mean_batch=times.mean_batch,
        num_requests=len(times.ttft_N),
    )


def spread(values_N: FloatArray, percentile: float | None) -> Spread:
    """Return a metric's spread over requests; without any, nothing but zeros."""
    if not len(values_N):
        return Spread(mean=0.0, p50=0.0, p90=0.0, p99=0.0, stated=0.0)
    mean = float(values_N.mean())
    p50, p90, p99 = (float(value) for value in np.percentile(values_N, (50, 90, 99)))
    stated = mean if percentile is None else float(np.percentile(values_N, percentile))
    return Spread(mean=mean, p50=p50, p90=p90, p99=p99, stated=stated)


def _grows(times: Times) -> bool:
    """Return whether waiting grows as long as requests come."""
    if len(times.arrival_N) < 2:
        return False
    # The slope of the line of least squares, over times of which the last is 1: no unit is too long or too short.
    span = float(np.ptp(times.arrival_N))
    places_N = (times.arrival_N - times.arrival_N.min()) / span if span > 0 else np.zeros(len(times.arrival_N))
    around_N = places_N - places_N.mean()
    spread_of_places = float(around_N @ around_N)
    return spread_of_places > 0 and float(around_N @ times.ttft_N) > GROWTH * span * spread_of_places


def keeps(served: Served, targets: Targets) -> bool:
    """Return whether requests keep their targets."""
    found = stated_seconds(served)
    if served.saturated or served.refused:
        return False
    if any(found[name] > seconds for name, seconds in targets.given.items()):
        return False
    return targets.attainment is None or served.attainment >= targets.attainment


def stated_seconds(served: Served) -> Mapping[str, float]:
    """Return what requests take, by the metric's name, each as the targets speak of it."""
    return {"ttft": served.ttft.stated, "tpot": served.tpot.stated, "e2e": served.e2e.stated}


def targets_of(point: Point, *, first_seconds: float = math.inf) -> Targets:
    """Return the targets as a point's role sees them: prefill has none for later tokens, and each a part of the first.

    Args:
        point: The engine.
        first_seconds: Its part of the time to the first token.
    """
    targets = point.candidate.ground.request.workload.targets
    if point.role is Role.BOTH:
        return targets
    part = None if math.isinf(first_seconds) else first_seconds
    if point.role is Role.PREFILL:
        return replace(targets, ttft_seconds=part, tpot_seconds=None, e2e_seconds=None, attainment=None)
    return replace(targets, ttft_seconds=part)


def served_at(point: Point) -> Served:
    """Return what becomes of requests at a point's load."""
    targets = targets_of(point)
    return served_of(times_of(point), targets, in_loop=in_a_loop(point.candidate, point.role))


def bearing(point: Point, *, first_seconds: float = math.inf) -> tuple[Point, int]:
    """Return an engine at the most that it bears by simulation, and how many simulations that took.

    Where it bears nothing at all its rate is 0.

    Args:
        point: The engine at the most that it bears in closed form.
        first_seconds: Its part of the time to the first token, where another engine has the rest.
    """
    targets = targets_of(point, first_seconds=first_seconds)
    runs = 0

    def good(tried: Point) -> Point | None:
        nonlocal runs
        runs += 1
        served = served_of(times_of(tried), targets, in_loop=in_a_loop(tried.candidate, tried.role))
        if not keeps(served, targets):
            return None
        return replace(
            tried,
            requests_per_second=served.requests_per_second,
            ttft_seconds=served.ttft.mean,
            tpot_seconds=served.tpot.mean,
        )

    if in_a_loop(point.candidate, point.role):
        return _in_loop(point, good) or replace(point, requests_per_second=0.0), runs
    low, high = 0.0, math.inf
    best: Point | None = None
    factor = 1.0
    for _ in range(TRIES):
        found = good(at_rate_of(point, point.requests_per_second * factor))
        if found is None:
            high = factor
        else:
            low, best = factor, found
        if high - low <= PRECISION * low or low >= MOST_OVER:
            break
        factor = _next(low, high)
    return best or replace(point, requests_per_second=0.0), runs


def _in_loop(point: Point, good: Callable[[Point], Point | None]) -> Point | None:
    """Return an engine with the most requests under way with which it is good, from the closed form up and down."""
    least, most = 0, min(point.candidate.most_seqs, math.ceil(point.batch * MOST_OVER))
    best: Point | None = None
    tried = min(round(point.batch), most)
    while most > least and tried > 0:
        found = good(in_loop_with(point, tried))
        if found is None:
            most = tried - 1
        else:
            least, best = tried, found
        if best is not None and most - least <= PRECISION * least:
            break
        first = best is not None and most == min(point.candidate.most_seqs, math.ceil(point.batch * MOST_OVER))
        tried = min(most, math.ceil(least * STEP)) if first else (least + most + 1) // 2
    return best


def _next(low: float, high: float) -> float:
    """Return the load to try between one that is borne and one that is not: at first steps off the closed form."""
    if math.isinf(high):
        return low * STEP
    if not low:
        return high / (STEP**2 if high == 1.0 else 2)
    return (low + high) / 2


def in_loop_with(point: Point, batch: int) -> Point:
    """Return an engine with so many requests under way on each data-parallel rank, and no more seats than that."""
    seqs = point.candidate.told(min(max(1, batch), point.candidate.most_seqs))
    return replace(point, batch=float(batch), seqs=seqs, concurrency=batch * point.candidate.shape.dp)


def at_rate_of(point: Point, rate: float) -> Point:
    """Return an engine at another load by the clock, its seats as they are."""
    return replace(point, requests_per_second=rate, batch=point.batch * rate / point.requests_per_second)
