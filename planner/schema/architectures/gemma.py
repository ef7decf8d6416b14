"""Gemma 2, 3 and 4: norms around both sub-blocks, and windows in most layers.

Shapes and defaults are those of transformers (`models/gemma2`, `gemma3`, `gemma4`).
"""

from dataclasses import replace

from planner.models.blocks import Norm, QueryKeyNorm, Router
from planner.models.decoder import Decoder, LayerKind
from planner.models.specs import Trait
from planner.schema.architecture import Architecture, Flag, Rotary
from planner.schema.architectures.parts import (
    FULL,
    ROUTER_HARMLESS,
    SLIDING,
    layer_words,
    off,
    read_experts,
    trait_of,
)
from planner.schema.architectures.vision import gemma4_tower
from planner.schema.config_reader import ConfigReader, Inert


def _words(config: ConfigReader, base: Decoder, *, every: int) -> tuple[str, ...]:
    """Return the kind of each layer: full attention in every so many, windows between."""
    default = tuple(SLIDING if (layer + 1) % every else FULL for layer in range(base.num_hidden_layers))
    return layer_words(config, base, (FULL, SLIDING), default=default)


def _windows(config: ConfigReader, base: Decoder, *, every: int) -> tuple[LayerKind, ...]:
    window = config.size("sliding_window", field="window")
    return tuple(LayerKind(window=window if word == SLIDING else None) for word in _words(config, base, every=every))


def _gemma2_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    return _windows(config, base, every=2)


def _gemma3_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    pattern = config.optional_size("sliding_window_pattern", "_sliding_window_pattern", field="num_hidden_layers") or 6
    return _windows(config, base, every=pattern)


def _capped(config: ConfigReader, base: Decoder) -> Decoder:
    """Return the model with its caps, and with the scale of its scores."""
    decoder = trait_of(config, base, "attn_logit_softcapping", Trait.CAPPED_ATTENTION, plain=())
    decoder = trait_of(config, decoder, "final_logit_softcapping", Trait.CAPPED_LOGITS, plain=())
    plain = (float(base.head_dim),) if base.head_dim is not None else ()
    return trait_of(config, decoder, "query_pre_attn_scalar", Trait.SCALED_ATTENTION, plain=plain)


def _gemma3(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Gemma 3, whose layers with windows rotate with a base of their own, 10,000 where the key is absent."""
    decoder = _capped(config, base)
    local = config.optional_number("rope_local_base_freq")
    if (10000.0 if local is None else local) == base.rope_theta or Trait.ROTARY_BY_LAYER in base.traits:
        return decoder
    return replace(decoder, traits=(*decoder.traits, Trait.ROTARY_BY_LAYER))


def _gemma4_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return windows, and wider heads that are shared by more queries where attention is full."""
    window = config.size("sliding_window", field="window")
    wide = config.optional_size("global_head_dim", field="head_dim") or 512
    shared = config.flag("attention_k_eq_v", default=False)
    groups = config.optional_size("num_global_key_value_heads", field="num_key_value_heads")
    words = _words(config, base, every=6)
    if words[-1] != FULL:
        raise config.error("The last layer's attention is always full.", key="layer_types")
    full = LayerKind(head_dim=wide, shared_key_value=shared, num_key_value_heads=groups if shared else None)
    return tuple(full if word == FULL else LayerKind(window=window) for word in words)


def _gemma4(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Gemma 4: with experts, its feed-forward is what every token visits, and three more norms are inside."""
    decoder = trait_of(config, replace(base, value_norm=True), "final_logit_softcapping", Trait.CAPPED_LOGITS, plain=())
    if not config.flag("enable_moe_block", default=False):
        config.require_inert({key: Inert(values=(None, 0), meaning="experts") for key in _EXPERT_KEYS})
        return decoder
    experts = read_experts(
        config,
        base,
        per_token=("top_k_experts",),
        router=Router(scales=True),
        shared_intermediate_size=base.intermediate_size,
        num_norms=3,
    )
    return replace(decoder, experts=experts)


_EXPERT_KEYS = ("num_experts", "top_k_experts", "moe_intermediate_size")

_GEMMA4 = tuple(
    Architecture(
        name=name,
        model_type=model_type,
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        tied=True,
        rotary=Rotary(fraction_key="partial_rotary_factor"),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        num_post_norms=2,
        layers=_gemma4_layers,
        traits=(Trait.SCALED_EMBEDDING, Trait.SCALED_ATTENTION, Trait.SCALED_RESIDUAL),
        inert={
            "hidden_size_per_layer_input": Inert(values=(0,), meaning="embeddings for each layer"),
            "num_kv_shared_layers": Inert(values=(None, 0), meaning="layers that share keys and values"),
            "use_double_wide_mlp": off("wider feed-forwards in the layers that share keys and values"),
            "use_bidirectional_attention": Inert(values=(None, "vision"), meaning="attention to what follows"),
        },
        harmless=ROUTER_HARMLESS | {"vision_soft_tokens_per_image", "vocab_size_per_layer_input"},
        adjust=_gemma4,
        text_section=name.endswith("ForConditionalGeneration"),
        vision=gemma4_tower,
    )
    for name, model_type in (("Gemma4ForConditionalGeneration", "gemma4"), ("Gemma4ForCausalLM", "gemma4_text"))
)

GEMMA = (
    Architecture(
        name="Gemma2ForCausalLM",
        model_type="gemma2",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        tied=True,
        head_dim=256,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        num_post_norms=2,
        layers=_gemma2_layers,
        traits=(Trait.ZERO_CENTERED_NORM, Trait.SCALED_EMBEDDING),
        harmless=frozenset({"hidden_act", "cache_implementation"}),
        adjust=_capped,
    ),
    Architecture(
        name="Gemma3ForCausalLM",
        model_type="gemma3_text",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_activation",
        activation="gelu_pytorch_tanh",
        tied=True,
        head_dim=256,
        rotary=Rotary(theta=1e6),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        num_post_norms=2,
        layers=_gemma3_layers,
        traits=(Trait.ZERO_CENTERED_NORM, Trait.SCALED_EMBEDDING),
        inert={"use_bidirectional_attention": off("attention to what follows")},
        harmless=frozenset({"hidden_act", "cache_implementation"}),
        adjust=_gemma3,
    ),
    *_GEMMA4,
)
"""Every class of this file."""
