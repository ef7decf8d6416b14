"""Plain torch modules with the parameters of a model, put together by hand: they know nothing of the operator graph."""

from typing import Any

import pytest

from planner.blocks import Block, Norm, PositionEmbedding
from planner.specs import ModelSpec

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
        return nn.ModuleDict(parts)


def num_parameters(module: Any) -> int:
    """Return the parameters of a module, shared ones counted once."""
    return sum(int(parameter.numel()) for parameter in module.parameters())


def _norm(spec: ModelSpec, size: int) -> Any:
    return nn.RMSNorm(size) if spec.norm is Norm.RMS else nn.LayerNorm(size)


def _block(spec: ModelSpec, block: Block) -> Any:
    hidden = spec.hidden_size
    attention, feed_forward = block.mixer, block.feed_forward
    assert attention is not None
    assert feed_forward is not None
    head = attention.head_dim
    queries, keys = attention.num_attention_heads * head, attention.num_key_value_heads * head
    parts = {
        "q": nn.Linear(hidden, queries, bias=attention.qkv_bias),
        "k": nn.Linear(hidden, keys, bias=attention.qkv_bias),
        "v": nn.Linear(hidden, keys, bias=attention.qkv_bias),
        "o": nn.Linear(queries, hidden, bias=attention.output_bias),
        "up": nn.Linear(hidden, feed_forward.intermediate_size, bias=feed_forward.bias),
        "down": nn.Linear(feed_forward.intermediate_size, hidden, bias=feed_forward.bias),
        "norms": nn.ModuleList([_norm(spec, hidden) for _ in range(block.num_norms)]),
    }
    if feed_forward.gated:
        parts["gate"] = nn.Linear(hidden, feed_forward.intermediate_size, bias=feed_forward.bias)
    if attention.qk_norm:
        parts["q_norm"], parts["k_norm"] = _norm(spec, head), _norm(spec, head)
    return nn.ModuleDict(parts)
