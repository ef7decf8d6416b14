"""What one rank of an engine runs for each layer of a model: the operator graph, sharded as engines shard it.

Products, experts and element-wise kernels are read off `planner.models.graph`, the same graph that training is priced
from; attention and its cache off the block, because an engine runs them otherwise:

- Key and value heads fewer than tp are copied, so that every rank has at least one (training gathers them).
- Latent attention caches the latent and the rotated part once a token, whole on every rank. A prompt's keys and values
  are projected up; in decode queries and outputs are multiplied into the latent instead, by the same weights
  (DeepSeek-V2, arXiv 2405.04434, section 2.1.2), so the product has the same size either way.
- The residual addition is fused into the norm behind it.
- A layer's partial sums are added over tp once behind the mixer and once behind the feed-forward (shared and routed
  experts together); a parallel block has one sum.
- Without expert parallelism each expert is split over all tp x dp ranks; with it experts are dealt to them. With dp
  above 1 attention is data parallel: tokens are gathered over the data-parallel ranks in front of experts, and their
  results scattered behind them.
- The LM head and the loss of training: the head multiplies only the tokens that a step samples from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.models.blocks import (
    Block,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    SelfAttention,
    StateSpace,
)
from planner.models.graph import LayerGraph, Linear, Mesh, ModelGraph, Operator, Parallel, Pointwise, Region, Weight
from planner.models.layers.model import build_graph
from planner.models.specs import ModelSpec
from planner.ranks.sharding import padded_vocab_size
from planner.requests.workload import Precision, TrainWorkload
from planner.serving.exchange import OWN_SUMS
from planner.serving.formats import ServedFormats
from planner.serving.fused_kernels import fused_kernels
from planner.serving.placed_experts import PlacedExperts
from planner.serving.rank_model import (
    PLAIN_BYTES,
    AttentionCore,
    Product,
    RankLayer,
    RankModel,
    Recurrence,
    RoutedExperts,
)
from planner.serving_plans.layout import EngineShape
from profiles.kernels.operations import Format
from profiles.measured_operations import kernel_named

STATE_BYTES = 4
"""Bytes of one number of a recurrent state: fp32, the engines' default."""

VOCAB_DIVISOR = 64
"""vLLM pads the vocabulary to a multiple of this times tp (`DEFAULT_VOCAB_PADDING_SIZE`)."""

CAST_BYTES = PLAIN_BYTES + 1
"""Bytes that a cast to 8 bits moves for each number: read in 16 bits, written in 8."""

INDEX_SCALE_BYTES = 4
"""Bytes beside an index key, which engines keep in 8 bits: one fp32 scale (vLLM's `DeepseekV32IndexerCache`)."""

RESIDUAL_PASSES = 3
"""Passes over the stream of a residual addition that is a kernel of its own: two read, one written."""

FUSED_ADDITIONS = 2
"""Passes over the stream that a norm makes more when the residual addition is fused into it: read, write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """How the experts of a layer are dealt to the ranks of an engine.

    Args:
        redundant: Copies of experts beside the experts; None without a balancer.
        placed: Where experts and copies stand, and how often tokens choose each; None where nothing was counted.
    """

    redundant: int | None = None
    placed: PlacedExperts | None = None


EVEN = Balance()
"""Tokens choose every expert alike, and no balancer runs."""


_GRAPH_WORKLOAD = TrainWorkload(seq_len=4096, global_batch_size=1, precision=Precision.BF16)
"""The graph's shapes of products and weights depend on no length; a graph needs a workload all the same."""


def serving_graph(model: ModelSpec) -> ModelGraph:
    """Return the operators of a model's layers, unsharded."""
    return build_graph(model, _GRAPH_WORKLOAD)


def rank_model(
    model: ModelSpec, graph: ModelGraph, shape: EngineShape, formats: ServedFormats, balance: Balance = EVEN
) -> RankModel:
    """Return what one rank of an engine holds and runs of a model.

    Args:
        model: The model.
        graph: What `serving_graph` returns of it.
        shape: How the engine lies on its GPUs.
        formats: What the model is held in.
        balance: How experts are dealt to its ranks.
    """
    counts: dict[Block, int] = {}
    for run in model.runs:
        counts[run.block] = counts.get(run.block, 0) + run.count
    layers = tuple(
        _layer(block, graph.blocks[block], count, model, shape, formats, balance) for block, count in counts.items()
    )
    rows = padded_vocab_size(model.vocab_size, shape.tp, divisor=VOCAB_DIVISOR) // shape.tp
    tables = 1 if model.tie_word_embeddings else 2
    return RankModel(
        layers=layers,
        hidden_size=model.hidden_size,
        head=Product(columns=rows, depth=model.hidden_size, format=formats.head),
        end_bytes=tables * rows * model.hidden_size * formats.head.weight_bytes,
        num_layers=model.num_layers,
    )


