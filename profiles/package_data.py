"""The catalogue's files as plain data: names, entries, and what to suggest for a name that is not there.

The files are JSON, because reading them is on the way of every command: the YAML reader that is shipped takes about
10 ms for one entry, JSON under 1 ms for all of them. Nothing here knows what a GPU is; `profiles.schema` does.
"""

import difflib
import json
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Final

from profiles.errors import CatalogueError

Entry = Mapping[str, object]

_MOST_SUGGESTIONS: Final = 6
_LONGEST_ECHO: Final = 60


class Section(StrEnum):
    """Parts of the catalogue; the value is the file's stem."""

    DEVICES = "devices"
    CLUSTERS = "clusters"


_NOUN: Final = {Section.DEVICES: "GPU", Section.CLUSTERS: "cluster preset"}


@cache
def _read(section: Section) -> Mapping[str, Mapping[str, object]]:
    """Return one file of the catalogue: its documents and its entries."""
    text = resources.files("profiles").joinpath("data", f"{section.value}.json").read_text(encoding="utf-8")
    content: Mapping[str, Mapping[str, object]] = json.loads(text)
    return content


@cache
def entry_names(section: Section) -> tuple[str, ...]:
    """Return the names of one part of the catalogue, in the file's order."""
    return tuple(_read(section)["entries"])


def entry(section: Section, name: str) -> Entry:
    """Return the entry called exactly `name`, with the names of documents written out.

    The data is read once and shared, so it must not be changed.
    """
    content = _read(section)
    raw = content["entries"][name]
    if not isinstance(raw, dict):
        raise CatalogueError(f"{section.value}.json: entry {name} is not a mapping")
    written_out: Entry = {key: _with_documents(value, content["documents"]) for key, value in raw.items()}
    return written_out


def _with_documents(value: object, documents: Mapping[str, object]) -> object:
    """Return `value` with every `document` key replaced by the document it stands for."""
    if isinstance(value, dict):
        return {
            key: documents[str(item)] if key == "document" else _with_documents(item, documents)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_documents(item, documents) for item in value]
    return value


def resolve_name(section: Section, name: str) -> str:
    """Return the full name that `name` stands for.

    Capitals, spaces and underscores do not matter, and the beginning of one entry's name is enough ("h800" for
    "h800-sxm-80gb"). The beginning of several names is never guessed.

    Raises:
        CatalogueError: No entry, or more than one, has that name.
    """
    names = entry_names(section)
    wanted = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    if wanted in names:
        return wanted
    longer = [known for known in names if wanted and known.startswith(f"{wanted}-")]
    if len(longer) == 1:
        return longer[0]
    shown = name if len(name) <= _LONGEST_ECHO else f"{name[:_LONGEST_ECHO]}..."
    noun = _NOUN[section]
    if longer:
        raise CatalogueError(f"{noun} {shown!r} could be any of {', '.join(longer)}: write one of them.")
    similar = difflib.get_close_matches(wanted[:_LONGEST_ECHO], names, n=_MOST_SUGGESTIONS, cutoff=0.6)
    beginning = [known for known in names if wanted and known.startswith(wanted)]
    near = tuple(dict.fromkeys((*beginning, *similar)))[:_MOST_SUGGESTIONS]
    if near:
        raise CatalogueError(f"{noun} {shown!r} is not in the catalogue. Nearest: {', '.join(near)}.")
    raise CatalogueError(f"{noun} {shown!r} is not in the catalogue. Known: {', '.join(names)}.")
