"""A workload as one data-parallel rank of one engine sees it: its mean, and lists of requests to simulate.

Requests are dealt to engines at random, so that independent arrivals stay independent, and lengths keep their
distribution. The lists are drawn by the request's seed; the same load gives the same list.

Recorded arrivals keep their clock, with its bursts and its quiet hours: a rank that gets a part of the load is dealt
that part of the requests, and what it is dealt at a lower load it is dealt at a higher one too. Only a rank that bears
more than all of them is asked at a faster clock. Where few fall to one rank, several are simulated, each with its own.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.serving.steady import Load
from planner.serving.traffic import Requests
from planner.serving_plans.request import ServeRequest, ServeWorkload

LENGTH_SAMPLES = 4096
"""Lengths from which means are taken where they are distributed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """The traffic in the mean.

    Args:
        prompt: Tokens of a prompt.
        cached: Of these in the cache already.
        output: Tokens of an answer.
    """

    prompt: float
    cached: float
    output: float

    @property
    def load(self) -> Load:
        """Return what the closed form takes."""
        return Load(prompt=self.prompt - self.cached, cached=self.cached, output=self.output)

    @property
    def typical_tokens(self) -> int:
        """Return the length of a sequence in the middle of its answer."""
        return math.ceil(self.prompt + self.output / 2)


def mean_of(workload: ServeWorkload) -> Mean:
    """Return a workload's means."""
    trace = workload.trace
    if trace is None:
        prompts_N, outputs_N = _lengths(workload, LENGTH_SAMPLES, np.random.default_rng(0))
    else:
        prompts_N, outputs_N = np.array(trace.prompts_N), np.array(trace.outputs_N)
    prompt = float(prompts_N.mean())
    prefix = workload.prefix
    cached = 0.0 if prefix is None else prefix.tokens * prefix.hit_fraction
    return Mean(prompt=prompt, cached=cached, output=float(outputs_N.mean()))


def requests_at_rate(request: ServeRequest, *, count: int, per_second: float) -> Requests:
    """Return requests that come by the clock at a rate.

    Args:
        request: The traffic.
        count: Requests.
        per_second: Their mean rate.
    """
    workload = request.workload
    draws = np.random.default_rng(request.seed)
    shape = workload.burstiness
    arrivals_N = np.cumsum(draws.gamma(shape, 1.0 / (shape * per_second), count))
    prompts_N, outputs_N = _lengths(workload, count, draws)
    cached_N = _cached(workload, len(prompts_N), draws)
    return Requests(arrivals_N=arrivals_N, prompts_N=prompts_N, outputs_N=outputs_N, cached_N=cached_N)


def requests_of_trace(
    request: ServeRequest, *, count: int, per_second: float, most: int | None = None
) -> tuple[Requests, ...]:
    """Return the recorded requests that ranks are dealt, each of which gets a rate.

    Args:
        request: The traffic, with a trace that has arrivals.
        count: Requests of all lists together, where there are so many.
        per_second: Mean rate of a rank, over all of the trace.
        most: Requests of a list, about; of more the stretch in which they come fastest. None takes all.
    """
    trace = request.workload.trace
    assert trace is not None
    draws = np.random.default_rng(request.seed)
    arrivals_N = np.array(trace.arrivals_N)
    part = per_second / trace.requests_per_second
    rank_N = np.floor(draws.random(len(arrivals_N)) / min(part, 1.0)).astype(np.int64)
    begin, end = 0, len(arrivals_N)
    if most is not None:
        length = min(math.ceil(most / min(part, 1.0)), end)
        begin = int(np.argmin(arrivals_N[length - 1 :] - arrivals_N[: end - length + 1]))
        end = begin + length
    prompts_N, outputs_N = np.array(trace.prompts_N, dtype=np.int64), np.array(trace.outputs_N, dtype=np.int64)
    found: list[Requests] = []
    left = count
    for rank in np.unique(rank_N[begin:end]):
        dealt_N = begin + np.flatnonzero(rank_N[begin:end] == rank)
        found.append(
            Requests(
                arrivals_N=(arrivals_N[dealt_N] - arrivals_N[begin]) / max(part, 1.0),
                prompts_N=prompts_N[dealt_N],
                outputs_N=outputs_N[dealt_N],
                cached_N=_cached(request.workload, len(dealt_N), draws),
            )
        )
        left -= len(dealt_N)
        if left <= 0:
            break
    return tuple(found)


def requests_in_loop(request: ServeRequest, *, count: int, concurrency: int) -> Requests:
    """Return requests of which `concurrency` are under way at any time."""
    draws = np.random.default_rng(request.seed)
    prompts_N, outputs_N = _lengths(request.workload, count, draws)
    return Requests(
        arrivals_N=np.zeros(count),
        prompts_N=prompts_N,
        outputs_N=outputs_N,
        cached_N=_cached(request.workload, count, draws),
        concurrency=concurrency,
    )


def _lengths(
    workload: ServeWorkload, count: int, draws: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    trace = workload.trace
    if trace is not None:
        chosen_N = np.linspace(0, len(trace.prompts_N) - 1, count).astype(np.int64)
        draws.shuffle(chosen_N)
        prompts_N, outputs_N = np.array(trace.prompts_N, dtype=np.int64), np.array(trace.outputs_N, dtype=np.int64)
        return prompts_N[chosen_N], outputs_N[chosen_N]
    assert workload.prompts is not None
    assert workload.outputs is not None
    return workload.prompts.drawn(count, draws), workload.outputs.drawn(count, draws)


def _cached(workload: ServeWorkload, count: int, draws: np.random.Generator) -> NDArray[np.int64]:
    """Return what of each prompt is in the cache: the shared beginning of the requests that find it."""
    if workload.prefix is None:
        return np.zeros(count, dtype=np.int64)
    hits_N = (np.arange(count) + 0.5) / count < workload.prefix.hit_fraction
    draws.shuffle(hits_N)
    return np.where(hits_N, workload.prefix.tokens, 0).astype(np.int64)
