"""JSON text -> nodes.

The standard library's decoder gives no positions and keeps the last of two equal keys, hence this reader; it follows
RFC 8259 and leaves strings to the standard library.
"""

import json
import re

from planner.documents.nodes import Node, check_depth, check_key, check_nodes, integer, scalar_node
from planner.errors import InputError, Location

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_LITERALS: dict[str, bool | str | None] = {
    "true": True,
    "false": False,
    "null": None,
    # Python's json module writes these for numbers that JSON does not have; as text, no number field takes them.
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
}
_LITERAL = re.compile(r"true|false|null|NaN|-?Infinity")


def read_json(text: str, *, file: str) -> Node:
    """Return the one value of `text`."""
    reader = _Reader(text, file)
    node = reader.value(depth=1)
    reader.end()
    return node


class _Reader:
    """A recursive-descent reader; the depth is limited, so the recursion is."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._at = _SPACE.match(text, 0).end()  # type: ignore[union-attr]
        self._line = 1
        self._line_start = 0
        self._counted_to = 0
        self._num_nodes = 0

    def value(self, *, depth: int) -> Node:
        """Return the value that starts here and step behind it."""
        location = self._location()
        self._num_nodes += 1
        check_nodes(self._num_nodes, location, kind="JSON")
        character = self._text[self._at : self._at + 1]
        if character == "{":
            check_depth(depth, location)
            return self._mapping(location, depth)
        if character == "[":
            check_depth(depth, location)
            return self._list(location, depth)
        if character == '"':
            return scalar_node(self._string(), location)
        if literal := _LITERAL.match(self._text, self._at):
            self._step(literal.end())
            return scalar_node(_LITERALS[literal.group()], location)
        if number := _NUMBER.match(self._text, self._at):
            self._step(number.end())
            whole, fraction, exponent = number.groups()
            if fraction is None and exponent is None:
                return scalar_node(integer(whole, location), location)
            return scalar_node(float(number.group()), location)
        raise self._expected("a value")

    def end(self) -> None:
        """Check that nothing follows."""
        if self._at < len(self._text):
            raise self._expected("the end of the file")

    def _mapping(self, location: Location, depth: int) -> Node:
        fields: dict[str, Node] = {}
        keys: dict[str, Location] = {}
        self._step(self._at + 1)
        while not self._skip("}"):
            if fields:
                self._require(",", "`,` or `}`")
            if self._text[self._at : self._at + 1] != '"':
                raise self._expected("a key in double quotes")
            place = self._location()
            key = self._string()
            check_key(key, place, keys=keys)
            scalar_node(key, place)
            self._require(":", "`:`")
            fields[key] = self.value(depth=depth + 1)
            keys[key] = place
        return Node(fields, location, keys)

    def _list(self, location: Location, depth: int) -> Node:
        items: list[Node] = []
        self._step(self._at + 1)
        while not self._skip("]"):
            if items:
                self._require(",", "`,` or `]`")
            items.append(self.value(depth=depth + 1))
        return Node(items, location, {})

    def _string(self) -> str:
        try:
            string, end = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            problem = error.msg.removesuffix(" at").removesuffix(" starting")
            raise InputError(
                f"This is not JSON: {problem[0].lower()}{problem[1:]}.",
                location=self._location(),
                hint="Check the quotes and backslashes of this text.",
            ) from None
        self._step(end)
        return str(string)

    def _skip(self, character: str) -> bool:
        if self._text.startswith(character, self._at):
            self._step(self._at + 1)
            return True
        return False

    def _require(self, character: str, name: str) -> None:
        if not self._skip(character):
            raise self._expected(name)

    def _step(self, position: int) -> None:
        """Go to `position` and past the white space there."""
        self._at = _SPACE.match(self._text, position).end()  # type: ignore[union-attr]

    def _location(self) -> Location:
        newlines = self._text.count("\n", self._counted_to, self._at)
        if newlines:
            self._line += newlines
            self._line_start = self._text.rfind("\n", 0, self._at) + 1
        self._counted_to = self._at
        return Location(file=self._file, line=self._line, column=self._at - self._line_start + 1)

    def _expected(self, what: str) -> InputError:
        found = self._text[self._at : self._at + 1]
        shown = (
            f"`{found}`"
            if found.isprintable() and found
            else "the end of the file"
            if not found
            else "a control character"
        )
        return InputError(
            f"This is not JSON: expected {what}, found {shown}.",
            location=self._location(),
            hint="Check the commas, quotes and brackets around this place.",
        )
