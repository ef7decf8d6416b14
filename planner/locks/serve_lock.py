"""A serving plan in short, for keeping beside the code: `plan.lock.json` with `"kind": "serve"`.

It holds hashes of the inputs and of the files that were written, what engines are told setting by setting, and the
figures that a later plan is held against: requests, GPUs, times of requests, seconds of a token by term, memory. Hashes
are those of `planner.locks.plan_lock`; its JSON form is in `planner.schema.serve_plan_lock`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedPool:
    """A pool in short.

    Args:
        name: Its name.
        words: Its engines in one line.
        settings: How many engines there are, how each lies on its GPUs, and all that each is told.
        requests_per_second: That one engine gets.
        capacity_requests_per_second: That one engine bears within the targets.
        seconds_by_term: What a token takes, or a full prefill, term by term.
        held_bytes: What lies in memory beside the cache.
        cache_bytes: What is left for the cache.
    """

    name: str
    words: str
    settings: Mapping[str, str]
    requests_per_second: float
    capacity_requests_per_second: float
    seconds_by_term: Mapping[str, float]
    held_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeLock:
    """A serving plan in short.

    Args:
        planner: The planner and its version.
        objective: What was optimised.
        status: What is known of the plan: optimal, or feasible.
        inputs: What it was made of: a name and a hash of model, clusters, workload and what was wanted of the plan.
        value: Of the objective.
        bound: No composition of the priced engines has a better value.
        num_gpus: GPUs that are used.
        requests_per_second: The load.
        tokens_per_second_per_gpu: Output tokens over all GPUs that there are.
        price_per_hour: Of the GPUs that are used; None where one has none.
        times: By requests' way and metric, as "server ttft", the statistic that the targets speak of, in seconds.
        pools: Its pools.
        files: Hash of each file that was written, by name.
    """

    planner: str
    objective: str
    status: str
    inputs: Mapping[str, tuple[str, str]]
    value: float
    bound: float | None
    num_gpus: int
    requests_per_second: float
    tokens_per_second_per_gpu: float
    price_per_hour: float | None
    times: Mapping[str, float]
    pools: tuple[LockedPool, ...]
    files: Mapping[str, str]

    @property
    def settings(self) -> Mapping[str, str]:
        """Return every setting of every pool, as "server tp"."""
        return {f"{pool.name} {name}": value for pool in self.pools for name, value in pool.settings.items()}

    @property
    def seconds_by_term(self) -> Mapping[str, float]:
        """Return every term of every pool, as "server host"."""
        return {f"{pool.name} {term}": value for pool in self.pools for term, value in pool.seconds_by_term.items()}
