"""Requests: when they come, how long they are, and how much of each is in the cache already.

Axis N: requests, in order of arrival.
"""

from dataclasses import dataclass

import numpy as np

from planner.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """A list of requests.

    Args:
        arrivals_N: Seconds at which they come, not falling. With `concurrency` they come when one before them ends.
        prompts_N: Tokens of each prompt.
        outputs_N: Tokens of each answer, at least one.
        cached_N: Tokens at the beginning of each prompt that the cache holds; less than the prompt.
        concurrency: Requests that are under way at any time (a closed loop); None for arrivals by the clock.
    """

    arrivals_N: FloatArray
    prompts_N: IntArray
    outputs_N: IntArray
    cached_N: IntArray
    concurrency: int | None = None

    def __post_init__(self) -> None:
        """Check that every request has a length and a time."""
        count = len(self.arrivals_N)
        if not count or any(len(array) != count for array in (self.prompts_N, self.outputs_N, self.cached_N)):
            raise ValueError("every request has an arrival, a prompt, an answer and a cached part, and there is one")
        if (np.diff(self.arrivals_N) < 0).any() or self.arrivals_N[0] < 0:
            raise ValueError("arrivals do not fall")
        if (self.prompts_N < 1).any() or (self.outputs_N < 1).any():
            raise ValueError("a prompt and an answer have a token at least")
        if (self.cached_N < 0).any() or (self.cached_N >= self.prompts_N).any():
            raise ValueError("what is cached of a prompt is less than it")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError("at least one request is under way")

    @property
    def count(self) -> int:
        """Return the number of requests."""
        return len(self.arrivals_N)


def closed_loop(  # noqa: PLR0913 - the facts of a benchmark
    *, count: int, concurrency: int, prompt: int, output: int, spread: float = 1.0, seed: int = 0
) -> Requests:
    """Return requests of a benchmark that keeps `concurrency` under way.

    Args:
        count: Requests.
        concurrency: Under way at once; so many come at the beginning.
        prompt: Longest prompt.
        output: Longest answer.
        spread: Shortest over longest; lengths lie evenly between.
        seed: Of the lengths.
    """
    draws = np.random.default_rng(seed)
    return Requests(
        arrivals_N=np.zeros(count),
        prompts_N=_spread(draws, count, prompt, spread),
        outputs_N=_spread(draws, count, output, spread),
        cached_N=np.zeros(count, dtype=np.int64),
        concurrency=concurrency,
    )


def _spread(draws: np.random.Generator, count: int, longest: int, spread: float) -> IntArray:
    """Return lengths between `spread` of the longest and the longest, each equally often, in random order."""
    if spread >= 1.0:
        return np.full(count, longest, dtype=np.int64)
    least = max(1, round(longest * spread))
    lengths_N = np.rint(np.linspace(least, longest, count)).astype(np.int64)
    draws.shuffle(lengths_N)
    return lengths_N
