"""Configs and helpers that the tests of model input share."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.models.blocks import Block, DenseFeedForward, SelfAttention
from planner.models.specs import ModelSpec
from planner.schema.model import read_model

LLAMA_8B: Mapping[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
"""The published config of Llama-3.1-8B."""

QWEN3_8B: Mapping[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
"""The published config of Qwen3-8B, less token ids and versions."""

MISTRAL: Mapping[str, object] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "vocab_size": 32768,
}
"""Mistral-7B-v0.3, its sizes only."""

INLINE: Mapping[str, object] = {
    "name": "my-7b",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}


def read(fields: object) -> ModelSpec:
    """Return the model of a config file that holds `fields`, one key a line."""
    document = parse_document(json.dumps(fields, indent=2), file="config.json")
    return read_model(document.data, document=document, path=(), base=Path())


def changed(fields: Mapping[str, object], **changes: object) -> dict[str, object]:
    """Return the mapping with some values replaced."""
    return {**fields, **changes}


def without(fields: Mapping[str, object], *keys: str) -> dict[str, object]:
    """Return the mapping without some keys."""
    return {key: value for key, value in fields.items() if key not in keys}


def refusal(fields: object) -> InputError:
    """Return the error that reading `fields` raises."""
    with pytest.raises(InputError) as caught:
        read(fields)
    return caught.value


def attention(model: ModelSpec) -> SelfAttention:
    """Return the attention of a model with equal layers."""
    (run,) = model.runs
    assert isinstance(run.block.mixer, SelfAttention)
    return run.block.mixer


def window(block: Block) -> int | None:
    """Return the window of a block's attention."""
    assert isinstance(block.mixer, SelfAttention)
    return block.mixer.window


def feed_forward(model: ModelSpec) -> DenseFeedForward:
    """Return the feed-forward of a model with equal layers."""
    (run,) = model.runs
    assert isinstance(run.block.feed_forward, DenseFeedForward)
    return run.block.feed_forward
