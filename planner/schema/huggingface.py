"""Hugging Face `config.json` -> `ModelSpec`, without transformers and without the network.

`planner.schema.architectures` says what each class fixes and what its keys mean; this module reads a config by it.
What changes cost and is not understood is an error that names it.
"""

from collections.abc import Mapping
from dataclasses import replace

from planner.documents import Document
from planner.errors import InputError
from planner.models.blocks import PositionEmbedding
from planner.models.decoder import Decoder, LayerKind
from planner.models.sizes import ShapeError
from planner.models.specs import ModelSpec
from planner.schema.architecture import Architecture, Flag, KeyValueHeads, Window
from planner.schema.architectures import ARCHITECTURES
from planner.schema.architectures.parts import FULL, SLIDING, joined, layer_words, read_activation, require_repeated
from planner.schema.common_keys import HARMLESS, INERT, QUANTIZATIONS
from planner.schema.config_reader import ConfigPath, ConfigReader
from planner.schema.rotary import read_rotary
from planner.schema.translate import shown, suggestion

_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    (
        "a hybrid of attention and state-space or linear layers",
        frozenset({"hybrid_override_pattern", "layers_block_type", "linear_num_key_heads", "mamba_num_heads"}),
    ),
    ("built on latent attention (MLA)", frozenset({"kv_lora_rank"})),
    (
        "a mixture of experts",
        frozenset({"num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok", "enable_moe_block"}),
    ),
    ("multimodal", frozenset({"vision_config", "audio_config"})),
)


def is_config(fields: Mapping[str, object]) -> bool:
    """Return whether a mapping is a Hugging Face config rather than our own form."""
    return "architectures" in fields or "model_type" in fields


def read_config(fields: Mapping[str, object], *, document: Document, path: ConfigPath, name: str) -> ModelSpec:
    """Return the model that a Hugging Face config describes.

    Args:
        fields: The config.
        document: The document that holds it.
        path: Where in the document it stands.
        name: What to call the model.
    """
    architecture = _architecture(fields, document=document, path=path)
    config = ConfigReader(fields, document=document, path=path, architecture=architecture.name)
    text = config.section("text_config") if architecture.text_section else config
    try:
        tied = _tied(config, text, default=architecture.tied)
        decoder = replace(_decoder(text, architecture, name), tie_word_embeddings=tied)
        decoder = _with_layers(text, architecture, decoder)
        if architecture.adjust is not None:
            decoder = architecture.adjust(text, decoder)
        if architecture.text_section:
            decoder = _with_vision(config, architecture, decoder)
        model = decoder.spec()
    except ShapeError as error:
        raise text.shape_error(error) from None
    for part in dict.fromkeys((config, text)):
        _check_quantization(part)
        part.require_inert(architecture.inert)
        part.require_inert(INERT)
        part.refuse_unread(harmless=HARMLESS | architecture.harmless)
    return model


def _architecture(fields: Mapping[str, object], *, document: Document, path: ConfigPath) -> Architecture:
    """Return the architecture that a config names by its class or, without one, by its `model_type`."""
    config = ConfigReader(fields, document=document, path=path, architecture="a model")
    model_type = config.optional_text("model_type")
    names = config.optional_list("architectures")
    if names is None or not names:
        for architecture in ARCHITECTURES.values():
            if architecture.model_type == model_type:
                return architecture
        raise _unsupported(config, fields, f"`model_type` = {shown(model_type)}", model_type or "", key="model_type")
    if len(names) > 1:
        raise config.error(
            f"`architectures` names {len(names)} classes; one is needed.", key="architectures", hint="Keep one."
        )
    class_name = names[0]
    if not isinstance(class_name, str) or class_name not in ARCHITECTURES:
        named = class_name if isinstance(class_name, str) else ""
        raise _unsupported(config, fields, f"The architecture {shown(class_name)}", named, key="architectures")
    architecture = ARCHITECTURES[class_name]
    if model_type is not None and model_type not in {architecture.model_type, *architecture.other_model_types}:
        raise config.error(
            f"`model_type` = {shown(model_type)} contradicts `architectures`: {class_name} has "
            f'"{architecture.model_type}".',
            key="model_type",
        )
    return architecture


