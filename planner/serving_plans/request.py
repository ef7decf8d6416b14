"""What a serving plan is asked for: traffic, targets, what is optimised, what is pinned.

Metrics, as every part of the project means them:

- TTFT: from a request's arrival at the engine to its first token there; what lies in front of the engine, a router or
  a network, is not in it. In a split plan it holds the prompt, the transfer of its cache and the first step behind it.
- E2E: from its arrival to its last token.
- TPOT = (E2E - TTFT) / (output tokens - 1), of one request.
- Goodput: requests a second of a plan that keeps all its targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from planner.models.specs import ModelSpec
from planner.requests.request import Bounds
from planner.requests.routing import Routing

DEFAULT_PERCENTILE = 90.0
"""Share of requests, in percent, of which a target speaks unless told otherwise: DistServe's (arXiv 2401.09670)."""

MAX_REQUESTS = 100_000


class Arrivals(StrEnum):
    """When requests come."""

    POISSON = "poisson"
    """By the clock, independently; `burstiness` other than 1 makes the intervals gamma-distributed."""
    CLOSED = "closed-loop"
    """One when one ends: a fixed number is under way."""
    OFFLINE = "offline"
    """All are there at the beginning, and only throughput counts."""
    TRACE = "trace"
    """As the trace says."""


class ServeObjective(StrEnum):
    """What is optimised."""

    GOODPUT = "goodput"
    """Most requests a second within the targets."""
    FEWEST_GPUS = "fewest-gpus"
    """Fewest GPUs that bear the load."""
    COST = "cost"
    """Least price an hour that bears the load."""


class Splits(StrEnum):
    """Whether prompts and answers may be computed by different engines."""

    ALLOWED = "allowed"
    NEVER = "never"
    ONLY = "only"


