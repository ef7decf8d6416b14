"""Runs in DeepSpeed's own environment: holds the training program's decoder against Hugging Face's Llama.

Reads a folder with the program and `model.json` for each case, gives both models the same weights, and answers the
largest difference of their logits. The Hugging Face model is kept in the folder, for --model.
"""

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = (
    (r"^model\.", ""),
    (r"\.self_attn\.", ".parts.0."),
    (r"\.mlp\.", ".parts.1."),
    (r"\.input_layernorm\.", ".norms.0."),
    (r"\.post_attention_layernorm\.", ".norms.1."),
)
"""What Hugging Face calls a parameter, and what the program calls it."""


def llama_of(facts: dict[str, Any]) -> LlamaForCausalLM:
    """Return Hugging Face's model of these shapes, with random weights."""
    mixer, feed_forward = facts["runs"][0]["block"]["mixer"], facts["runs"][0]["block"]["feed_forward"]
    rope = {"rope_type": "default", **facts["rope_scaling"], "rope_theta": facts["rope_theta"]}
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=facts["hidden_size"],
            intermediate_size=feed_forward["intermediate_size"],
            num_hidden_layers=sum(run["count"] for run in facts["runs"]),
            num_attention_heads=mixer["num_attention_heads"],
            num_key_value_heads=mixer["num_key_value_heads"],
            head_dim=mixer["head_dim"],
            vocab_size=facts["vocab_size"],
            rms_norm_eps=facts["norm_epsilon"],
            max_position_embeddings=facts["max_position_embeddings"],
            tie_word_embeddings=facts["tie_word_embeddings"],
            rope_parameters=rope,
        )
    ).eval()


def difference(folder: str) -> float:
    """Return the largest difference between the logits of both models."""
    sys.path.insert(0, folder)
    planned_model = importlib.import_module("planned_model")
    facts = planned_model.read_facts(Path(folder) / "model.json")
    torch.manual_seed(0)
    theirs = llama_of(facts)
    theirs.save_pretrained(f"{folder}/hugging_face")
    context = planned_model.Context(attention="unfused")
    ours = planned_model.Decoder(facts, facts["vocab_size"], context, None, 1).eval()
    weights = {}
    for name, weight in theirs.state_dict().items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 - one after the other
        weights[name] = weight
    ours.load_state_dict(weights)
    ours.loss_function = lambda *, logits, **_: logits
    tokens = torch.randint(facts["vocab_size"], (2, 48))
    with torch.no_grad():
        return float((theirs(input_ids=tokens).logits - ours(tokens, tokens)).abs().max())


if __name__ == "__main__":
    print(json.dumps([difference(folder) for folder in json.load(sys.stdin)]))  # noqa: T201 - the answer
