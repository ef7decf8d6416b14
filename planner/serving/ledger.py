"""What lies in the memory of one GPU of an engine, and how many tokens its cache holds.

Engines take a part of the GPU's memory, hold the weights in it, measure what a full step needs, and give the rest to
the cache of keys and values; or they give the cache a part of what weights and a step leave (TensorRT-LLM). The cache
is counted in blocks; a model with recurrent states pads the attention's blocks until one is as large as a state,
because both come from one pool (vLLM's hybrid cache manager): there each sequence holds blocks of every group of
layers, however short it is, and with prefix caching the states that it may resume from (`planner.serving.block_pool`).

- Key and value heads fewer than tp are held in copies: tp over heads times as much.
- Latent attention's cache is whole on every tensor-parallel rank; data-parallel attention, or a context-parallel degree
  of decode, divides it.
- With decode context parallelism a block is spread over the ranks that share it, and is so many times as long.
- Layers with a window keep the window's tokens, the others all.

The heaviest rank of a pipeline holds the most layers and the larger of embedding and LM head.
"""

import math
from dataclasses import dataclass, replace

from planner.frameworks.overheads import Overheads, overheads_on
from planner.serving.balancer import balancer_bytes
from planner.serving.block_pool import BlockPool, block_pool
from planner.serving.engines import Engine
from planner.serving.formats import ServedFormats
from planner.serving.rank_model import PLAIN_BYTES, RankLayer, RankModel
from planner.serving_plans.layout import EngineSettings, EngineShape
from profiles.constants import Constant, Origin
from profiles.hardware import Cluster

GRAPHS = Constant(
    value=1 << 30,
    low=0,
    high=8 << 30,
    origin=Origin.ASSUMED,
    source="assumption: captured graphs of decode; vLLM's log names between 0.2 and 2 GiB, by model and batch",
)
STREAM_COPIES = Constant(
    value=4,
    low=1,
    high=16,
    origin=Origin.ASSUMED,
    source="assumption: a layer holds four tensors as wide as the stream at once: the stream, its norm, a part's input"
    " and output; no engine says how many its allocator keeps",
)
LOGIT_BYTES = Constant(
    value=2 * 4,
    low=4,
    high=32,
    origin=Origin.COUNTED,
    source="logits of a sampled token in fp32, and one copy for sampling (vllm/v1/sample/sampler.py)",
)

VLLM = "vllm"
"""The engine whose check before it starts is known (`planner.serving.block_pool`)."""


BALANCER = "one layer's experts once more, and loads of a window of steps (vllm/distributed/eplb/eplb_state.py)"

