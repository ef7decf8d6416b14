"""The model that a row describes: a bundled one by its name, or a decoder of the row's own sizes."""

import re
from functools import lru_cache

from planner.accuracy.measurements import LONGEST_SHOWN, Row
from planner.accuracy.tested_models import TESTED, tested_model
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Norm, PositionEmbedding, Router
from planner.models.bundled import find_bundled, load_bundled
from planner.models.decoder import Decoder
from planner.models.sizes import ShapeError
from planner.models.specs import ModelSpec

VOCABULARIES: tuple[tuple[str, int], ...] = (
    (r"llama.?-?3", 128_256),
    (r"llama|mistral|mixtral", 32_000),
    (r"nemotron", 256_000),
    (r"qwen", 152_064),
    (r"gpt.?-?oss", 201_088),
    (r"", 51_200),
)
"""Vocabulary of a family whose row has none; otherwise GPT-2's tokens, padded as Megatron-LM pads them."""

GATED_BELOW = 3.6
"""Feed-forwards narrower than this times the stream are taken as gated: 8/3 is usual for them, 4 for the others."""


def model_of(row: Row) -> tuple[ModelSpec, list[str]]:
    """Return the model of a row, and what was assumed of it.

    Raises:
        ValueError: The row neither names a bundled model nor gives its sizes.
    """
    name = row.text("model")
    if TESTED.search(name):
        return tested_model(row)
    bundled = find_bundled(name)
    sizes = {column: row.count(column) for column in ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")}
    if bundled is not None:
        spec = _bundled(bundled.name)
        if sizes["hidden"] is None or (sizes["layers"], sizes["hidden"]) == (spec.num_layers, spec.hidden_size):
            return spec, []
    missing = [column for column in ("layers", "hidden", "heads", "ffn") if sizes[column] is None]
    if missing:
        raise ValueError(f"model {row.quoted('model')} is not bundled, and {', '.join(missing)} are empty")
    assumed: list[str] = []
    vocabulary = sizes["vocab"]
    if vocabulary is None:
        vocabulary = next(size for pattern, size in VOCABULARIES if re.search(pattern, name.lower()))
        assumed.append(f"vocabulary: {vocabulary:,} tokens, of the model's family")
    experts = row.count("experts")
    try:
        spec = _decoder(
            name[:LONGEST_SHOWN] or "model",
            row.needed("layers"),
            row.needed("hidden"),
            row.needed("heads"),
            sizes["kv_heads"],
            row.needed("ffn"),
            vocabulary,
            experts,
            row.needed("topk") if experts else 1,
        )
    except ShapeError as error:
        raise ValueError(str(error)) from None
    form = (
        "gated, RMS norms, rotary positions"
        if _is_gated(name, row.needed("ffn"), row.needed("hidden"))
        else ("not gated, layer norms, no positions' table, tied embeddings")
    )
    assumed.append(f"architecture: {form}, by the width of its feed-forward")
    return spec, assumed


@lru_cache(maxsize=256)
def _bundled(name: str) -> ModelSpec:
    return load_bundled(name)


def _is_gated(name: str, ffn: int, hidden: int) -> bool:
    return ffn < GATED_BELOW * hidden or re.search(r"llama|mistral|mixtral|qwen|internlm", name.lower()) is not None


@lru_cache(maxsize=256)
def _decoder(  # noqa: PLR0913, PLR0917 - the columns of a row
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None,
    ffn: int,
    vocabulary: int,
    experts: int | None,
    topk: int,
) -> ModelSpec:
    gated = _is_gated(name, ffn, hidden)
    activation = Activation.SILU if gated else Activation.GELU
    feed_forward = DenseFeedForward(intermediate_size=ffn, gated=gated or bool(experts), activation=activation)
    mixture = None
    if experts:
        mixture = MixtureOfExperts(num_experts=experts, experts_per_token=topk, expert=feed_forward, router=Router())
    return Decoder(
        name=name,
        architecture="inline",
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=vocabulary,
        max_position_embeddings=1 << 24,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        gated=gated,
        hidden_act=activation,
        norm=Norm.RMS if gated else Norm.LAYER,
        position_embedding=PositionEmbedding.ROPE if gated else PositionEmbedding.NONE,
        tie_word_embeddings=not gated,
        qkv_bias=not gated,
        attention_output_bias=not gated,
        mlp_bias=not gated,
        experts=mixture,
    ).spec()
