"""The parts of a model that repeat: mixers, feed-forwards, and the blocks that they make.

A `mixer` lets tokens see one another, a `feed_forward` works on each by itself. Field names are Hugging Face's.

A new kind of either is a new dataclass here with a `kind` of its own, a builder in `planner.models.layers` that turns
it into operators, and what readers and emitters say about it; nothing that searches knows the kinds.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Norm(StrEnum):
    """Normalisation kinds: RMSNorm has a scale, LayerNorm a scale and a shift, or the scale only, or neither."""

    RMS = "rmsnorm"
    LAYER = "layernorm"
    LAYER_UNSHIFTED = "layernorm-unshifted"
    LAYER_PLAIN = "layernorm-plain"

    @property
    def num_vectors(self) -> int:
        """Return how many parameter vectors the norm has."""
        return {"rmsnorm": 1, "layernorm": 2, "layernorm-unshifted": 1, "layernorm-plain": 0}[self.value]


class Activation(StrEnum):
    """Feed-forward activations, without their gate."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"
    RELU = "relu"
    RELU2 = "relu2"


class PositionEmbedding(StrEnum):
    """How positions enter the model."""

    ROPE = "rope"
    LEARNED = "learned"
    NONE = "none"


class QueryKeyNorm(StrEnum):
    """Norms of queries and keys: one scale for every head, one scale over all heads, or to unit length unscaled."""

    NONE = "none"
    HEAD = "head"
    WIDTH = "width"
    UNIT = "unit"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """Softmax attention with `num_attention_heads` query heads and `num_key_value_heads` key/value heads.

    Args:
        num_attention_heads: Query heads.
        num_key_value_heads: Key heads, and as many value heads.
        head_dim: Width of one head.
        qkv_bias: The projections of queries, keys and values add a bias.
        output_bias: The output projection adds a bias.
        qk_norm: How queries and keys are normalised.
        window: A token sees itself and this many less one before it; None sees everything before it.
        chunk: A token sees only its own chunk of this many tokens; None is not chunked.
        sinks: Each head has a learned logit that takes attention and gives nothing.
        output_gate: The output is gated by a projection as wide as the queries.
        rotary: Positions enter by rotation, if the model has them at all.
        shared_key_value: Values are the keys before their norm and rotation; there is no value projection.
        value_norm: Values are normalised per head, unscaled.
        kind: Marks the kind in files.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QueryKeyNorm = QueryKeyNorm.NONE
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False
    output_gate: bool = False
    rotary: bool = True
    shared_key_value: bool = False
    value_norm: bool = False
    kind: Literal["attention"] = "attention"

    def __post_init__(self) -> None:
        """Check that the heads are whole groups."""
        if min(self.num_attention_heads, self.num_key_value_heads, self.head_dim) < 1:
            raise ValueError("heads and head_dim must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if min(self.window or 1, self.chunk or 1) < 1 or (self.window is not None and self.chunk is not None):
            raise ValueError("a window or a chunk is at least one token, and attention has one of them at most")

    @property
    def query_size(self) -> int:
        """Return the width of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Return the width of all key heads together (equally of all value heads)."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseIndexer:
    """Picks the keys that each query attends to, by the scores of small heads (DeepSeek-V3.2, arXiv 2512.02556).

    Args:
        num_heads: Heads of the indexer.
        head_dim: Width of one of them.
        top_k: Keys that are kept for each query.
    """

    num_heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Args:
        num_attention_heads: Heads.
        q_lora_rank: Width of the queries' latent; None projects queries directly.
        kv_lora_rank: Width of the keys' and values' common latent.
        qk_nope_head_dim: Width of the part of a query or key head that is not rotated.
        qk_rope_head_dim: Width of the rotated part, which all heads' keys share.
        v_head_dim: Width of a value head.
        bias: The down projections and the output projection add a bias.
        indexer: Picks the keys that are attended to; None attends to all.
        kind: Marks the kind in files.
    """

    num_attention_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    bias: bool = False
    indexer: SparseIndexer | None = None
    kind: Literal["latent-attention"] = "latent-attention"

    @property
    def qk_head_dim(self) -> int:
        """Return the width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """A Mamba-2 mixer (Dao and Gu, arXiv 2405.21060).

    Args:
        num_heads: Heads.
        head_dim: Width of one head.
        state_size: Width of the state of each of its channels.
        num_groups: Groups of heads that share B and C.
        conv_kernel: Width of the causal convolution.
        chunk_size: Tokens that are multiplied out at once.
        conv_bias: The convolution adds a bias.
        projection_bias: The projections add a bias.
        kind: Marks the kind in files.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_kernel: int
    chunk_size: int
    conv_bias: bool = True
    projection_bias: bool = False
    kind: Literal["state-space"] = "state-space"

    @property
    def inner_size(self) -> int:
        """Return the width of all heads together."""
        return self.num_heads * self.head_dim


class LinearRule(StrEnum):
    """How a linear-attention layer updates its state."""

    GATED_DELTA = "gated-delta"
    KIMI_DELTA = "kimi-delta"
    LIGHTNING = "lightning"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """Attention through a state of `key_head_dim` times `value_head_dim` for each value head.

    Gated DeltaNet (Yang et al., arXiv 2412.06464), Kimi Delta Attention (arXiv 2510.26692) and lightning attention
    (Qin et al., arXiv 2401.04658) differ in projections, gates and convolutions, not in what their states need.

    Args:
        rule: How the state is updated.
        num_key_heads: Query and key heads.
        num_value_heads: Value heads, a multiple of the key heads.
        key_head_dim: Width of a query or key head.
        value_head_dim: Width of a value head.
        conv_kernel: Width of the causal convolution; 0 without one.
        chunk_size: Tokens that are multiplied out at once.
        kind: Marks the kind in files.
    """

    rule: LinearRule
    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    chunk_size: int = 64
    kind: Literal["linear-attention"] = "linear-attention"

    @property
    def key_size(self) -> int:
        """Return the width of all key heads together (equally of all queries)."""
        return self.num_key_heads * self.key_head_dim

    @property
    def value_size(self) -> int:
        """Return the width of all value heads together."""
        return self.num_value_heads * self.value_head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeedForward:
    """Two projections around an activation, or three with a gate."""

    intermediate_size: int
    gated: bool
    activation: Activation
    bias: bool = False
    kind: Literal["dense"] = "dense"


class RouterScore(StrEnum):
    """What turns a router's logits into weights."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """Chooses the experts of each token.

    Args:
        score: What turns its logits into weights.
        num_groups: Groups of experts, of which a token first chooses some.
        groups_per_token: How many of them.
        bias: Its projection adds a trained bias.
        correction_bias: Each expert has a bias that balances load and is not trained by gradients.
        scales: It scales its input per feature and its weights per expert.
        normalized: The chosen experts' weights are made to sum to one.
        weight_factor: Factor of the chosen experts' weights.
    """

    score: RouterScore = RouterScore.SOFTMAX
    num_groups: int = 1
    groups_per_token: int = 1
    bias: bool = False
    correction_bias: bool = False
    scales: bool = False
    normalized: bool = True
    weight_factor: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfExperts:
    """Routed experts, of which each token visits a few, and experts that every token visits.

    Args:
        num_experts: Routed experts.
        experts_per_token: How many of them a token visits.
        expert: One routed expert.
        router: Chooses them.
        shared: What every token visits, as one feed-forward; None without.
        shared_gate: Its output is gated by one number per token.
        latent_size: Width that tokens are projected to before they are sent, and back; None sends them as they are.
        num_norms: Norms inside, between the stream and the two kinds of experts.
        kind: Marks the kind in files.
    """

    num_experts: int
    experts_per_token: int
    expert: DenseFeedForward
    router: Router
    shared: DenseFeedForward | None = None
    shared_gate: bool = False
    latent_size: int | None = None
    num_norms: int = 0
    kind: Literal["experts"] = "experts"

    def __post_init__(self) -> None:
        """Check that a token can visit as many experts as it should."""
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"{self.experts_per_token} of {self.num_experts} experts per token")


Mixer = SelfAttention | LatentAttention | StateSpace | LinearAttention


FeedForward = DenseFeedForward | MixtureOfExperts


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer.

    Args:
        mixer: Sub-block that mixes tokens; None where the layer has none.
        feed_forward: Sub-block per token; None where the layer has none.
        parallel: Both sub-blocks read the same residual stream and are added together.
        num_norms: Norms in front of the sub-blocks: one each, a parallel block may share one, 0 has none in front.
        num_post_norms: Norms behind the sub-blocks, before they are added to the stream.
    """

    mixer: Mixer | None
    feed_forward: FeedForward | None
    parallel: bool = False
    num_norms: int = 2
    num_post_norms: int = 0
