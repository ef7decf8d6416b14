"""What an argparse parser takes, as a table of flags. Runs in the frameworks' own environments: standard library alone.

A table is `{"flags": [...], "framework": name, "package": requirement, "version": text}`, written with sorted keys and
one flag a line, in the order of their names, so that two versions compare line by line. A flag holds:

- `names`: every spelling, the parser's first one first; a positional argument has its `dest` instead;
- `dest`, `required`, and `nargs` as argparse has it: null (one word), 0, "?", "*", "+" or a count;
- `kind`: value | true | false | const | append | boolean_optional | positional | other (an action of the framework's
  own, which `nargs` says what it takes);
- `type`: what a word is converted by: str, int, float, bool (`bool("False")` is true), json (of any kind, or of one
  class), folded_str (case is ignored, and - stands for _), or the name of the function. A function that takes "None"
  for nothing is named `optional_` and what it does otherwise;
- `choices`: as a user writes them, or null;
- `default`: a JSON value, or the text of what JSON cannot hold;
- `group`: title of the group in the parser's help;
- `deprecated`: what the parser says about it, where it says so.
"""

import argparse
import dataclasses
import enum
import inspect
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

KINDS: dict[type[argparse.Action], str] = {
    argparse._StoreAction: "value",
    argparse._StoreTrueAction: "true",
    argparse._StoreFalseAction: "false",
    argparse._StoreConstAction: "const",
    argparse._AppendConstAction: "const",
    argparse._AppendAction: "append",
    argparse._ExtendAction: "append",
    argparse.BooleanOptionalAction: "boolean_optional",
}

DEPRECATED = re.compile(r"(?:^|[.\]] *)\[?deprecated\b", re.IGNORECASE)
"""A sentence of the help that begins with the word: the flag is meant, not one of its values."""


def flags_of(parser: argparse.ArgumentParser, deprecated: Iterable[argparse.Action] = ()) -> list[dict[str, Any]]:
    """Return a row for each flag of the parser, in the order of names.

    Args:
        parser: The framework's own parser, with everything added to it.
        deprecated: Actions that the parser itself warns about when they are used.
    """
    groups = {action.dest: group.title for group in parser._action_groups for action in group._group_actions}
    warned = set(deprecated)
    rows = [row(action, group=groups[action.dest] or "", warned=action in warned) for action in parser._actions]
    return sorted(rows, key=lambda flag: [name.lstrip("-") for name in flag["names"]])


def row(action: argparse.Action, *, group: str, warned: bool) -> dict[str, Any]:
    """Return what one action takes."""
    flag: dict[str, Any] = {
        "names": list(action.option_strings) or [action.dest],
        "dest": action.dest,
        "nargs": action.nargs,
        "kind": KINDS.get(type(action), "other") if action.option_strings else "positional",
        "type": type_name(action.type, tuple(action.choices or ())),
        "choices": None if action.choices is None else written(action, action.choices),
        "default": plain(action.default),
        "required": action.required,
        "group": group,
    }
    if action.choices is not None and isinstance(action.default, enum.Enum):
        (flag["default"],) = written(action, [action.default])
    text = "" if action.help in (None, argparse.SUPPRESS) else " ".join(str(action.help).split())
    said = DEPRECATED.search(text)
    if said:
        flag["deprecated"] = text[said.start() :].lstrip(".] ")
    elif warned:
        flag["deprecated"] = "the parser warns that it is"
    elif action.dest.endswith("_deprecated"):
        flag["deprecated"] = f"stored as {action.dest}"
    return flag


def type_name(convert: Any, choices: Collection[Any] = ()) -> str:
    """Return what a word is converted by."""
    if convert is None:
        return "str"
    if convert is json.loads or getattr(convert, "__name__", "") == "parse_dataclass":
        return "json"
    inside = inspect.getclosurevars(convert).nonlocals.get("return_type") if inspect.isfunction(convert) else None
    if inside is not None:
        optional = "optional_" if "optional" in convert.__name__ else ""
        return optional + type_name(inside)
    folded = [choice for choice in choices if isinstance(choice, str) and choice != choice.upper().replace("_", "-")]
    if folded and all(_converted(convert, choice.upper().replace("_", "-")) == choice for choice in folded):
        return "folded_str"
    return str(getattr(convert, "__name__", type(convert).__name__))


def written(action: argparse.Action, choices: Iterable[Any]) -> list[str]:
    """Return the words that the parser turns into these choices; some versions list one that no word gives."""
    found = []
    for choice in choices:
        spellings = [str(choice)]
        if isinstance(choice, enum.Enum):
            spellings = [choice.name, str(choice.value), str(choice)]
        found += [word for word in spellings if _converted(action.type or str, word) == choice][:1]
    return found


def _converted(convert: Any, word: str) -> Any:
    """Return what a word becomes, or a value that is equal to no choice."""
    try:
        return convert(word)
    except (argparse.ArgumentTypeError, KeyError, TypeError, ValueError):
        return math.nan


def plain(value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return a default as JSON has it, or as text that is the same in every process."""
    match value:
        case None | argparse.SUPPRESS:
            return None
        case enum.Enum():
            return plain(value.value)
        case bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else repr(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case set() | frozenset():
            return sorted(plain(item) for item in value)
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case _:
            return _text(value)


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}()"
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else repr(value)


def table_text(*, framework: str, version: str, package: str, flags: list[dict[str, Any]]) -> str:
    """Return the bytes of a table's file."""
    lines = ",\n".join(f"    {json.dumps(flag, sort_keys=True)}" for flag in flags)
    rest = {"framework": framework, "package": package, "version": version}
    tail = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in rest.items())
    return f'{{\n  "flags": [\n{lines}\n  ],\n{tail}\n}}\n'