def _layer(  # noqa: PLR0913, PLR0917 - the facts of a layer
    block: Block,
    layer: LayerGraph,
    count: int,
    model: ModelSpec,
    shape: EngineShape,
    formats: ServedFormats,
    balance: Balance,
) -> RankLayer:
    products = tuple(product for operator in layer.operators for product in _products(operator, block, shape, formats))
    stream, kernels, streams = _element_wise(layer.operators, shape)
    casts = sum(1 for product in products if product.format.activation_bytes < PLAIN_BYTES)
    experts = _experts(block, model, shape, formats, balance)
    part = block.feed_forward
    more = experts.copies / part.num_experts if experts is not None and isinstance(part, MixtureOfExperts) else 1.0
    weights = sum(
        _weight_bytes(weight, operator, shape, formats) * (more if weight.mesh is Mesh.EXPERT else 1.0)
        for operator in layer.operators
        for weight in operator.weights
    )
    sums = sum(1 for part in (block.mixer, block.feed_forward) if part is not None)
    if block.parallel and sums > 1:
        sums = 1
    return RankLayer(
        count=count,
        products=products,
        attention=_attention(block, shape),
        recurrence=_recurrence(block, shape),
        experts=experts,
        stream_bytes_per_token=stream + CAST_BYTES * casts * model.hidden_size,
        num_kernels=kernels + casts,
        fused={engine: fused_kernels(engine, model, block, layer, shape) for engine in OWN_SUMS},
        streams=_with_casts(streams, casts, CAST_BYTES * casts * model.hidden_size),
        reductions=sums,
        weight_bytes=weights + _copied_bytes(layer, block, shape, formats),
        is_latent=isinstance(block.mixer, LatentAttention),
    )


def _format(operator: Operator, formats: ServedFormats) -> Format:
    """Return the format of a linear layer, by what part of a layer it is."""
    name = operator.name
    if name in {"router", "shared gate"} or name.startswith("indexer weight"):
        return formats.head
    if name.startswith("expert fc"):
        return formats.experts
    if name.startswith(("fc", "shared fc", "latent up", "latent down")):
        return formats.feed_forward
    return formats.attention


_DOWN_PROJECTIONS = ("query down projection", "key-value down projection")
"""Both read the layer's input, and engines run them as one product."""


def _joined(named: Sequence[tuple[str, Product]]) -> tuple[Product, ...]:
    """Return products, those that engines run as one as one."""
    down = [product for name, product in named if name in _DOWN_PROJECTIONS]
    rest = [product for name, product in named if name not in _DOWN_PROJECTIONS]
    if not down:
        return tuple(rest)
    return (replace(down[0], columns=sum(product.columns for product in down)), *rest)


