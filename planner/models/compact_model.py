"""A model in our own compact words -> `Decoder`; bundled models and inline models are written alike.

The keys are the fields of `planner.models.decoder.Decoder`. Its parts are nested mappings (`latent_attention`,
`state_space`, `linear_attention`, `experts`). Where layers differ, `kinds` gives each kind of layer a letter and says
what it has instead of what stands outside, and `layers` spells the chain: `"d*3 e*58"`, or `"(s*5 f)*5"`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from planner.models.blocks import (
    Activation,
    DenseFeedForward,
    LatentAttention,
    LinearAttention,
    LinearRule,
    MixtureOfExperts,
    QueryKeyNorm,
    Router,
    RouterScore,
    SparseIndexer,
    StateSpace,
)
from planner.models.decoder import Decoder, FeedForwardKind, LayerKind, MixerKind
from planner.models.sizes import MAX_SIZES, ShapeError, check_experts_per_token
from planner.models.specs import VisionTower

_GROUP = re.compile(r"(?:([A-Za-z])|\(([A-Za-z*0-9 ]+)\))(?:\*([0-9]{1,4}))? *")


def decoder_of(facts: Mapping[str, Any]) -> Decoder:
    """Return the model of a mapping whose values already have their types.

    Args:
        facts: Fields of `Decoder`, with parts, kinds and layers as in the compact form.

    Raises:
        ShapeError: No model has such sizes.
    """
    rest = dict(facts)
    kinds = {letter: _kind(kind) for letter, kind in (rest.pop("kinds", None) or {}).items()}
    chain, mtp_layer = rest.pop("layers", None), rest.pop("mtp_layer", None)
    parts: dict[str, Any] = {}
    for name, build in _BUILDERS.items():
        given = rest.pop(name, None)
        parts[name] = None if given is None else build(given, facts)
    if chain is None and (kinds or mtp_layer):
        raise ShapeError("`kinds` needs `layers`, which says where each kind stands.", field="kinds")
    layers = () if chain is None else spelled_layers(chain, kinds)
    return Decoder(
        **rest, **parts, layers=layers, mtp_layer=None if mtp_layer is None else _of_letter(mtp_layer, kinds)
    )


def spelled_layers(chain: str, kinds: Mapping[str, LayerKind]) -> tuple[LayerKind, ...]:
    """Return the layers that a chain of letters spells.

    Args:
        chain: Letters, each with how often it repeats if it does; groups in parentheses repeat as a whole.
        kinds: What each letter stands for.
    """
    return tuple(_of_letter(letter, kinds) for letter in _letters(chain, most=MAX_SIZES["num_hidden_layers"]))


def _letters(chain: str, *, most: int) -> str:
    """Return a chain with every repetition written out."""
    found: list[str] = []
    position = 0
    text = chain.strip()
    while position < len(text):
        match = _GROUP.match(text, position)
        if match is None:
            raise ShapeError(
                f"`layers` cannot be read from {text[position : position + 10]!r} on; "
                "write letters, repetitions such as d*3, and groups such as (sf)*12.",
                field="layers",
            )
        letter, group, times = match.groups()
        inside = letter or _letters(group, most=most)
        found.append(inside * min(int(times or 1), most + 1))
        position = match.end()
        if sum(map(len, found)) > most:
            raise ShapeError(f"`layers` spells more than {most:,} layers.", field="layers")
    return "".join(found)


def _of_letter(letter: str, kinds: Mapping[str, LayerKind]) -> LayerKind:
    if letter not in kinds:
        raise ShapeError(
            f"`kinds` does not say what the letter {letter!r} stands for; it knows {', '.join(kinds) or 'none'}.",
            field="kinds",
        )
    return kinds[letter]


def _kind(facts: Mapping[str, Any]) -> LayerKind:
    words: dict[str, Any] = {"mixer": MixerKind, "feed_forward": FeedForwardKind, "qk_norm": QueryKeyNorm}
    return LayerKind(**{key: words[key](value) if key in words else value for key, value in facts.items()})


def _latent_attention(facts: Mapping[str, Any], model: Mapping[str, Any]) -> LatentAttention:
    rest = dict(facts)
    indexer = rest.pop("indexer", None)
    return LatentAttention(
        num_attention_heads=model["num_attention_heads"],
        q_lora_rank=rest.pop("q_lora_rank", None),
        **rest,
        indexer=None if indexer is None else SparseIndexer(**indexer),
    )


def _state_space(facts: Mapping[str, Any], _model: Mapping[str, Any]) -> StateSpace:
    return StateSpace(**facts)


def _linear_attention(facts: Mapping[str, Any], _model: Mapping[str, Any]) -> LinearAttention:
    return LinearAttention(**{**facts, "rule": LinearRule(facts["rule"])})


def _vision(facts: Mapping[str, Any], _model: Mapping[str, Any]) -> VisionTower:
    return VisionTower(**facts)


def _experts(facts: Mapping[str, Any], model: Mapping[str, Any]) -> MixtureOfExperts:
    """Return experts, whose gate, activation and bias are the model's."""
    rest = dict(facts)
    common = {
        "gated": model.get("gated", True),
        "activation": model.get("hidden_act", Activation.SILU),
        "bias": model.get("mlp_bias", False),
    }
    router = dict(rest.pop("router", None) or {})
    if "score" in router:
        router["score"] = RouterScore(router["score"])
    width, shared = rest.pop("intermediate_size"), rest.pop("shared_intermediate_size", None)
    check_experts_per_token(rest["experts_per_token"], rest["num_experts"])
    return MixtureOfExperts(
        **rest,
        expert=DenseFeedForward(intermediate_size=width, **common),
        router=Router(**router),
        shared=None if shared is None else DenseFeedForward(intermediate_size=shared, **common),
    )


_BUILDERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], object]] = {
    "latent_attention": _latent_attention,
    "state_space": _state_space,
    "linear_attention": _linear_attention,
    "experts": _experts,
    "vision": _vision,
}
"""What builds each part, from its own mapping and the model's."""