def _unsupported(config: ConfigReader, fields: Mapping[str, object], what: str, name: str, *, key: str) -> InputError:
    """Return the error of an architecture that cannot be planned, with what its keys tell of it."""
    text = fields.get("text_config")
    keys = {key for part in (fields, text) if isinstance(part, Mapping) for key, value in part.items() if value}
    kinds = [kind for kind, signs in _KINDS if signs & keys]
    reason = f"it is {' and '.join(kinds)} of a class that is not known" if kinds else "it is not known"
    return config.error(
        f"{what} cannot be planned yet: {reason}.",
        key=key,
        hint=f"{suggestion(name, ARCHITECTURES)}Supported are {', '.join(sorted(ARCHITECTURES))}.",
    )


def _tied(config: ConfigReader, text: ConfigReader, *, default: bool) -> bool:
    """Return whether the LM head is the embedding; a multimodal config says it outside of its text part, or twice."""
    outer = config.optional_flag("tie_word_embeddings")
    inner = text.optional_flag("tie_word_embeddings")
    if outer is not None and inner is not None and outer != inner:
        raise text.error(
            f"`tie_word_embeddings` = {shown(inner)} contradicts {shown(outer)} outside of this mapping.",
            key="tie_word_embeddings",
            hint="Keep the one that is right.",
        )
    found = outer if inner is None else inner
    return default if found is None else found


def _with_vision(config: ConfigReader, architecture: Architecture, decoder: Decoder) -> Decoder:
    """Return the model with the tower that `vision_config` describes, if there is one."""
    vision = config.optional_section("vision_config")
    if vision is None or architecture.vision is None:
        return decoder
    tower = architecture.vision(vision, decoder)
    vision.require_inert(INERT)
    vision.refuse_unread(harmless=HARMLESS)
    return replace(decoder, vision=tower)


def _check_quantization(config: ConfigReader) -> None:
    """Refuse weights stored in a way that is not known; known ones leave every shape as it is."""
    for key in ("quantization_config", "compression_config"):
        section = config.optional_section(key)
        if section is None:
            continue
        method = section.optional_text("quant_method")
        if method not in QUANTIZATIONS:
            raise section.error(
                f"`quant_method` = {shown(method)} is not known; it may change shapes.",
                key="quant_method",
                hint=f"Known are {', '.join(QUANTIZATIONS)}. Training needs the shapes of the unquantised model only.",
            )


def _decoder(config: ConfigReader, architecture: Architecture, name: str) -> Decoder:
    """Return what the table of the architecture says about the config."""

    def size(field: str) -> int:
        first, *others = architecture.keys.get(field, (field,))
        return config.size(first, *others, field=field)

    def flag(value: bool | Flag) -> bool:  # noqa: FBT001 - a fact of the table, fixed or read
        return value if isinstance(value, bool) else config.flag(value.key, default=value.default)

    hidden_size = size("hidden_size")
    num_attention_heads = size("num_attention_heads")
    rotary = read_rotary(config, architecture)
    epsilon = None
    if architecture.epsilon_key is not None:
        epsilon = config.optional_number(architecture.epsilon_key, field="norm_epsilon")
    return Decoder(
        name=name,
        architecture=architecture.name,
        hidden_size=hidden_size,
        num_hidden_layers=size("num_hidden_layers"),
        num_attention_heads=num_attention_heads,
        num_key_value_heads=_key_value_heads(config, architecture, num_attention_heads),
        head_dim=_head_dim(config, architecture, hidden_size, num_attention_heads),
        intermediate_size=_intermediate_size(config, architecture, hidden_size),
        vocab_size=size("vocab_size"),
        max_position_embeddings=_max_positions(config, architecture),
        gated=architecture.gated,
        hidden_act=read_activation(config, architecture.activation_key, default=architecture.activation),
        norm=architecture.norm,
        norm_epsilon=architecture.epsilon if epsilon is None else epsilon,
        num_norms=architecture.num_norms,
        num_post_norms=architecture.num_post_norms,
        parallel=architecture.parallel,
        position_embedding=architecture.unrotated if architecture.rotary is None else PositionEmbedding.ROPE,
        rope_theta=rotary.theta,
        rotary_fraction=rotary.fraction,
        rope_scaling=rotary.scaling,
        qkv_bias=flag(architecture.qkv_bias),
        attention_output_bias=flag(architecture.output_bias),
        mlp_bias=flag(architecture.mlp_bias),
        lm_head_bias=flag(architecture.lm_head_bias),
        qk_norm=architecture.qk_norm,
        traits=(*architecture.traits, *rotary.traits),
    )


