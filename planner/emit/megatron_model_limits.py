"""Architectures that Megatron-LM's flags cannot describe; experts and positions have files of their own."""

from planner.emit.megatron_expert_limits import require_experts
from planner.emit.megatron_parts import Form, Parts, parts_of
from planner.emit.megatron_position_limits import require_positions
from planner.emit.megatron_refusal import EDITED, OTHER_TARGET, refuse
from planner.models.blocks import (
    Activation,
    DenseFeedForward,
    LinearRule,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import ModelSpec, Trait

TRAIT_FLAGS = {
    Trait.ZERO_CENTERED_NORM: "--apply-layernorm-1p",
    Trait.INTERLEAVED_ROTARY: "--rotary-interleaved",
}

CLAMPED_ACTIVATION_LIMIT = 7.0
"""Limit of gpt-oss's clamped SwiGLU, which `--quick-geglu` computes: x sigmoid(1.702 x) (y + 1), both clamped
(`core/fusions/fused_bias_geglu.py`; `swiglu_limit` in the model's configuration)."""

NORMS = {Norm.RMS: "RMSNorm", Norm.LAYER: "LayerNorm"}

MAMBA_CONV_KERNEL, MAMBA_CHUNK = 4, 128
"""What `core/ssm/mamba_mixer.py` has built in, without a flag."""

DELTA_CHUNK = 64
"""Tokens that the gated delta kernel multiplies out at once (flash-linear-attention's `chunk_gated_delta_rule`)."""


def require_model(model: ModelSpec) -> None:
    """Refuse architectures that the flags cannot describe."""
    _require_text_model(model)
    for block in model.distinct_blocks:
        if isinstance(block.mixer, SelfAttention):
            _require_attention(model.name, block.mixer)
    parts = parts_of(model)
    _require_traits(model, parts)
    _require_latents(model, parts)
    _require_linear_attention(model.name, parts)
    _require_state_space(model.name, parts)
    _require_biases(model.name, parts)
    _require_activation(model, parts)
    if parts.experts is not None:
        require_experts(model.name, parts)
    require_positions(model, parts)
    if parts.form is Form.HETEROGENEOUS:
        _require_heterogeneous(model, parts)
    _require_prediction(model, parts)


def _require_text_model(model: ModelSpec) -> None:
    if model.vision is not None:
        refuse(
            f"{model.name} has a vision tower (`vision`), and pretrain_gpt.py trains text only.",
            OTHER_TARGET,
        )
    if model.lm_head_bias:
        refuse(f"{model.name} has a bias on its LM head; Megatron's has none.", "Nearest: the same model without it.")
    if model.embedding_norm:
        refuse(
            f"{model.name} normalises its embedding; Megatron has no such norm.", "Nearest: the same model without it."
        )
    if model.position_offset:
        refuse(
            f"{model.name} keeps {model.position_offset} rows in front of position 0; Megatron's table starts at 0.",
            "Nearest: the same model without the offset.",
        )
    if model.norm not in NORMS:
        refuse(
            f"{model.name} normalises by {model.norm}; --normalization takes RMSNorm and LayerNorm with its shift.",
            "Nearest: rmsnorm, which is another norm of equal cost.",
        )


def _require_traits(model: ModelSpec, parts: Parts) -> None:
    known = {*TRAIT_FLAGS, *((Trait.CLAMPED_ACTIVATION,) if _gates_with_silu(parts) else ())}
    unknown = [trait for trait in model.traits if trait not in known]
    if unknown:
        refuse(
            f"{model.name} has the traits {', '.join(unknown)}, for which there is no flag.",
            f"The flags can say {', '.join(sorted(known))}.",
        )


def _gates_with_silu(parts: Parts) -> bool:
    feed_forward = parts.feed_forward
    return feed_forward is not None and feed_forward.gated and feed_forward.activation is Activation.SILU


def _require_attention(name: str, attention: SelfAttention) -> None:
    absent = {
        "chunk": (attention.chunk is not None, "attention inside chunks"),
        "shared_key_value": (attention.shared_key_value, "keys that are values too"),
        "value_norm": (attention.value_norm, "a norm of the values"),
        "qk_norm": (attention.qk_norm is QueryKeyNorm.WIDTH, "one norm over all heads' queries"),
    }
    for field, (used, what) in absent.items():
        if used:
            refuse(f"{name} has {what} (`{field}`), for which there is no flag.", OTHER_TARGET)


def _require_latents(model: ModelSpec, parts: Parts) -> None:
    latent = parts.latent
    if latent is None:
        return
    if latent.bias:
        refuse(
            f"{model.name} has biases on its latent projections (`bias`); Megatron's have none.",
            "Nearest: the same model without them.",
        )
    if latent.q_lora_rank is None:
        refuse(
            f"{model.name} projects queries directly (`q_lora_rank`); Megatron then normalises their input once more "
            "than other frameworks do.",
            OTHER_TARGET,
        )
    if model.norm is not Norm.RMS:
        refuse(f"{model.name} has multi-head latent attention with {model.norm}.", "Use rmsnorm.")
    if latent.indexer is not None and model.mtp is not None:
        refuse(
            f"{model.name} has sparse attention (`indexer`) and multi-token prediction; "
            "Megatron builds a prediction module only from its standard attention.",
            f"Leave `mtp_modules` or `indexer` out: {EDITED} Or plan with `target: any`.",
        )


def _require_linear_attention(name: str, parts: Parts) -> None:
    linear = parts.linear
    if linear is None:
        return
    if linear.rule is not LinearRule.GATED_DELTA:
        refuse(
            f"{name} has linear attention of the rule {linear.rule}.",
            f"--experimental-attention-variant knows gated-delta. {OTHER_TARGET}",
        )
    if parts.latent is not None:
        refuse(f"{name} has linear attention beside multi-head latent attention.", OTHER_TARGET)
    if linear.conv_kernel < 1:
        refuse(f"{name} has linear attention without a convolution (conv_kernel 0).", "Use a kernel of at least 1.")
    if linear.chunk_size != DELTA_CHUNK:
        refuse(
            f"{name} multiplies out {linear.chunk_size} tokens at once (`chunk_size`); the kernel takes {DELTA_CHUNK}.",
            f"Use chunk_size {DELTA_CHUNK}.",
        )


def _require_state_space(name: str, parts: Parts) -> None:
    mixer = parts.state_space
    if mixer is None:
        return
    fixed = {
        "conv_kernel": (mixer.conv_kernel, MAMBA_CONV_KERNEL),
        "chunk_size": (mixer.chunk_size, MAMBA_CHUNK),
        "conv_bias": (mixer.conv_bias, True),
        "projection_bias": (mixer.projection_bias, False),
    }
    for field, (found, expected) in fixed.items():
        if found != expected:
            refuse(
                f"{name} has Mamba-2 mixers with {field} {str(found).lower()}; Megatron has {str(expected).lower()} "
                "built in.",
                f"Use {field} {str(expected).lower()}.",
            )
    if mixer.num_heads % mixer.num_groups:
        refuse(
            f"{name} has {mixer.num_heads} Mamba-2 heads in {mixer.num_groups} groups.",
            "The groups must divide the heads.",
        )


def _require_biases(name: str, parts: Parts) -> None:
    """Refuse biases that `--disable-bias-linear` and `--add-qkv-bias` cannot say."""
    carriers: dict[str, bool] = {}
    if parts.attention is not None:
        carriers |= {"qkv": parts.attention.qkv_bias, "attention output": parts.attention.output_bias}
    if parts.latent is not None:
        carriers["latent attention"] = False
    if parts.dense is not None:
        carriers["feed-forward"] = parts.dense.bias
    if parts.experts is not None:
        carriers |= {"experts": parts.experts.expert.bias, "router": parts.experts.router.bias}
    others = [carrier for carrier in carriers if carrier != "qkv"]
    without = not any(carriers[carrier] for carrier in others)
    if without or all(carriers.values()):
        return
    found = [carrier for carrier, bias in carriers.items() if bias]
    refuse(
        f"{name} has biases on {' and '.join(found)} only.",
        "The flags know three cases: no bias, qkv only (--add-qkv-bias), or every linear layer.",
    )


def _require_activation(model: ModelSpec, parts: Parts) -> None:
    found: list[DenseFeedForward] = [parts.dense] if parts.dense else []
    if parts.experts is not None:
        found += [part for part in (parts.experts.expert, parts.experts.shared) if part is not None]
    kinds = {(part.gated, part.activation) for part in found}
    if len(kinds) > 1:
        refuse(
            f"{model.name} has feed-forwards with different activations; the flags describe one.",
            "Use the same activation in dense feed-forwards, experts and shared experts.",
        )
    for part in found[:1]:
        _require_one_activation(model.name, part)


def _require_one_activation(name: str, feed_forward: DenseFeedForward) -> None:
    activation, gated = feed_forward.activation, feed_forward.gated
    if gated and activation is not Activation.SILU:
        refuse(
            f"{name} gates with {activation}; of the gated activations only SwiGLU (silu) has the same formula there.",
            "Nearest: --swiglu, which is another activation of equal cost.",
        )
    if not gated and activation in {Activation.SILU, Activation.RELU}:
        refuse(
            f"{name} uses {activation} without a gate.",
            "Without a gate there are gelu (with biases also its tanh form) and relu2 (--squared-relu).",
        )
    if not gated and activation is Activation.GELU_TANH and not feed_forward.bias:
        refuse(
            f"{name} uses the tanh form of gelu without biases; it exists only fused with a bias.",
            "Nearest: gelu (the erf form), which costs the same.",
        )


def _require_heterogeneous(model: ModelSpec, parts: Parts) -> None:
    """Refuse what `validate_model_config_args_from_heterogeneous_config` does not let through."""
    attention, dense = parts.attention, parts.dense
    rules = {
        "no attention": attention is None,
        "no feed-forward": dense is None,
        "feed-forwards that do not gate with silu": dense is not None and not _gates_with_silu(parts),
        f"the norm {model.norm}": model.norm is not Norm.RMS,
        f"positions of kind {model.position_embedding}": model.position_embedding is not PositionEmbedding.ROPE,
        f"rotary_fraction {model.rotary_fraction}": model.rotary_fraction != 1.0,
        "no llama3 rope scaling": model.rope_kind != "llama3",
        "sliding windows": parts.window is not None,
        "layers without rotation": any(parts.unrotated),
        "multi-token prediction": model.mtp is not None,
    }
    broken = [rule for rule, found in rules.items() if found]
    if broken:
        refuse(
            f"the layers of {model.name} differ (some lack a sub-block, or feed-forwards have several sizes), and it "
            f"has {' and '.join(broken)}.",
            "--heterogeneous-layers-config-path wants grouped attention, SwiGLU, RMSNorm and llama3-scaled rope in "
            "full, and builds no prediction modules.",
        )


def _require_prediction(model: ModelSpec, parts: Parts) -> None:
    """Refuse prediction modules that Megatron builds otherwise, or not at all."""
    if model.mtp is None:
        return
    if model.position_embedding is PositionEmbedding.LEARNED or (model.rope_kind == "yarn" and parts.latent is None):
        kind = "yarn" if model.rope_kind == "yarn" else model.position_embedding
        refuse(
            f"{model.name} has multi-token prediction with positions of kind {kind}.",
            "--mtp-num-layers needs --position-embedding-type rope or none.",
        )
    if parts.form is Form.HYBRID:
        return
    if parts.linear is not None:
        refuse(
            f"{model.name} has linear attention and multi-token prediction; Megatron builds a prediction module only "
            "from its standard attention.",
            f"Leave `mtp_modules` out: {EDITED} Or plan with `target: any`.",
        )
    if model.mtp.block != model.blocks[-1]:
        refuse(
            f"the prediction modules of {model.name} are other layers than its last.",
            "Megatron's prediction modules are copies of the last layer.",
        )
    if any(parts.unrotated) or len(set(parts.windowed)) > 1:
        refuse(
            f"{model.name} has multi-token prediction and layers that differ in window or rotation; the lists that say "
            "which layer is which end at the last layer.",
            f"Leave `mtp_modules` out: {EDITED} Or plan with `target: any`.",
        )
