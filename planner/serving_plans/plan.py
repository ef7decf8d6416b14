"""A serving plan: what is started, what becomes of its requests, and how sure its choice is.

Times are seconds. A figure of a pool is of one of its engines, unless it says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from planner.models.specs import ModelSpec
from planner.serving_plans.layout import Pool, Role, ServingLayout
from planner.serving_plans.request import ServeObjective, ServeRequest
from profiles.hardware import Cluster

SERVE_KIND = "serve"
SERVE_SCHEMA_VERSION = 1

FEW_REQUESTS = 100
"""Below this the 99th percentile of requests is their largest value, and the 90th rests on fewer than ten."""


class ServeStatus(StrEnum):
    """What is known of a plan."""

    OPTIMAL = "optimal"
    """No composition of the priced engines does better."""
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One metric over requests.

    Args:
        mean: Its mean.
        p50: Its median.
        p90: What 90 % keep.
        p99: What 99 % keep.
        stated: The statistic that the targets speak of.
    """

    mean: float
    p50: float
    p90: float
    p99: float
    stated: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What becomes of requests at a load, by simulation.

    Args:
        requests_per_second: That come and end.
        ttft: Time to the first token.
        tpot: Time of a token behind the first.
        e2e: Time to the last token.
        attainment: Part of the requests that keep all targets at once.
        saturated: More come than end: waiting grows as long as they come.
        preempted: Part of the requests that were put back for want of cache.
        refused: Requests that can never be taken in.
        mean_batch: Running answers of a data-parallel rank, in the mean over steps.
        num_requests: Requests that were counted, behind those of the start.
    """

    requests_per_second: float
    ttft: Spread
    tpot: Spread
    e2e: Spread
    attainment: float
    saturated: bool
    preempted: float
    refused: int
    mean_batch: float
    num_requests: int

    @property
    def is_few(self) -> bool:
        """Return whether so few requests were counted that their percentiles say little."""
        return self.num_requests < FEW_REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryItem:
    """What lies in the memory of the fullest GPU of an engine."""

    name: str
    num_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPool:
    """A pool with its figures.

    Args:
        pool: The engines.
        cluster: Name of the GPUs that it stands on.
        requests_per_second: That one engine gets.
        capacity_requests_per_second: That one engine bears within the targets, by simulation.
        batch: Requests that run at once on a data-parallel rank, in the mean; of a closed loop those under way.
        memory: What lies in memory beside the cache.
        memory_limit_bytes: What the engine may take.
        cache_bytes: What is left for the cache.
        cache_tokens: Tokens of the workload's sequences that it holds.
        step_seconds: What a token of running answers takes at the planned load, or a full prefill, by what it is spent
            on.
        notes: Where prices come from.
        of_experts: The load of the busiest rank's experts, and what copies make of it; None where experts are not dealt
            to ranks, or nothing was counted.
        placement: The expert on each slot of all ranks, a row for each layer of which the routing is known; None
            without a balancer of experts.
        source_fractions: What part of a step of running answers ("step") and of one with a prompt ("prompt") is
            measured, interpolated and so on, best source first; None where the GPU was not measured.
    """

    pool: Pool
    cluster: str
    requests_per_second: float
    capacity_requests_per_second: float
    batch: float
    memory: tuple[MemoryItem, ...]
    memory_limit_bytes: int
    cache_bytes: int
    cache_tokens: int
    step_seconds: Mapping[str, float]
    notes: tuple[str, ...]
    of_experts: tuple[str, ...] | None = None
    placement: tuple[str, ...] | None = None
    source_fractions: Mapping[str, Mapping[str, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """The way of a prompt's cache from the pool that makes it to the one that goes on.

    Args:
        num_bytes: Of a mean prompt, over all ranks.
        seconds: From the last byte's making to its arrival.
        over: Which link carries it.
    """

    num_bytes: int
    seconds: float
    over: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Pools that serve requests together: engines that do everything, or prefill and decode.

    Args:
        layout: What is started.
        pools: Its pools with their figures, in the layout's order.
        requests_per_second: That it gets.
        served: What becomes of its requests; of engines that do everything, of those of the first pool.
        transfer: Of caches; None without a split.
    """

    layout: ServingLayout
    pools: tuple[PlannedPool, ...]
    requests_per_second: float
    served: tuple[Served, ...]
    transfer: Transfer | None = None

    @property
    def ways(self) -> tuple[str, ...]:
        """Return the names of the ways that requests go, in the order of `served`: a pool, or "prefill > decode"."""
        if not self.layout.is_split:
            return tuple(entry.pool.name for entry in self.pools)
        first = [entry.pool.name for entry in self.pools if entry.pool.role is Role.PREFILL]
        second = [entry.pool.name for entry in self.pools if entry.pool.role is Role.DECODE]
        return tuple(f"{one} > {other}" for one in first for other in second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """The best of one way to compose engines.

    Args:
        name: The way: one shape, aggregated, split, or all of them.
        words: What it is.
        requests_per_second: That it bears within the targets.
        num_gpus: GPUs that it takes.
        price_per_hour: Of these; None where no price is given.
    """

    name: str
    words: str
    requests_per_second: float
    num_gpus: int
    price_per_hour: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedEngine:
    """An engine that does everything, at the most that it bears within the targets.

    Args:
        gpu: Its GPU.
        words: Its shape.
        num_gpus: Its GPUs.
        max_num_seqs: The planned batch of a data-parallel rank.
        max_num_batched_tokens: Its budget.
        requests_per_second: That it bears.
        tokens_per_second_per_gpu: Output tokens.
        tpot_seconds: Mean, in closed form.
        ttft_seconds: Mean, in closed form.
        simulated: The rate is of the simulation, not of the closed form.
    """

    gpu: str
    words: str
    num_gpus: int
    max_num_seqs: int
    max_num_batched_tokens: int
    requests_per_second: float
    tokens_per_second_per_gpu: float
    tpot_seconds: float
    ttft_seconds: float
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """A point of the front of throughput and speed, in closed form.

    Args:
        tokens_per_second_per_user: 1 / TPOT.
        tokens_per_second_per_gpu: Output tokens over all GPUs of the engines.
        ttft_seconds: Mean time to the first token.
        gpu: The GPU.
        words: The engines.
        batch: Running answers of a data-parallel rank.
        split: Prompts and answers have engines of their own.
    """

    tokens_per_second_per_user: float
    tokens_per_second_per_gpu: float
    ttft_seconds: float
    gpu: str
    words: str
    batch: int
    split: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSearchSummary:
    """What was looked at.

    Args:
        considered: Shapes of engines, before any rule.
        legal: Shapes that break none and fit.
        pruned: Those that were left out, by reason.
        priced: Engines with a token budget and a role, in closed form.
        simulated: Of these simulated.
        options: Engines that the composition chose from.
        solver: What composed them.
    """

    considered: int
    legal: int
    pruned: Mapping[str, int]
    priced: int
    simulated: int
    options: int
    solver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """How far one target must move.

    Args:
        target: Which one: "ttft", "tpot", "e2e", "requests_per_second", "memory", "num_gpus".
        given: Its value.
        needed: The least change that does, all others as they are; None where this one alone does not help.
        together: Its value in the nearest plan, where every target that is missed moves.
        unit: Of all.
    """

    target: str
    given: float
    needed: float | None
    together: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeInfeasible:
    """Why there is no plan.

    Args:
        binding: The constraint that no engine meets, in words.
        moves: How far each target must move.
        nearest: The nearest plan, in words; empty where nothing fits at all.
        nearest_values: Its figures in seconds or requests a second, by target.
    """

    binding: str
    moves: tuple[Move, ...]
    nearest: str
    nearest_values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServePlan:
    """The whole answer.

    Args:
        model: The model.
        clusters: The GPUs.
        request: What was asked.
        status: What is known of it.
        value: Of the objective: requests a second, GPUs, or price an hour; None without a plan.
        bound: No composition of the priced engines has a better value.
        deployments: What is started; empty without a plan.
        compositions: The best of each way to compose, for comparison.
        engines: Engines that do everything, the best for each GPU first.
        pareto: The front of throughput and speed.
        search: What was looked at.
        infeasible: Why there is none.
        assumptions: What figures rest on.
    """

    model: ModelSpec
    clusters: tuple[Cluster, ...]
    request: ServeRequest
    status: ServeStatus
    value: float | None
    bound: float | None
    deployments: tuple[Deployment, ...]
    compositions: tuple[Composition, ...]
    engines: tuple[RankedEngine, ...]
    pareto: tuple[ParetoPoint, ...]
    search: ServeSearchSummary
    infeasible: ServeInfeasible | None
    assumptions: tuple[str, ...]

    @property
    def objective(self) -> ServeObjective:
        """Return what was optimised."""
        return self.request.objective

    @property
    def pools(self) -> tuple[PlannedPool, ...]:
        """Return every pool."""
        return tuple(pool for deployment in self.deployments for pool in deployment.pools)

    @property
    def num_gpus(self) -> int:
        """Return the GPUs that are used."""
        return sum(entry.pool.num_gpus for entry in self.pools)

    @property
    def requests_per_second(self) -> float:
        """Return the load."""
        return sum(deployment.requests_per_second for deployment in self.deployments)

    @property
    def price_per_hour(self) -> float | None:
        """Return the price of the GPUs that are used; None where one has none."""
        prices = {cluster.name: cluster.price_per_gpu_hour for cluster in self.clusters}
        found = [(entry.pool.num_gpus, prices[entry.cluster]) for entry in self.pools]
        if any(price is None for _, price in found):
            return None
        return sum(count * (price or 0.0) for count, price in found)
