"""A model in our own words, as users write it inside a spec or in a file of its own.

```yaml
model: {name: my-7b, hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8,
        intermediate_size: 14336, vocab_size: 32000, max_position_embeddings: 8192}
```

Names are Hugging Face's. Sizes have no defaults, except that key/value heads default to the query heads and
`head_dim` to the hidden size over the heads. Every other choice defaults to Llama's. Experts, latent attention and the
other parts are nested mappings; `planner.models.compact_model` says how layers that differ are written.

```yaml
experts: {num_experts: 64, experts_per_token: 6, intermediate_size: 1408, shared_intermediate_size: 2816}
kinds: {d: {feed_forward: dense}, e: {}}
layers: d e*26
```
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from planner.documents import Document
from planner.errors import InputError
from planner.models.blocks import Activation, LinearRule, Norm, PositionEmbedding, QueryKeyNorm, RouterScore
from planner.models.compact_model import decoder_of
from planner.models.decoder import Decoder, FeedForwardKind, MixerKind
from planner.models.sizes import ShapeError
from planner.models.specs import ModelSpec, Trait
from planner.schema.common_keys import ACTIVATIONS, ROPE_NUMBERS, ROPE_TYPES
from planner.schema.strict import Closed
from planner.schema.translate import Path, complaint, shown, suggestion, validated

MAX_NAME = 200
"""Longest name of a model, in characters: a choice; a table shows it in one or two lines."""


def _activation(value: object) -> object:
    """Return the activation that Hugging Face calls `value`."""
    known = {**{activation.value: activation for activation in Activation}, **ACTIVATIONS}
    if isinstance(value, str) and value in known:
        return known[value]
    raise complaint(
        f"`hidden_act` = {shown(value)} is not an activation that can be planned.",
        f"{suggestion(str(value), known)}Known are {', '.join(known)}.",
    )


def _name(value: object) -> object:
    """Refuse names with line ends: names stand in comments of generated scripts."""
    if isinstance(value, str) and not value.isprintable():
        raise complaint(f"`name` = {shown(value)} holds a character that cannot be printed.", "Name it in one line.")
    return value


def _query_key_norm(value: object) -> object:
    """Return `true` and `false` as the norm of each head and none."""
    if isinstance(value, bool):
        return QueryKeyNorm.HEAD if value else QueryKeyNorm.NONE
    return value


Size = Annotated[int, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


def _rope_scaling(value: dict[str, object]) -> dict[str, float | str]:
    """Return a scaling of the rotary embedding: its type, and numbers by name."""
    scaling: dict[str, float | str] = {}
    for key, item in value.items():
        if key == "rope_type" and isinstance(item, str) and item in ROPE_TYPES:
            scaling[key] = item
        elif key in ROPE_NUMBERS and isinstance(item, int | float) and not isinstance(item, bool):
            scaling[key] = float(item)
        else:
            raise complaint(
                f"`rope_scaling` holds {shown(key)}: {shown(item)}, which is not understood.",
                f"`rope_type` is one of {', '.join(ROPE_TYPES)}; numbers are {', '.join(ROPE_NUMBERS)}.",
            )
    return scaling


Scaling = Annotated[dict[str, object], AfterValidator(_rope_scaling)]
HeadNorm = Annotated[QueryKeyNorm, BeforeValidator(_query_key_norm)]


class Indexer(Closed):
    """What picks the keys that latent attention attends to."""

    num_heads: Size = Field(description="Give the indexer's heads.")
    head_dim: Size = Field(description="Give the width of one of its heads.")
    top_k: Size = Field(description="Give how many keys are kept for each query.")


class Latent(Closed):
    """Multi-head latent attention."""

    q_lora_rank: Size | None = None
    kv_lora_rank: Size = Field(description="Give the width of the keys' and values' common latent.")
    qk_nope_head_dim: Size = Field(description="Give the part of a query or key head that is not rotated.")
    qk_rope_head_dim: Size = Field(description="Give the part of a query or key head that is rotated.")
    v_head_dim: Size = Field(description="Give the width of a value head.")
    bias: Switch = False
    indexer: Indexer | None = None


class States(Closed):
    """Mamba-2 mixers."""

    num_heads: Size = Field(description="Give the mixer's heads.")
    head_dim: Size = Field(description="Give the width of one of its heads.")
    state_size: Size = Field(description="Give the width of the state of each channel.")
    num_groups: Size = Field(description="Give the groups of heads that share B and C.")
    conv_kernel: Size = Field(description="Give the width of the causal convolution.")
    chunk_size: Size = Field(description="Give the tokens that are multiplied out at once.")
    conv_bias: Switch = True
    projection_bias: Switch = False


class Linear(Closed):
    """Linear attention."""

    rule: LinearRule = Field(description="Say how the state is updated: gated-delta, kimi-delta or lightning.")
    num_key_heads: Size = Field(description="Give the query and key heads.")
    num_value_heads: Size = Field(description="Give the value heads.")
    key_head_dim: Size = Field(description="Give the width of a query or key head.")
    value_head_dim: Size = Field(description="Give the width of a value head.")
    conv_kernel: Size = Field(description="Give the width of the causal convolution, 0 without one.")
    chunk_size: Size = 64


class Routing(Closed):
    """What chooses the experts of a token."""

    score: RouterScore = RouterScore.SOFTMAX
    num_groups: Size = 1
    groups_per_token: Size = 1
    bias: Switch = False
    correction_bias: Switch = False
    scales: Switch = False
    normalized: Switch = True
    weight_factor: Number = 1.0


class Experts(Closed):
    """A mixture of experts."""

    num_experts: Size = Field(description="Give the routed experts.")
    experts_per_token: Size = Field(description="Give how many of them a token visits.")
    intermediate_size: Size = Field(description="Give the width of one routed expert.")
    shared_intermediate_size: Size | None = None
    shared_gate: Switch = False
    latent_size: Size | None = None
    num_norms: Annotated[int, Field(strict=True, ge=0, le=3)] = 0
    router: Routing = Routing()


class Kind(Closed):
    """What a kind of layer has instead of what the model says."""

    mixer: MixerKind | None = None
    feed_forward: FeedForwardKind | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    window: Size | None = None
    chunk: Size | None = None
    rotary: Switch | None = None
    qk_norm: HeadNorm | None = None
    shared_key_value: Switch | None = None


class Tower(Closed):
    """What a multimodal model has beside its text part."""

    num_parameters: Annotated[int, Field(strict=True, ge=1, le=10**12)]
    source: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class InlineModel(Closed):
    """One decoder."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="Version of this form.")
    name: Annotated[str, BeforeValidator(_name), Field(min_length=1, max_length=MAX_NAME)] | None = None
    hidden_size: Size = Field(description="Give the width of the residual stream.")
    num_hidden_layers: Size = Field(description="Give the number of decoder layers.")
    num_attention_heads: Size = Field(description="Give the number of query heads.")
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size | None = None
    vocab_size: Size = Field(description="Give the rows of the embedding table, before padding.")
    max_position_embeddings: Size = Field(description="Give the longest sequence the model is made for, in tokens.")
    gated: Switch = True
    hidden_act: Annotated[Activation, BeforeValidator(_activation)] = Activation.SILU
    norm: Norm = Norm.RMS
    norm_epsilon: Number = 1e-5
    num_norms: Literal[0, 1, 2] = 2
    num_post_norms: Literal[0, 2] = 0
    parallel: Switch = False
    position_embedding: PositionEmbedding = PositionEmbedding.ROPE
    rope_theta: Number = 10000.0
    rotary_fraction: Number = 1.0
    rope_scaling: Scaling = Field(default_factory=dict)
    position_offset: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    tie_word_embeddings: Switch = False
    qkv_bias: Switch = False
    attention_output_bias: Switch = False
    mlp_bias: Switch = False
    lm_head_bias: Switch = False
    qk_norm: HeadNorm = QueryKeyNorm.NONE
    window: Size | None = None
    chunk: Size | None = None
    sinks: Switch = False
    output_gate: Switch = False
    shared_key_value: Switch = False
    value_norm: Switch = False
    embedding_norm: Switch = False
    latent_attention: Latent | None = None
    state_space: States | None = None
    linear_attention: Linear | None = None
    experts: Experts | None = None
    kinds: dict[Annotated[str, Field(pattern="^[A-Za-z]$")], Kind] = Field(default_factory=dict)
    layers: Annotated[str, Field(strict=True, min_length=1, max_length=4096)] | None = None
    mtp_modules: Size = 0
    mtp_layer: Annotated[str, Field(pattern="^[A-Za-z]$")] | None = None
    vision: Tower | None = None
    traits: tuple[Trait, ...] = Field(default=(), max_length=len(Trait))

    def decoder(self, *, default_name: str) -> Decoder:
        """Return the model's facts.

        Raises:
            ShapeError: No model has such sizes.
        """
        facts = self.model_dump(exclude={"schema_version", "kinds"})
        kinds = {letter: kind.model_dump(exclude_none=True) for letter, kind in self.kinds.items()}
        return decoder_of({**facts, "kinds": kinds, "name": self.name or default_name, "architecture": "inline"})


def read_inline(fields: Mapping[str, object], *, document: Document, path: Path, name: str) -> ModelSpec:
    """Return the model that a mapping in our own form describes, called `name` if it has no name of its own."""
    model = validated(lambda: InlineModel.model_validate(fields), model=InlineModel, document=document, path=path)
    try:
        return model.decoder(default_name=name).spec()
    except ShapeError as error:
        parts = {"indexer": ("latent_attention", "indexer"), "router": ("experts", "router"), "": ()}
        blamed = (*parts.get(error.part, (error.part,)), error.field)
        raise InputError(str(error), location=document.locate((*path, *blamed)), hint="Correct the sizes.") from None
