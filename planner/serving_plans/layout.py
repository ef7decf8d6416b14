"""The layout of servers: the shape of one engine, what it is told, and the pools of equal replicas.

An engine is one deployment that takes requests by itself: `dp` data-parallel ranks of tp x pp x pcp GPUs each. Without
expert parallelism the ranks share nothing but the door; with it their experts form one group of tp x pcp x dp ranks,
and attention is data parallel. A pool is a number of equal engines with one role. In a split plan one pool makes the KV
caches of prompts and another goes on from them.
"""

from dataclasses import dataclass
from enum import StrEnum

from planner.errors import InputError


class Role(StrEnum):
    """What the engines of a pool do with a request."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


class Executor(StrEnum):
    """Who starts the processes of an engine that spans nodes."""

    MULTIPROCESSING = "mp"
    RAY = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineShape:
    """How one engine lies on its GPUs.

    Args:
        tp: Tensor-parallel degree.
        pp: Pipeline-parallel degree.
        dp: Data-parallel ranks.
        pcp: Context-parallel degree of prefill.
        dcp: Context-parallel degree of decode, over the same ranks.
        expert_parallel: Routed experts are placed whole over tp x pcp x dp ranks; else each is split over them.
    """

    tp: int
    pp: int = 1
    dp: int = 1
    pcp: int = 1
    dcp: int = 1
    expert_parallel: bool = False

    @property
    def rank_gpus(self) -> int:
        """Return the GPUs of one data-parallel rank."""
        return self.tp * self.pp * self.pcp

    @property
    def num_gpus(self) -> int:
        """Return the GPUs of the engine."""
        return self.rank_gpus * self.dp


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Speculative decoding by a smaller model.

    Args:
        model: The draft, as the engine finds it.
        num_tokens: Guesses a step.
        tp: Tensor-parallel degree of the draft.
    """

    model: str
    num_tokens: int
    tp: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What one engine is told, beside its shape.

    Args:
        max_num_seqs: Sequences that run at once on a data-parallel rank: the planned batch.
        max_num_batched_tokens: Tokens of one step of a data-parallel rank.
        max_model_len: Longest sequence.
        gpu_memory_utilization: Share of the GPU's memory that the engine takes; None where the cache's bytes are given.
        kv_cache_memory_bytes: Bytes of KV cache on a GPU; None where the share is given.
        block_size: Tokens of a cache block; None leaves it to the engine.
        kv_cache_dtype: Format of the cache, in the engine's word.
        dtype: Format of activations and unquantised weights, in the engine's word.
        quantization: Quantisation to apply or to expect; None takes what the model's files say.
        chunked_prefill: Prompts are cut to the step's budget.
        prefix_caching: Equal beginnings are computed once.
        redundant_experts: Copies that the expert load balancer keeps; None without a balancer.
        draft: Speculative decoding; None without.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    block_size: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    chunked_prefill: bool = True
    prefix_caching: bool = True
    redundant_experts: int | None = None
    draft: Draft | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Equal engines with one role.

    Args:
        name: What its files are called.
        role: What it does with a request.
        replicas: Engines.
        shape: How each lies on its GPUs.
        settings: What each is told.
        gpu: Name of the GPU.
        gpus_per_node: GPUs of a node.
    """

    name: str
    role: Role
    replicas: int
    shape: EngineShape
    settings: EngineSettings
    gpu: str
    gpus_per_node: int

    @property
    def nodes_per_replica(self) -> int:
        """Return the nodes that one engine spans."""
        return -(-self.shape.num_gpus // self.gpus_per_node)

    @property
    def ranks_per_node(self) -> int:
        """Return the data-parallel ranks of one engine on one of its nodes; 0 where a rank spans nodes."""
        return min(self.shape.dp, self.gpus_per_node // self.shape.rank_gpus)

    @property
    def num_gpus(self) -> int:
        """Return the GPUs of the pool."""
        return self.replicas * self.shape.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingLayout:
    """Everything that is started.

    Args:
        model: The model as the engine finds it: a repository or a path.
        pools: At least one; either all with role both, or prefill and decode.
        executor: Who starts processes across nodes.
        connector: What carries KV caches from prefill to decode, in the engine's word; None without a split.
    """

    model: str
    pools: tuple[Pool, ...]
    executor: Executor = Executor.MULTIPROCESSING
    connector: str | None = None

    @property
    def is_split(self) -> bool:
        """Return whether prompts and answers are computed by different pools."""
        return any(pool.role is not Role.BOTH for pool in self.pools)


NIXL = "NixlConnector"
"""Decode engines pull caches."""
NIXL_PUSH = "NixlPushConnector"
"""Prefill engines push them: what those with pipeline stages need."""


def check_layout(layout: ServingLayout) -> None:
    """Raise `InputError` for pools that cannot work together, or an engine that its nodes cannot hold."""
    drafts = [pool.settings.draft.model for pool in layout.pools if pool.settings.draft is not None]
    for name in (layout.model, *drafts):
        if name.startswith("-") or name != name.strip():
            raise InputError(
                f"The model {name!r} begins with a dash, or begins or ends with a blank.",
                hint="An engine takes such a name for an option; give a repository or a path.",
            )
    roles = {pool.role for pool in layout.pools}
    if layout.is_split and roles != {Role.PREFILL, Role.DECODE}:
        raise InputError(
            f"The pools have the roles {', '.join(sorted(roles))}.",
            hint="Give pools for prefill and decode, or role both for all.",
        )
    if layout.is_split != (layout.connector is not None):
        problem = "has no connector" if layout.connector is None else "has a connector and no split"
        raise InputError(f"The layout {problem}.", hint="A connector carries caches from prefill to decode.")
    names = [pool.name for pool in layout.pools]
    if len(set(names)) < len(names):
        raise InputError("Two pools have one name.", hint="Their files are called after it.")
    for pool in layout.pools:
        _check_pool(pool)
        if layout.connector == NIXL and pool.shape.dcp not in {1, max(pool.shape.tp, pool.shape.pcp)}:
            raise InputError(
                f"Pool {pool.name}: dcp {pool.shape.dcp} with tp {pool.shape.tp}, pcp {pool.shape.pcp} and {NIXL}.",
                hint="It passes on caches that lie whole on every rank, or in parts on all of them: dcp is 1 or tp.",
            )
        _check_connector(pool, layout.connector)


def _check_connector(pool: Pool, connector: str | None) -> None:
    """Raise for what vLLM 0.32.0's NIXL connectors refuse (`kv_connector/v1/nixl`: base_worker.py, connector.py)."""
    shape = pool.shape
    if connector in {NIXL, NIXL_PUSH} and shape.pp > 1 and pool.role is Role.DECODE:
        raise InputError(
            f"Pool {pool.name}: decode engines with pp {shape.pp} and {connector}.",
            hint="It passes caches on to engines without pipeline stages only.",
        )
    if connector == NIXL and shape.pp > 1:
        raise InputError(
            f"Pool {pool.name}: pp {shape.pp} with {connector}, which pulls from one stage only.",
            hint=f"Use {NIXL_PUSH}.",
        )
    if connector == NIXL_PUSH and shape.dcp > 1:
        raise InputError(f"Pool {pool.name}: dcp {shape.dcp} with {connector}.", hint=f"Use dcp 1, or {NIXL}.")


def _check_pool(pool: Pool) -> None:
    shape, settings = pool.shape, pool.settings
    if (settings.gpu_memory_utilization is None) == (settings.kv_cache_memory_bytes is None):
        what = "no size of its cache" if settings.gpu_memory_utilization is None else "the size of its cache twice"
        raise InputError(
            f"Pool {pool.name} gives {what}.",
            hint="Give gpu_memory_utilization or kv_cache_memory_bytes.",
        )
    fits = pool.gpus_per_node % shape.rank_gpus == 0 or shape.rank_gpus % pool.gpus_per_node == 0
    if not fits or (pool.nodes_per_replica > 1 and shape.num_gpus % pool.gpus_per_node):
        raise InputError(
            f"Pool {pool.name}: ranks of {shape.rank_gpus} GPUs, {shape.num_gpus} in all, do not fill nodes of "
            f"{pool.gpus_per_node}.",
            hint="An engine over several nodes takes all their GPUs, each rank within a node or whole nodes.",
        )
