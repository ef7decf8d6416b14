"""Hugging Face `config.json` -> `ModelSpec`, without transformers and without the network.

`planner.schema.architectures` says what each class fixes and what its keys mean; this module reads a config by it.
What changes cost and is not understood is an error that names it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.blocks import Activation, PositionEmbedding
from planner.dense_decoder import DenseDecoder, ShapeError
from planner.documents import Document
from planner.errors import InputError
from planner.schema.architecture import Architecture, Flag, KeyValueHeads, Window
from planner.schema.architectures import ARCHITECTURES, NOT_YET
from planner.schema.common_keys import ACTIVATIONS, HARMLESS, INERT, ROPE_NUMBERS, ROPE_TYPES
from planner.schema.config_reader import ConfigPath, ConfigReader
from planner.schema.translate import shown, suggestion
from planner.specs import ModelSpec

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _RotaryFacts:
    theta: float = 10000.0
    fraction: float = 1.0
    scaling: Mapping[str, float | str]


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
    config.require_inert(architecture.inert)
    try:
        decoder = _decoder(config, architecture, name)
        if architecture.adjust is not None:
            decoder = architecture.adjust(config, decoder)
    except ShapeError as error:
        raise InputError(
            str(error),
            location=config.location_of_field(error.field),
            hint="Use the config.json that was published with the model.",
        ) from None
    _check_layers(config, architecture, decoder)
    config.require_inert(INERT)
    config.refuse_unread(harmless=HARMLESS | architecture.harmless)
    return decoder.spec()


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
    if model_type not in (None, architecture.model_type):
        raise config.error(
            f"`model_type` = {shown(model_type)} contradicts `architectures`: {class_name} has "
            f'"{architecture.model_type}".',
            key="model_type",
            hint="Use the config.json that was published with the model.",
        )
    return architecture


def _unsupported(config: ConfigReader, fields: Mapping[str, object], what: str, name: str, *, key: str) -> InputError:
    """Return the error of an architecture that cannot be planned, with the reason where it is known."""
    text = fields.get("text_config")
    keys = {key for part in (fields, text) if isinstance(part, Mapping) for key, value in part.items() if value}
    kinds = [kind for kind, signs in _KINDS if signs & keys]
    reason = NOT_YET.get(name) or (f"it is {' and '.join(kinds)}" if kinds else None)
    return config.error(
        f"{what} cannot be planned yet: {reason or 'it is not known'}.",
        key=key,
        hint=f"{'' if reason else suggestion(name, ARCHITECTURES)}Supported are {', '.join(sorted(ARCHITECTURES))}.",
    )


def _decoder(config: ConfigReader, architecture: Architecture, name: str) -> DenseDecoder:
    """Return what the table of the architecture says about the config."""

    def size(field: str) -> int:
        first, *others = architecture.keys.get(field, (field,))
        return config.size(first, *others, field=field)

    def flag(value: bool | Flag) -> bool:  # noqa: FBT001 - a fact of the table, fixed or read
        return value if isinstance(value, bool) else config.flag(value.key, default=value.default)

    hidden_size = size("hidden_size")
    num_attention_heads = size("num_attention_heads")
    rotary = _rotary(config, architecture)
    epsilon = None
    if architecture.epsilon_key is not None:
        epsilon = config.optional_number(architecture.epsilon_key, field="norm_epsilon")
    return DenseDecoder(
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
        hidden_act=_activation(config, architecture),
        norm=architecture.norm,
        norm_epsilon=architecture.epsilon if epsilon is None else epsilon,
        position_embedding=PositionEmbedding.LEARNED if architecture.rotary is None else PositionEmbedding.ROPE,
        rope_theta=rotary.theta,
        rotary_fraction=rotary.fraction,
        rope_scaling=rotary.scaling,
        tie_word_embeddings=config.flag("tie_word_embeddings", default=architecture.tied),
        qkv_bias=flag(architecture.qkv_bias),
        attention_output_bias=flag(architecture.output_bias),
        mlp_bias=flag(architecture.mlp_bias),
        lm_head_bias=architecture.lm_head_bias,
        qk_norm=architecture.qk_norm,
        traits=architecture.traits,
    )


def _key_value_heads(config: ConfigReader, architecture: Architecture, num_attention_heads: int) -> int:
    if architecture.key_value_heads is KeyValueHeads.OWN:
        return num_attention_heads
    if architecture.key_value_heads is KeyValueHeads.KEY and not config.has("num_key_value_heads"):
        return config.size("num_key_value_heads")
    found = config.optional_size("num_key_value_heads")
    return num_attention_heads if found is None else found


def _head_dim(config: ConfigReader, architecture: Architecture, hidden_size: int, num_attention_heads: int) -> int:
    if architecture.reads_head_dim:
        found = config.optional_size("head_dim")
        if found is not None:
            return found
        if architecture.head_dim is not None and not config.has("head_dim"):
            return architecture.head_dim
    if num_attention_heads < 1 or hidden_size % num_attention_heads:
        raise ShapeError(
            f"`hidden_size` = {hidden_size} is not a multiple of the number of attention heads, "
            f"{num_attention_heads}, and there is no `head_dim`.",
            field="num_attention_heads",
        )
    return hidden_size // num_attention_heads


def _intermediate_size(config: ConfigReader, architecture: Architecture, hidden_size: int) -> int:
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


def _activation(config: ConfigReader, architecture: Architecture) -> Activation:
    key = architecture.activation_key
    name = config.optional_text(key) or architecture.activation
    if name not in ACTIVATIONS:
        raise config.error(
            f"`{key}` = {shown(name)} is not an activation that can be planned.",
            key=key,
            hint=f"Known are {', '.join(ACTIVATIONS)}.",
        )
    return ACTIVATIONS[name]


def _rotary(config: ConfigReader, architecture: Architecture) -> _RotaryFacts:
    """Return the rotary embedding, from `rope_theta` and `rope_scaling` or from the newer `rope_parameters`."""
    rotary = architecture.rotary
    if rotary is None:
        return _RotaryFacts(scaling={})
    theta = config.optional_number(rotary.theta_key, *_other("rope_theta", rotary.theta_key), field="rope_theta")
    fraction = None
    if rotary.fraction_key is not None:
        fraction = config.optional_number(
            rotary.fraction_key, *_other("partial_rotary_factor", rotary.fraction_key), field="rotary_fraction"
        )
    scaling: dict[str, float | str] = {}
    for key in ("rope_scaling", "rope_parameters"):
        section = config.optional_section(key)
        if section is not None:
            inner_theta = section.optional_number("rope_theta")
            inner_fraction = section.optional_number("partial_rotary_factor")
            theta = _agreed(section, "rope_theta", theta, inner_theta)
            fraction = _agreed(section, "partial_rotary_factor", fraction, inner_fraction)
            scaling |= _rope_scaling(section)
    if rotary.fraction_key is None and fraction not in (None, 1.0):
        raise config.error(
            f"`partial_rotary_factor` = {fraction}: {architecture.name} rotates whole heads.",
            key="rope_parameters",
            hint="Use the config.json that was published with the model.",
        )
    return _RotaryFacts(
        theta=10000.0 if theta is None else theta,
        fraction=rotary.fraction if fraction is None else fraction,
        scaling=scaling,
    )


def _other(name: str, key: str) -> tuple[str, ...]:
    return () if name == key else (name,)


def _agreed(section: ConfigReader, key: str, outer: float | None, inner: float | None) -> float | None:
    """Return the one value that is given; two must be equal."""
    if outer is not None and inner is not None and outer != inner:
        raise section.error(
            f"`{key}` = {inner} contradicts {outer} outside of this mapping.",
            key=key,
            hint="Keep the one that is right.",
        )
    return outer if inner is None else inner


def _rope_scaling(section: ConfigReader) -> dict[str, float | str]:
    """Return a scaling's type and numbers; the factors by frequency of longrope are not kept."""
    name = section.optional_text("rope_type", "type") or "default"
    kind = "longrope" if name == "su" else name
    if kind not in ROPE_TYPES:
        raise section.error(
            f"`rope_type` = {shown(name)} is not understood.",
            key=section.key_of("rope_type"),
            hint=f"Known are {', '.join(ROPE_TYPES)}.",
        )
    section.optional_list("short_factor")
    section.optional_list("long_factor")
    section.flag("truncate", default=True)
    numbers = {key: section.optional_number(key) for key in ROPE_NUMBERS}
    section.refuse_unread(harmless=frozenset())
    if kind == "default":
        return {}
    return {"rope_type": kind, **{key: number for key, number in numbers.items() if number is not None}}


