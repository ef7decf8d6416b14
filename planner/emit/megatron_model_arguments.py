"""The flags that describe a model: architecture, attention and other mixers, positions, multi-token prediction."""

import json
from collections.abc import Mapping

from planner.emit.megatron_model_limits import CLAMPED_ACTIVATION_LIMIT, NORMS, TRAIT_FLAGS
from planner.emit.megatron_parts import Form, Parts
from planner.emit.megatron_position_limits import LATENT_MSCALE, YARN_DEFAULTS
from planner.emit.megatron_words import Flags, Group, pattern, when
from planner.layout import Layout
from planner.models.blocks import (
    Activation,
    DenseFeedForward,
    LatentAttention,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.specs import ModelSpec, Trait
from planner.ranks.sharding import VOCAB_DIVISOR, padded_vocab_size
from planner.requests.workload import AttentionKernel, TrainWorkload

QUERY_KEY_NORM_FLAGS = {QueryKeyNorm.HEAD: "--qk-layernorm", QueryKeyNorm.UNIT: "--qk-l2-norm"}

LAYERS_FILE = "inline"
"""Value of `--heterogeneous-layers-config-path`, which only switches such layers on: the text beside it is read."""


def architecture(model: ModelSpec, parts: Parts, workload: TrainWorkload, layout: Layout) -> Group:
    """Return sizes, mixers, activation, norms and positions."""
    size = parts.feed_forward.intermediate_size if parts.feed_forward else 0
    return Group(
        title="Architecture",
        flags=(
            ("--transformer-impl", "transformer_engine"),
            ("--num-layers", str(model.num_layers)),
            *when(parts.letters, "--hybrid-layer-pattern", _letters(model, parts, layout)),
            ("--hidden-size", str(model.hidden_size)),
            *when(parts.feed_forward, "--ffn-hidden-size", str(size)),
            ("--num-attention-heads", str(parts.num_attention_heads)),
            *_mixers(model, parts),
            *_activation(model, parts),
            *when(not parts.has_bias, "--disable-bias-linear"),
            *when(parts.attention and parts.attention.qkv_bias and not parts.has_bias, "--add-qkv-bias"),
            ("--normalization", NORMS[model.norm]),
            ("--norm-epsilon", repr(model.norm_epsilon)),
            *_traits(model, parts),
            *positions(model, parts, workload),
            ("--attention-dropout", repr(workload.attention_dropout)),
            ("--hidden-dropout", repr(workload.hidden_dropout)),
            ("--attention-backend", _backend(parts, workload)),
            *_heterogeneous(model, parts),
        ),
    )


def _letters(model: ModelSpec, parts: Parts, layout: Layout) -> str:
    """Return the hybrid pattern: `|` between stages, and `/` before the letters of each prediction module."""
    stages = [parts.letters[stage.first_layer : stage.first_layer + stage.num_layers] for stage in layout.stages]
    modules = model.mtp.num_modules if model.mtp else 0
    return "/".join(("|".join(stages), *(parts.mtp_letters,) * modules))


def _backend(parts: Parts, workload: TrainWorkload) -> str:
    """Return the attention kernel, left to Transformer Engine where FlashAttention 2 cannot do the model's attention.

    It has neither sinks nor values narrower than keys, and Transformer Engine does not fall back from a named kernel.
    """
    particular = parts.latent is not None or (parts.attention is not None and parts.attention.sinks)
    if particular and workload.attention_kernel is AttentionKernel.FLASH:
        return "auto"
    return workload.attention_kernel.value


def _mixers(model: ModelSpec, parts: Parts) -> Flags:
    flags: Flags = ()
    if parts.attention is not None:
        flags += _attention(parts, parts.attention)
    if parts.latent is not None:
        flags += _latent_attention(parts.latent)
    if parts.linear is not None:
        linear = parts.linear
        hybrid = parts.form is Form.HYBRID
        flags += (
            *when(not hybrid, "--experimental-attention-variant", "gated_delta_net"),
            *when(not hybrid, "--linear-attention-freq", pattern(parts.linear_layers)),
            ("--linear-num-key-heads", str(linear.num_key_heads)),
            ("--linear-num-value-heads", str(linear.num_value_heads)),
            ("--linear-key-head-dim", str(linear.key_head_dim)),
            ("--linear-value-head-dim", str(linear.value_head_dim)),
            ("--linear-conv-kernel-dim", str(linear.conv_kernel)),
        )
    if parts.state_space is not None:
        mixer = parts.state_space
        flags += (
            ("--mamba-num-heads", str(mixer.num_heads)),
            ("--mamba-head-dim", str(mixer.head_dim)),
            ("--mamba-state-dim", str(mixer.state_size)),
            ("--mamba-num-groups", str(mixer.num_groups)),
        )
    if parts.attention is None and parts.latent is None:
        # Without attention nothing has this width, but without the flag heads would have to divide --hidden-size.
        flags += (("--kv-channels", str(parts.head_dim)),)
    return (*flags, *_prediction(model))


def _attention(parts: Parts, attention: SelfAttention) -> Flags:
    grouped = attention.num_key_value_heads != attention.num_attention_heads or parts.form is Form.HETEROGENEOUS
    window = parts.window
    some = any(parts.windowed) and not all(parts.windowed)
    return (
        *when(grouped, "--group-query-attention"),
        *when(grouped, "--num-query-groups", str(attention.num_key_value_heads)),
        ("--kv-channels", str(attention.head_dim)),
        *when(attention.qk_norm is not QueryKeyNorm.NONE, QUERY_KEY_NORM_FLAGS.get(attention.qk_norm, "")),
        *when(attention.sinks, "--softmax-type", "learnable"),
        *when(attention.output_gate, "--attention-output-gate"),
        # A window of w tokens holds the token itself and w - 1 before it; the flag counts those before and after.
        *when(window is not None, "--window-size", f"{(window or 1) - 1},0"),
        *when(some, "--window-attn-skip-freq", pattern(parts.windowed)),
        *when(any(parts.unrotated), "--no-rope-freq", pattern(parts.unrotated)),
    )


def _latent_attention(latent: LatentAttention) -> Flags:
    """Return the flags of multi-head latent attention, whose latents are normalised (`--qk-layernorm`)."""
    indexer = latent.indexer
    flags: Flags = (
        ("--multi-latent-attention",),
        ("--q-lora-rank", str(latent.q_lora_rank)),
        ("--kv-lora-rank", str(latent.kv_lora_rank)),
        ("--qk-head-dim", str(latent.qk_nope_head_dim)),
        ("--qk-pos-emb-head-dim", str(latent.qk_rope_head_dim)),
        ("--v-head-dim", str(latent.v_head_dim)),
        ("--kv-channels", str(latent.v_head_dim)),
        ("--qk-layernorm",),
    )
    if indexer is None:
        return flags
    return (
        *flags,
        ("--experimental-attention-variant", "dsa"),
        ("--dsa-indexer-n-heads", str(indexer.num_heads)),
        ("--dsa-indexer-head-dim", str(indexer.head_dim)),
        ("--dsa-indexer-topk", str(indexer.top_k)),
        ("--dsa-kernel-backend", "tilelang"),
    )


def _prediction(model: ModelSpec) -> Flags:
    if model.mtp is None:
        return ()
    return (("--mtp-num-layers", str(model.mtp.num_modules)), ("--mtp-loss-scaling-factor", "0.1"))


def _activation(model: ModelSpec, parts: Parts) -> Flags:
    """Return the activation's flags; gelu fused with its bias is the tanh form, unfused the erf form."""
    feed_forward: DenseFeedForward | None = parts.feed_forward
    if feed_forward is None:
        return ()
    if Trait.CLAMPED_ACTIVATION in model.traits:
        return (
            ("--quick-geglu",),
            ("--activation-func-clamp-value", repr(CLAMPED_ACTIVATION_LIMIT)),
            ("--glu-linear-offset", "1.0"),
        )
    if feed_forward.gated:
        return (("--swiglu",),)
    squared = feed_forward.activation is Activation.RELU2
    unfused = feed_forward.bias and feed_forward.activation in {Activation.RELU2, Activation.GELU}
    return (*when(squared, "--squared-relu"), *when(unfused, "--no-bias-gelu-fusion"))


def _traits(model: ModelSpec, parts: Parts) -> Flags:
    """Return the flags of traits; multi-head latent attention is rotated interleaved without one."""
    said = [trait for trait in model.traits if trait in TRAIT_FLAGS]
    if parts.latent is not None:
        said = [trait for trait in said if trait is not Trait.INTERLEAVED_ROTARY]
    return tuple((TRAIT_FLAGS[trait],) for trait in said)


def positions(model: ModelSpec, parts: Parts, workload: TrainWorkload) -> Flags:
    """Return the position flags; only learned positions have a table, whose length is the model's own."""
    length = model.max_position_embeddings
    if model.position_embedding is PositionEmbedding.LEARNED:
        return (("--position-embedding-type", "learned_absolute"), ("--max-position-embeddings", str(length)))
    reach = ("--max-position-embeddings", str(max(length, workload.seq_len)))
    if model.position_embedding is PositionEmbedding.NONE:
        return (("--position-embedding-type", "none"), reach)
    kind = model.rope_kind
    rotary = (
        ("--rotary-base", str(int(model.rope_theta or 0))),
        ("--rotary-percent", repr(model.rotary_fraction)),
    )
    if parts.latent is not None:
        # `validate_args` wants "rope" for prediction modules; what rotates is said by --rope-type.
        return (("--position-embedding-type", "rope"), reach, *rotary, *_latent_scaling(kind, model.rope_scaling))
    return (
        ("--position-embedding-type", "yarn" if kind == "yarn" else "rope"),
        reach,
        *rotary,
        *_rope_scaling(kind, model),
        *when(parts.form is Form.HETEROGENEOUS, "--use-rotary-position-embeddings"),
    )


def _latent_scaling(kind: str, scaling: Mapping[str, float | str]) -> Flags:
    """Return the flags of rotation inside latent attention, whose fused kernel is left out."""
    if kind != "yarn":
        return (("--rope-type", "rope"), ("--no-rope-fusion",))
    return (
        ("--rope-type", "yarn"),
        ("--rotary-scaling-factor", repr(float(scaling["factor"]))),
        ("--mscale", repr(float(scaling.get("mscale", LATENT_MSCALE["mscale"])))),
        ("--mscale-all-dim", repr(float(scaling.get("mscale_all_dim", LATENT_MSCALE["mscale_all_dim"])))),
        ("--no-rope-fusion",),
    )


def _rope_scaling(kind: str, model: ModelSpec) -> Flags:
    scaling = model.rope_scaling
    if kind == "llama3":
        return (("--use-rope-scaling",), ("--rope-scaling-factor", repr(float(scaling["factor"]))))
    if kind == "linear":
        return (("--rotary-seq-len-interpolation-factor", str(int(scaling["factor"]))),)
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings", model.max_position_embeddings)
        return (
            ("--rotary-scaling-factor", repr(float(scaling["factor"]))),
            ("--yarn-original-max-position-embeddings", str(int(original))),
            ("--yarn-beta-fast", repr(float(scaling.get("beta_fast", YARN_DEFAULTS["beta_fast"])))),
            ("--yarn-beta-slow", repr(float(scaling.get("beta_slow", YARN_DEFAULTS["beta_slow"])))),
            *when(not scaling.get("truncate", True), "--no-yarn-correction-range-round-to-int"),
        )
    return ()


def _heterogeneous(model: ModelSpec, parts: Parts) -> Flags:
    """Return layers that differ as the JSON text that `validate_args` compares with the other flags."""
    attention = parts.attention
    if parts.form is not Form.HETEROGENEOUS or attention is None:
        return ()
    in_group = attention.num_attention_heads // attention.num_key_value_heads
    blocks = []
    for block in model.blocks:
        dense = block.feed_forward
        size = dense.intermediate_size if isinstance(dense, DenseFeedForward) else None
        blocks.append(
            {
                "attention": {
                    "n_heads_in_group": in_group if block.mixer is not None else None,
                    "no_op": block.mixer is None,
                    "replace_with_linear": False,
                },
                "ffn": {"ffn_hidden_size": size, "no_op": size is None, "replace_with_linear": False},
            }
        )
    text = {
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": attention.num_attention_heads,
        "tie_word_embeddings": model.tie_word_embeddings,
        "rope_theta": int(model.rope_theta or 0),
        "rope_scaling": {"factor": float(model.rope_scaling["factor"])},
        "block_configs": blocks,
    }
    return (
        ("--heterogeneous-layers-config-path", LAYERS_FILE),
        ("--heterogeneous-layers-config-encoded-json", json.dumps(text, separators=(",", ":"))),
    )


def vocabulary(model: ModelSpec, workload: TrainWorkload, layout: Layout) -> Group:
    """Return the flags of the vocabulary: with a tokenizer of its own, its size is not the tokenizer's.

    A Hugging Face tokenizer's count of tokens stands in for `--vocab-size`, and often differs from the rows of the
    model's embedding; only `--padded-vocab-size` comes before it (`core/tokenizers/utils/build_tokenizer.py`).
    """
    padded = padded_vocab_size(model.vocab_size, layout.tp)
    tokenizer: Flags = (("--tokenizer-type", "NullTokenizer"),)
    title = f"Vocabulary: {model.vocab_size} rows, padded to {padded} (a multiple of {VOCAB_DIVISOR} x tp)"
    if workload.tokenizer_model is not None:
        path = not_a_flag(workload.tokenizer_model)
        tokenizer = (("--tokenizer-type", "HuggingFaceTokenizer"), ("--tokenizer-model", path))
        title += "; the tokenizer may know fewer tokens, not more"
    return Group(
        title=title,
        flags=(
            *tokenizer,
            ("--vocab-size", str(model.vocab_size)),
            ("--make-vocab-size-divisible-by", str(VOCAB_DIVISOR)),
            *when(workload.tokenizer_model is not None, "--padded-vocab-size", str(padded)),
            *when(not model.tie_word_embeddings, "--untie-embeddings-and-output-weights"),
        ),
    )


def not_a_flag(value: str) -> str:
    """Return a path that no argument parser takes for a flag: a leading dash becomes `./-`, which is the same file."""
    return f"./{value}" if value.startswith("-") else value
