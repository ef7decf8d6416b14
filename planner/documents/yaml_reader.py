"""YAML 1.2 text -> nodes.

The document is built from the parser's events, not by a ready-made constructor: so that an alias is counted before it
is expanded, no tag can build an object, and scalars follow the YAML 1.2 core schema (`yes`, `on` and `1_000` are
text).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.scanner import Scanner

from planner.documents.nodes import (
    MAX_DEPTH,
    Node,
    Scalar,
    check_depth,
    check_key,
    check_nodes,
    integer,
    scalar_node,
    too_deep,
)
from planner.errors import InputError, Location

_MAX_SHOWN = 60
"""Characters of a text that a message repeats, so that it stays on one line."""

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    location: Location
    anchor: str | None
    is_mapping: bool
    fields: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Location] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)
    pending_key: tuple[str, Location] | None = None
    size: int = 1


def read_yaml(text: str, *, file: str) -> Node:
    """Return the one document of `text`; an empty text is a null."""
    composer = _Composer(file)
    try:
        for event in _events(text):
            composer.take(event)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise InputError(
            f"The unprintable character U+{ord(text[error.position]):04X} is not allowed in YAML.",
            location=Location(file=file, line=line, column=column),
            hint="Remove it.",
        ) from None
    except _TooDeepError as error:
        raise too_deep(
            Location(file=file, line=error.problem_mark.line + 1, column=error.problem_mark.column + 1)
        ) from None
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None
    except (YAMLError, ValueError, OverflowError, IndexError, AssertionError, NotImplementedError) as error:
        # The parser leaks these on some malformed escapes and directives.
        raise InputError(
            f"This is not YAML: {error}.", location=Location(file=file), hint="Check the syntax."
        ) from None
    return composer.root or Node(None, Location(file=file, line=1, column=1), {})


class _Composer:
    """Builds nodes from events, keeping the limits."""

    def __init__(self, file: str) -> None:
        self.root: Node | None = None
        self._file = file
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._num_nodes = 0
        self._num_documents = 0

    def take(self, event: Event) -> None:
        """Add one event."""
        location = self._location(event)
        if isinstance(event, DocumentStartEvent):
            self._num_documents += 1
            if self._num_documents > 1:
                raise InputError(
                    "A second document starts here.", location=location, hint="Keep one document a file; remove `---`."
                )
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._close()
        elif isinstance(event, AliasEvent):
            self._add(self._alias(event.anchor, location))
        elif isinstance(event, ScalarEvent | CollectionStartEvent):
            self._start(event, location)

    def _start(self, event: ScalarEvent | CollectionStartEvent, location: Location) -> None:
        if event.tag is not None:
            raise InputError(
                f"The tag `{event.tag[:_MAX_SHOWN]}` is not allowed.",
                location=location,
                hint="Write plain values, without tags.",
            )
        if isinstance(event, ScalarEvent):
            plain = event.implicit[0] and event.style is None
            self._add(_scalar(event.value, location, plain=plain), anchor=event.anchor)
            return
        check_depth(len(self._stack) + 1, location)
        is_mapping = isinstance(event, MappingStartEvent)
        if self._expects_key() is not None:
            kind = "mapping" if is_mapping else "list"
            raise InputError(f"A {kind} cannot be a key.", location=location, hint="Keys are text.")
        self._stack.append(_Open(location=location, anchor=event.anchor, is_mapping=is_mapping))

    def _expects_key(self) -> _Open | None:
        if self._stack and self._stack[-1].is_mapping and self._stack[-1].pending_key is None:
            return self._stack[-1]
        return None

    def _close(self) -> None:
        done = self._stack.pop()
        content: dict[str, Node] | list[Node] = done.fields if done.is_mapping else done.items
        # Its parts are counted already.
        self._num_nodes -= done.size - 1
        self._add(Node(content, done.location, done.keys, done.size), anchor=done.anchor)

    def _add(self, node: Node, *, anchor: str | None = None) -> None:
        """Put a finished node where it belongs."""
        self._num_nodes += node.size
        check_nodes(self._num_nodes, node.location, kind="YAML")
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            self.root = node
            return
        parent = self._stack[-1]
        parent.size += node.size
        if not parent.is_mapping:
            parent.items.append(node)
        elif parent.pending_key is None:
            parent.pending_key = self._key(node, parent), node.location
        else:
            key, location = parent.pending_key
            parent.fields[key] = node
            parent.keys[key] = location
            parent.pending_key = None

    def _key(self, node: Node, parent: _Open) -> str:
        key = node.content
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str):
            raise InputError(
                f"The key `{json.dumps(node.data())}` is not text.",
                location=node.location,
                hint="Keys are names or whole numbers; quote it if it is a name.",
            )
        check_key(key, node.location, keys=parent.keys)
        if key == "<<":
            raise InputError(
                "Merge keys (`<<`) are not part of YAML 1.2.", location=node.location, hint="Write the keys out."
            )
        return key

    def _alias(self, name: str, location: Location) -> Node:
        shown = name[:_MAX_SHOWN]
        if any(part.anchor == name for part in self._stack):
            raise InputError(f"The alias `*{shown}` contains itself.", location=location, hint="Write the value out.")
        if name not in self._anchors:
            raise InputError(
                f"The alias `*{shown}` has no anchor `&{shown}` before it.",
                location=location,
                hint="Define the anchor, or quote a text that starts with `*`.",
            )
        return self._anchors[name]

    def _location(self, event: Event) -> Location:
        mark = event.start_mark
        return Location(file=self._file, line=mark.line + 1, column=mark.column + 1)


class _TooDeepError(MarkedYAMLError):
    """More brackets are open than may be."""


class _Scanner(Scanner):
    """A scanner that stops at the first bracket that is too deep.

    It reads to the end of a line before the parser gets the first bracket in it, because what that opens may be a key,
    and looks through all open brackets at each: a second for a thousand of them.
    """

    def fetch_flow_collection_start(self, TokenClass: Any, to_push: str) -> None:  # noqa: N803 - the library's name
        """Take an opening bracket."""
        if len(self.flow_context) >= MAX_DEPTH:
            raise _TooDeepError(problem_mark=self.reader.get_mark())
        super().fetch_flow_collection_start(TokenClass, to_push)


def _events(text: str) -> Iterator[Event]:
    """Return the parser's events, one at a time, so that a limit stops the parser too."""
    reader = YAML(typ="safe", pure=True)
    reader.Scanner = _Scanner
    yield from reader.parse(text)