def _check_layers(config: ConfigReader, architecture: Architecture, decoder: DenseDecoder) -> None:
    """Refuse windows that attention uses, and layers of other types."""
    if architecture.window is not None:
        _check_window(config, architecture, architecture.window, decoder)
    types = config.optional_list("layer_types")
    if types is None:
        return
    if len(types) != decoder.num_hidden_layers:
        raise config.error(
            f"`layer_types` names {len(types)} layers, `num_hidden_layers` = {decoder.num_hidden_layers}.",
            key="layer_types",
            hint="Use the config.json that was published with the model.",
        )
    others = [kind for kind in types if kind != "full_attention"]
    if others:
        raise config.error(
            f"`layer_types` holds {shown(others[0])}, which cannot be planned yet.",
            key="layer_types",
            hint="Models whose layers are all full_attention can be planned.",
        )


def _check_window(config: ConfigReader, architecture: Architecture, window: Window, decoder: DenseDecoder) -> None:
    used = config.flag("use_sliding_window", default=False) if window.needs_flag else True
    size = config.optional_size("sliding_window")
    given = config.has("sliding_window")
    if not given:
        size = window.default
    if not used or size is None or size >= decoder.max_position_embeddings:
        return
    if given:
        raise config.error(
            f"`sliding_window` = {size} is shorter than the longest sequence, {decoder.max_position_embeddings}: "
            "attention in a window cannot be planned yet.",
            key="sliding_window",
            hint="Models whose `sliding_window` is null can be planned.",
        )
    raise config.error(
        f"`sliding_window` is missing, which means {size} tokens for {architecture.name}: "
        "attention in a window cannot be planned yet.",
        hint='If the model has no window, write "sliding_window": null.',
    )
