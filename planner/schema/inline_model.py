"""A model in our own words, as users write it inside a spec or in a file of its own.

```yaml
model: {name: my-7b, hidden_size: 4096, num_hidden_layers: 32, num_attention_heads: 32, num_key_value_heads: 8,
        intermediate_size: 14336, vocab_size: 32000, max_position_embeddings: 8192}
```

Names are Hugging Face's. Sizes have no defaults, except that key/value heads default to the query heads and
`head_dim` to the hidden size over the heads. Every other choice defaults to Llama's.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from planner.blocks import Activation, Norm, PositionEmbedding
from planner.dense_decoder import DenseDecoder, ShapeError
from planner.documents import Document
from planner.errors import InputError
from planner.schema.common_keys import ACTIVATIONS, ROPE_NUMBERS, ROPE_TYPES
from planner.schema.translate import Path, complaint, shown, suggestion, validated
from planner.specs import ModelSpec, Trait

MAX_NAME = 200


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


class InlineModel(BaseModel):
    """One dense decoder with equal layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=1, alias="schema", description="Version of this form.")
    name: Annotated[str, BeforeValidator(_name), Field(min_length=1, max_length=MAX_NAME)] | None = None
    hidden_size: Size = Field(description="Give the width of the residual stream.")
    num_hidden_layers: Size = Field(description="Give the number of decoder layers.")
    num_attention_heads: Size = Field(description="Give the number of query heads.")
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size = Field(description="Give the width of the feed-forward.")
    vocab_size: Size = Field(description="Give the rows of the embedding table, before padding.")
    max_position_embeddings: Size = Field(description="Give the longest sequence the model is made for, in tokens.")
    gated: Switch = True
    hidden_act: Annotated[Activation, BeforeValidator(_activation)] = Activation.SILU
    norm: Norm = Norm.RMS
    norm_epsilon: Number = 1e-5
    num_norms: Literal[1, 2] = 2
    parallel: Switch = False
    position_embedding: PositionEmbedding = PositionEmbedding.ROPE
    rope_theta: Number = 10000.0
    rotary_fraction: Number = 1.0
    rope_scaling: Annotated[dict[str, object], AfterValidator(_rope_scaling)] = Field(default_factory=dict)
    position_offset: Annotated[int, Field(strict=True, ge=0, le=1024)] = 0
    tie_word_embeddings: Switch = False
    qkv_bias: Switch = False
    attention_output_bias: Switch = False
    mlp_bias: Switch = False
    lm_head_bias: Switch = False
    qk_norm: Switch = False
    embedding_norm: Switch = False
    traits: tuple[Trait, ...] = Field(default=(), max_length=len(Trait))

    def decoder(self, *, default_name: str) -> DenseDecoder:
        """Return the model's facts, derived sizes filled in."""
        heads = self.num_attention_heads
        head_dim = self.head_dim
        if head_dim is None:
            if heads < 1 or self.hidden_size % heads:
                raise ShapeError(
                    f"`hidden_size` = {self.hidden_size} is not a multiple of `num_attention_heads` = {heads}, "
                    "and there is no `head_dim`.",
                    field="num_attention_heads",
                )
            head_dim = self.hidden_size // heads
        return DenseDecoder(
            name=self.name or default_name,
            architecture="inline",
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads if self.num_key_value_heads is None else self.num_key_value_heads,
            head_dim=head_dim,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            max_position_embeddings=self.max_position_embeddings,
            gated=self.gated,
            hidden_act=self.hidden_act,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            num_norms=self.num_norms,
            parallel=self.parallel,
            position_embedding=self.position_embedding,
            rope_theta=self.rope_theta,
            rotary_fraction=self.rotary_fraction,
            rope_scaling=_rope_scaling(self.rope_scaling),
            position_offset=self.position_offset,
            tie_word_embeddings=self.tie_word_embeddings,
            qkv_bias=self.qkv_bias,
            attention_output_bias=self.attention_output_bias,
            mlp_bias=self.mlp_bias,
            lm_head_bias=self.lm_head_bias,
            qk_norm=self.qk_norm,
            embedding_norm=self.embedding_norm,
            traits=self.traits,
        )


def read_inline(fields: Mapping[str, object], *, document: Document, path: Path, name: str) -> ModelSpec:
    """Return the model that a mapping in our own form describes, called `name` if it has no name of its own."""
    model = validated(lambda: InlineModel.model_validate(fields), model=InlineModel, document=document, path=path)
    try:
        return model.decoder(default_name=name).spec()
    except ShapeError as error:
        raise InputError(
            str(error), location=document.locate((*path, error.field)), hint="Correct the sizes."
        ) from None