class CacheSize(StrEnum):
    """What an engine's cache is told by."""

    SHARE = "share"
    """A share of the GPU's memory: the engine measures what it needs beside the cache."""
    BYTES = "bytes"
    """The plan's own bytes of cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths of prompts or of answers, in tokens.

    Args:
        shortest: No length is below it.
        longest: No length is above it.
        mean: Of a lognormal distribution, before it is cut; None for lengths that are all as likely.
        sigma: Standard deviation of its logarithm.
    """

    shortest: int
    longest: int
    mean: float | None = None
    sigma: float | None = None

    def drawn(self, count: int, draws: np.random.Generator) -> NDArray[np.int64]:
        """Return so many lengths: the middles of equally likely parts of the distribution, in random order."""
        if self.shortest == self.longest:
            return np.full(count, self.longest, dtype=np.int64)
        shares_N = (np.arange(count) + 0.5) / count
        if self.mean is None or self.sigma is None:
            lengths_N = self.shortest - 0.5 + shares_N * (self.longest - self.shortest + 1)
        else:
            normal = NormalDist()
            deviations_N = np.array([normal.inv_cdf(float(share)) for share in shares_N])
            lengths_N = np.exp(np.log(self.mean) - self.sigma**2 / 2 + self.sigma * deviations_N)
        whole_N = np.clip(np.rint(lengths_N), self.shortest, self.longest).astype(np.int64)
        draws.shuffle(whole_N)
        return whole_N


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests that were recorded.

    Args:
        file: Where they stand.
        arrivals_N: Seconds at which each came, from 0; empty where the file has none.
        prompts_N: Tokens of each prompt.
        outputs_N: Tokens of each answer.
    """

    file: str
    arrivals_N: tuple[float, ...]
    prompts_N: tuple[int, ...]
    outputs_N: tuple[int, ...]

    @property
    def requests_per_second(self) -> float:
        """Return the mean rate of a trace with arrivals."""
        return len(self.arrivals_N) / self.arrivals_N[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """A beginning that prompts share.

    Args:
        tokens: Its length.
        hit_fraction: Part of the requests whose prompts begin with it and find it in the cache.
    """

    tokens: int
    hit_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What requests must keep.

    Args:
        ttft_seconds: To the first token; None without a target.
        tpot_seconds: Between tokens behind the first.
        e2e_seconds: To the last token.
        percentile: Percent of the requests that must keep each of them; None speaks of the means.
        attainment: Part of the requests that must keep all of them at once; None asks for none.
    """

    ttft_seconds: float | None = None
    tpot_seconds: float | None = None
    e2e_seconds: float | None = None
    percentile: float | None = DEFAULT_PERCENTILE
    attainment: float | None = None

    @property
    def given(self) -> Mapping[str, float]:
        """Return the targets that there are, in seconds, by the metric's name."""
        named = {"ttft": self.ttft_seconds, "tpot": self.tpot_seconds, "e2e": self.e2e_seconds}
        return {name: seconds for name, seconds in named.items() if seconds is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft that may guess tokens ahead.

    Args:
        model: The draft.
        served_model: The draft as the engine finds it: a repository or a path.
        acceptance: Probability that a guess is taken where those before it were, over the traffic.
    """

    model: ModelSpec
    served_model: str
    acceptance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeWorkload:
    """The traffic and how the model is held.

    Args:
        prompts: Lengths of prompts, with their shared beginnings; None with a trace.
        outputs: Lengths of answers; None with a trace.
        trace: Recorded requests; None without.
        arrivals: When requests come.
        burstiness: Shape of the gamma distribution of intervals; 1 is a Poisson process.
        requests_per_second: The load; None asks for as much as there can be.
        concurrency: Requests under way, of a closed loop; None likewise.
        num_requests: Requests of an offline batch; None where only the rate counts.
        prefix: Beginnings that prompts share; None without.
        targets: What requests must keep.
        quantization: What weights are held in, in an engine's word.
        kv_cache_dtype: What keys and values are held in: "bfloat16" or "fp8".
        max_model_len: Longest sequence that the engines must take.
        routing: Which experts tokens choose; None where nothing was counted.
    """

    prompts: Lengths | None
    outputs: Lengths | None
    trace: Trace | None
    arrivals: Arrivals
    burstiness: float
    requests_per_second: float | None
    concurrency: int | None
    num_requests: int | None
    prefix: SharedPrefix | None
    targets: Targets
    quantization: str
    kv_cache_dtype: str
    max_model_len: int
    routing: Routing | None = None

    @property
    def longest_prompt(self) -> int:
        """Return the tokens of the longest prompt."""
        if self.trace is not None:
            return max(self.trace.prompts_N)
        assert self.prompts is not None
        return self.prompts.longest

    @property
    def longest_output(self) -> int:
        """Return the tokens of the longest answer."""
        if self.trace is not None:
            return max(self.trace.outputs_N)
        assert self.outputs is not None
        return self.outputs.longest


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConstraints:
    """What the user pins or bounds.

    Args:
        degrees: Bounds by dimension: tp, pp, dp, dcp, max_num_seqs, max_num_batched_tokens, num_speculative_tokens,
            redundant_experts.
        expert_parallel: Pinned; None leaves it to the search.
        split: Whether prompts and answers may have engines of their own.
        mixed: Replicas of different shapes may serve beside one another.
        max_price_per_hour: Of all GPUs that are used; None without a bound.
        max_watts: Of all GPUs that are used; None without a bound.
    """

    degrees: Mapping[str, Bounds] = field(default_factory=dict)
    expert_parallel: bool | None = None
    split: Splits = Splits.ALLOWED
    mixed: bool = True
    max_price_per_hour: float | None = None
    max_watts: float | None = None

    def admits(self, dimension: str, value: int) -> bool:
        """Return whether a dimension may have a value."""
        bounds = self.degrees.get(dimension)
        return bounds is None or bounds.admits(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeRequest:
    """What a serving plan is asked for, apart from the model and the GPUs.

    Args:
        workload: The traffic.
        constraints: What the user pins.
        objective: What is optimised.
        served_model: The model as the engine finds it: a repository or a path.
        gpu_memory_utilization: Share of a GPU's memory that engines take; None takes the engine's own default.
        seed: Of the simulated arrivals and lengths.
        speculation: A draft that may guess ahead; None without.
        cache_size: What the cache is told by; None by a share, where an engine starts with it.
    """

    workload: ServeWorkload
    constraints: ServeConstraints
    objective: ServeObjective
    served_model: str
    gpu_memory_utilization: float | None = None
    seed: int = 0
    speculation: Speculation | None = None
    cache_size: CacheSize | None = None
