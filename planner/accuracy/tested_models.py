"""The models of Megatron-LM's functional tests, as far as a row of their logs tells them.

What a row leaves open is what the tests' own configuration files say or leave to Megatron-LM's defaults: GPT-2's
vocabulary (the tests' tokenised data), layer norms, learned positions, biases, tied embeddings.
"""

import re

from planner.accuracy.measurements import LONGEST_SHOWN, Row
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Norm, PositionEmbedding, Router
from planner.models.decoder import Decoder
from planner.models.specs import ModelSpec

TESTED = re.compile(r"^mcore-test/")
NOT_GIVEN = re.compile(r"/(nemotron|hybrid|mamba|t5|bert|vlm|multimodal)|deepseek|_mla|_mtp|distill|offload")
"""Tests whose kinds of layers, second models or offloaded tensors no column gives."""

DROPOUT = 0.1
"""Megatron-LM's default behind each block and inside attention; tests that split sequences over cp set 0."""

VOCABULARY, NULL_VOCABULARY = 50_257, 131_073
"""Tokens of GPT-2's byte-pair encoding, and of the null tokenizer that the 7B tests name."""


def tested_model(row: Row) -> tuple[ModelSpec, list[str]]:
    """Return the model of a row of a functional test, and what was assumed of it.

    Raises:
        ValueError: The test's model has layers that the row does not describe.
    """
    name = row.text("model")
    if NOT_GIVEN.search(name):
        raise ValueError(f"model {row.quoted('model')} is of a test whose layers or offloading the row does not give")
    gated, untied = _said(row, "swiglu"), _said(row, "untie")
    ffn = row.needed("ffn")
    activation = Activation.SILU if gated else Activation.GELU
    experts = row.count("experts")
    expert_size = re.search(r"moe-ffn=(\d+)", row.text("notes"))
    mixture = None
    if experts:
        expert = DenseFeedForward(
            intermediate_size=int(expert_size.group(1)) if expert_size else ffn, gated=gated, activation=activation
        )
        mixture = MixtureOfExperts(
            num_experts=experts, experts_per_token=row.needed("topk"), expert=expert, router=Router()
        )
    null = re.search(r"gpt3_7b", name) is not None
    rotary = "rope" in name
    biased = not gated and "disable_bias_linear" not in name
    spec = Decoder(
        name=name[:LONGEST_SHOWN],
        architecture="inline",
        hidden_size=row.needed("hidden"),
        num_hidden_layers=row.needed("layers"),
        vocab_size=NULL_VOCABULARY if null else VOCABULARY,
        max_position_embeddings=row.needed("seq_len"),
        num_attention_heads=row.needed("heads"),
        num_key_value_heads=row.count("kv_heads"),
        intermediate_size=ffn,
        gated=gated,
        hidden_act=activation,
        norm=Norm.LAYER,
        position_embedding=PositionEmbedding.ROPE if rotary else PositionEmbedding.LEARNED,
        tie_word_embeddings=not untied,
        qkv_bias=biased,
        attention_output_bias=biased,
        mlp_bias=biased,
        experts=mixture,
    ).spec()
    tokens = "131,073 of the test's null tokenizer" if null else "50,257 of GPT-2, the tests' data, padded to 128 tp"
    return spec, [
        f"vocabulary: {tokens}",
        "architecture: Megatron-LM's defaults (layer norms, learned positions, biases) where the test's name is silent",
    ]


def dropout_of(row: Row) -> float:
    """Return the dropout of a row's run: none but in functional tests, whose rows leave it to the default."""
    if not TESTED.search(row.text("model")) or (row.count("cp") or 1) > 1:
        return 0.0
    return DROPOUT


def _said(row: Row, fact: str) -> bool:
    return re.search(rf"\b{fact}=True\b", row.text("notes")) is not None