def _products(operator: Operator, block: Block, shape: EngineShape, formats: ServedFormats) -> Iterable[Product]:
    work = operator.work
    if not isinstance(work, Linear):
        return
    columns, depth = work.out_features, work.in_features
    if work.parallel is Parallel.COLUMN:
        columns = _columns(work, block, shape.tp)
    elif work.parallel is Parallel.ROW:
        depth = -(-depth // shape.tp)
    yield Product(columns=columns, depth=depth, format=_format(operator, formats))


def _columns(work: Linear, block: Block, tp: int) -> int:
    """Return the columns of a rank's part of a column-parallel layer; key and value heads are copied."""
    mixer = block.mixer
    if work.whole_heads is None or not isinstance(mixer, SelfAttention) or work.whole_heads >= tp:
        return -(-work.out_features // tp)
    copies = 1 if mixer.shared_key_value else 2
    alone = work.out_features - copies * mixer.key_value_size
    return -(-alone // tp) + copies * mixer.head_dim


def _weight_bytes(weight: Weight, operator: Operator, shape: EngineShape, formats: ServedFormats) -> float:
    elements = float(weight.num_elements)
    if weight.mesh is Mesh.EXPERT:
        elements /= shape.tp * shape.pcp * shape.dp
    elif weight.split_dim is not None:
        elements /= shape.tp
    width = _format(operator, formats).weight_bytes if weight.gemm_operand else PLAIN_BYTES
    return elements * width


def _copied_bytes(layer: LayerGraph, block: Block, shape: EngineShape, formats: ServedFormats) -> float:
    """Return what copies of key and value heads weigh beside an even part of the layer that makes them."""
    total = 0.0
    for operator in layer.operators:
        work = operator.work
        if isinstance(work, Linear) and work.whole_heads is not None and work.whole_heads < shape.tp:
            more = _columns(work, block, shape.tp) * shape.tp / work.out_features - 1
            total += more * sum(_weight_bytes(weight, operator, shape, formats) for weight in operator.weights)
    return total


def _element_wise(operators: Iterable[Operator], shape: EngineShape) -> tuple[float, int, dict[str, tuple[float, int]]]:
    """Return the traffic for a token and the number of element-wise kernels, and both by measured kernel."""
    stream, kernels = 0.0, 0
    streams: dict[str, tuple[float, int]] = {}

    def add(kernel: str, num_bytes: float, count: int) -> None:
        before, so_far = streams.get(kernel, (0.0, 0))
        streams[kernel] = (before + num_bytes, so_far + count)

    for operator in operators:
        work = operator.work
        if not isinstance(work, Pointwise):
            continue
        if operator.name.endswith("residual"):
            stream += work.forward_bytes_per_token * FUSED_ADDITIONS / RESIDUAL_PASSES
            add("norm", work.forward_bytes_per_token * FUSED_ADDITIONS / RESIDUAL_PASSES, 0)
            continue
        split = shape.tp if work.region in {Region.SHARDED, Region.EXPERT} else 1
        num_bytes = work.forward_bytes_per_token * (work.visits if work.region is Region.EXPERT else 1) / split
        stream += num_bytes
        kernels += work.num_kernels
        add(kernel_named(operator.name, is_norm=work.is_norm), num_bytes, work.num_kernels)
    return stream, kernels, streams


def _with_casts(
    streams: Mapping[str, tuple[float, int]], casts: int, num_bytes: float
) -> Mapping[str, tuple[float, int]]:
    """Return the traffic by kernel with that of casts, which are copies."""
    if not casts:
        return streams
    before, count = streams.get("copy", (0.0, 0))
    return {**streams, "copy": (before + num_bytes, count + casts)}


def _attention(block: Block, shape: EngineShape) -> AttentionCore | None:
    mixer, tp = block.mixer, shape.tp
    match mixer:
        case SelfAttention():
            kv_heads = max(1, mixer.num_key_value_heads // tp)
            seen = mixer.window if mixer.window is not None else mixer.chunk
            return AttentionCore(
                num_heads=max(1, mixer.num_attention_heads // tp),
                num_kv_heads=kv_heads,
                qk_head_dim=mixer.head_dim,
                v_head_dim=mixer.head_dim,
                decode_qk_dim=mixer.head_dim,
                decode_v_dim=mixer.head_dim,
                cache_elements=2 * kv_heads * mixer.head_dim,
                seen_tokens=seen,
                kept_tokens=seen,
            )
        case LatentAttention():
            indexer = mixer.indexer
            latent = mixer.kv_lora_rank + mixer.qk_rope_head_dim
            return AttentionCore(
                num_heads=max(1, mixer.num_attention_heads // tp),
                num_kv_heads=1,
                qk_head_dim=mixer.qk_head_dim,
                v_head_dim=mixer.v_head_dim,
                decode_qk_dim=latent,
                decode_v_dim=mixer.kv_lora_rank,
                cache_elements=latent,
                seen_tokens=None if indexer is None else indexer.top_k,
                index_bytes=0 if indexer is None else indexer.head_dim + INDEX_SCALE_BYTES,
            )
        case _:
            return None


def _recurrence(block: Block, shape: EngineShape) -> Recurrence | None:
    mixer, tp = block.mixer, shape.tp
    match mixer:
        case StateSpace():
            heads = max(1, mixer.num_heads // tp)
            groups = max(1, mixer.num_groups // tp)
            convolved = (mixer.inner_size // tp + 2 * groups * mixer.state_size) * (mixer.conv_kernel - 1)
            state = heads * mixer.head_dim * mixer.state_size
            return Recurrence(
                state_bytes=STATE_BYTES * state + PLAIN_BYTES * convolved,
                cached_states=3,
                flops_per_token=2.0 * mixer.chunk_size * (groups * mixer.state_size + heads * mixer.head_dim)
                + 4.0 * state,
                bytes_per_token=PLAIN_BYTES * (3.0 * mixer.inner_size / tp + 2 * groups * mixer.state_size),
            )
        case LinearAttention():
            heads = max(1, mixer.num_value_heads // tp)
            keys = max(1, mixer.num_key_heads // tp)
            state = heads * mixer.key_head_dim * mixer.value_head_dim
            width = 2 * keys * mixer.key_head_dim + heads * mixer.value_head_dim
            scores = 2 if mixer.rule is not LinearRule.LIGHTNING else 1
            return Recurrence(
                state_bytes=STATE_BYTES * state + PLAIN_BYTES * width * max(0, mixer.conv_kernel - 1),
                cached_states=2,
                flops_per_token=scores * 2.0 * mixer.chunk_size * heads * (mixer.key_head_dim + mixer.value_head_dim)
                + 4.0 * state,
                bytes_per_token=PLAIN_BYTES * (2.0 * width + 2 * heads * mixer.value_head_dim),
            )
        case _:
            return None


def _experts(
    block: Block, model: ModelSpec, shape: EngineShape, formats: ServedFormats, balance: Balance
) -> RoutedExperts | None:
    spec = block.feed_forward
    if not isinstance(spec, MixtureOfExperts):
        return None
    ranks = shape.tp * shape.pcp * shape.dp
    whole = shape.expert_parallel
    copies = spec.num_experts + ((balance.redundant or 0) if whole else 0)
    return RoutedExperts(
        hidden=model.hidden_size if spec.latent_size is None else spec.latent_size,
        inter=spec.expert.intermediate_size if whole else -(-spec.expert.intermediate_size // ranks),
        gated=spec.expert.gated,
        experts=spec.num_experts,
        copies=copies,
        on_rank=-(-copies // ranks) if whole else copies,
        topk=spec.experts_per_token,
        format=formats.experts,
        grouped=formats.grouped,
        placed=balance.placed,
    )
