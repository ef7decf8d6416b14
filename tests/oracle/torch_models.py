"""Plain torch modules with the parameters of a model, put together by hand: they know nothing of the operator graph.

Each kind of layer has the modules of its Hugging Face implementation.
"""

from typing import Any

import pytest

from planner.models.blocks import (
    Block,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    Norm,
    PositionEmbedding,
    QueryKeyNorm,
    SelfAttention,
    StateSpace,
)
from planner.models.specs import ModelSpec

torch: Any = pytest.importorskip("torch", reason="the parameter oracle is a torch module (extra: dev)")
nn: Any = torch.nn


def built_model(spec: ModelSpec) -> Any:
    """Return the module on the meta device; its `parameters()` give a tied table once."""
    with torch.device("meta"):
        parts = {"tokens": nn.Embedding(spec.vocab_size, spec.hidden_size)}
        if spec.position_embedding is PositionEmbedding.LEARNED:
            parts["positions"] = nn.Embedding(spec.max_position_embeddings + spec.position_offset, spec.hidden_size)
        if spec.embedding_norm:
            parts["token_norm"] = _norm(spec, spec.hidden_size)
        parts["layers"] = nn.ModuleList([_block(spec, block) for block in spec.blocks])
        parts["final_norm"] = _norm(spec, spec.hidden_size)
        parts["head"] = nn.Linear(spec.hidden_size, spec.vocab_size, bias=spec.lm_head_bias)
        if spec.tie_word_embeddings:
            parts["head"].weight = parts["tokens"].weight
        if spec.mtp is not None:
            parts["mtp"] = nn.ModuleList(
                [_prediction(spec, spec.mtp.block, parts) for _ in range(spec.mtp.num_modules)]
            )
        return nn.ModuleDict(parts)


def num_parameters(module: Any) -> int:
    """Return the parameters of a module, shared ones counted once."""
    return sum(int(parameter.numel()) for parameter in module.parameters())


def _norm(spec: ModelSpec, size: int) -> Any:
    if spec.norm is Norm.RMS:
        return nn.RMSNorm(size)
    return nn.LayerNorm(size, elementwise_affine=spec.norm is not Norm.LAYER_PLAIN, bias=spec.norm is Norm.LAYER)


def _linear(inputs: int, outputs: int, *, bias: bool = False) -> Any:
    return nn.Linear(inputs, outputs, bias=bias)


def _vector(*shape: int) -> Any:
    return nn.ParameterList([nn.Parameter(torch.empty(shape))])


def _block(spec: ModelSpec, block: Block) -> Any:
    norms = block.num_norms + block.num_post_norms
    parts = {"norms": nn.ModuleList([_norm(spec, spec.hidden_size) for _ in range(norms)])}
    match block.mixer:
        case SelfAttention() as mixer:
            parts["mixer"] = _softmax_attention(spec, mixer)
        case LatentAttention() as mixer:
            parts["mixer"] = _latent_attention(spec, mixer)
        case StateSpace() as mixer:
            parts["mixer"] = _state_space(spec, mixer)
        case LinearAttention() as mixer:
            parts["mixer"] = _linear_attention(spec, mixer)
    match block.feed_forward:
        case DenseFeedForward() as feed_forward:
            parts["mlp"] = _mlp(spec.hidden_size, feed_forward)
        case MixtureOfExperts() as feed_forward:
            parts["mlp"] = _experts(spec, feed_forward)
    return nn.ModuleDict(parts)


def _prediction(spec: ModelSpec, block: Block, parts: dict[str, Any]) -> Any:
    """Return one module of multi-token prediction, as DeepSeek-V3 lays its 61st layer out."""
    hidden = spec.hidden_size
    return nn.ModuleDict(
        {
            "embed_tokens": parts["tokens"],
            "enorm": _norm(spec, hidden),
            "hnorm": _norm(spec, hidden),
            "eh_proj": _linear(2 * hidden, hidden),
            "layer": _block(spec, block),
            "head_norm": _norm(spec, hidden),
            "head": parts["head"],
        }
    )


def _mlp(hidden: int, spec: DenseFeedForward) -> Any:
    parts = {
        "up": _linear(hidden, spec.intermediate_size, bias=spec.bias),
        "down": _linear(spec.intermediate_size, hidden, bias=spec.bias),
    }
    if spec.gated:
        parts["gate"] = _linear(hidden, spec.intermediate_size, bias=spec.bias)
    return nn.ModuleDict(parts)


def _softmax_attention(spec: ModelSpec, attention: SelfAttention) -> Any:
    hidden, head = spec.hidden_size, attention.head_dim
    queries, keys = attention.num_attention_heads * head, attention.num_key_value_heads * head
    parts = {
        "q": _linear(hidden, queries * (2 if attention.output_gate else 1), bias=attention.qkv_bias),
        "k": _linear(hidden, keys, bias=attention.qkv_bias),
        "o": _linear(queries, hidden, bias=attention.output_bias),
    }
    if not attention.shared_key_value:
        parts["v"] = _linear(hidden, keys, bias=attention.qkv_bias)
    if attention.qk_norm is QueryKeyNorm.HEAD:
        parts["q_norm"], parts["k_norm"] = _norm(spec, head), _norm(spec, head)
    if attention.qk_norm is QueryKeyNorm.WIDTH:
        parts["q_norm"], parts["k_norm"] = _norm(spec, queries), _norm(spec, keys)
    if attention.sinks:
        parts["sinks"] = _vector(attention.num_attention_heads)
    return nn.ModuleDict(parts)


