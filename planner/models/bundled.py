"""The models that can be named without a file: their facts, where these come from, and their other names.

The facts stand in `planner/data/models`, one file a family, in the words of an inline model; what a file leaves out
is the default of `planner.models.decoder.Decoder`. The data is ours and is checked by the tests, so it is read
without a schema.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from planner.models.blocks import Activation, Norm, PositionEmbedding, QueryKeyNorm
from planner.models.compact_model import decoder_of
from planner.models.decoder import Decoder
from planner.models.specs import ModelSpec, Trait

_WORDS = {
    "hidden_act": Activation,
    "norm": Norm,
    "position_embedding": PositionEmbedding,
    "qk_norm": QueryKeyNorm,
}
"""Keys whose values are words of a closed set."""


_NOT_INLINE = frozenset({"source", "aliases", "architecture"})
"""Keys that an inline model does not have: they say where the facts come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledModel:
    """One bundled model.

    Args:
        decoder: Its facts.
        aliases: Other names, Hugging Face repositories among them.
        source: Where the facts are published.
        facts: The same in the words of an inline model, so that they can be edited and given as `model:`.
    """

    decoder: Decoder
    aliases: tuple[str, ...]
    source: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the name that it is listed under."""
        return self.decoder.name


def model_names() -> tuple[str, ...]:
    """Return the names of the bundled models, in order."""
    return tuple(_models())


def bundled_models() -> tuple[BundledModel, ...]:
    """Return every bundled model, in order of its name."""
    return tuple(_models().values())


def find_bundled(name: str) -> BundledModel | None:
    """Return the model with this name or alias, upper and lower case being the same; None if there is none."""
    return _by_any_name().get(name.casefold())


def nearest_names(name: str) -> tuple[str, ...]:
    """Return at most three bundled names that look like `name`, best first."""
    wanted = name[:200].casefold()
    known = {key: model.name for key, model in _by_any_name().items()}
    close = difflib.get_close_matches(wanted, known, n=9, cutoff=0.6)
    if "/" in wanted:
        close += difflib.get_close_matches(wanted.rpartition("/")[2], known, n=9, cutoff=0.6)
    return tuple(dict.fromkeys(known[key] for key in close))[:3]


def load_bundled(name: str) -> ModelSpec:
    """Return the bundled model with this name or alias.

    Raises:
        KeyError: There is none; `find_bundled` asks without raising.
    """
    return _by_any_name()[name.casefold()].decoder.spec()


@cache
def _models() -> Mapping[str, BundledModel]:
    """Return every bundled model by name."""
    found: dict[str, BundledModel] = {}
    for file in (resources.files("planner") / "data" / "models").iterdir():
        if file.name.endswith(".json"):
            for name, facts in json.loads(file.read_text(encoding="utf-8")).items():
                found[name] = _model(name, facts)
    return MappingProxyType(dict(sorted(found.items())))


@cache
def _by_any_name() -> Mapping[str, BundledModel]:
    """Return every bundled model by each of its names, in lower case."""
    return MappingProxyType(
        {key.casefold(): model for model in _models().values() for key in (model.name, *model.aliases)}
    )


def _model(name: str, facts: dict[str, Any]) -> BundledModel:
    """Return one model from its JSON mapping."""
    rest = dict(facts)
    source, aliases = rest.pop("source"), tuple(rest.pop("aliases"))
    for key, kind in _WORDS.items():
        if key in rest:
            rest[key] = kind(rest[key])
    rest["traits"] = tuple(Trait(trait) for trait in rest.get("traits", ()))
    spoken = {key: value for key, value in facts.items() if key not in _NOT_INLINE}
    decoder = decoder_of({"name": name, **rest})
    inline = MappingProxyType({"name": name, **spoken})
    return BundledModel(decoder=decoder, aliases=aliases, source=source, facts=inline)
