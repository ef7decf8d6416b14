"""Hybrids: layers of attention between layers of Mamba-2 or of linear attention.

Shapes and defaults are those of transformers (`models/nemotron_h`, `qwen3_next`, `qwen3_5`, `qwen3_5_moe`,
`kimi_linear`, `minimax`) and of the code that the models are published with.
"""

from dataclasses import replace

from planner.models.blocks import (
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    Router,
    RouterScore,
    StateSpace,
)
from planner.models.decoder import Decoder, FeedForwardKind, LayerKind, MixerKind
from planner.models.specs import Trait
from planner.schema.architecture import Architecture, Flag, KeyValueHeads, Rotary
from planner.schema.architectures.latent import read_latent
from planner.schema.architectures.parts import (
    FULL,
    ROUTER_HARMLESS,
    dense_first,
    grouped_router,
    joined,
    layer_words,
    listed_layers,
    off,
    on,
    read_activation,
    read_experts,
    read_mtp,
    shared_width,
    sparse_layers,
)
from planner.schema.architectures.vision import qwen_tower
from planner.schema.config_reader import ConfigReader, Inert
from planner.schema.translate import shown

LINEAR = "linear_attention"

_LINEAR_KIND = LayerKind(mixer=MixerKind.LINEAR_ATTENTION)

_NEMOTRON_KINDS = {
    "M": LayerKind(mixer=MixerKind.STATE_SPACE, feed_forward=FeedForwardKind.NONE),
    "*": LayerKind(mixer=MixerKind.ATTENTION, feed_forward=FeedForwardKind.NONE),
    "-": LayerKind(mixer=MixerKind.NONE, feed_forward=FeedForwardKind.DENSE),
    "E": LayerKind(mixer=MixerKind.NONE, feed_forward=FeedForwardKind.EXPERTS),
}
"""What each letter of `hybrid_override_pattern` stands for."""

_NEMOTRON_WORDS = {
    "mamba": "M",
    LINEAR: "M",
    "attention": "*",
    FULL: "*",
    "mlp": "-",
    "moe": "E",
}
"""What each word of `layers_block_type` stands for, old and new words."""


# Nemotron-H


def _nemotron_pattern(config: ConfigReader, base: Decoder) -> str:
    """Return the chain of layers, a letter each."""
    words = config.words("layers_block_type", _NEMOTRON_WORDS, length=base.num_hidden_layers)
    pattern = config.optional_text("hybrid_override_pattern")
    spelled = None if words is None else "".join(_NEMOTRON_WORDS[word] for word in words)
    if pattern is not None:
        unknown = sorted(set(pattern) - set(_NEMOTRON_KINDS))
        if unknown:
            raise config.error(
                f"`hybrid_override_pattern` holds {shown(unknown[0])}, which is not a kind of layer.",
                key="hybrid_override_pattern",
                hint="Known are M (Mamba-2), * (attention), - (feed-forward) and E (experts).",
            )
        if len(pattern) != base.num_hidden_layers:
            raise config.error(
                f"`hybrid_override_pattern` names {len(pattern)} layers; the model has {base.num_hidden_layers}.",
                key="hybrid_override_pattern",
            )
        if spelled is not None and spelled != pattern:
            raise config.error(
                "`layers_block_type` and `hybrid_override_pattern` contradict each other.", key="layers_block_type"
            )
    found = spelled if pattern is None else pattern
    if found is None:
        raise config.error("`hybrid_override_pattern` or `layers_block_type` is missing; NemotronH needs one.")
    return found


def _nemotron_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    return tuple(_NEMOTRON_KINDS[letter] for letter in _nemotron_pattern(config, base))


