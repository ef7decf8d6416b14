"""Parameters of the towers that multimodal models have in front of their text part.

Only the text part is planned; a tower is counted by its published shapes, so that totals say what the model has.
"""

from planner.models.decoder import Decoder
from planner.models.specs import VisionTower
from planner.schema.architectures.parts import read_activation
from planner.schema.config_reader import ConfigReader, Inert


def qwen_tower(config: ConfigReader, base: Decoder) -> VisionTower:
    """Return the tower of Qwen3-VL and Qwen3.5 (transformers, `models/qwen3_vl`).

    A patch embedding with bias, a position table, blocks of two LayerNorms, attention and a feed-forward with biases,
    and a merger; one more merger for each layer of `deepstack_visual_indexes`, whose norm stands behind the merge.
    """
    hidden, width = config.size("hidden_size"), config.size("intermediate_size")
    depth = config.size("depth", field="num_hidden_layers")
    config.size("num_heads", field="num_attention_heads")
    channels = config.optional_size("in_channels", field="num_key_value_heads") or 3
    patch = channels * config.size("patch_size", field="head_dim") ** 2
    patch *= config.size("temporal_patch_size", field="head_dim")
    merged = hidden * config.size("spatial_merge_size", field="head_dim") ** 2
    out = config.size("out_hidden_size", field="hidden_size")
    positions = config.size("num_position_embeddings", field="max_position_embeddings")
    deepstack = len(config.optional_sizes("deepstack_visual_indexes") or ())
    read_activation(config, "hidden_act", default="gelu")
    config.require_inert({"num_key_value_heads": Inert(values=(None,), meaning="grouped heads in the tower")})
    if out != base.hidden_size:
        raise config.error(
            f"`out_hidden_size` = {out} contradicts the text part's `hidden_size`, {base.hidden_size}.",
            key="out_hidden_size",
        )
    block = 4 * hidden + _linear(hidden, 3 * hidden) + _linear(hidden, hidden)
    block += _linear(hidden, width) + _linear(width, hidden)
    merger = _linear(merged, merged) + _linear(merged, out)
    total = _linear(patch, hidden) + positions * hidden + depth * block
    total += 2 * hidden + merger + deepstack * (2 * merged + merger)
    return VisionTower(
        num_parameters=total,
        source="vision_config: depth, hidden_size, intermediate_size, patches, positions and mergers, as Qwen3-VL",
    )


def gemma4_tower(config: ConfigReader, base: Decoder) -> VisionTower:
    """Return the tower of Gemma 4 (transformers, `models/gemma4`).

    A patch embedding without bias, two position tables, blocks of four norms, attention with a norm of queries and one
    of keys, a gated feed-forward, and a projection to the text part; no biases.
    """
    hidden, width = config.size("hidden_size"), config.size("intermediate_size")
    heads, groups = config.size("num_attention_heads"), config.size("num_key_value_heads")
    head_dim = config.size("head_dim")
    patch = 3 * config.size("patch_size", field="head_dim") ** 2
    positions = config.size("position_embedding_size", field="max_position_embeddings")
    layers = config.size("num_hidden_layers")
    for key in ("max_position_embeddings", "pooling_kernel_size", "default_output_length", "rms_norm_eps"):
        config.optional_number(key)
    config.optional_number("global_head_dim")
    read_activation(config, "hidden_activation", default="gelu")
    config.flag("standardize", default=False)
    _read_rotary(config)
    config.require_inert(
        {
            "attention_bias": Inert(values=(None, False), meaning="biases in the tower"),
            "use_clipped_linears": Inert(values=(None, False), meaning="clipped projections in the tower"),
        }
    )
    block = 4 * hidden + 2 * head_dim + 2 * hidden * heads * head_dim + 2 * hidden * groups * head_dim
    block += 3 * hidden * width
    total = patch * hidden + 2 * positions * hidden + layers * block + hidden * base.hidden_size
    return VisionTower(
        num_parameters=total,
        source="vision_config: num_hidden_layers, hidden_size, intermediate_size, heads, patches and positions, "
        "as Gemma 4",
    )


def llama4_tower(config: ConfigReader, base: Decoder) -> VisionTower:
    """Return the tower of Llama 4 (transformers, `models/llama4`).

    A patch embedding without bias, a class token, a position table, blocks of two LayerNorms, attention and a
    feed-forward with biases, a norm at both ends, an adapter of two projections, and a projection to the text part.
    """
    hidden, width = config.size("hidden_size"), config.size("intermediate_size")
    config.size("num_attention_heads")
    channels = config.optional_size("num_channels", field="num_key_value_heads") or 3
    side = config.size("patch_size", field="head_dim")
    image = config.size("image_size", field="hidden_size")
    inside = config.size("projector_input_dim", field="hidden_size")
    outside = config.size("projector_output_dim", field="hidden_size")
    out = config.size("vision_output_dim", field="hidden_size")
    layers = config.size("num_hidden_layers")
    for key in ("norm_eps", "pixel_shuffle_ratio", "projector_dropout", "rope_theta"):
        config.optional_number(key)
    read_activation(config, "hidden_act", default="gelu")
    config.optional_text("vision_feature_select_strategy")
    config.optional_number("vision_feature_layer")
    _read_rotary(config)
    config.require_inert({"multi_modal_projector_bias": Inert(values=(None, False), meaning="a bias behind the tower")})
    block = 4 * hidden + 4 * _linear(hidden, hidden) + _linear(hidden, width) + _linear(width, hidden)
    positions = (image // side) ** 2 + 1
    total = channels * side**2 * hidden + hidden + positions * hidden + layers * block + 4 * hidden
    total += width * inside + outside * outside + out * base.hidden_size
    return VisionTower(
        num_parameters=total,
        source="vision_config: num_hidden_layers, hidden_size, intermediate_size, image_size, patch_size and "
        "projectors, as Llama 4",
    )


def _read_rotary(config: ConfigReader) -> None:
    """Read the tower's rotary embedding, which has no parameters."""
    section = config.optional_section("rope_parameters")
    if section is not None:
        section.optional_text("rope_type")
        section.optional_number("rope_theta")
        section.refuse_unread(harmless=frozenset())


def _linear(inputs: int, outputs: int) -> int:
    """Return the parameters of a projection with a bias."""
    return inputs * outputs + outputs
