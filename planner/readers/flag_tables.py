"""The flags that each version of a framework's own parser takes: data extracted from those parsers.

A file of `planner/data/flags` is one framework at one version, written by the command that the README of that folder
names; nothing in it is written by hand. What two versions tell together, such as a flag that is gone, is worked out
here and nowhere stored.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path

from planner.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "data" / "flags"
"""Found by this file's own place: `importlib.resources` brings temporary files and archives along."""


class Framework(StrEnum):
    """Frameworks whose files are read and judged."""

    MEGATRON = "megatron"
    DEEPSPEED = "deepspeed"
    VLLM = "vllm"


TITLES = {Framework.MEGATRON: "Megatron-LM", Framework.DEEPSPEED: "DeepSpeed", Framework.VLLM: "vLLM"}
"""The frameworks' own spelling."""

ABBREVIATES = {Framework.MEGATRON: False, Framework.VLLM: True}
"""Whether the parser takes the beginning of a flag for the flag (`allow_abbrev` of argparse)."""


class FlagKind(StrEnum):
    """What a flag does with what follows it."""

    VALUE = "value"
    TRUE = "true"
    FALSE = "false"
    CONST = "const"
    APPEND = "append"
    BOOLEAN_OPTIONAL = "boolean_optional"
    POSITIONAL = "positional"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagSpec:
    """One flag of a parser.

    Args:
        names: Its spellings, the first one the one to write.
        dest: The name under which the framework keeps its value.
        kind: What it does with what follows it.
        nargs: How many values follow, as argparse has it: None for one, "?", "*", "+" or a number.
        type_name: str, int, float, bool, json, or the function that converts the text.
        choices: The values that are allowed; None for any.
        default: What stands where the flag does not; a text where it is no JSON value.
        deprecated: What the parser says of it, if it is going away.
    """

    names: tuple[str, ...]
    dest: str
    kind: FlagKind
    nargs: str | int | None
    type_name: str
    choices: tuple[str, ...] | None
    default: object
    deprecated: str = ""

    @property
    def name(self) -> str:
        """Return the spelling to write: the longest with two dashes, which says what it is."""
        long = [name for name in self.names if name.startswith("--")]
        return long[0] if long else self.names[0] if self.names else self.dest


@dataclass(frozen=True)
class FlagTable:
    """The flags of one framework at one version."""

    framework: Framework
    version: str
    flags: tuple[FlagSpec, ...]

    @cached_property
    def by_name(self) -> Mapping[str, FlagSpec]:
        """Return each spelling's flag."""
        return {name: flag for flag in self.flags for name in flag.names}

    @cached_property
    def by_folded_name(self) -> Mapping[str, tuple[str, ...]]:
        """Return the spellings that differ only in case, and in dashes for underscores."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.by_name:
            folded = name.replace("_", "-").lower()
            found[folded] = (*found.get(folded, ()), name)
        return found

    @cached_property
    def by_dest(self) -> Mapping[str, tuple[FlagSpec, ...]]:
        """Return the flags that write each value."""
        found: dict[str, tuple[FlagSpec, ...]] = {}
        for flag in self.flags:
            found[flag.dest] = (*found.get(flag.dest, ()), flag)
        return found

    @cached_property
    def defaults(self) -> Mapping[str, object]:
        """Return what each value is where no flag writes it; the first flag of a value decides, as in argparse."""
        return {dest: flags[0].default for dest, flags in self.by_dest.items()}


def version_key(version: str) -> tuple[int, ...]:
    """Return what versions are ordered by."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


@cache
def versions(framework: Framework) -> tuple[str, ...]:
    """Return the versions that there are tables of, the newest first."""
    prefix, suffix = f"{framework}-", ".json"
    names = [entry.name for entry in FOLDER.iterdir()]
    found = [name[len(prefix) : -len(suffix)] for name in names if name.startswith(prefix) and name.endswith(suffix)]
    return tuple(sorted(found, key=version_key, reverse=True))


def chosen_version(framework: Framework, asked: str | None) -> str:
    """Return the version that `asked` names, which may leave out its last parts; the newest where nothing is asked.

    Raises:
        InputError: There is no table of such a version.
    """
    known = versions(framework)
    if asked is None:
        return known[0]
    parts = asked.removeprefix("v").split(".")
    for version in known:
        if version.split(".")[: len(parts)] == parts:
            return version
    raise InputError(
        f"There is no table of {TITLES[framework]} {asked}.", hint=f"Versions with a table: {', '.join(known)}."
    )


@cache
def raw_table(framework: Framework, version: str) -> Mapping[str, object]:
    """Return the file of a framework at a version, as it stands."""
    text = (FOLDER / f"{framework}-{version}.json").read_text(encoding="utf-8")
    table: Mapping[str, object] = json.loads(text)
    return table


def versions_with(framework: Framework, flag: str) -> tuple[str, ...]:
    """Return the versions whose command takes a flag, the newest first."""
    return tuple(version for version in versions(framework) if flag in flag_table(framework, version).by_name)


@cache
def flag_table(framework: Framework, version: str) -> FlagTable:
    """Return the flags of a command-line framework at a version that `versions` lists."""
    entries = raw_table(framework, version)["flags"]
    if not isinstance(entries, list):
        raise TypeError(f"{framework}-{version}.json holds no list of flags")
    return FlagTable(framework=framework, version=version, flags=tuple(_flag(entry) for entry in entries))


def _flag(entry: Mapping[str, object]) -> FlagSpec:
    names, choices, nargs = entry["names"], entry["choices"], entry["nargs"]
    if not isinstance(names, list) or not isinstance(choices, list | None) or not isinstance(nargs, str | int | None):
        raise TypeError(f"a flag is damaged: {entry}")
    return FlagSpec(
        names=tuple(str(name) for name in names),
        dest=str(entry["dest"]),
        kind=FlagKind(str(entry["kind"])),
        nargs=nargs,
        type_name=str(entry["type"]),
        choices=None if choices is None else tuple(str(choice) for choice in choices),
        default=entry["default"],
        deprecated=str(entry.get("deprecated", "")),
    )
