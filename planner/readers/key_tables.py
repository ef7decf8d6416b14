"""The keys of DeepSpeed's JSON at each version: data extracted from DeepSpeed's own source.

A key is written as the tables of `planner/data/flags` hold it. A section that refuses unknown keys is one that
DeepSpeed hands to a pydantic model: only there it checks kinds and bounds, and only there "auto" stands for an absent
key. Everywhere else it takes what it finds, and a wrong kind shows later or not at all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from planner.readers.flag_tables import Framework, raw_table

IGNORE_KEY = "_shardwright_ignore"
"""A key at the top that DeepSpeed does not look at; `planner.validation.suppressions` reads it."""

TRUTHS = frozenset({"0", "off", "f", "false", "n", "no", "1", "on", "t", "true", "y", "yes"})
"""Texts that pydantic takes for a truth value, in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """One key.

    Args:
        name: The key.
        kinds: What it takes: integer, number, boolean, string, array, object; nothing where the source does not say.
        nullable: Null is taken too.
        choices: The values that are allowed; None for any.
        minimum: The least value.
        maximum: The greatest value.
        above: What the value must exceed.
        below: What the value must stay under.
        default: What stands where the key does not.
        section: The keys inside; None for a key that is no section.
        forbids_unknown: Other keys inside are refused, and kinds and bounds are checked.
        alias_of: The name of the field that this is another name of.
        deprecated: What DeepSpeed says of it, if it is going away.
        new_name: The key that replaces it.
        removed: The words with which DeepSpeed refuses it.
    """

    name: str
    kinds: tuple[str, ...] = ()
    nullable: bool = False
    choices: tuple[object, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    default: object = None
    section: "Mapping[str, KeySpec] | None" = None
    forbids_unknown: bool = False
    alias_of: str = ""
    deprecated: str = ""
    new_name: str = ""
    removed: str = ""

    @property
    def field(self) -> str:
        """Return the name of the field, which may have several keys."""
        return self.alias_of or self.name

    @property
    def wanted(self) -> str:
        """Return what the key takes, in words."""
        words = {
            "integer": "a whole number",
            "number": "a number",
            "boolean": "true or false",
            "string": "a text",
            "array": "a list",
            "object": "a section",
        }
        return " or ".join(words[kind] for kind in self.kinds) or "anything"

    def takes(self, value: object) -> bool:
        """Return whether pydantic would make a value of the key's kind of this one."""
        if value is None:
            return self.nullable or not self.kinds
        return not self.kinds or any(is_of_kind(value, kind) for kind in self.kinds)

    def is_within(self, value: float) -> bool:
        """Return whether a number keeps the bounds."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def bounds(self) -> str:
        """Return the bounds in words."""
        found = (
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in found if bound is not None)


@dataclass(frozen=True)
class KeyTable:
    """The keys of DeepSpeed's JSON at one version."""

    version: str
    keys: Mapping[str, KeySpec]

    def at(self, path: tuple[str, ...]) -> KeySpec | None:
        """Return the key at a path, if this version has it."""
        keys: Mapping[str, KeySpec] | None = self.keys
        found: KeySpec | None = None
        for part in path:
            found = None if keys is None else keys.get(part)
            keys = None if found is None else found.section
        return found

    def names(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Return every name of the key at a path, the given one first."""
        found = self.at(path)
        parent = self.keys if len(path) == 1 else getattr(self.at(path[:-1]), "section", None)
        if found is None or parent is None:
            return (path[-1],)
        others = (name for name, key in parent.items() if key.field == found.field and name != path[-1])
        return (path[-1], *others)


def is_of_kind(value: object, kind: str) -> bool:
    """Return whether pydantic, which converts, takes a value for a kind (its "conversion table", JSON input, lax)."""
    number = number_of(value)
    match kind:
        case "boolean":
            return str(value).lower() in TRUTHS if isinstance(value, str) else number in {0, 1}
        case "integer":
            return number is not None and number == int(number)
        case "number":
            return number is not None
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def number_of(value: object) -> float | None:
    """Return the number that pydantic makes of a value; None where it makes none."""
    if isinstance(value, str):
        plain = value.strip().replace("_", "")
        digits = plain.lstrip("+-").replace(".", "", 1)
        return float(plain) if digits.isdecimal() and digits.isascii() else None
    return float(value) if isinstance(value, bool | int | float) else None


@cache
def key_table(version: str) -> KeyTable:
    """Return the keys at a version that `flag_tables.versions` lists."""
    keys = raw_table(Framework.DEEPSPEED, version)["keys"]
    if not isinstance(keys, dict):
        raise TypeError(f"deepspeed-{version}.json holds no keys")
    return KeyTable(version=version, keys={name: _key(name, key) for name, key in keys.items()})


def _key(name: str, entry: Mapping[str, object]) -> KeySpec:
    kinds, section, choices = entry.get("type"), entry.get("section"), entry.get("choices")
    if not isinstance(section, dict | None) or not isinstance(choices, list | None):
        raise TypeError(f"the key {name} is damaged: {json.dumps(entry)[:80]}")
    return KeySpec(
        name=name,
        kinds=()
        if kinds is None
        else tuple(str(kind) for kind in ([kinds] if isinstance(kinds, str) else _list(kinds))),
        nullable=bool(entry.get("nullable")),
        choices=None if choices is None else tuple(choices),
        minimum=_bound(entry.get("minimum")),
        maximum=_bound(entry.get("maximum")),
        above=_bound(entry.get("exclusive_minimum")),
        below=_bound(entry.get("exclusive_maximum")),
        default=entry.get("default"),
        section=None if section is None else {inner: _key(inner, key) for inner, key in section.items()},
        forbids_unknown=bool(entry.get("forbids_unknown")),
        alias_of=str(entry.get("alias_of", "")),
        deprecated=str(entry.get("deprecated", "")),
        new_name=str(entry.get("new_name", "")),
        removed=str(entry.get("removed", "")),
    )


def _list(kinds: object) -> list[object]:
    if not isinstance(kinds, list):
        raise TypeError(f"{kinds!r} is no list of kinds")
    return kinds


def _bound(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