def _key_value_heads(config: ConfigReader, architecture: Architecture, num_attention_heads: int) -> int | None:
    if architecture.latent:
        require_repeated(config, "num_key_value_heads", num_attention_heads, "the heads of latent attention")
        return None
    if architecture.key_value_heads is KeyValueHeads.OWN:
        return num_attention_heads
    if architecture.key_value_heads is KeyValueHeads.KEY and not config.has("num_key_value_heads"):
        return config.size("num_key_value_heads")
    found = config.optional_size("num_key_value_heads")
    return num_attention_heads if found is None else found


def _head_dim(
    config: ConfigReader, architecture: Architecture, hidden_size: int, num_attention_heads: int
) -> int | None:
    if architecture.latent:
        return None
    if architecture.reads_head_dim:
        keys = architecture.keys.get("head_dim", ("head_dim",))
        found = config.optional_size(*keys, field="head_dim")
        if found is not None:
            return found
        if architecture.head_dim is not None and not any(config.has(key) for key in keys):
            return architecture.head_dim
    if hidden_size % num_attention_heads:
        raise ShapeError(
            f"`hidden_size` = {hidden_size} is not a multiple of the number of attention heads, "
            f"{num_attention_heads}, and there is no `head_dim`.",
            field="num_attention_heads",
        )
    return hidden_size // num_attention_heads


def _intermediate_size(config: ConfigReader, architecture: Architecture, hidden_size: int) -> int | None:
    if not architecture.dense_width:
        return None
    first, *others = architecture.keys.get("intermediate_size", ("intermediate_size",))
    if architecture.intermediate_factor is None:
        return config.size(first, *others, field="intermediate_size")
    found = config.optional_size(first, *others, field="intermediate_size")
    return architecture.intermediate_factor * hidden_size if found is None else found


def _max_positions(config: ConfigReader, architecture: Architecture) -> int:
    first, *others = architecture.keys.get("max_position_embeddings", ("max_position_embeddings",))
    if architecture.max_positions is None:
        return config.size(first, *others, field="max_position_embeddings")
    found = config.optional_size(first, *others, field="max_position_embeddings")
    return architecture.max_positions if found is None else found


def _with_layers(config: ConfigReader, architecture: Architecture, base: Decoder) -> Decoder:
    """Return the model with what its layers have of their own: windows, and what the class reads itself."""
    if architecture.layers is not None:
        return replace(base, layers=joined(architecture.layers(config, base)))
    size = None if architecture.window is None else _window(config, architecture, architecture.window, base)
    default = (FULL if size is None else SLIDING,) * base.num_hidden_layers
    if architecture.window is not None and architecture.window.from_layer:
        first = config.optional_count("max_window_layers", field="num_hidden_layers")
        if size is not None and first is not None:
            default = tuple(SLIDING if layer >= first else FULL for layer in range(base.num_hidden_layers))
    known = (FULL,) if architecture.window is None else (FULL, SLIDING)
    words = layer_words(config, base, known, default=default)
    if size is None and SLIDING in words:
        raise config.error(
            f'`layer_types` holds "{SLIDING}", and no window is in use.',
            key="layer_types",
            hint="Give `sliding_window`, and `use_sliding_window` where the class has it.",
        )
    if size is None or size >= base.max_position_embeddings or SLIDING not in words:
        return base
    if FULL not in words:
        return replace(base, window=size)
    return replace(base, layers=tuple(LayerKind(window=size if word == SLIDING else None) for word in words))


def _window(config: ConfigReader, architecture: Architecture, window: Window, base: Decoder) -> int | None:
    """Return the window that is in use; None without one."""
    used = config.flag("use_sliding_window", default=False) if window.needs_flag else True
    size = config.optional_size("sliding_window", field="window")
    if not config.has("sliding_window"):
        size = window.default
    if used and window.needs_flag and size is None:
        raise config.error(
            f"`use_sliding_window` is true and {architecture.name} has no `sliding_window`.", key="use_sliding_window"
        )
    return size if used and size is not None and size < base.max_position_embeddings else None
