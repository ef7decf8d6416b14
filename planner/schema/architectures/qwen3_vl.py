"""Qwen3-VL: Qwen3's text parts behind a vision tower. Shapes are those of transformers (`models/qwen3_vl`)."""

from dataclasses import replace

from planner.models.blocks import Norm, QueryKeyNorm, Router
from planner.models.decoder import Decoder
from planner.schema.architecture import Architecture, Flag, Rotary
from planner.schema.architectures.parts import ROUTER_HARMLESS, joined, read_experts, sparse_layers
from planner.schema.architectures.vision import qwen_tower
from planner.schema.config_reader import ConfigReader


def _experts(config: ConfigReader, base: Decoder) -> Decoder:
    router = Router(normalized=config.flag("norm_topk_prob", default=True))
    experts = read_experts(config, base, router=router)
    return replace(base, experts=experts, layers=joined(base.layers, sparse_layers(config, base)))


QWEN3_VL = tuple(
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
        head_dim=128,
        rotary=Rotary(theta=5e6),
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        qk_norm=QueryKeyNorm.HEAD,
        harmless=ROUTER_HARMLESS,
        adjust=adjust,
        text_section=True,
        vision=qwen_tower,
    )
    for name, model_type, adjust in (
        ("Qwen3VLForConditionalGeneration", "qwen3_vl", None),
        ("Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", _experts),
    )
)
"""Every class of this file."""
