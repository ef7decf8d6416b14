"""DeciLM (Nemotron-NAS): Llama's layers, each with heads and a feed-forward of its own, or without one of them.

`block_configs` has one entry a layer. The width of a feed-forward is `ffn_mult` times two thirds of the hidden size,
rounded up to a multiple of 256, as in the code that the models are published with.
"""

import math
from collections.abc import Mapping

from planner.models.blocks import Norm
from planner.models.decoder import Decoder, FeedForwardKind, LayerKind, MixerKind
from planner.models.sizes import MAX_SIZES
from planner.schema.architecture import Architecture, Flag, KeyValueHeads
from planner.schema.architectures.parts import off
from planner.schema.config_reader import ConfigReader, Inert

_NO_LINEAR = off("a linear layer in place of the sub-block")
_NO_SPARSE = Inert(values=(None,), meaning="weights that are partly zero")


def _layers(config: ConfigReader, base: Decoder) -> tuple[LayerKind, ...]:
    blocks = config.optional_list("block_configs")
    if blocks is None or len(blocks) != base.num_hidden_layers:
        raise config.error(
            f"`block_configs` must describe each of {base.num_hidden_layers} layers.", key="block_configs"
        )
    return tuple(_layer(config.item("block_configs", index), base) for index in range(len(blocks)))


def _layer(block: ConfigReader, base: Decoder) -> LayerKind:
    attention, feed_forward = block.section("attention"), block.section("ffn")
    block.refuse_unread(harmless=frozenset())
    groups = _groups(attention, base)
    width = _width(feed_forward, base)
    return LayerKind(
        mixer=MixerKind.NONE if groups is None else None,
        num_key_value_heads=groups,
        feed_forward=FeedForwardKind.NONE if width is None else None,
        intermediate_size=width,
    )


def _groups(section: ConfigReader, base: Decoder) -> int | None:
    """Return the key/value heads of a layer; None without attention."""
    section.require_inert(
        {
            "replace_with_linear": _NO_LINEAR,
            "sparsify": _NO_SPARSE,
            "window_length": Inert(values=(None,), meaning="attention in a window"),
            "num_sink_tokens": Inert(values=(None,), meaning="attention to the first tokens"),
            "use_prefill_window_in_sink_attention": off("attention in a window"),
            "unshifted_sink": off("attention to the first tokens"),
        }
    )
    absent = section.flag("no_op", default=False)
    heads_per_group = section.optional_size("n_heads_in_group", field="num_attention_heads")
    section.refuse_unread(harmless=frozenset())
    if absent:
        return None
    if heads_per_group is None or base.num_attention_heads % heads_per_group:
        raise section.error(
            f"`n_heads_in_group` = {heads_per_group} does not divide the {base.num_attention_heads} heads.",
            key="n_heads_in_group",
        )
    return base.num_attention_heads // heads_per_group


def _width(section: ConfigReader, base: Decoder) -> int | None:
    """Return the width of a layer's feed-forward; None without one."""
    section.require_inert({"replace_with_linear": _NO_LINEAR, "sparsify": _NO_SPARSE})
    absent = section.flag("no_op", default=False)
    factor = section.optional_number("ffn_mult")
    section.refuse_unread(harmless=frozenset())
    if absent:
        return None
    if factor is None or not 0 < factor <= MAX_SIZES["intermediate_size"] / base.hidden_size:
        raise section.error(f"`ffn_mult` = {factor} gives no width that a feed-forward can have.", key="ffn_mult")
    return math.ceil(int(2 * factor * base.hidden_size / 3) / 256) * 256


def _inert_null(meaning: str) -> Mapping[str, Inert]:
    return {
        "intermediate_size": Inert(values=(None,), meaning=meaning),
        "num_key_value_heads": Inert(values=(None,), meaning=meaning),
    }


DECI = (
    Architecture(
        name="DeciLMForCausalLM",
        model_type="nemotron-nas",
        norm=Norm.RMS,
        epsilon_key="rms_norm_eps",
        epsilon=1e-6,
        gated=True,
        activation_key="hidden_act",
        activation="silu",
        tied=False,
        dense_width=False,
        key_value_heads=KeyValueHeads.OWN,
        qkv_bias=Flag(key="attention_bias", default=False),
        output_bias=Flag(key="attention_bias", default=False),
        mlp_bias=Flag(key="mlp_bias", default=False),
        layers=_layers,
        inert=_inert_null("one size for all layers, beside `block_configs`"),
        harmless=frozenset({"pretraining_tp"}),
    ),
)
"""Every class of this file."""
