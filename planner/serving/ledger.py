"""What lies in the memory of one GPU of an engine, and how many tokens its cache holds.

Engines take a part of the GPU's memory, hold the weights in it, measure what a full step needs, and give the rest to
the cache of keys and values; or they give the cache a part of what weights and a step leave (TensorRT-LLM). The cache
is counted in blocks; a model with recurrent states pads the attention's blocks until one is as large as a state,
because both come from one pool (vLLM's hybrid cache manager).

- Key and value heads fewer than tp are held in copies: tp over heads times as much.
- Latent attention's cache is whole on every tensor-parallel rank; data-parallel attention, or a context-parallel degree
  of decode, divides it.
- Layers with a window keep the window's tokens, the others all.

The heaviest rank of a pipeline holds the most layers and the larger of embedding and LM head.
"""

import math
from dataclasses import dataclass

from planner.memory import CONTEXT_BYTES, CONTEXT_SOURCE
from planner.serving.engines import Engine
from planner.serving.formats import ServedFormats
from planner.serving.rank_operators import PLAIN_BYTES, RankLayer, RankModel
from planner.serving_layout import EngineSettings, EngineShape
from planner.state_bytes import COMMUNICATOR_SOURCE, GROUP_COMMUNICATOR_BYTES, PAIR_COMMUNICATOR_BYTES
from profiles.hardware import Cluster

GRAPH_BYTES = 1 << 30
GRAPH_SOURCE = "assumption: captured graphs of decode; vLLM logs between 0.2 and 2 GiB"

STREAM_COPIES = 4
"""Tensors as wide as the stream that a layer holds at once: the stream, its norm, a part's input and output."""

LOGIT_BYTES = 2 * 4
"""Logits of a sampled token in fp32, and one copy for sampling."""


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
        block_tokens: Tokens of a block.
        needed_tokens: Tokens of the longest sequence, which must fit.
    """

    capacity_bytes: int
    lines: tuple[Line, ...]
    token_bytes: float
    window_layers: tuple[tuple[float, int], ...]
    state_bytes: int
    block_tokens: int
    needed_tokens: int

    @property
    def held_bytes(self) -> int:
        """Return what lies beside the cache."""
        return sum(line.num_bytes for line in self.lines)

    @property
    def pool_bytes(self) -> int:
        """Return what is left for the cache; negative where not even the rest fits."""
        return self.capacity_bytes - self.held_bytes

    def sequence_bytes(self, tokens: float) -> float:
        """Return the cache of one sequence of so many tokens, in whole blocks."""
        whole = math.ceil(tokens / self.block_tokens) * self.block_tokens
        windows = sum(num_bytes * min(whole, window + self.block_tokens) for num_bytes, window in self.window_layers)
        return whole * self.token_bytes + windows + self.state_bytes

    def most_sequences(self, tokens: float) -> int:
        """Return how many sequences of so many tokens fit at once."""
        return max(0, int(self.pool_bytes // self.sequence_bytes(tokens)))

    def pool_tokens(self, tokens: float) -> int:
        """Return how many tokens fit, in sequences of so many tokens."""
        return int(max(0.0, self.pool_bytes) / self.sequence_bytes(tokens) * tokens)

    @property
    def shortfall_bytes(self) -> int:
        """Return how much memory a GPU lacks for the longest sequence; 0 where it fits."""
        return max(0, math.ceil(self.sequence_bytes(self.needed_tokens)) - self.pool_bytes)

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
) -> KvLedger:
    """Return the memory of the fullest GPU of an engine.

    Args:
        rank: What a rank holds.
        shape: How the engine lies on its GPUs.
        formats: What the model is held in.
        engine: Which engine it is.
        settings: What it is told.
        cluster: Where it runs.
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
    lines = _lines(rank, shape, settings, share)
    return KvLedger(
        capacity_bytes=_capacity(settings, engine, cluster, sum(line.num_bytes for line in lines)),
        lines=lines,
        token_bytes=(tokens + index) * share / shape.dcp,
        window_layers=windows,
        state_bytes=round(states * share),
        block_tokens=_block_tokens(rank, formats, block),
        needed_tokens=settings.max_model_len,
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


def _lines(rank: RankModel, shape: EngineShape, settings: EngineSettings, share: float) -> tuple[Line, ...]:
    layers = sum(layer.count * layer.weight_bytes for layer in rank.layers)
    ends = rank.end_bytes if shape.pp == 1 else float(rank.head.columns * rank.head.depth * PLAIN_BYTES)
    communicators = sum(
        PAIR_COMMUNICATOR_BYTES if size == 2 else GROUP_COMMUNICATOR_BYTES
        for size in (shape.tp, shape.pp, shape.tp * shape.dp if rank.has_experts else 1)
        if size > 1
    )
    return (
        Line(name="weights", num_bytes=math.ceil(layers * share + ends), source="counted on the operator graph"),
        Line(
            name="activations",
            num_bytes=activation_bytes(rank, shape, settings),
            source=f"a step of {settings.max_num_batched_tokens:,} tokens; assumed: {STREAM_COPIES} streams and the"
            " widest layer at once",
        ),
        Line(name="context and libraries", num_bytes=CONTEXT_BYTES, source=CONTEXT_SOURCE),
        Line(name="communicators", num_bytes=communicators, source=COMMUNICATOR_SOURCE),
        Line(name="graphs", num_bytes=GRAPH_BYTES, source=GRAPH_SOURCE),
    )


def activation_bytes(rank: RankModel, shape: EngineShape, settings: EngineSettings) -> int:
    """Return what a full step holds at once: streams, the widest layer's output and its half, logits."""
    tokens = settings.max_num_batched_tokens
    widest = max(product.columns for layer in rank.layers for product in layer.products)
    in_layer = widest * 3 / 2
    for layer in rank.layers:
        if layer.experts is not None:
            inner = layer.experts.inter * (3 if layer.experts.gated else 2) + layer.experts.hidden
            in_layer = max(
                in_layer, inner * layer.experts.topk * shape.dp * layer.experts.on_rank / layer.experts.experts
            )
    logits = min(settings.max_num_seqs, tokens) * rank.head.columns * LOGIT_BYTES
    return math.ceil(tokens * PLAIN_BYTES * (STREAM_COPIES * rank.hidden_size + in_layer) + logits)


def _block_tokens(rank: RankModel, formats: ServedFormats, block: int) -> int:
    """Return the tokens of a block: enough that a block of attention is as large as a state of a recurrence."""
    states = [layer.recurrence.state_bytes for layer in rank.layers if layer.recurrence is not None]
    tokens = [layer.cache_elements * formats.cache_bytes for layer in rank.layers if layer.attention is not None]
    if not states or not tokens:
        return block
    return max(block, math.ceil(max(states) / min(tokens) / block) * block)
