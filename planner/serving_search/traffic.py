"""A workload as one data-parallel rank of one engine sees it: its mean, and lists of requests to simulate.

Requests are dealt to engines at random, so that independent arrivals stay independent, and lengths keep their
distribution. The lists are drawn by the request's seed; the same load gives the same list.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.serve_request import Arrivals, ServeRequest, ServeWorkload
from planner.serving.steady import Load
from planner.serving.traffic import Requests

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
    prompts_N, outputs_N = _lengths(workload, LENGTH_SAMPLES, np.random.default_rng(0))
    prompt = float(prompts_N.mean())
    prefix = workload.prefix
    cached = 0.0 if prefix is None else prefix.tokens * prefix.hit_fraction
    return Mean(prompt=prompt, cached=cached, output=float(outputs_N.mean()))


def requests_at_rate(request: ServeRequest, *, count: int, per_second: float) -> Requests:
    """Return requests that come by the clock at a rate.

    A trace's arrivals are kept and run faster or slower; each rank sees some of them, spread evenly over the trace.

    Args:
        request: The traffic.
        count: Requests.
        per_second: Their mean rate.
    """
    workload = request.workload
    draws = np.random.default_rng(request.seed)
    if workload.arrivals is Arrivals.TRACE:
        assert workload.trace is not None
        arrivals_N = np.array(workload.trace.arrivals_N)
        kept_N = np.unique(np.linspace(0, len(arrivals_N) - 1, min(count, len(arrivals_N))).astype(np.int64))
        spans_N = arrivals_N[kept_N]
        arrivals_N = spans_N * (len(kept_N) / per_second / spans_N[-1])
        prompts_N = np.array(workload.trace.prompts_N, dtype=np.int64)[kept_N]
        outputs_N = np.array(workload.trace.outputs_N, dtype=np.int64)[kept_N]
    else:
        shape = workload.burstiness
        arrivals_N = np.cumsum(draws.gamma(shape, 1.0 / (shape * per_second), count))
        prompts_N, outputs_N = _lengths(workload, count, draws)
    cached_N = _cached(workload, len(prompts_N), draws)
    return Requests(arrivals_N=arrivals_N, prompts_N=prompts_N, outputs_N=outputs_N, cached_N=cached_N)


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
