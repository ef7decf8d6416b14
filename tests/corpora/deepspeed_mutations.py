"""Configurations that differ from a sound one in one key: half of them near misses, all from one seed.

A near miss is a number one step away or a neighbour of a divisor, a key misspelt by one letter or put one section off,
a key dropped, a switch turned. The others give a key of the table a value: of its kind or of another, inside its bounds
or outside.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from planner.readers.flag_tables import Framework, chosen_version
from planner.readers.key_tables import KeySpec, key_table
from tests.corpora.deepspeed_bases import Base, bases

VERSION = chosen_version(Framework.DEEPSPEED, None)
SEED = 20261122
COUNT = 400

Path = tuple[str, ...]
Mutate = Callable[[random.Random, dict[str, Any], Path], str]

OUTSIDE = frozenset({"autotuning", "data_efficiency", "weight_quantization", "hybrid_engine", "comet", "wandb"})
"""Sections that have nothing to do with a layout, and too many keys: they would be most of what is drawn."""

UNKNOWN = "an_own_key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A configuration that differs from a sound one in one key.

    Args:
        base: The sound one.
        change: What was done, in words.
        near: It is a near miss.
        config: The configuration.
    """

    base: Base
    change: str
    near: bool
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return what names it."""
        return f"{self.base.name}: {self.change}"


def unchanged(base: Base) -> Mutation:
    """Return a sound configuration as it is."""
    return Mutation(base=base, change="unchanged", near=False, config=base.config)


@cache
def mutations() -> tuple[Mutation, ...]:
    """Return the corpus; a configuration that comes up twice is drawn again."""
    chance = random.Random(SEED)
    found: dict[str, Mutation] = {}
    sound = bases()
    while len(found) < COUNT:
        near = len(found) % 2 == 0
        base = chance.choice(sound)
        config = deepcopy(dict(base.config))
        change = (_near if near else _far)(chance, config)
        text = f"{base.name} {json.dumps(config, sort_keys=True)}"
        if change and config != base.config and text not in found:
            found[text] = Mutation(base=base, change=change, near=near, config=config)
    return tuple(found.values())


def _near(chance: random.Random, config: dict[str, Any]) -> str:
    """Change one key that is there by a little, and return what was done; nothing where it cannot be done."""
    paths = list(_paths(config))
    path = chance.choice(paths)
    mutate = chance.choice((_stepped, _stepped, _stepped, _misspelt, _dropped, _moved))
    return mutate(chance, config, path)


def _far(chance: random.Random, config: dict[str, Any]) -> str:
    """Give a key of the table a value, and return what was done."""
    keys = [(path, spec) for path, spec in _keys() if _parent_is_there(config, path)]
    path, spec = chance.choice(keys)
    value = chance.choice(_values(spec))
    section = config
    for part in path[:-1]:
        section = section.setdefault(part, {})
    section[path[-1]] = value
    return f"{'.'.join(path)} = {json.dumps(value)}"


def _paths(section: Mapping[str, Any], above: Path = ()) -> Iterator[Path]:
    for key, value in section.items():
        yield (*above, key)
        if isinstance(value, dict) and key not in {"params", "partition_config"}:
            yield from _paths(value, (*above, key))


def _parent(config: dict[str, Any], path: Path) -> dict[str, Any]:
    section = config
    for part in path[:-1]:
        section = section[part]
    return section


def _stepped(chance: random.Random, config: dict[str, Any], path: Path) -> str:
    """Turn a switch, take a neighbour of a number, or another word."""
    section, key = _parent(config, path), path[-1]
    value = section[key]
    if isinstance(value, bool):
        section[key] = not value
    elif isinstance(value, int):
        section[key] = chance.choice((value - 1, value + 1, value * 2, value // 2, value * 3, -value, 0))
    elif isinstance(value, float):
        section[key] = chance.choice((value * 2, -value, int(value), str(value)))
    elif isinstance(value, str):
        section[key] = chance.choice((value.upper(), value.lower(), value[:-1], f"{value}2", "none", "cpu", "fp16"))
    else:
        return ""
    return f"{'.'.join(path)} {json.dumps(value)} -> {json.dumps(section[key])}"


def _misspelt(chance: random.Random, config: dict[str, Any], path: Path) -> str:
    section, key = _parent(config, path), path[-1]
    at = chance.randrange(1, len(key))
    new = chance.choice((key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key.replace("_", "-"), key.title()))
    if new in section or new == key:
        return ""
    section[new] = section.pop(key)
    return f"{'.'.join(path)} is written {new}"


def _dropped(_: random.Random, config: dict[str, Any], path: Path) -> str:
    del _parent(config, path)[path[-1]]
    return f"{'.'.join(path)} is dropped"


def _moved(chance: random.Random, config: dict[str, Any], path: Path) -> str:
    """Move a key to the top, or from the top into a section."""
    section, key = _parent(config, path), path[-1]
    sections = [name for name, value in config.items() if isinstance(value, dict) and name != key]
    target = config if len(path) > 1 else config[chance.choice(sections)]
    if key in target:
        return ""
    target[key] = section.pop(key)
    return f"{'.'.join(path)} is moved to {'the top' if target is config else 'a section'}"


@cache
def _keys() -> tuple[tuple[Path, KeySpec], ...]:
    """Return every key of the table that has to do with a layout."""

    def below(keys: Mapping[str, KeySpec], above: Path) -> Iterator[tuple[Path, KeySpec]]:
        for name, spec in keys.items():
            if not above and name in OUTSIDE:
                continue
            yield (*above, name), spec
            if spec.section is not None and (above, name) != ((), "leaf_module"):
                yield from below(spec.section, (*above, name))

    return tuple(below(key_table(VERSION).keys, ()))


def _parent_is_there(config: Mapping[str, Any], path: Path) -> bool:
    section: Any = config
    for part in path[:-1]:
        section = section.get(part) if isinstance(section, dict) else None
    return isinstance(section, dict)


def _values(spec: KeySpec) -> tuple[object, ...]:
    """Return values that a key may be given: sound ones and others, twice as often for layouts."""
    if spec.section is not None:
        return ({}, None, True, [], {UNKNOWN: 1}, {"enabled": True})
    kinds: dict[str, tuple[object, ...]] = {
        "boolean": (True, False, "true", 1, 2, None),
        "integer": (0, 1, 2, 3, 4, 8, 16, -1, 2.5, "8", "8.5", True, None),
        "number": (0, 0.5, 1, 2, -1, "0.5", "half", None),
        "string": ("", "fp32", "bf16", "cpu", "mean", 3, None),
        "array": ([], ["x"], "x", 1),
        "object": ({}, "x", 1, None),
    }
    chosen = tuple(value for kind in spec.kinds for value in kinds[kind])
    return (*(spec.choices or ()), *chosen) or (True, 1, "x")