def _nemotron_h(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Nemotron-H: each layer is one sub-block behind one norm; no positions at all."""
    used = set(base.layers)
    epsilon = config.optional_number("layer_norm_epsilon", "norm_eps", "rms_norm_eps", field="norm_epsilon")
    decoder = replace(base, norm_epsilon=1e-5 if epsilon is None else epsilon)
    if _NEMOTRON_KINDS["M"] in used:
        decoder = replace(decoder, state_space=_mamba(config))
    decoder = replace(decoder, intermediate_size=config.optional_size("intermediate_size"))
    if _NEMOTRON_KINDS["E"] in used:
        decoder = replace(decoder, experts=_nemotron_experts(config, decoder))
    else:
        # Newer configs write every default; experts that no layer has cost nothing.
        config.flag("norm_topk_prob", default=True)
        for key in _NEMOTRON_EXPERT_KEYS:
            config.optional_number(key)
    modules = config.optional_count("num_nextn_predict_layers", field="mtp_modules")
    return decoder if modules is None else replace(decoder, mtp_modules=modules, mtp_layer=_nemotron_mtp(config))


def _mamba(config: ConfigReader) -> StateSpace:
    read_activation(config, "mamba_hidden_act", default="silu")
    return StateSpace(
        num_heads=config.size("mamba_num_heads", field="state_space.num_heads"),
        head_dim=config.size("mamba_head_dim", field="state_space.head_dim"),
        state_size=config.size("ssm_state_size", field="state_space.state_size"),
        num_groups=config.size("n_groups", field="state_space.num_groups"),
        conv_kernel=config.size("conv_kernel", field="state_space.conv_kernel"),
        chunk_size=config.size("chunk_size", field="state_space.chunk_size"),
        conv_bias=config.flag("use_conv_bias", default=True),
        projection_bias=config.flag("mamba_proj_bias", default=False),
    )


_NEMOTRON_EXPERT_KEYS = (
    "moe_intermediate_size",
    "moe_latent_size",
    "moe_shared_expert_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
)


def _nemotron_experts(config: ConfigReader, base: Decoder) -> MixtureOfExperts:
    num_shared = config.optional_count("n_shared_experts", field="num_experts")
    width = config.size("moe_shared_expert_intermediate_size", field="experts.shared_intermediate_size")
    if num_shared not in (None, 1):
        raise config.error(
            f"`n_shared_experts` = {num_shared}: the class has one, `moe_shared_expert_intermediate_size` wide.",
            key="n_shared_experts",
        )
    return read_experts(
        config,
        base,
        count=("n_routed_experts", "num_local_experts"),
        router=grouped_router(config, score=RouterScore.SIGMOID, correction_bias=True, normalized=True),
        shared_intermediate_size=width if num_shared else None,
        latent_size=config.optional_count("moe_latent_size", field="experts.latent_size"),
        bias=base.mlp_bias,
    )


def _nemotron_mtp(config: ConfigReader) -> LayerKind:
    """Return the layer of a prediction module: attention and experts, which the class keeps as two layers."""
    pattern = config.optional_text("mtp_hybrid_override_pattern")
    words = config.words("mtp_layers_block_type", _NEMOTRON_WORDS, length=2)
    letters = "*E" if words is None else "".join(_NEMOTRON_WORDS[word] for word in words)
    if letters != "*E" or pattern not in (None, "*E"):
        key = "mtp_layers_block_type" if letters != "*E" else "mtp_hybrid_override_pattern"
        raise config.error(
            f"`{key}` is not attention followed by experts, which cannot be planned yet.",
            key=key,
            hint="Prediction modules of one attention layer and one layer of experts can be planned.",
        )
    return LayerKind(mixer=MixerKind.ATTENTION, feed_forward=FeedForwardKind.EXPERTS)


# Qwen3-Next and Qwen3.5


def _qwen_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return linear attention in all layers but every fourth, unless `layer_types` says otherwise."""
    every = config.optional_size("full_attention_interval", field="num_hidden_layers") or 4
    default = tuple(LINEAR if (layer + 1) % every else FULL for layer in range(base.num_hidden_layers))
    words = layer_words(config, base, (FULL, LINEAR), default=default)
    return tuple(_LINEAR_KIND if word == LINEAR else LayerKind() for word in words)


def _gated_delta(config: ConfigReader) -> LinearAttention:
    return LinearAttention(
        rule=LinearRule.GATED_DELTA,
        num_key_heads=config.size("linear_num_key_heads", field="linear_attention.num_key_heads"),
        num_value_heads=config.size("linear_num_value_heads", field="linear_attention.num_value_heads"),
        key_head_dim=config.size("linear_key_head_dim", field="linear_attention.key_head_dim"),
        value_head_dim=config.size("linear_value_head_dim", field="linear_attention.value_head_dim"),
        conv_kernel=config.size("linear_conv_kernel_dim", field="linear_attention.conv_kernel"),
    )


def _qwen3_5(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Qwen3.5's layers; its prediction modules end in full attention, whatever the last layer is."""
    modules = config.optional_count("mtp_num_hidden_layers", field="mtp_modules")
    return replace(
        base,
        output_gate=config.flag("attn_output_gate", default=True),
        linear_attention=_gated_delta(config),
        mtp_modules=modules or 0,
        mtp_layer=LayerKind() if modules else None,
    )


def _qwen3_5_moe(config: ConfigReader, base: Decoder) -> Decoder:
    return replace(_qwen3_5(config, base), experts=_qwen_experts(config, base), layers=_qwen_chain(config, base))


def _qwen3_next(config: ConfigReader, base: Decoder) -> Decoder:
    return replace(
        base,
        output_gate=True,
        linear_attention=_gated_delta(config),
        experts=_qwen_experts(config, base),
        layers=_qwen_chain(config, base),
    )


def _qwen_chain(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    return joined(base.layers, sparse_layers(config, base))


def _qwen_experts(config: ConfigReader, base: Decoder) -> MixtureOfExperts:
    return read_experts(
        config,
        base,
        router=Router(normalized=config.flag("norm_topk_prob", default=True)),
        shared_intermediate_size=config.size(
            "shared_expert_intermediate_size", field="experts.shared_intermediate_size"
        ),
        shared_gate=True,
    )


# Kimi-Linear


def _kimi_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return which layers are Kimi Delta Attention; the lists count layers from 1."""
    section = config.section("linear_attn_config")
    full = listed_layers(section, base, "full_attn_layers", first=1)
    linear = listed_layers(section, base, "kda_layers", first=1)
    if full & linear or len(full | linear) != base.num_hidden_layers:
        raise section.error("`full_attn_layers` and `kda_layers` do not name every layer once.", key="kda_layers")
    return tuple(_LINEAR_KIND if layer in linear else LayerKind() for layer in range(base.num_hidden_layers))


def _kimi_linear(config: ConfigReader, base: Decoder) -> Decoder:
    """Return Kimi-Linear: its latent attention has no positions."""
    section = config.section("linear_attn_config")
    heads = section.size("num_heads", field="linear_attention.num_key_heads")
    head_dim = section.size("head_dim", field="linear_attention.key_head_dim")
    linear = LinearAttention(
        rule=LinearRule.KIMI_DELTA,
        num_key_heads=heads,
        num_value_heads=heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        conv_kernel=section.size("short_conv_kernel_size", field="linear_attention.conv_kernel"),
    )
    section.refuse_unread(harmless=frozenset({"full_attn_layers", "kda_layers"}))
    router = replace(
        grouped_router(config, score=RouterScore.SIGMOID, correction_bias=True, normalized=True),
        normalized=config.flag("moe_renormalize", default=True),
    )
    experts = read_experts(
        config,
        base,
        per_token=("num_experts_per_token", "num_experts_per_tok"),
        router=router,
        shared_intermediate_size=shared_width(config, count="num_shared_experts"),
    )
    decoder = replace(
        base,
        latent_attention=read_latent(config, base),
        linear_attention=linear,
        experts=experts,
        layers=joined(base.layers, dense_first(config, base)),
    )
    return read_mtp(config, decoder)


# MiniMax-01 and -M1


def _minimax_layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    """Return lightning attention where `attn_type_list` is 0, full attention where it is 1."""
    kinds = config.optional_sizes("attn_type_list")
    if kinds is None or len(kinds) != base.num_hidden_layers or not set(kinds) <= {0, 1}:
        raise config.error(
            f"`attn_type_list` must hold 0 or 1 for each of {base.num_hidden_layers} layers.", key="attn_type_list"
        )
    return tuple(LayerKind() if kind else _LINEAR_KIND for kind in kinds)


def _minimax(config: ConfigReader, base: Decoder) -> Decoder:
    """Return MiniMax-01: lightning attention with as many heads as attention has, in blocks of 256 tokens."""
    head_dim = base.head_dim or 1
    rotary_dim = config.optional_size("rotary_dim", field="rotary_fraction")
    linear = LinearAttention(
        rule=LinearRule.LIGHTNING,
        num_key_heads=base.num_attention_heads,
        num_value_heads=base.num_attention_heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        conv_kernel=0,
        chunk_size=256,
    )
    return replace(
        base,
        linear_attention=linear,
        experts=read_experts(config, base, width="intermediate_size", router=Router()),
        rotary_fraction=base.rotary_fraction if rotary_dim is None else rotary_dim / head_dim,
    )


_NEMOTRON = Architecture(
    name="NemotronHForCausalLM",
    model_type="nemotron_h",
    norm=Norm.RMS,
    epsilon_key=None,
    epsilon=1e-5,
    gated=False,
    activation_key="mlp_hidden_act",
    activation="relu2",
    tied=False,
    dense_width=False,
    keys={"head_dim": ("head_dim", "attention_head_dim")},
    head_dim=128,
    rotary=None,
    unrotated=PositionEmbedding.NONE,
    qkv_bias=Flag(key="attention_bias", default=False),
    output_bias=Flag(key="attention_bias", default=False),
    mlp_bias=Flag(key="mlp_bias", default=False),
    layers=_nemotron_layers,
    inert={
        "use_bias": off("biases of the mixers' projections beside `mamba_proj_bias`"),
        "sliding_window": Inert(values=(None,), meaning="attention in a window"),
    },
    harmless=ROUTER_HARMLESS
    | {
        # Attention has no positions, whatever these say.
        "partial_rotary_factor",
        "rope_theta",
        # The state's numeric format when serving, initial values, and code paths.
        "expand",
        "mamba_ssm_cache_dtype",
        "moe_shared_expert_overlap",
        "num_logits_to_keep",
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "time_step_floor",
        "time_step_limit",
        "time_step_max",
        "time_step_min",
        "time_step_rank",
        "use_mamba_kernels",
    },
    adjust=_nemotron_h,
)

_QWEN_HYBRIDS = tuple(
    Architecture(
        name=name,
        model_type=model_type,
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=dense,
        head_dim=256,
        rotary=Rotary(fraction_key="partial_rotary_factor", fraction=0.25),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        traits=(Trait.ZERO_CENTERED_NORM,),
        layers=_qwen_layers,
        inert={"mtp_use_dedicated_embeddings": off("prediction modules with embeddings of their own")},
        harmless=ROUTER_HARMLESS | {"mamba_ssm_dtype"},
        adjust=adjust,
        text_section=name.endswith("ForConditionalGeneration"),
        vision=qwen_tower,
    )
    for name, model_type, dense, adjust in (
        ("Qwen3NextForCausalLM", "qwen3_next", True, _qwen3_next),
        ("Qwen3_5ForConditionalGeneration", "qwen3_5", True, _qwen3_5),
        ("Qwen3_5ForCausalLM", "qwen3_5_text", True, _qwen3_5),
        ("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", False, _qwen3_5_moe),
        ("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", False, _qwen3_5_moe),
    )
)

_KIMI = Architecture(
    name="KimiLinearForCausalLM",
    model_type="kimi_linear",
    norm=Norm.RMS,
    epsilon_key="rms_norm_eps",
    epsilon=1e-5,
    gated=True,
    activation_key="hidden_act",
    activation="silu",
    tied=False,
    keys={"max_position_embeddings": ("model_max_length", "max_position_embeddings")},
    latent=True,
    rotary=None,
    unrotated=PositionEmbedding.NONE,
    layers=_kimi_layers,
    inert={
        "mla_use_nope": on("rotation in latent attention"),
        "mla_use_output_gate": off("a gate behind latent attention"),
        "attn_res_block_size": Inert(values=(None, 0), meaning="residuals by attention"),
        "moe_router_activation_func": Inert(values=(None, "sigmoid"), meaning="another score of the router"),
    },
    harmless=ROUTER_HARMLESS | {"head_dim", "pretraining_tp", "rope_scaling", "rope_theta", "use_grouped_topk"},
    adjust=_kimi_linear,
)

_MINIMAX = tuple(
    Architecture(
        name=name,
        model_type=model_type,
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-5,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        key_value_heads=KeyValueHeads.KEY,
        rotary=Rotary(theta=1e6),
        layers=_minimax_layers,
        traits=(Trait.SCALED_RESIDUAL,),
        inert={
            "postnorm": on("residual connections in front of the norms"),
            "shared_intermediate_size": Inert(values=(None, 0), meaning="shared experts"),
        },
        harmless=ROUTER_HARMLESS
        | {
            "layernorm_full_attention_alpha",
            "layernorm_full_attention_beta",
            "layernorm_linear_attention_alpha",
            "layernorm_linear_attention_beta",
            "layernorm_mlp_alpha",
            "layernorm_mlp_beta",
            "shared_moe_mode",
        },
        adjust=_minimax,
    )
    for name, model_type in (
        ("MiniMaxText01ForCausalLM", "minimax_text_01"),
        ("MiniMaxM1ForCausalLM", "minimax_m1"),
    )
)

HYBRIDS = (_NEMOTRON, *_QWEN_HYBRIDS, _KIMI, *_MINIMAX)
"""Every class of this file."""
