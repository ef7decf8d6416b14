"""Values that know where they stand, and the limits that every document must keep.

A `Node` is one value of a document. Mappings and lists hold nodes, so a position is found by walking a path. The
limits keep a hostile or damaged file from costing more than a moment: they are far above any real model, cluster or
plan, and a file beyond them is refused before it is expanded.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from planner.errors import InputError, Location

Scalar: TypeAlias = bool | int | float | str | None
Data: TypeAlias = "Scalar | list[Data] | dict[str, Data]"

MAX_DEPTH = 64
"""Deepest nesting; a plan file has 7 levels. Documents are walked recursively, far within Python's 1,000 calls."""

MAX_DIGITS = 30
"""Longest integer; 2**64 has 20 digits."""

MAX_KEY = 256
"""Longest key; the longest that means anything, original_max_position_embeddings, has 32 characters."""

MAX_NODES = {"YAML": 20_000, "JSON": 500_000}
"""Most values of one document, aliases counted as often as they are used; a second to read YAML, five to read JSON."""

MAX_BYTES = {"YAML": 1 << 20, "JSON": 16 << 20}
"""Largest file; plans are JSON and may be long: those of the examples have up to 0.3 MB."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that reverse the direction of text, halves of characters."""

_PRINTABLE = "Remove it; text is printable Unicode, tabs and line ends."


@dataclass(frozen=True, slots=True)
class Node:
    """One value and the place where it starts.

    Args:
        content: The value; a mapping or a list holds nodes.
        location: Its file, line and column, without a field path.
        keys: Of a mapping: where each key stands.
        size: Values below and including this one, aliases expanded.
    """

    content: "Scalar | list[Node] | dict[str, Node]"
    location: Location
    keys: Mapping[str, Location]
    size: int = 1

    def data(self) -> Data:
        """Return the value as plain Python, safe to change."""
        if isinstance(self.content, dict):
            return {key: child.data() for key, child in self.content.items()}
        if isinstance(self.content, list):
            return [child.data() for child in self.content]
        return self.content

    def child(self, part: str | int) -> "Node | None":
        """Return the value under a key or at an index, if there is one."""
        if isinstance(self.content, dict):
            return self.content.get(str(part))
        if isinstance(self.content, list) and isinstance(part, int) and 0 <= part < len(self.content):
            return self.content[part]
        return None


def check_text(text: str, *, file: str) -> None:
    """Refuse a text with characters that would change how a terminal shows a message about it."""
    if found := _UNPRINTABLE.search(text.replace("\r", " ")):
        line_start = text.rfind("\n", 0, found.start()) + 1
        raise InputError(
            f"The text holds the unprintable character U+{ord(found.group()):04X}.",
            location=Location(
                file=file, line=text.count("\n", 0, found.start()) + 1, column=found.start() - line_start + 1
            ),
            hint=_PRINTABLE,
        )


def scalar_node(value: Scalar, location: Location) -> Node:
    """Return a checked scalar: printable text, a finite number, an integer of sane length."""
    if isinstance(value, str) and (found := _UNPRINTABLE.search(value)):
        raise InputError(
            f"The text holds the unprintable character U+{ord(found.group()):04X}.",
            location=location,
            hint=_PRINTABLE,
        )
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124
        raise InputError("The number is not finite.", location=location, hint="Use a finite number.")
    return Node(value, location, {})


def integer(text: str, location: Location, *, base: int = 10) -> int:
    """Return the integer that `text` writes, unless it is absurdly long."""
    if len(text) > MAX_DIGITS:
        raise InputError(
            f"The number has {len(text)} digits.", location=location, hint=f"Integers have at most {MAX_DIGITS} digits."
        )
    return int(text, base)


def check_depth(depth: int, location: Location) -> None:
    """Refuse a value nested deeper than `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        raise too_deep(location)


def too_deep(location: Location) -> InputError:
    """Return the error for a value that is nested deeper than `MAX_DEPTH`."""
    return InputError(f"Values are nested more than {MAX_DEPTH} deep.", location=location, hint="Flatten the document.")


def check_nodes(count: int, location: Location, *, kind: str) -> None:
    """Refuse a document with too many values."""
    if count > MAX_NODES[kind]:
        raise InputError(
            f"The document holds more than {MAX_NODES[kind]:,} values, repeated aliases included.",
            location=location,
            hint="Shorten the document or write out what its aliases repeat.",
        )


def check_key(key: str, location: Location, *, keys: Mapping[str, Location]) -> None:
    """Refuse a key that stands twice in one mapping, or that is no name."""
    if key in keys:
        raise InputError(
            f"The key `{key}` is given twice; it stands already in line {keys[key].line}.",
            location=location,
            hint="Remove one of the two.",
        )
    if len(key) > MAX_KEY or "\n" in key or "\t" in key:
        raise InputError(
            f"The key {json.dumps(key[:20])}... is no name.",
            location=location,
            hint=f"Keys are names of at most {MAX_KEY} characters, without tabs and line ends.",
        )
