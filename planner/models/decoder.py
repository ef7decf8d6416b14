"""Decoders by their facts: one record that every way of naming a model fills in.

A Hugging Face config, a bundled model and an inline model say the same facts in different words. They become a
`Decoder`, which checks them once and builds the `ModelSpec`. Its own fields describe the layer that most layers are;
a `LayerKind` says what other layers have instead. The defaults are Llama's: gated SiLU, RMSNorm, rotary positions, no
biases, untied embeddings, attention and feed-forward in sequence.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from typing import TypeVar

from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    FeedForward,
    LatentAttention,
    LinearAttention,
    Mixer,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
    StateSpace,
)
from planner.models.sizes import MAX_SIZES, ShapeError, check_size
from planner.models.specs import BlockRun, ModelSpec, MultiTokenPrediction, Trait, VisionTower

T = TypeVar("T")


class MixerKind(StrEnum):
    """What mixes a layer's tokens; the values are the kinds of `planner.models.blocks`."""

    ATTENTION = "attention"
    LATENT_ATTENTION = "latent-attention"
    STATE_SPACE = "state-space"
    LINEAR_ATTENTION = "linear-attention"
    NONE = "none"


class FeedForwardKind(StrEnum):
    """What works on each of a layer's tokens; the values are the kinds of `planner.models.blocks`."""

    DENSE = "dense"
    EXPERTS = "experts"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What a layer has instead of what its model says; None is as the model says.

    Args:
        mixer: What mixes tokens; by default latent attention where the model has it, else attention.
        feed_forward: What works per token; by default experts where the model has them, else dense.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Width of one head.
        intermediate_size: Width of the dense feed-forward.
        window: Window of attention.
        chunk: Chunk of attention.
        rotary: Positions enter by rotation.
        qk_norm: How queries and keys are normalised.
        shared_key_value: Values are the keys before their norm and rotation.
    """

    mixer: MixerKind | None = None
    feed_forward: FeedForwardKind | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    window: int | None = None
    chunk: int | None = None
    rotary: bool | None = None
    qk_norm: QueryKeyNorm | None = None
    shared_key_value: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The facts of a decoder with `num_hidden_layers` layers.

    Args:
        name: What the user calls it.
        architecture: The Hugging Face architecture, or "inline".
        hidden_size: Width of the residual stream.
        num_hidden_layers: Decoder layers.
        vocab_size: Rows of the embedding table, before any padding.
        max_position_embeddings: Longest sequence the model is made for.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads; None gives every query head its own.
        head_dim: Width of one head; None shares the hidden size among the heads.
        intermediate_size: Width of the dense feed-forward; None where no layer has one, or each its own.
        gated: The feed-forward has a gate projection.
        hidden_act: Activation of the feed-forward.
        norm: Kind of every norm.
        norm_epsilon: The norm's epsilon.
        num_norms: Norms in front of a layer's sub-blocks; 1 only where both share it, 0 where all norms are behind.
        num_post_norms: Norms behind a layer's sub-blocks.
        parallel: Attention and feed-forward read the same input and are added together.
        position_embedding: How positions enter.
        rope_theta: Base of the rotary embedding.
        rotary_fraction: Part of each head that is rotated.
        rope_scaling: Scaling of the rotary embedding.
        position_offset: Rows of a learned position table in front of position 0.
        tie_word_embeddings: The LM head is the embedding table.
        qkv_bias: The query, key and value projections add a bias.
        attention_output_bias: The output projection of attention adds a bias.
        mlp_bias: The feed-forward projections add a bias, experts' included.
        lm_head_bias: The LM head adds a bias.
        qk_norm: How queries and keys are normalised.
        window: Window of attention, in tokens.
        chunk: Chunk of attention, in tokens.
        sinks: Each head has a learned logit that takes attention.
        output_gate: Attention's output is gated by a projection as wide as the queries.
        shared_key_value: Values are the keys before their norm and rotation.
        value_norm: Values are normalised per head, unscaled.
        embedding_norm: A norm directly behind the embedding.
        latent_attention: Multi-head latent attention of the model.
        state_space: Mamba-2 mixers of the model.
        linear_attention: Linear attention of the model.
        experts: Mixture of experts of the model.
        layers: What each layer has of its own; empty where all layers are as the model says.
        mtp_modules: Multi-token prediction modules behind the last layer.
        mtp_layer: What their layer has of its own; None is as the last layer.
        vision: What a multimodal model has beside its text part.
        traits: What changes results but no cost.
    """

    name: str
    architecture: str
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_position_embeddings: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    gated: bool = True
    hidden_act: Activation = Activation.SILU
    norm: Norm = Norm.RMS
    norm_epsilon: float = 1e-5
    num_norms: int = 2
    num_post_norms: int = 0
    parallel: bool = False
    position_embedding: PositionEmbedding = PositionEmbedding.ROPE
    rope_theta: float = 10000.0
    rotary_fraction: float = 1.0
    rope_scaling: Mapping[str, float | str] = field(default_factory=dict)
    position_offset: int = 0
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    qk_norm: QueryKeyNorm = QueryKeyNorm.NONE
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False
    output_gate: bool = False
    shared_key_value: bool = False
    value_norm: bool = False
    embedding_norm: bool = False
    latent_attention: LatentAttention | None = None
    state_space: StateSpace | None = None
    linear_attention: LinearAttention | None = None
    experts: MixtureOfExperts | None = None
    layers: tuple[LayerKind, ...] = ()
    mtp_modules: int = 0
    mtp_layer: LayerKind | None = None
    vision: VisionTower | None = None
    traits: tuple[Trait, ...] = ()

    def __post_init__(self) -> None:
        """Check what holds of any decoder; `spec` checks that its layers have what they need."""
        for part, name, size in self._sizes():
            check_size(name, size, part=part)
        if not 0 < self.norm_epsilon < 1:
            raise ShapeError(f"`norm_epsilon` = {self.norm_epsilon} is outside 0 to 1.", field="norm_epsilon")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ShapeError(f"`rope_theta` = {self.rope_theta} is not positive.", field="rope_theta")
        if not 0 < self.rotary_fraction <= 1:
            raise ShapeError(
                f"The rotated part of each head, {self.rotary_fraction}, is outside 0 to 1.", field="rotary_fraction"
            )
        self._check_norms()
        self._check_parts()
        if self.layers and len(self.layers) != self.num_hidden_layers:
            raise ShapeError(
                f"`layers` names {len(self.layers)} layers, `num_hidden_layers` = {self.num_hidden_layers}.",
                field="layers",
            )

    def spec(self) -> ModelSpec:
        """Return the model as a chain of blocks.

        Raises:
            ShapeError: A layer needs what the model does not have.
        """
        for kind in self._kinds():
            self._check_kind(kind)
        kinds = self.layers or (LayerKind(),) * self.num_hidden_layers
        rotary = self.position_embedding is PositionEmbedding.ROPE
        mtp = None
        if self.mtp_modules:
            mtp_block = self._block(self.mtp_layer or kinds[-1])
            mtp = MultiTokenPrediction(num_modules=self.mtp_modules, block=mtp_block)
        return ModelSpec(
            name=self.name,
            architecture=self.architecture,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
            max_position_embeddings=self.max_position_embeddings,
            norm=self.norm,
            position_embedding=self.position_embedding,
            runs=tuple(
                BlockRun(block=block, count=len(list(group)))
                for block, group in groupby(self._block(kind) for kind in kinds)
            ),
            norm_epsilon=self.norm_epsilon,
            rope_theta=self.rope_theta if rotary else None,
            rotary_fraction=self.rotary_fraction if rotary else 1.0,
            lm_head_bias=self.lm_head_bias,
            embedding_norm=self.embedding_norm,
            rope_scaling=dict(self.rope_scaling) if rotary else {},
            position_offset=self.position_offset if self.position_embedding is PositionEmbedding.LEARNED else 0,
            traits=self.traits,
            mtp=mtp,
            vision=self.vision,
        )

    def mixer_of(self, kind: LayerKind) -> MixerKind:
        """Return what mixes tokens in a layer."""
        latent = MixerKind.ATTENTION if self.latent_attention is None else MixerKind.LATENT_ATTENTION
        return kind.mixer or latent

    def feed_forward_of(self, kind: LayerKind) -> FeedForwardKind:
        """Return what works per token in a layer."""
        return kind.feed_forward or (FeedForwardKind.DENSE if self.experts is None else FeedForwardKind.EXPERTS)

    def _block(self, kind: LayerKind) -> Block:
        mixer, feed_forward = self._mixer(kind), self._feed_forward(kind)
        num_parts = (mixer is not None) + (feed_forward is not None)
        return Block(
            mixer=mixer,
            feed_forward=feed_forward,
            parallel=self.parallel and num_parts == 2,
            num_norms=min(self.num_norms, num_parts),
            num_post_norms=min(self.num_post_norms, num_parts),
        )

    def _mixer(self, kind: LayerKind) -> Mixer | None:
        chosen = self.mixer_of(kind)
        if chosen is MixerKind.ATTENTION:
            return self._attention(kind)
        parts: Mapping[MixerKind, Mixer | None] = {
            MixerKind.LATENT_ATTENTION: self.latent_attention,
            MixerKind.STATE_SPACE: self.state_space,
            MixerKind.LINEAR_ATTENTION: self.linear_attention,
        }
        return parts.get(chosen)

    def _attention(self, kind: LayerKind) -> SelfAttention:
        heads = _given(kind.num_attention_heads, self.num_attention_heads)
        return SelfAttention(
            num_attention_heads=heads,
            num_key_value_heads=self._key_value_heads(kind, heads),
            head_dim=_given(kind.head_dim, self.head_dim) or self.hidden_size // heads,
            qkv_bias=self.qkv_bias,
            output_bias=self.attention_output_bias,
            qk_norm=_given(kind.qk_norm, self.qk_norm),
            window=_given(kind.window, self.window),
            chunk=_given(kind.chunk, self.chunk),
            sinks=self.sinks,
            output_gate=self.output_gate,
            rotary=_given(kind.rotary, True),  # noqa: FBT003 - attention rotates unless the layer says otherwise
            shared_key_value=_given(kind.shared_key_value, self.shared_key_value),
            value_norm=self.value_norm,
        )

    def _feed_forward(self, kind: LayerKind) -> FeedForward | None:
        chosen = self.feed_forward_of(kind)
        if chosen is FeedForwardKind.DENSE:
            return DenseFeedForward(
                intermediate_size=_given(kind.intermediate_size, self.intermediate_size) or 0,
                gated=self.gated,
                activation=self.hidden_act,
                bias=self.mlp_bias,
            )
        return self.experts if chosen is FeedForwardKind.EXPERTS else None

    def _key_value_heads(self, kind: LayerKind, heads: int) -> int:
        return _given(kind.num_key_value_heads, self.num_key_value_heads) or heads

    def _kinds(self) -> tuple[LayerKind, ...]:
        """Return every kind of layer once."""
        extra = (self.mtp_layer,) if self.mtp_layer is not None else ()
        return tuple(dict.fromkeys((*(self.layers or (LayerKind(),)), *extra)))

    def _sizes(self) -> Iterator[tuple[str, str, int]]:
        """Yield every size that is given, with its part and name."""
        parts: Mapping[str, object] = {
            "": self,
            "latent_attention": self.latent_attention,
            "indexer": self.latent_attention.indexer if self.latent_attention else None,
            "state_space": self.state_space,
            "linear_attention": self.linear_attention,
            "experts": self.experts,
            "router": self.experts.router if self.experts else None,
        }
        for part, owner in parts.items():
            for name in MAX_SIZES:
                size = getattr(owner, name, None)
                if isinstance(size, int):
                    yield part, name, size
        for feed_forward, name in (("expert", "intermediate_size"), ("shared", "shared_intermediate_size")):
            size = getattr(getattr(self.experts, feed_forward, None), "intermediate_size", None)
            if isinstance(size, int):
                yield "experts", name, size
        for kind in self._kinds():
            for name in MAX_SIZES:
                size = getattr(kind, name, None)
                if isinstance(size, int):
                    yield "", name, size

    def _check_norms(self) -> None:
        if self.num_norms not in (0, 1, 2) or (self.num_norms == 1 and not self.parallel):
            raise ShapeError(
                f"`num_norms` = {self.num_norms}: a layer has 2 norms, or 1 that a parallel layer shares.",
                field="num_norms",
            )
        if self.num_post_norms not in (0, 2):
            raise ShapeError(
                f"`num_post_norms` = {self.num_post_norms}: each sub-block has a norm behind it, or none has.",
                field="num_post_norms",
            )

    def _check_parts(self) -> None:
        if self.experts is not None:
            _check_experts(self.experts)
        linear, states = self.linear_attention, self.state_space
        if linear is not None and linear.num_value_heads % linear.num_key_heads:
            raise ShapeError(
                f"`num_value_heads` = {linear.num_value_heads} is not a multiple of "
                f"`num_key_heads` = {linear.num_key_heads}.",
                field="num_value_heads",
                part="linear_attention",
            )
        if states is not None and states.num_heads % states.num_groups:
            raise ShapeError(
                f"`num_heads` = {states.num_heads} is not a multiple of `num_groups` = {states.num_groups}.",
                field="num_groups",
                part="state_space",
            )

    def _check_kind(self, kind: LayerKind) -> None:
        """Check that the model has what a layer of this kind needs."""
        mixer, feed_forward = self.mixer_of(kind), self.feed_forward_of(kind)
        for used, given, name in (
            (mixer is MixerKind.LATENT_ATTENTION, self.latent_attention, "latent_attention"),
            (mixer is MixerKind.STATE_SPACE, self.state_space, "state_space"),
            (mixer is MixerKind.LINEAR_ATTENTION, self.linear_attention, "linear_attention"),
            (feed_forward is FeedForwardKind.EXPERTS, self.experts, "experts"),
            (
                feed_forward is FeedForwardKind.DENSE,
                _given(kind.intermediate_size, self.intermediate_size),
                "intermediate_size",
            ),
        ):
            if used and given is None:
                raise ShapeError(f"A layer needs `{name}`, which is not given.", field=name)
        if mixer is MixerKind.ATTENTION:
            self._check_heads(kind)

    def _check_heads(self, kind: LayerKind) -> None:
        heads = _given(kind.num_attention_heads, self.num_attention_heads)
        groups = self._key_value_heads(kind, heads)
        if _given(kind.head_dim, self.head_dim) is None and self.hidden_size % heads:
            raise ShapeError(
                f"`hidden_size` = {self.hidden_size} is not a multiple of `num_attention_heads` = {heads}, "
                "and there is no `head_dim`.",
                field="num_attention_heads",
            )
        if heads % groups:
            raise ShapeError(
                f"`num_attention_heads` = {heads} is not a multiple of `num_key_value_heads` = {groups}.",
                field="num_key_value_heads",
            )
        if _given(kind.window, self.window) is not None and _given(kind.chunk, self.chunk) is not None:
            raise ShapeError("Attention has a window or chunks, not both.", field="chunk")


def _check_experts(experts: MixtureOfExperts) -> None:
    router = experts.router
    if experts.num_experts % router.num_groups:
        raise ShapeError(
            f"`num_experts` = {experts.num_experts} is not a multiple of `num_groups` = {router.num_groups}.",
            field="num_groups",
            part="router",
        )
    if router.groups_per_token > router.num_groups:
        raise ShapeError(
            f"`groups_per_token` = {router.groups_per_token} is more than `num_groups` = {router.num_groups}.",
            field="groups_per_token",
            part="router",
        )
    if not math.isfinite(router.weight_factor):
        raise ShapeError("`weight_factor` is not a finite number.", field="weight_factor", part="router")


def _given(own: T | None, common: T) -> T:
    """Return what a layer has of its own, else what the model says."""
    return common if own is None else own