WEIGHTS = "weights"
"""Name of the line of the model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the ledger.

    Args:
        name: What lies there.
        num_bytes: How much.
        source: How it was counted, or what was assumed.
    """

    name: str
    num_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLedger:
    """The memory of the fullest GPU of an engine.

    Args:
        capacity_bytes: Memory that the engine may take.
        lines: What it holds beside the cache.
        token_bytes: Cache of one token in layers that keep all of them.
        window_layers: For each kind of layer with a window: bytes of a token in all of them, and the window.
        state_bytes: Recurrent states of one sequence.
        block_tokens: Tokens of a block, on all ranks that share those of a sequence.
        needed_tokens: Tokens of the longest sequence, which must fit.
        pool: How vLLM deals blocks; None for other engines, which are held to `sequence_bytes`.
        ahead_tokens: Slots that each sequence has for tokens that are guessed.
        told_bytes: Cache that the engine is told; None where it takes what is left.
    """

    capacity_bytes: int
    lines: tuple[Line, ...]
    token_bytes: float
    window_layers: tuple[tuple[float, int], ...]
    state_bytes: int
    block_tokens: int
    needed_tokens: int
    pool: BlockPool | None
    ahead_tokens: int = 0
    told_bytes: int | None = None

    @property
    def held_bytes(self) -> int:
        """Return what lies beside the cache."""
        return sum(line.num_bytes for line in self.lines)

    @property
    def pool_bytes(self) -> int:
        """Return what is left for the cache, or less where it is told so; negative where not even the rest fits."""
        left = self.capacity_bytes - self.held_bytes
        return left if self.told_bytes is None else min(left, self.told_bytes)

    @property
    def limit_bytes(self) -> int:
        """Return what the engine takes at most: its cache and all beside it, where the cache is told in bytes."""
        if self.told_bytes is None:
            return self.capacity_bytes
        return min(self.capacity_bytes, self.held_bytes + self.told_bytes)

    def sequence_bytes(self, tokens: float) -> float:
        """Return the cache of one sequence of so many tokens, in whole blocks; with states of every group of layers."""
        if self.pool is not None and self.state_bytes:
            return float(self.pool.held_bytes(math.ceil(tokens + self.ahead_tokens)))
        whole = math.ceil((tokens + self.ahead_tokens) / self.block_tokens) * self.block_tokens
        windows = sum(num_bytes * min(whole, window + self.block_tokens) for num_bytes, window in self.window_layers)
        return whole * self.token_bytes + windows + self.state_bytes

    def most_sequences(self, tokens: float) -> int:
        """Return how many sequences of so many tokens fit at once."""
        return max(0, int(self.pool_bytes // self.sequence_bytes(tokens)))

    def pool_tokens(self, tokens: float) -> int:
        """Return how many tokens fit, in sequences of so many tokens."""
        return int(max(0.0, self.pool_bytes) / self.sequence_bytes(tokens) * tokens)

    def start_bytes(self, tokens: int) -> int:
        """Return the cache without which an engine for sequences of so many tokens does not start."""
        return math.ceil(self.sequence_bytes(tokens)) if self.pool is None else self.pool.start_bytes(tokens)

    @property
    def most_seats(self) -> int | None:
        """Return the seats with which an engine starts at most; None without a bound.

        Where layers keep states vLLM asks for a block of the pool for each sequence that it may decode at once
        ("exceeds available Mamba cache blocks", vllm-project/vllm pull request 38270, issue 49064).
        """
        if self.pool is None or not self.state_bytes:
            return None
        return max(0, self.pool_bytes) // self.pool.block_bytes

    @property
    def shortfall_bytes(self) -> int:
        """Return how much memory a GPU lacks for the longest sequence; 0 where it fits."""
        return max(0, self.start_bytes(self.needed_tokens) - self.pool_bytes)

    @property
    def fits(self) -> bool:
        """Return whether the weights, a step and the longest sequence fit."""
        return self.shortfall_bytes == 0


def default_settings(engine: Engine, *, max_model_len: int) -> EngineSettings:
    """Return what an engine is told when nobody says otherwise."""
    return EngineSettings(
        max_num_seqs=engine.default_num_seqs,
        max_num_batched_tokens=engine.default_batched_tokens,
        max_model_len=max_model_len,
        gpu_memory_utilization=engine.default_memory_fraction,
    )


def kv_ledger(  # noqa: PLR0913 - the facts of an engine
    *,
    rank: RankModel,
    shape: EngineShape,
    formats: ServedFormats,
    engine: Engine,
    settings: EngineSettings,
    cluster: Cluster,
    scheduled_ahead: bool = True,
) -> KvLedger:
    """Return the memory of the fullest GPU of an engine.

    Args:
        rank: What a rank holds.
        shape: How the engine lies on its GPUs.
        formats: What the model is held in.
        engine: Which engine it is.
        settings: What it is told.
        cluster: Where it runs.
        scheduled_ahead: A step is scheduled while the one before it runs.
    """
    share = math.ceil(rank.num_layers / shape.pp) / rank.num_layers
    block = settings.block_size or engine.block_size
    tokens = float(sum(_kept(layer.count, layer.cache_elements, formats) for layer in rank.layers if _keeps_all(layer)))
    windows = tuple(
        (_kept(layer.count, layer.cache_elements, formats) * share / shape.dcp, layer.attention.kept_tokens)
        for layer in rank.layers
        if layer.attention is not None and layer.attention.kept_tokens is not None
    )
    index = sum(layer.count * layer.attention.index_bytes for layer in rank.layers if layer.attention is not None)
    states = sum(layer.count * layer.recurrence.state_bytes for layer in rank.layers if layer.recurrence is not None)
    lines = _lines(rank, shape, settings, share, overheads_on(cluster))
    if settings.redundant_experts is not None and rank.has_experts:
        lines += (Line(name="balancer", num_bytes=balancer_bytes(rank), source=BALANCER),)
    block_tokens = _block_tokens(rank, formats, block)
    pool = block_pool(
        rank=rank,
        shape=shape,
        formats=formats,
        settings=settings,
        block_tokens=block_tokens,
        scheduled_ahead=scheduled_ahead,
    )
    return KvLedger(
        capacity_bytes=_capacity(settings, engine, cluster, sum(line.num_bytes for line in lines)),
        lines=lines,
        token_bytes=(tokens + index) * share / shape.dcp,
        window_layers=windows,
        state_bytes=round(states * share),
        block_tokens=block_tokens * shape.dcp,
        needed_tokens=settings.max_model_len,
        pool=pool if engine.name == VLLM else None,
        told_bytes=settings.kv_cache_memory_bytes,
    )


def with_draft(ledger: KvLedger, draft: KvLedger, *, guesses: int) -> KvLedger:
    """Return the memory of an engine that a draft guesses for.

    The draft's weights and cache lie beside the model's; its steps use the room that the model's leave. A sequence has
    slots for the tokens that are guessed (`vllm/v1/core/sched/scheduler.py: num_lookahead_tokens`). How the draft's
    layers are grouped with the model's is not known here: the pool is held to the bytes of both.

    Args:
        ledger: Memory of the engine alone.
        draft: Memory of the draft alone, on the same GPUs.
        guesses: Tokens that are guessed.
    """
    weights = next(line.num_bytes for line in draft.lines if line.name == WEIGHTS)
    return replace(
        ledger,
        lines=(*ledger.lines, Line(name="draft", num_bytes=weights, source="weights, counted on its operator graph")),
        token_bytes=ledger.token_bytes + draft.token_bytes,
        window_layers=(*ledger.window_layers, *draft.window_layers),
        state_bytes=ledger.state_bytes + draft.state_bytes,
        ahead_tokens=guesses,
        pool=None,
    )


def _keeps_all(layer: RankLayer) -> bool:
    return layer.attention is not None and layer.attention.kept_tokens is None


def _kept(count: int, elements: int, formats: ServedFormats) -> float:
    return count * elements * formats.cache_bytes


def _capacity(settings: EngineSettings, engine: Engine, cluster: Cluster, held_bytes: int) -> int:
    """Return the memory that an engine may take; where the cache's bytes are told, all of it."""
    memory, fraction = cluster.device.memory_bytes, settings.gpu_memory_utilization
    if fraction is None:
        return memory
    if engine.fraction_of_free:
        return min(memory, held_bytes + int(fraction * (memory - held_bytes))) if memory > held_bytes else memory
    return int(memory * fraction)


def _lines(
    rank: RankModel, shape: EngineShape, settings: EngineSettings, share: float, overheads: Overheads
) -> tuple[Line, ...]:
    layers = sum(layer.count * layer.weight_bytes for layer in rank.layers)
    ends = rank.end_bytes if shape.pp == 1 else float(rank.head.columns * rank.head.depth * PLAIN_BYTES)
    communicators = sum(
        overheads.communicator_bytes(size)
        for size in (shape.tp, shape.pp, shape.tp * shape.dp if rank.has_experts else 1)
    )
    return (
        Line(name=WEIGHTS, num_bytes=math.ceil(layers * share + ends), source="counted on the operator graph"),
        Line(
            name="activations",
            num_bytes=activation_bytes(rank, shape, settings),
            source=f"a step of {settings.max_num_batched_tokens:,} tokens; assumed: {STREAM_COPIES.value:g} streams and"
            " the widest layer at once",
        ),
        Line(name="context and libraries", num_bytes=overheads.context_bytes, source=overheads.context_source),
        Line(name="communicators", num_bytes=communicators, source=overheads.communicator_source),
        Line(name="graphs", num_bytes=round(GRAPHS.value), source=GRAPHS.source),
    )


def activation_bytes(rank: RankModel, shape: EngineShape, settings: EngineSettings) -> int:
    """Return what a full step holds at once: streams, the widest layer's output and its half, logits."""
    tokens = settings.max_num_batched_tokens
    widest = max(product.columns for layer in rank.layers for product in layer.products)
    in_layer = widest * 3 / 2
    for layer in rank.layers:
        if layer.experts is not None:
            inner = layer.experts.inter * (3 if layer.experts.gated else 2) + layer.experts.hidden
            in_layer = max(in_layer, inner * layer.experts.topk * shape.dp * layer.experts.busiest_share)
    sampled = settings.max_num_seqs * (1 if settings.draft is None else 1 + settings.draft.num_tokens)
    logits = min(sampled, tokens) * rank.head.columns * LOGIT_BYTES.value
    return math.ceil(tokens * PLAIN_BYTES * (STREAM_COPIES.value * rank.hidden_size + in_layer) + logits)


def _block_tokens(rank: RankModel, formats: ServedFormats, block: int) -> int:
    """Return the tokens of a block: enough that a block of attention is as large as a state of a recurrence."""
    states = [layer.recurrence.state_bytes for layer in rank.layers if layer.recurrence is not None]
    tokens = [layer.cache_elements * formats.cache_bytes for layer in rank.layers if layer.attention is not None]
    if not states or not tokens:
        return block
    return max(block, math.ceil(max(states) / min(tokens) / block) * block)