def _scalar(text: str, location: Location, *, plain: bool) -> Node:
    """Return a scalar by the YAML 1.2 core schema; what is quoted is text."""
    if plain and _NOT_FINITE.fullmatch(text):
        raise InputError(f"`{text}` is not a finite number.", location=location, hint="Use a finite number.")
    value: Scalar = text
    if plain:
        if text in _NULLS:
            value = None
        elif text in _BOOLEANS:
            value = _BOOLEANS[text]
        elif _INTEGER.fullmatch(text):
            value = integer(text, location)
        elif _OCTAL.fullmatch(text):
            value = integer(text[2:], location, base=8)
        elif _HEXADECIMAL.fullmatch(text):
            value = integer(text[2:], location, base=16)
        elif _FLOAT.fullmatch(text):
            value = float(text)
    return scalar_node(value, location)


def _syntax_error(error: MarkedYAMLError, text: str, file: str) -> InputError:
    """Return the parser's complaint in our form."""
    mark = error.problem_mark or error.context_mark
    location = Location(file=file, line=mark.line + 1, column=mark.column + 1) if mark else Location(file=file)
    problem = " ".join(str(error.problem or "the syntax is wrong").split())
    context = " ".join(str(error.context or "").split())
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    hint = "Check the indentation, colons and brackets around this place."
    if "\t" in line[: len(line) - len(line.lstrip())] or r"'\t'" in problem:
        hint = "Indent with spaces; YAML does not allow tabs there."
    return InputError(f"This is not YAML: {problem}{f' ({context})' if context else ''}.", location=location, hint=hint)