def _latent_attention(spec: ModelSpec, attention: LatentAttention) -> Any:
    hidden, heads, rank = spec.hidden_size, attention.num_attention_heads, attention.q_lora_rank
    nope, rope, value = attention.qk_nope_head_dim, attention.qk_rope_head_dim, attention.v_head_dim
    parts = {
        "kv_a_proj_with_mqa": _linear(hidden, attention.kv_lora_rank + rope, bias=attention.bias),
        "kv_a_layernorm": _norm(spec, attention.kv_lora_rank),
        "kv_b_proj": _linear(attention.kv_lora_rank, heads * (nope + value)),
        "o_proj": _linear(heads * value, hidden, bias=attention.bias),
    }
    if rank is None:
        parts["q_proj"] = _linear(hidden, heads * (nope + rope))
    else:
        parts["q_a_proj"] = _linear(hidden, rank, bias=attention.bias)
        parts["q_a_layernorm"] = _norm(spec, rank)
        parts["q_b_proj"] = _linear(rank, heads * (nope + rope))
    if attention.indexer is not None:
        indexer = attention.indexer
        parts["wq_b"] = _linear(hidden if rank is None else rank, indexer.num_heads * indexer.head_dim)
        parts["wk"] = _linear(hidden, indexer.head_dim)
        parts["k_norm"] = nn.LayerNorm(indexer.head_dim)
        parts["weights_proj"] = _linear(hidden, indexer.num_heads)
    return nn.ModuleDict(parts)


def _state_space(spec: ModelSpec, mixer: StateSpace) -> Any:
    inner = mixer.num_heads * mixer.head_dim
    channels = inner + 2 * mixer.num_groups * mixer.state_size
    return nn.ModuleDict(
        {
            "in_proj": _linear(spec.hidden_size, inner + channels + mixer.num_heads, bias=mixer.projection_bias),
            "conv1d": nn.Conv1d(channels, channels, mixer.conv_kernel, groups=channels, bias=mixer.conv_bias),
            "heads": nn.ModuleDict({name: _vector(mixer.num_heads) for name in ("dt_bias", "A_log", "D")}),
            "norm": nn.RMSNorm(inner),
            "out_proj": _linear(inner, spec.hidden_size, bias=mixer.projection_bias),
        }
    )


def _linear_attention(spec: ModelSpec, mixer: LinearAttention) -> Any:
    hidden, heads = spec.hidden_size, mixer.num_value_heads
    keys, values = mixer.num_key_heads * mixer.key_head_dim, heads * mixer.value_head_dim
    parts = {"out_proj": _linear(values, hidden)}
    channels = 2 * keys + values
    match mixer.rule:
        case LinearRule.GATED_DELTA:  # Qwen3-Next
            parts["in_proj_qkvz"] = _linear(hidden, channels + values)
            parts["in_proj_ba"] = _linear(hidden, 2 * heads)
            parts["conv1d"] = nn.Conv1d(channels, channels, mixer.conv_kernel, groups=channels, bias=False)
            parts["dt_bias"], parts["A_log"] = _vector(heads), _vector(heads)
            parts["norm"] = nn.RMSNorm(mixer.value_head_dim)
        case LinearRule.KIMI_DELTA:  # Kimi-Linear
            for name, width in (("q", keys), ("k", keys), ("v", values)):
                parts[f"{name}_proj"] = _linear(hidden, width)
                parts[f"{name}_conv1d"] = nn.Conv1d(width, width, mixer.conv_kernel, groups=width, bias=False)
            parts["f_a_proj"] = _linear(hidden, mixer.key_head_dim)
            parts["f_b_proj"] = _linear(mixer.key_head_dim, heads * mixer.key_head_dim)
            parts["g_a_proj"] = _linear(hidden, mixer.value_head_dim)
            parts["g_b_proj"] = _linear(mixer.value_head_dim, values)
            parts["b_proj"] = _linear(hidden, heads)
            parts["dt_bias"], parts["A_log"] = _vector(heads * mixer.key_head_dim), _vector(1, 1, heads, 1)
            parts["o_norm"] = nn.RMSNorm(mixer.value_head_dim)
        case LinearRule.LIGHTNING:  # MiniMax-Text-01
            parts["qkv_proj"] = _linear(hidden, channels)
            parts["output_gate"] = _linear(hidden, values)
            parts["norm"] = nn.RMSNorm(values)
    return nn.ModuleDict(parts)


def _experts(spec: ModelSpec, mixture: MixtureOfExperts) -> Any:
    hidden, count = spec.hidden_size, mixture.num_experts
    sent = mixture.latent_size or hidden
    parts = {
        "gate": _linear(hidden, count, bias=mixture.router.bias),
        "experts": nn.ModuleList([_mlp(sent, mixture.expert) for _ in range(count)]),
        "norms": nn.ModuleList([_norm(spec, hidden) for _ in range(mixture.num_norms)]),
    }
    if mixture.router.correction_bias:
        parts["e_score_correction_bias"] = _vector(count)
    if mixture.router.scales:
        parts["scale"], parts["per_expert_scale"] = _vector(hidden), _vector(count)
    if mixture.latent_size:
        parts["down"], parts["up"] = _linear(hidden, sent), _linear(sent, hidden)
    if mixture.shared is not None:
        parts["shared_expert"] = _mlp(hidden, mixture.shared)
        if mixture.shared_gate:
            parts["shared_expert_gate"] = _linear(hidden, 1)
    return nn.ModuleDict(parts)
