"""The rotary embedding of a Hugging Face config, by its old and its new names.

Older configs say `rope_theta` and `rope_scaling`, newer ones `rope_parameters`, which may hold one mapping for each
kind of layer. None of it changes a cost; emitters write it down.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.models.specs import Trait
from planner.schema.architecture import Architecture
from planner.schema.architectures.parts import FULL, SLIDING
from planner.schema.common_keys import ROPE_NUMBERS, ROPE_TYPES
from planner.schema.config_reader import ConfigReader
from planner.schema.translate import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryFacts:
    """A rotary embedding.

    Args:
        theta: Its base.
        fraction: The part of each head that is rotated.
        scaling: Its scaling; empty without one.
        traits: What else an emitter must express.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    scaling: Mapping[str, float | str] = field(default_factory=dict)
    traits: tuple[Trait, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """What one mapping says; None where it says nothing."""

    theta: float | None
    fraction: float | None
    scaling: Mapping[str, float | str]
    multimodal: bool


def read_rotary(config: ConfigReader, architecture: Architecture) -> RotaryFacts:
    """Return the rotary embedding of a model; that of its layers with full attention where layers differ."""
    rotary = architecture.rotary
    if rotary is None:
        return RotaryFacts()
    theta = config.optional_number(rotary.theta_key, *_other("rope_theta", rotary.theta_key), field="rope_theta")
    fraction = None
    if rotary.fraction_key is not None:
        fraction = config.optional_number(
            rotary.fraction_key, *_other("partial_rotary_factor", rotary.fraction_key), field="rotary_fraction"
        )
    scaling: dict[str, float | str] = {}
    traits: tuple[Trait, ...] = ()
    for key in ("rope_scaling", "rope_parameters"):
        section = config.optional_section(key)
        if section is None:
            continue
        if section.has(FULL):
            section, by_layer = _by_layer(section)
            traits += (Trait.ROTARY_BY_LAYER,) if by_layer else ()
        found = _section(section)
        theta = _agreed(section, "rope_theta", theta, found.theta)
        fraction = _agreed(section, "partial_rotary_factor", fraction, found.fraction)
        scaling |= found.scaling
        traits += (Trait.MULTIMODAL_ROTARY,) if found.multimodal else ()
    if rotary.fraction_key is None and fraction not in (None, 1.0):
        raise config.error(
            f"`partial_rotary_factor` = {fraction}: {architecture.name} rotates whole heads.", key="rope_parameters"
        )
    return RotaryFacts(
        theta=rotary.theta if theta is None else theta,
        fraction=rotary.fraction if fraction is None else fraction,
        scaling=scaling,
        traits=tuple(dict.fromkeys(traits)),
    )


def _other(name: str, key: str) -> tuple[str, ...]:
    return () if name == key else (name,)


def _by_layer(section: ConfigReader) -> tuple[ConfigReader, bool]:
    """Return the mapping of layers with full attention, and whether that of layers with a window says otherwise."""
    full = section.section(FULL)
    sliding = section.optional_section(SLIDING)
    section.refuse_unread(harmless=frozenset())
    if sliding is None:
        return full, False
    return full, _section(sliding) != _section(section.section(FULL))


def _agreed(section: ConfigReader, key: str, outer: float | None, inner: float | None) -> float | None:
    """Return the one value that is given; two must be equal."""
    if outer is not None and inner is not None and outer != inner:
        raise section.error(
            f"`{key}` = {inner} contradicts {outer} outside of this mapping.",
            key=key,
            hint="Keep the one that is right.",
        )
    return outer if inner is None else inner


def _section(section: ConfigReader) -> _Section:
    """Return what a mapping says; the factors by frequency of longrope are not kept."""
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
    parts = section.optional_sizes("mrope_section")
    section.flag("mrope_interleaved", default=False)
    theta = section.optional_number("rope_theta")
    fraction = section.optional_number("partial_rotary_factor")
    numbers = {key: section.optional_number(key) for key in ROPE_NUMBERS}
    section.refuse_unread(harmless=frozenset())
    scaling: dict[str, float | str] = {}
    if kind != "default":
        scaling = {"rope_type": kind, **{key: number for key, number in numbers.items() if number is not None}}
    return _Section(theta=theta, fraction=fraction, scaling=scaling, multimodal=parts is not None)
