"""The parts of a model in words."""

from cli.render import count, counted
from planner.models.blocks import (
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    Mixer,
    MixtureOfExperts,
    QueryKeyNorm,
    SelfAttention,
    StateSpace,
)
from planner.models.parameter_counts import total_parameters
from planner.models.specs import ModelSpec

_RULES = {
    LinearRule.GATED_DELTA: "gated delta rule",
    LinearRule.KIMI_DELTA: "Kimi delta rule",
    LinearRule.LIGHTNING: "lightning attention",
}

_NORMED = {
    QueryKeyNorm.HEAD: "queries and keys normed per head",
    QueryKeyNorm.WIDTH: "queries and keys normed over all heads",
    QueryKeyNorm.UNIT: "queries and keys of unit length",
}


def kind_in_words(model: ModelSpec) -> str:
    """Return what a model is built of, in a word or two: "dense", "MoE", "MLA, MoE", "hybrid, MoE"."""
    mixers = [block.mixer for block in model.distinct_blocks if block.mixer is not None]
    softmax = [mixer for mixer in mixers if isinstance(mixer, SelfAttention)]
    if any(isinstance(mixer, StateSpace | LinearAttention) for mixer in mixers):
        words = ["hybrid"]
    elif any(isinstance(mixer, LatentAttention) for mixer in mixers):
        words = ["MLA"]
    elif any(mixer.window or mixer.chunk for mixer in softmax):
        words = ["windows"]
    else:
        words = []
    return ", ".join([*words, "MoE"] if model.has_experts else words or ["dense"])


def mixer_in_words(mixer: Mixer | None) -> str:
    """Return what mixes tokens in a layer; nothing where nothing does."""
    match mixer:
        case None:
            return ""
        case SelfAttention():
            return _attention(mixer)
        case LatentAttention():
            return _latent_attention(mixer)
        case StateSpace():
            return (
                f"Mamba-2: {counted(mixer.num_heads, 'head')} of {mixer.head_dim}, state {mixer.state_size}, "
                f"{counted(mixer.num_groups, 'group')}"
            )
        case LinearAttention():
            return (
                f"linear attention ({_RULES[mixer.rule]}): {counted(mixer.num_key_heads, 'key head')} of "
                f"{mixer.key_head_dim}, {counted(mixer.num_value_heads, 'value head')} of {mixer.value_head_dim}"
            )


def _attention(mixer: SelfAttention) -> str:
    biases = [name for name, used in (("q, k, v", mixer.qkv_bias), ("output", mixer.output_bias)) if used]
    parts = [
        f"attention: {counted(mixer.num_attention_heads, 'head')} of {mixer.head_dim}",
        counted(mixer.num_key_value_heads, "key/value head"),
        *([f"window of {count(mixer.window)}"] if mixer.window is not None else []),
        *([f"chunks of {count(mixer.chunk)}"] if mixer.chunk is not None else []),
        *([f"bias on {' and '.join(biases)}"] if biases else []),
        *([_NORMED[mixer.qk_norm]] if mixer.qk_norm in _NORMED else []),
        *(["values are keys"] if mixer.shared_key_value else []),
        *(["a sink per head"] if mixer.sinks else []),
        *(["gated output"] if mixer.output_gate else []),
        *(["no positions"] if not mixer.rotary else []),
    ]
    return ", ".join(parts)


def _latent_attention(mixer: LatentAttention) -> str:
    rank = "directly" if mixer.q_lora_rank is None else f"through {count(mixer.q_lora_rank)}"
    text = (
        f"latent attention: {counted(mixer.num_attention_heads, 'head')} of "
        f"{mixer.qk_nope_head_dim} + {mixer.qk_rope_head_dim}, values of {mixer.v_head_dim}, "
        f"latent of {count(mixer.kv_lora_rank)}, queries {rank}"
    )
    if mixer.indexer is not None:
        index = mixer.indexer
        text += f"; {counted(index.num_heads, 'indexer head')} of {index.head_dim} keep {count(index.top_k)} keys"
    return text


def feed_forward_in_words(block: Block) -> str:
    """Return what works on each token in a layer; nothing where nothing does."""
    part = block.feed_forward
    beside = ", beside attention" if block.parallel else ""
    if part is None:
        return ""
    if isinstance(part, DenseFeedForward):
        return f"feed-forward: {_dense(part)}{beside}"
    return _experts(part) + beside


def _dense(part: DenseFeedForward) -> str:
    return (
        f"{count(part.intermediate_size)} wide, {part.activation.value}"
        + (", gated" if part.gated else "")
        + (", with bias" if part.bias else "")
    )


def _experts(part: MixtureOfExperts) -> str:
    router = part.router
    text = f"experts: {part.experts_per_token} of {part.num_experts}, {_dense(part.expert)}"
    if part.shared is not None:
        text += f"; shared {count(part.shared.intermediate_size)} wide" + (", gated" if part.shared_gate else "")
    if part.latent_size is not None:
        text += f"; sent at {count(part.latent_size)}"
    text += f"; {router.score.value} router"
    if router.num_groups > 1:
        text += f", {router.groups_per_token} of {router.num_groups} groups"
    return text


def parameters_in_words(model: ModelSpec) -> str:
    """Return the parameters that are planned, and what is among them or beside them."""
    words = counted(total_parameters(model), "parameter")
    if model.mtp is not None:
        words += f" ({counted(model.mtp.num_modules, 'prediction module')} included)"
    if model.vision is not None:
        words += " (without the vision tower)"
    return words
