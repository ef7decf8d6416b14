"""A model, by its shapes: a chain of blocks between an embedding and a head.

Everything here is frozen and already checked; the pydantic schemas read users' files and build it. Fields use Hugging
Face names; sizes are in elements. Hybrid models, first-k-dense and non-uniform chains are different `Block`s in one
chain; equal neighbours are stored once with their count, because every cost is computed once per distinct block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from planner.models.blocks import Block, MixtureOfExperts, Norm, PositionEmbedding


class Trait(StrEnum):
    """What changes a model's results but not its cost; an emitter says it in its target's words, or refuses."""

    ZERO_CENTERED_NORM = "zero-centered-norm"
    SCALED_EMBEDDING = "scaled-embedding"
    SCALED_ATTENTION = "scaled-attention"
    SCALED_LOGITS = "scaled-logits"
    SCALED_RESIDUAL = "scaled-residual"
    CAPPED_LOGITS = "capped-logits"
    CAPPED_ATTENTION = "capped-attention"
    CLAMPED_QKV = "clamped-qkv"
    CLAMPED_ACTIVATION = "clamped-activation"
    TEMPERED_ATTENTION = "tempered-attention"
    INTERLEAVED_ROTARY = "interleaved-rotary"
    ROTARY_BY_LAYER = "rotary-by-layer"
    MULTIMODAL_ROTARY = "multimodal-rotary"


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTokenPrediction:
    """Modules behind the last layer, each of which predicts one token further (DeepSeek-V3, arXiv 2412.19437, 2.2).

    Each joins the stream with the next token's embedding, both normalised, projects them back to `hidden_size`, and
    runs one block, a norm and the model's own LM head. Embedding and LM head are the model's.

    Args:
        num_modules: Modules, one token further each.
        block: The block of each.
    """

    num_modules: int
    block: Block


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionTower:
    """What a multimodal model has beside its text part.

    Args:
        num_parameters: Parameters of the tower and of what joins it to the text part.
        source: How they were counted, from which fields.
    """

    num_parameters: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRun:
    """`count` equal neighbouring blocks."""

    block: Block
    count: int


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder-only language model, by its shapes.

    Args:
        name: What the user calls it.
        architecture: The Hugging Face architecture, or "inline".
        hidden_size: Width of the residual stream.
        vocab_size: Rows of the embedding table, before any padding.
        tie_word_embeddings: The LM head is the embedding table.
        max_position_embeddings: Longest sequence the model is made for.
        norm: Kind of every norm.
        position_embedding: How positions enter.
        runs: The chain of blocks, equal neighbours collapsed.
        rope_theta: Base of the rotary embedding; None without one.
        rotary_fraction: Part of each head that is rotated.
        norm_epsilon: The norm's epsilon.
        lm_head_bias: The LM head adds a bias.
        embedding_norm: A norm directly behind the embedding.
        rope_scaling: Scaling of the rotary embedding (factor and its parameters), for emitters; costs nothing, and is
            left out of the hash as a mapping has none.
        position_offset: Rows of a learned position table in front of position 0 (OPT has 2).
        traits: What else an emitter must express; costs nothing.
        mtp: Multi-token prediction behind the last layer; it stands on the LM head's pipeline stage.
        vision: What a multimodal model has beside its text part; only the text part is planned.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    norm: Norm
    position_embedding: PositionEmbedding
    runs: tuple[BlockRun, ...]
    norm_epsilon: float
    rope_theta: float | None = None
    rotary_fraction: float = 1.0
    lm_head_bias: bool = False
    embedding_norm: bool = False
    rope_scaling: Mapping[str, float | str] = field(default_factory=dict, hash=False)
    position_offset: int = 0
    traits: tuple[Trait, ...] = ()
    mtp: MultiTokenPrediction | None = None
    vision: VisionTower | None = None

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return sum(run.count for run in self.runs)

    @property
    def num_position_rows(self) -> int:
        """Return the rows of the learned position table; 0 without one."""
        if self.position_embedding is not PositionEmbedding.LEARNED:
            return 0
        return self.max_position_embeddings + self.position_offset

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the chain, one entry a layer."""
        return tuple(run.block for run in self.runs for _ in range(run.count))

    @property
    def rope_kind(self) -> str:
        """Return the kind of rope scaling, such as "yarn"; empty without one."""
        kind = str(self.rope_scaling.get("rope_type", self.rope_scaling.get("type", "default")))
        return "" if kind == "default" else kind

    @property
    def copies_embedding(self) -> bool:
        """Return whether the LM head's pipeline stage needs the embedding table too."""
        return self.tie_word_embeddings or self.mtp is not None

    @cached_property
    def has_experts(self) -> bool:
        """Return whether some layer has routed experts."""
        blocks = (*self.distinct_blocks, *((self.mtp.block,) if self.mtp else ()))
        return any(isinstance(block.feed_forward, MixtureOfExperts) for block in blocks)

    @cached_property
    def distinct_blocks(self) -> tuple[Block, ...]:
        """Return each kind of block once, in order of first appearance."""
        return tuple(dict.fromkeys(run.block for run in self.runs))
