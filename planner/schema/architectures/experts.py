"""Mixtures of experts around ordinary attention.

Shapes and defaults are those of the model and configuration classes of transformers (`models/mixtral`, `qwen2_moe`,
`qwen3_moe`, `olmoe`, `phimoe`, `glm4_moe`, `gpt_oss`, `minimax_m2`).
"""

from dataclasses import replace

from planner.models.blocks import Norm, QueryKeyNorm, Router, RouterScore
from planner.models.decoder import Decoder, LayerKind
from planner.models.specs import Trait
from planner.schema.architecture import Architecture, Flag, KeyValueHeads, Rotary, Window
from planner.schema.architectures.parts import (
    FULL,
    ROUTER_HARMLESS,
    SLIDING,
    dense_first,
    grouped_router,
    joined,
    layer_words,
    off,
    on,
    read_experts,
    read_mtp,
    shared_width,
    sparse_layers,
    trait_of,
)
from planner.schema.config_reader import ConfigReader, Inert


def _mixtral(config: ConfigReader, base: Decoder) -> Decoder:
    experts = read_experts(config, base, width="intermediate_size", router=Router())
    return replace(base, experts=experts)


def _qwen2_moe(config: ConfigReader, base: Decoder) -> Decoder:
    router = Router(normalized=config.flag("norm_topk_prob", default=False))
    experts = read_experts(
        config,
        base,
        router=router,
        shared_intermediate_size=config.size(
            "shared_expert_intermediate_size", field="experts.shared_intermediate_size"
        ),
        shared_gate=True,
    )
    return replace(base, experts=experts, layers=joined(base.layers, sparse_layers(config, base)))


def _qwen3_moe(config: ConfigReader, base: Decoder) -> Decoder:
    router = Router(normalized=config.flag("norm_topk_prob", default=False))
    experts = read_experts(config, base, router=router)
    return replace(base, experts=experts, layers=joined(base.layers, sparse_layers(config, base)))


def _olmoe(config: ConfigReader, base: Decoder) -> Decoder:
    router = Router(normalized=config.flag("norm_topk_prob", default=False))
    experts = read_experts(config, base, width="intermediate_size", router=router)
    return trait_of(config, replace(base, experts=experts), "clip_qkv", Trait.CLAMPED_QKV, plain=())


def _phimoe(config: ConfigReader, base: Decoder) -> Decoder:
    router = Router(normalized=False)
    return replace(base, experts=read_experts(config, base, width="intermediate_size", router=router))


def _glm4_moe(config: ConfigReader, base: Decoder) -> Decoder:
    router = grouped_router(config, score=RouterScore.SIGMOID, correction_bias=True, normalized=True)
    experts = read_experts(
        config, base, count=("n_routed_experts",), router=router, shared_intermediate_size=shared_width(config)
    )
    qk_norm = QueryKeyNorm.HEAD if config.flag("use_qk_norm", default=False) else QueryKeyNorm.NONE
    decoder = replace(base, experts=experts, qk_norm=qk_norm, layers=joined(base.layers, dense_first(config, base)))
    return read_mtp(config, decoder)


def _gpt_oss_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return windows in every other layer, the first one included, unless `layer_types` says otherwise."""
    window = config.size("sliding_window", field="window")
    default = tuple(FULL if layer % 2 else SLIDING for layer in range(base.num_hidden_layers))
    words = layer_words(config, base, (FULL, SLIDING), default=default)
    return tuple(LayerKind(window=window if word == SLIDING else None) for word in words)


def _gpt_oss(config: ConfigReader, base: Decoder) -> Decoder:
    """Return gpt-oss: sinks, and biases of the router and of every expert; experts' inputs are clamped."""
    experts = read_experts(
        config,
        base,
        per_token=("num_experts_per_tok", "experts_per_token"),
        width="intermediate_size",
        router=Router(bias=True),
        bias=True,
    )
    config.optional_number("swiglu_limit")
    return replace(base, experts=experts, sinks=True)


