"""The operators of each kind of layer, unsharded.

One graph per kind of layer: the embedding, each distinct block, and the head (final norm, LM head, loss). An operator
says what it computes (`work`), which weights it owns, which tensors it keeps for backward, and whether activations
cross the boundary between the residual region and the tensor-parallel region around it. Time, memory, parameters and
model flops are all read from this one graph, so they cannot disagree.

Two regions of activations, as in Megatron-LM's sequence parallelism (Korthikanti et al., arXiv 2205.05198, figure 5):

- RESIDUAL: norms, dropouts, residual additions. Every feature on every rank; tokens split over tp with sequence
  parallelism, else whole.
- SHARDED: between a column-parallel and a row-parallel linear layer. Every token; features split over tp.

Saved tensors follow what the fused kernels of Megatron-LM with Transformer Engine keep: a norm keeps its input, a
linear layer its input, the activation its input, attention its q, k, v, output and the log-sum-exp of each row (Dao,
arXiv 2307.08691), or the score matrix when it is unfused. A tensor that two operators keep is one tensor: names are
unique within a layer. For an MHA layer with a 4h GELU feed-forward and dropout this gives the published
`s b h (10 + 24 / t)` plus attention (arXiv 2205.05198, equation 2), which a test asserts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from planner.specs import Block, DType, ModelSpec, SelfAttention


class Region(StrEnum):
    """Where an activation lives; see the module's docstring."""

    RESIDUAL = "residual"
    SHARDED = "sharded"


class Parallel(StrEnum):
    """Which dimension of a linear layer's weight is split over tp."""

    COLUMN = "column"
    ROW = "row"


class Module(StrEnum):
    """Parts of a layer that selective recompute can run again, by Megatron-LM's names."""

    CORE_ATTENTION = "core_attn"
    MLP = "mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter tensor.

    Args:
        name: Unique within its layer.
        shape: Its unsharded shape.
        split_dim: Dimension that is split over tp; None keeps it whole on every rank.
        trainable: It has a gradient.
        vocab_dim: Dimension that grows with vocabulary padding; None without.
        shared_with_embedding: It is the embedding table again (tied LM head): a second copy only where the head is
            on another pipeline rank than the embedding.
        gemm_operand: A linear layer multiplies by it (and keeps an fp8 copy under an fp8 recipe).
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None
    trainable: bool
    vocab_dim: int | None = None
    shared_with_embedding: bool = False
    gemm_operand: bool = False

    @property
    def num_elements(self) -> int:
        """Return the unsharded, unpadded number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One tensor kept from forward to backward.

    Args:
        name: Unique within its layer.
        features: Elements per token.
        element_bytes: Bytes of one element.
        region: How it is split.
        granule: Features stay whole in groups of this many; a rank holds at least one group (key/value heads).
        dropped_by: Recompute module that produces it again instead of keeping it.
        vocab_features: The features are the vocabulary and grow with its padding.
    """

    name: str
    features: int
    element_bytes: int
    region: Region
    granule: int = 1
    dropped_by: Module | None = None
    vocab_features: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`y[tokens, out] = x[tokens, in] W`.

    Args:
        in_features: Width of x.
        out_features: Width of y.
        parallel: How W is split.
        dtype: Format of the products.
        trains_weight: Backward computes the gradient of W.
        needs_input_gradient: Backward computes the gradient of x.
        adapter_rank: Rank of a low-rank adapter beside W; 0 without.
        whole_heads: Key/value heads in y; over more ranks than these y is gathered, and each rank picks its heads.
        vocab_output: `out_features` is the vocabulary and grows with its padding.
    """

    in_features: int
    out_features: int
    parallel: Parallel
    dtype: DType
    trains_weight: bool
    needs_input_gradient: bool = True
    adapter_rank: int = 0
    whole_heads: int | None = None
    vocab_output: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAttention:
    """Softmax attention between projections, causal."""

    attention: SelfAttention
    dtype: DType
    fused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """Work whose time is its memory traffic.

    Args:
        forward_bytes_per_token: Bytes read and written per token, forward.
        backward_bytes_per_token: The same backward.
        region: How its tokens or features are split.
        vocab_features: The byte counts are per token and vocabulary entry.
        num_kernels: Kernels it launches, each way.
    """

    forward_bytes_per_token: int
    backward_bytes_per_token: int
    region: Region
    vocab_features: int = 0
    num_kernels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The embedding look-up: each tp rank holds a part of the rows, so the partial results are summed."""

    hidden_size: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReduction:
    """The three per-token all-reduces of a vocabulary-parallel cross entropy: maximum, target logit, sum."""

    num_reductions: int = 3


Work = Linear | CoreAttention | Pointwise | Lookup | LossReduction


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a layer.

    Args:
        name: Unique within its layer.
        work: What it computes.
        weights: Parameters that it owns.
        saved: Tensors that it keeps for backward.
        module: Recompute module that it belongs to; None is never recomputed selectively.
    """

    name: str
    work: Work
    weights: tuple[Weight, ...] = ()
    saved: tuple[Saved, ...] = ()
    module: Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGraph:
    """One layer: its operators in forward order.

    Args:
        name: What kind of layer it is.
        operators: In forward order.
        layer_input: What full recompute keeps; None where nothing enters (the embedding).
    """

    name: str
    operators: tuple[Operator, ...]
    layer_input: Saved | None

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Return every weight of the layer."""
        return tuple(weight for operator in self.operators for weight in operator.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """A model: embedding, the graph of each distinct block, head.

    Args:
        embedding: Token (and position) embedding.
        blocks: The graph of each distinct block.
        head: Final norm, LM head, loss.
        hidden_size: Width of the stream between layers.
        stream_bytes: Bytes of one of its elements.
    """

    embedding: LayerGraph
    blocks: Mapping[Block, LayerGraph]
    head: LayerGraph
    hidden_size: int
    stream_bytes: int


def layer_parameters(layer: LayerGraph) -> int:
    """Return the unsharded, unpadded parameters of one layer, a tied table counted with the embedding only."""
    return sum(weight.num_elements for weight in layer.weights if not weight.shared_with_embedding)


def graph_parameters(model: ModelSpec, graph: ModelGraph) -> int:
    """Return the parameters of the whole model, adapters included."""
    blocks = sum(run.count * layer_parameters(graph.blocks[run.block]) for run in model.runs)
    return layer_parameters(graph.embedding) + blocks + layer_parameters(graph.head)


def required_flops_per_sequence(model: ModelSpec, graph: ModelGraph, *, seq_len: int) -> int:
    """Return the flops that one sequence needs, forward and backward, without any recomputation.

    Products of linear layers (2 per weight and token forward, as much again for each gradient that is needed) and the
    causal half of attention: two products forward, four backward (Narayanan et al., arXiv 2104.04473, equation 3,
    with the causal half and the vocabulary as they are). This is the numerator of MFU.
    """
    total = _layer_flops(graph.head, seq_len)
    for run in model.runs:
        total += run.count * _layer_flops(graph.blocks[run.block], seq_len)
    return total


def _layer_flops(layer: LayerGraph, seq_len: int) -> int:
    total = 0
    for operator in layer.operators:
        work = operator.work
        if isinstance(work, Linear):
            gradients = 1 + work.needs_input_gradient + work.trains_weight
            total += 2 * seq_len * work.in_features * work.out_features * gradients
            total += 6 * seq_len * work.adapter_rank * (work.in_features + work.out_features)
        elif isinstance(work, CoreAttention):
            pairs = seq_len * (seq_len + 1) // 2
            total += 6 * 2 * pairs * work.attention.query_size
    return total
