"""The operators of each kind of layer, unsharded.

One graph per kind of layer: the embedding, each distinct block, and the head (final norm, LM head, loss). An operator
says what it computes (`work`), which weights it owns, which tensors it keeps for backward, and whether activations
cross the boundary between the residual region and the tensor-parallel region around it. Time, memory, parameters and
model flops are all read from this one graph, so they cannot disagree.

Regions of activations, the first two as in Megatron-LM's sequence parallelism (Korthikanti et al., arXiv 2205.05198,
figure 5):

- RESIDUAL: norms, dropouts, residual additions, replicated projections. Every feature on every rank; tokens split over
  tp with sequence parallelism, else whole.
- SHARDED: between a column-parallel and a row-parallel linear layer. Every token; features split over tp.
- ROUTED: what a rank's experts receive. A row for each visit of a token to one of them; every feature.
- EXPERT: inside the experts. The same rows; features split over etp.

Saved tensors follow what the fused kernels of Megatron-LM with Transformer Engine keep: a norm keeps its input, a
linear layer its input, the activation its input, attention its q, k, v, output and the log-sum-exp of each row (Dao,
arXiv 2307.08691), or the score matrix when it is unfused. What plain PyTorch modules keep is in
`planner.models.layers.eager`. A tensor that two operators keep is one tensor: names are unique within a layer. For an
MHA layer with a 4h GELU feed-forward and dropout this gives the published `s b h (10 + 24 / t)` plus attention (arXiv
2205.05198, equation 2), which a test asserts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property

from planner.models.blocks import Block
from planner.requests.workload import DType


class Region(StrEnum):
    """Where an activation lives; see the module's docstring."""

    RESIDUAL = "residual"
    SHARDED = "sharded"
    ROUTED = "routed"
    EXPERT = "expert"


class Parallel(StrEnum):
    """Which dimension of a linear layer's weight is split over tp (an expert's: over etp); REPLICATED splits none.

    A replicated layer works in the residual region, on the tokens that the rank holds there.
    """

    COLUMN = "column"
    ROW = "row"
    REPLICATED = "replicated"


class Mesh(StrEnum):
    """The grid that a weight is laid out on: (tp, cp, dp), or (etp, ep, edp) of the routed experts."""

    DENSE = "dense"
    EXPERT = "expert"


class Module(StrEnum):
    """Parts of a layer that selective recompute can run again, by Megatron-LM's names."""

    CORE_ATTENTION = "core_attn"
    LAYER_NORM = "layernorm"
    """Norms that are layers of their own; those in front of other linear layers are part of them."""
    MLP = "mlp"
    MLA_UP_PROJECTION = "mla_up_proj"
    MOE = "moe"
    MOE_ACTIVATION = "moe_act"
    SHARED_EXPERTS = "shared_experts"


