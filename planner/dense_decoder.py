"""Dense decoders whose layers are all alike: one record that every way of naming a model fills in.

A Hugging Face config, a bundled model and an inline model say the same facts in different words. They become a
`DenseDecoder`, which checks them once and builds the `ModelSpec`. The defaults are Llama's: gated SiLU, RMSNorm, rotary
positions, no biases, untied embeddings, attention and feed-forward in sequence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.specs import BlockRun, ModelSpec, Trait

MAX_SIZES: Mapping[str, int] = {
    "hidden_size": 1 << 20,
    "num_hidden_layers": 1 << 11,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "intermediate_size": 1 << 23,
    "vocab_size": 1 << 25,
    "max_position_embeddings": 1 << 31,
}
"""Largest value of each size: at least eight times the largest published model's, and small enough to plan."""


class ShapeError(ValueError):
    """A size that no model can have.

    Args:
        message: What is wrong, in a sentence.
        field: The field of `DenseDecoder` to blame.
    """

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseDecoder:
    """The facts of a dense decoder with `num_hidden_layers` equal layers.

    Args:
        name: What the user calls it.
        architecture: The Hugging Face architecture, or "inline".
        hidden_size: Width of the residual stream.
        num_hidden_layers: Decoder layers.
        num_attention_heads: Query heads.
        num_key_value_heads: Key/value heads.
        head_dim: Width of one head.
        intermediate_size: Width of the feed-forward.
        vocab_size: Rows of the embedding table, before any padding.
        max_position_embeddings: Longest sequence the model is made for.
        gated: The feed-forward has a gate projection.
        hidden_act: Activation of the feed-forward.
        norm: Kind of every norm.
        norm_epsilon: The norm's epsilon.
        num_norms: Norms of a layer; 1 only where attention and feed-forward share it.
        parallel: Attention and feed-forward read the same input and are added together.
        position_embedding: How positions enter.
        rope_theta: Base of the rotary embedding.
        rotary_fraction: Part of each head that is rotated.
        rope_scaling: Scaling of the rotary embedding.
        position_offset: Rows of a learned position table in front of position 0.
        tie_word_embeddings: The LM head is the embedding table.
        qkv_bias: The query, key and value projections add a bias.
        attention_output_bias: The output projection of attention adds a bias.
        mlp_bias: The feed-forward projections add a bias.
        lm_head_bias: The LM head adds a bias.
        qk_norm: Queries and keys are normalised per head.
        embedding_norm: A norm directly behind the embedding.
        traits: What changes results but no cost.
    """

    name: str
    architecture: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    gated: bool = True
    hidden_act: Activation = Activation.SILU
    norm: Norm = Norm.RMS
    norm_epsilon: float = 1e-5
    num_norms: int = 2
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
    qk_norm: bool = False
    embedding_norm: bool = False
    traits: tuple[Trait, ...] = ()

    def __post_init__(self) -> None:
        """Check what must hold of any dense decoder."""
        for name, most in MAX_SIZES.items():
            size: int = getattr(self, name)
            if not 1 <= size <= most:
                raise ShapeError(f"`{name}` = {size} is outside 1 to {most:,}.", field=name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ShapeError(
                f"`num_attention_heads` = {self.num_attention_heads} is not a multiple of "
                f"`num_key_value_heads` = {self.num_key_value_heads}.",
                field="num_key_value_heads",
            )
        if not 0 < self.norm_epsilon < 1:
            raise ShapeError(f"`norm_epsilon` = {self.norm_epsilon} is outside 0 to 1.", field="norm_epsilon")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 0):
            raise ShapeError(f"`rope_theta` = {self.rope_theta} is not positive.", field="rope_theta")
        if not 0 < self.rotary_fraction <= 1:
            raise ShapeError(
                f"The rotated part of each head, {self.rotary_fraction}, is outside 0 to 1.", field="rotary_fraction"
            )
        if self.num_norms not in (1, 2) or (self.num_norms == 1 and not self.parallel):
            raise ShapeError(
                f"`num_norms` = {self.num_norms}: a layer has 2 norms, or 1 that a parallel layer shares.",
                field="num_norms",
            )

    def spec(self) -> ModelSpec:
        """Return the model as a chain of equal blocks."""
        block = Block(
            mixer=SelfAttention(
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                head_dim=self.head_dim,
                qkv_bias=self.qkv_bias,
                output_bias=self.attention_output_bias,
                qk_norm=self.qk_norm,
            ),
            feed_forward=DenseFeedForward(
                intermediate_size=self.intermediate_size,
                gated=self.gated,
                activation=self.hidden_act,
                bias=self.mlp_bias,
            ),
            parallel=self.parallel,
            num_norms=self.num_norms,
        )
        rotary = self.position_embedding is PositionEmbedding.ROPE
        return ModelSpec(
            name=self.name,
            architecture=self.architecture,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
            max_position_embeddings=self.max_position_embeddings,
            norm=self.norm,
            position_embedding=self.position_embedding,
            runs=(BlockRun(block=block, count=self.num_hidden_layers),),
            norm_epsilon=self.norm_epsilon,
            rope_theta=self.rope_theta if rotary else None,
            rotary_fraction=self.rotary_fraction if rotary else 1.0,
            lm_head_bias=self.lm_head_bias,
            embedding_norm=self.embedding_norm,
            rope_scaling=dict(self.rope_scaling) if rotary else {},
            position_offset=self.position_offset if self.position_embedding is PositionEmbedding.LEARNED else 0,
            traits=self.traits,
        )
