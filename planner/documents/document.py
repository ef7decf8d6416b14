"""Loads a YAML 1.2 or JSON document, and changes single values of it.

Whatever is wrong with a file is an `InputError` that says where. Overrides (`--set a.b=c`) replace values before
anything is validated, and are blamed by their own text, so that a message never points at a line that does not
hold the offending value.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.documents.json_reader import read_json
from planner.documents.nodes import MAX_BYTES, Data, Node, check_text, scalar_node
from planner.errors import InputError, Location

_PATH_PART = re.compile(r"[^.\[\]\s]+|\[\d{1,6}\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A loaded document.

    Args:
        file: What messages call it, usually its path.
        root: Its values with their places.
    """

    file: str
    root: Node

    @property
    def data(self) -> Data:
        """Return the values as plain Python, a fresh copy."""
        return self.root.data()

    def locate(self, path: Sequence[str | int] = (), *, key: bool = False) -> Location:
        """Return the place of a value, or of the nearest existing value above it.

        Args:
            path: Keys and indices from the root.
            key: Point at the key instead of its value.
        """
        node = self.root
        location = node.location
        for depth, part in enumerate(path):
            child = node.child(part)
            if child is None:
                break
            last = depth == len(path) - 1
            location = node.keys.get(str(part), child.location) if key and last else child.location
            node = child
        return replace(location, path=format_path(path))

    def node(self, path: Sequence[str | int]) -> Node | None:
        """Return the value at `path`, if there is one."""
        node: Node | None = self.root
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def with_node(self, path: Sequence[str | int], node: Node) -> "Document":
        """Return the document with the value at `path` replaced; missing mappings on the way are created."""
        return replace(self, root=_grafted(self.root, tuple(path), node, walked=()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One `--set a.b=c`.

    Args:
        path: Keys and indices.
        node: The value, which says where it comes from.
    """

    path: tuple[str | int, ...]
    node: Node


def load_document(path: Path) -> Document:
    """Return the document in a file; `.json` is read as JSON, everything else as YAML 1.2."""
    file = str(path)
    location = Location(file=file)
    kind = _kind(file)
    try:
        if path.is_dir():
            raise InputError("This is a directory.", location=location, hint="Give the path of a file.")
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES[kind] + 1)
    except FileNotFoundError:
        raise InputError("There is no such file.", location=location, hint="Check the path.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The file cannot be read: {reason}.", location=location, hint="Check the path.") from None
    if len(raw) > MAX_BYTES[kind]:
        raise InputError(
            f"The file is larger than {MAX_BYTES[kind] >> 20} MiB, the most that is read of {kind}.",
            location=location,
            hint="Check that this is the file you mean.",
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise InputError(
            f"The file is not UTF-8 text: byte 0x{raw[error.start]:02x} does not fit.",
            location=Location(file=file, line=line, column=column),
            hint="Save it as UTF-8.",
        ) from None
    if text.startswith("#!"):
        raise InputError(
            "This is a script; YAML or JSON is wanted here.",
            location=location,
            hint="`shardwright validate` and `shardwright evaluate` read launch scripts.",
        )
    return parse_document(text, file=file)


def parse_document(text: str, *, file: str) -> Document:
    """Return the document that `text` writes; a `file` that ends in `.json` makes it JSON."""
    check_text(text, file=file)
    reader = read_json if _kind(file) == "JSON" else _read_yaml
    return Document(file=file, root=reader(text, file=file))


def option_override(name: str, value: str) -> Override:
    """Return the override of an option of its own, `--name value`, of the field of the same name."""
    return Override(path=(name,), node=scalar_node(value, Location(file=f"--{name} {_shortened(value)}")))


def parse_override(text: str, *, said: str | None = None) -> Override:
    """Return the override that `a.b=c` writes; the value is YAML.

    Args:
        text: The override.
        said: What the user wrote, for messages; None for `--set` with the text.
    """
    location = Location(file=_shortened(f"--set {text}" if said is None else said))
    name, separator, value = text.partition("=")
    parts = _PATH_PART.findall(name)
    if not separator or not parts or not re.fullmatch(r"[^.\[\]\s]+(\.[^.\[\]\s]+|\[\d{1,6}\])*", name):
        raise InputError(
            "An override is written path=value.", location=location, hint="For example --set workload.seq_len=8192"
        )
    try:
        node = _read_yaml(value, file=location.file)
    except InputError as error:
        raise InputError(error.message, location=location, hint=error.hint) from None
    path = tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)
    return Override(path=path, node=_relocated(node, location))


def format_path(path: Sequence[str | int]) -> str:
    """Return keys and indices as `a.b[2].c`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _read_yaml(text: str, *, file: str) -> Node:
    from planner.documents.yaml_reader import read_yaml  # noqa: PLC0415 - JSON is read without ruamel.yaml

    return read_yaml(text, file=file)


def _kind(file: str) -> str:
    return "JSON" if file.lower().endswith(".json") else "YAML"


def _shortened(text: str) -> str:
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= 80 else printable[:77] + "..."


def _relocated(node: Node, location: Location) -> Node:
    """Return the node with every place below it replaced by `location`."""
    keys = dict.fromkeys(node.keys, location)
    if isinstance(node.content, dict):
        content: Data | dict[str, Node] | list[Node] = {k: _relocated(v, location) for k, v in node.content.items()}
    elif isinstance(node.content, list):
        content = [_relocated(child, location) for child in node.content]
    else:
        content = node.content
    return Node(content, location, keys, node.size)  # type: ignore[arg-type]


def _grafted(node: Node | None, path: tuple[str | int, ...], new: Node, *, walked: tuple[str | int, ...]) -> Node:
    """Return `node` with the value at `path` below it replaced by `new`."""
    if not path:
        return new
    part, rest = path[0], path[1:]
    if node is not None and isinstance(node.content, list):
        if not isinstance(part, int) or part >= len(node.content):
            raise InputError(
                f"`{format_path(walked)}` is a list of {len(node.content)}; it has no `{part}`.",
                location=new.location,
                hint=f"Use an index, for example {format_path((*walked, 0))}.",
            )
        items = list(node.content)
        items[part] = _grafted(items[part], rest, new, walked=(*walked, part))
        return replace(node, content=items)
    if isinstance(part, int) or (node is not None and not isinstance(node.content, dict | None)):
        found = "not a list" if isinstance(part, int) else "a single value, not a mapping"
        raise InputError(
            f"`{format_path(walked)}` is {found}; `{format_path((*walked, part))}` cannot be set.",
            location=new.location,
            hint=f"Set `{format_path(walked)}` as a whole, or write it out in the file.",
        )
    fields = dict(node.content) if node is not None and isinstance(node.content, dict) else {}
    keys = dict(node.keys) if node is not None else {}
    fields[part] = _grafted(fields.get(part), rest, new, walked=(*walked, part))
    keys[part] = new.location
    return Node(fields, node.location if node is not None else new.location, keys)