def _minimax_m2(config: ConfigReader, base: Decoder) -> Decoder:
    """Return MiniMax-M2; each of its prediction modules has `mtp_transformer_layers` layers, of which one is known."""
    router = Router(score=RouterScore.SIGMOID, correction_bias=config.flag("use_routing_bias", default=True))
    experts = read_experts(
        config,
        base,
        width="intermediate_size",
        router=router,
        shared_intermediate_size=config.optional_count(
            "shared_intermediate_size", field="experts.shared_intermediate_size"
        ),
    )
    used = config.flag("use_mtp", default=False)
    modules = config.optional_count("num_mtp_modules", field="mtp_modules")
    rotary_dim = config.optional_size("rotary_dim", field="rotary_fraction")
    qk_norm = QueryKeyNorm.WIDTH if config.flag("use_qk_norm", default=False) else QueryKeyNorm.NONE
    return replace(
        base,
        experts=experts,
        qk_norm=qk_norm,
        rotary_fraction=base.rotary_fraction if rotary_dim is None else rotary_dim / (base.head_dim or 1),
        mtp_modules=modules if used and modules is not None else 0,
    )


_QWEN3_INERT = {
    "qkv_bias": off("biases of queries, keys and values beside `attention_bias`"),
    "use_qk_norm": on("queries and keys without their norms"),
    "shared_expert_intermediate_size": Inert(values=(None, 0), meaning="shared experts, which the class does not have"),
}

EXPERTS = (
    Architecture(
        name="MixtralForCausalLM",
        model_type="mixtral",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        window=Window(),
        harmless=ROUTER_HARMLESS,
        adjust=_mixtral,
    ),
    Architecture(
        name="Qwen2MoeForCausalLM",
        model_type="qwen2_moe",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        reads_head_dim=False,
        qkv_bias=Flag(key="qkv_bias", default=True),
        window=Window(needs_flag=True, from_layer=True),
        harmless=ROUTER_HARMLESS,
        adjust=_qwen2_moe,
    ),
    Architecture(
        name="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        window=Window(needs_flag=True),
        inert=_QWEN3_INERT,
        harmless=ROUTER_HARMLESS | {"max_window_layers"},
        adjust=_qwen3_moe,
    ),
    Architecture(
        name="OlmoeForCausalLM",
        model_type="olmoe",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        key_value_heads=KeyValueHeads.OPTIONAL_KEY,
        reads_head_dim=False,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.WIDTH,
        harmless=ROUTER_HARMLESS,
        adjust=_olmoe,
    ),
    Architecture(
        name="PhimoeForCausalLM",
        model_type="phimoe",
        norm=Norm.LAYER,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        reads_head_dim=False,
        rotary=Rotary(theta=1e6),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        lm_head_bias=Flag(key="lm_head_bias", default=False),
        window=Window(),
        harmless=ROUTER_HARMLESS | {"input_jitter_noise", "original_max_position_embeddings"},
        adjust=_phimoe,
    ),
    Architecture(
        name="Glm4MoeForCausalLM",
        model_type="glm4_moe",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=0.5),
        qkv_bias=Flag(key="attention_bias", default=False),
        harmless=ROUTER_HARMLESS,
        adjust=_glm4_moe,
    ),
    Architecture(
        name="GptOssForCausalLM",
        model_type="gpt_oss",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        head_dim=64,
        rotary=Rotary(theta=150000.0),
        qkv_bias=Flag(key="attention_bias", default=True),
        output_bias=Flag(key="attention_bias", default=True),
        layers=_gpt_oss_layers,
        traits=(Trait.CLAMPED_ACTIVATION,),
        harmless=ROUTER_HARMLESS | {"initial_context_length"},
        adjust=_gpt_oss,
    ),
    Architecture(
        name="MiniMaxM2ForCausalLM",
        model_type="minimax_m2",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        rotary=Rotary(theta=5e6),
        inert={
            "qk_norm_type": Inert(values=(None, "per_layer"), meaning="another norm of queries and keys"),
            "scoring_func": Inert(values=(None, "sigmoid"), meaning="another score of the router"),
            "mtp_transformer_layers": Inert(values=(None, 1), meaning="prediction modules of several layers"),
        },
        harmless=ROUTER_HARMLESS,
        adjust=_minimax_m2,
    ),
)
"""Every class of this file."""
