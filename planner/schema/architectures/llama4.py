"""Llama 4: chunked attention between layers without positions, and experts in every layer or every second one.

Shapes and defaults are those of transformers (`models/llama4`).
"""

from dataclasses import replace

from planner.models.blocks import Norm, QueryKeyNorm, Router, RouterScore
from planner.models.decoder import Decoder, LayerKind
from planner.models.specs import Trait
from planner.schema.architecture import Architecture, Flag
from planner.schema.architectures.parts import (
    DENSE,
    EXPERTS,
    FULL,
    ROUTER_HARMLESS,
    joined,
    layer_words,
    listed_layers,
    read_experts,
)
from planner.schema.architectures.vision import llama4_tower
from planner.schema.config_reader import ConfigReader

CHUNKED = "chunked_attention"


def _layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return attention layer by layer: by default every fourth has no positions and sees everything."""
    chunk = config.optional_size("attention_chunk_size", field="chunk")
    every = config.optional_size("no_rope_layer_interval", field="num_hidden_layers") or 4
    rotated = config.optional_sizes("no_rope_layers")
    default = tuple((layer + 1) % every != 0 for layer in range(base.num_hidden_layers))
    rotates = default if not rotated else tuple(flag != 0 for flag in rotated)
    if len(rotates) != base.num_hidden_layers:
        raise config.error(
            f"`no_rope_layers` names {len(rotates)} layers; the model has {base.num_hidden_layers}.",
            key="no_rope_layers",
        )
    words = layer_words(config, base, (FULL, CHUNKED), default=tuple(CHUNKED if rotary else FULL for rotary in rotates))
    if CHUNKED in words and chunk is None:
        raise config.error("`attention_chunk_size` is missing; layers of chunked attention need it.")
    normed = config.flag("use_qk_norm", default=True)
    return tuple(
        LayerKind(
            chunk=chunk if word == CHUNKED else None,
            rotary=rotary,
            qk_norm=QueryKeyNorm.UNIT if normed and rotary else QueryKeyNorm.NONE,
        )
        for word, rotary in zip(words, rotates, strict=True)
    )


def _llama4(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Llama 4: one shared expert as wide as a routed one; dense layers are `intermediate_size_mlp` wide."""
    experts = read_experts(
        config,
        base,
        width="intermediate_size",
        router=Router(score=RouterScore.SIGMOID, normalized=False),
        shared_intermediate_size=config.size("intermediate_size", field="experts.intermediate_size"),
    )
    step = config.optional_size("interleave_moe_layer_step", field="num_hidden_layers") or 1
    chosen = frozenset(range(step - 1, base.num_hidden_layers, step))
    if config.optional_sizes("moe_layers") is not None:
        chosen = listed_layers(config, base, "moe_layers")
    feed_forwards = tuple(EXPERTS if layer in chosen else DENSE for layer in range(base.num_hidden_layers))
    tempered = config.flag("attn_temperature_tuning", default=True)
    config.optional_number("attn_scale")
    config.optional_number("floor_scale")
    return replace(
        base,
        experts=experts,
        intermediate_size=config.optional_size("intermediate_size_mlp", field="intermediate_size"),
        layers=joined(base.layers, feed_forwards),
        traits=(*base.traits, Trait.TEMPERED_ATTENTION) if tempered else base.traits,
    )


LLAMA4 = tuple(
    Architecture(
        name=name,
        model_type=model_type,
        other_model_types=frozenset({"llama4_text"}),
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        head_dim=128,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        layers=_layers,
        traits=(Trait.INTERLEAVED_ROTARY,),
        harmless=ROUTER_HARMLESS | {"for_llm_compressor", "boi_token_index", "eoi_token_index", "image_token_index"},
        adjust=_llama4,
        text_section=name.endswith("ForConditionalGeneration"),
        vision=llama4_tower,
    )
    for name, model_type in (("Llama4ForConditionalGeneration", "llama4"), ("Llama4ForCausalLM", "llama4_text"))
)
"""Every class of this file."""