class Axis(StrEnum):
    """Degrees that must divide something of a layer."""

    TP = "tp"
    ETP = "etp"
    EP = "ep"
    ULYSSES = "ulysses"
    STATE_HEADS = "state-heads"
    """cp, where recurrences exchange their heads over it; 1 where they exchange states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Divisible:
    """A size of a layer that the product of some degrees must divide.

    Args:
        what: The size, by the name that its users know.
        size: Its value.
        axes: The degrees whose product must divide it.
        either_way: The size may divide the product as well (key/value heads that several ranks share).
        only_above_one: The rule holds only where this degree is above 1; None means always.
    """

    what: str
    size: int
    axes: tuple[Axis, ...]
    either_way: bool = False
    only_above_one: Axis | None = None

    def admits(self, degree: int) -> bool:
        """Return whether a product of `degree` is legal."""
        return self.size % degree == 0 or (self.either_way and degree % self.size == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter tensor.

    Args:
        name: Unique within its layer.
        shape: Its unsharded shape.
        split_dim: Dimension that is split over tp (an expert's: over etp); None keeps it whole on every rank.
        trainable: It has a gradient.
        expert_dim: Dimension that counts routed experts and is split over ep; None without. It decides the mesh.
        vocab_dim: Dimension that grows with vocabulary padding; None without.
        shared_with_embedding: It is the embedding table again (tied LM head): a second copy only where the head is
            on another pipeline rank than the embedding.
        gemm_operand: A linear layer multiplies by it in the recipe's format (and keeps fp8 copies under an fp8 recipe).
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None
    trainable: bool
    expert_dim: int | None = None
    vocab_dim: int | None = None
    shared_with_embedding: bool = False
    gemm_operand: bool = False

    @property
    def mesh(self) -> Mesh:
        """Return the grid that it is laid out on."""
        return Mesh.DENSE if self.expert_dim is None else Mesh.EXPERT

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
        features: Elements per token (in the expert regions: per row).
        element_bytes: Bytes of one element.
        region: How it is split.
        granule: Features stay whole in groups of this many; a rank holds at least one group (key/value heads).
        dropped_by: Recompute modules that produce it again instead of keeping it.
        vocab_features: The features are the vocabulary and grow with its padding.
        visits: In the expert regions: experts that each token visits.
        weight_input: A gradient of weights is the product of it and of an output's gradient.
    """

    name: str
    features: int
    element_bytes: int
    region: Region
    granule: int = 1
    dropped_by: tuple[Module, ...] = ()
    vocab_features: bool = False
    visits: int = 1
    weight_input: bool = False


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
class ExpertLinear:
    """`y[rows, out] = x[rows, in] W[expert of the row]`: one product for each routed expert of a rank.

    Args:
        in_features: Width of x.
        out_features: Width of y.
        parallel: How each expert's W is split over etp.
        dtype: Format of the products.
        trains_weight: Backward computes the gradient of W.
        num_experts: Routed experts, on all ranks together.
        visits: Experts that each token visits.
    """

    in_features: int
    out_features: int
    parallel: Parallel
    dtype: DType
    trains_weight: bool
    num_experts: int
    visits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Sends each token to the ranks of the experts that it visits, and gathers their rows over etp.

    Args:
        features: Width of what is sent.
        num_experts: Routed experts.
        visits: Experts that each token visits.
        dtype: Format that tokens travel in.
    """

    features: int
    num_experts: int
    visits: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Combine:
    """Brings the experts' results back to their tokens and sums them: the reverse of `Dispatch`, with its fields."""

    features: int
    num_experts: int
    visits: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAttention:
    """Softmax attention between projections, causal.

    Args:
        num_heads: Query heads.
        num_kv_heads: Key heads, and as many value heads.
        qk_head_dim: Width of a query or key head.
        v_head_dim: Width of a value head; 0 where only scores are computed.
        pairs: Query-key pairs of one sequence that the mask lets through, for each head.
        dtype: Format of the products.
        fused: The score matrix is never written to memory.
        local: The mask is a window or a chunk, or heads have sinks: what the kernels of a ring do not know.
        chosen: Keys are chosen for each query by an indexer.
    """

    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    pairs: int
    dtype: DType
    fused: bool
    local: bool = False
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StateScan:
    """A recurrence over a state of `key_dim` times `value_dim` for each head, computed chunk by chunk.

    Args:
        num_heads: Heads, each with a state.
        num_groups: Groups of heads that share what is written to and read from the state (keys and queries, B and C).
        key_dim: Rows of a state.
        value_dim: Columns of a state.
        chunk_size: Tokens that are multiplied out at once.
        corrects: The update takes back what the state already holds for a key (delta rules): twice the work in a chunk.
        in_features: Width of everything that the recurrence reads for a token.
        dtype: Format of the products.
    """

    num_heads: int
    num_groups: int
    key_dim: int
    value_dim: int
    chunk_size: int
    corrects: bool
    in_features: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """Work whose time is its memory traffic.

    Args:
        kernel: What it is, for sources, messages and the choice among measured kernels.
        forward_bytes_per_token: Bytes read and written per token (in the expert regions: per row), forward.
        backward_bytes_per_token: The same backward.
        region: How its tokens or features are split.
        vocab_features: The byte counts are per token and vocabulary entry.
        num_kernels: Kernels it launches, each way.
        visits: In the expert regions: experts that each token visits.
        is_norm: It normalises.
    """

    kernel: str
    forward_bytes_per_token: int
    backward_bytes_per_token: int
    region: Region
    vocab_features: int = 0
    num_kernels: int = 1
    visits: int = 1
    is_norm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The embedding look-up: each tp rank holds a part of the rows, so the partial results are summed."""

    hidden_size: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReduction:
    """Per-token all-reduces of a vocabulary-parallel cross entropy: maximum, target logit, sum; fused, the last two."""

    num_reductions: int = 3


Work = Linear | ExpertLinear | Dispatch | Combine | CoreAttention | StateScan | Pointwise | Lookup | LossReduction


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a layer.

    Args:
        name: Unique within its layer.
        work: What it computes.
        weights: Parameters that it owns.
        saved: Tensors that it keeps for backward.
        modules: Recompute modules that it belongs to; without one it is never recomputed selectively.
    """

    name: str
    work: Work
    weights: tuple[Weight, ...] = ()
    saved: tuple[Saved, ...] = ()
    modules: tuple[Module, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGraph:
    """One layer: its operators in forward order.

    Args:
        name: What kind of layer it is.
        operators: In forward order.
        layer_input: What full recompute keeps; None where nothing enters (the embedding).
        divisible: Sizes that degrees of parallelism must divide.
    """

    name: str
    operators: tuple[Operator, ...]
    layer_input: Saved | None
    divisible: tuple[Divisible, ...] = ()

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Return every weight of the layer."""
        return tuple(weight for operator in self.operators for weight in operator.weights)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Which distinct block each decoder layer is.

    Args:
        kinds: Index of each layer's block among the distinct ones.
        num_kinds: Distinct blocks.
    """

    kinds: tuple[int, ...]
    num_kinds: int

    @cached_property
    def _prefixes(self) -> tuple[tuple[int, ...], ...]:
        """Return how many layers of each kind stand before each layer, and at the end."""
        found = [(0,) * self.num_kinds]
        for kind in self.kinds:
            found.append(tuple(count + (index == kind) for index, count in enumerate(found[-1])))
        return tuple(found)

    def counts(self, first_layer: int, num_layers: int) -> tuple[int, ...]:
        """Return how many of `num_layers` layers from `first_layer` on are of each kind."""
        return self._counts_of(first_layer, num_layers)

    @cached_property
    def _counts_of(self) -> Callable[[int, int], tuple[int, ...]]:
        """Return what counts a run of layers, each answer remembered."""
        return cache(self._count)

    def _count(self, first_layer: int, num_layers: int) -> tuple[int, ...]:
        before, after = self._prefixes[first_layer], self._prefixes[first_layer + num_layers]
        return tuple(end - start for start, end in zip(before, after, strict=True))


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """A model: embedding, the graph of each distinct block, head; what follows from them is found once.

    Args:
        embedding: Token (and position) embedding.
        blocks: The graph of each distinct block.
        chain: Which of them each layer is.
        head: Multi-token prediction, final norm, LM head, loss.
        hidden_size: Width of the stream between layers.
        stream_bytes: Bytes of one of its elements.
    """

    embedding: LayerGraph
    blocks: Mapping[Block, LayerGraph]
    chain: Chain
    head: LayerGraph
    hidden_size: int
    stream_bytes: int

    @cached_property
    def layers(self) -> tuple[LayerGraph, ...]:
        """Return every kind of layer once."""
        return (self.embedding, *self.blocks.values(), self.head)

    @cached_property
    def divisible(self) -> tuple[Divisible, ...]:
        """Return every size that degrees must divide, each once."""
        return tuple(dict.fromkeys(rule for layer in self.layers for rule in layer.divisible))

    @cached_property
    def has_experts(self) -> bool:
        """Return whether some layer has routed experts."""
        return any(weight.mesh is Mesh.EXPERT for layer in self.layers for weight in layer.weights)

    @cached_property
    def attentions(self) -> tuple[CoreAttention, ...]:
        """Return the cores of attention of all kinds of layers."""
        works = (operator.work for layer in self.layers for operator in layer.operators)
        return tuple(work for work in works if isinstance(work, CoreAttention))

    @cached_property
    def has_recurrences(self) -> bool:
        """Return whether some layer has a recurrence."""
        return any(isinstance(operator.work, StateScan) for layer in self.layers for operator in layer.operators)

    @cached_property
    def modules(self) -> frozenset[Module]:
        """Return the recompute modules that some decoder layer has."""
        operators = (operator for layer in self.blocks.values() for operator in layer.operators)
        return frozenset(module for operator in operators for module in operator.modules)
