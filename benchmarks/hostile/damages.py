"""What is done to a file or a word: to its text, as `benchmarks.damaged_files` does it, or to what it means.

Documents are damaged where they are a document: a field gets another value, another name, or goes; tables likewise,
cell by cell. Everything is seeded.
"""

import csv
import io
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from random import Random
from typing import Any

from ruamel.yaml import YAML

from benchmarks.damaged_files import damaged
from benchmarks.hostile.targets import OUT

TEXTS = (
    "", " ", "~", "../../astray", "/astray", "..", ".", "a/b", "a\\b", "-", "--no-such", "$(touch astray)", "`id`",
    "'", '"', "a" * 5000, "\u202e", "\x00", "\x1b[31m", "模型", "\U0001f600", "null", "1e999", "NaN", "9" * 400, "0x10",
    "٣", "3 GiB", "-3GiB", "1e400GiB", "tp=1,tp=2", "zipf:1e308", "zipf:-1", "lognormal:nan",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2, 3, 7, 10**6, 10**18, 10**400, -(10**18), 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"))
VALUES: tuple[object, ...] = (*TEXTS, *NUMBERS, None, True, False, [], {}, [[]], [None], {"": ""}, [1, "a"], {"a": {}})
DEEP = 400
"""How deep a value is nested at most: what parsers of JSON and YAML take before they refuse."""

_YAML = YAML(typ="safe", pure=True)


def hostile(raw: bytes, name: str, random: Random) -> bytes:
    """Return the bytes of a file with something done to them, after the kind that its name says it is of."""
    suffix = PurePosixPath(name).suffix
    how = _DOCUMENTS.get(suffix)
    if how is not None and random.random() < 0.6:
        return how(raw.decode(), random).encode("utf-8", errors="surrogatepass")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return flipped(raw, random)
    return damaged(text, random)


def flipped(raw: bytes, random: Random) -> bytes:
    """Return bytes cut short, or with a few of another value."""
    if random.random() < 0.3:
        return raw[: random.randrange(len(raw) + 1)]
    changed = bytearray(raw)
    for _ in range(random.randint(1, 6)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def hostile_word(words: tuple[str, ...], random: Random) -> tuple[str, ...]:
    """Return a command line of which a word behind the command is another, is gone, or comes twice.

    What says where files are written stays: a command that is told another folder writes there.
    """
    whole = [place for place, word in enumerate(words) if place and OUT not in f"{word} {words[place + 1 :][:1]}"]
    at = random.choice(whole)
    word = words[at]
    match random.randrange(6):
        case 0:
            return words[:at] + words[at + 1 :]
        case 1:
            return (*words[:at], word, *words[at:])
        case 2 if "=" in word:
            return (*words[:at], f"{word.partition('=')[0]}={random.choice(TEXTS)}", *words[at + 1 :])
        case 3:
            return (*words[:at], str(random.choice(NUMBERS)), *words[at + 1 :])
        case _:
            # No argument of a process holds a zero byte.
            return (*words[:at], random.choice(TEXTS).replace("\x00", "\x01"), *words[at + 1 :])


def _json(text: str, random: Random) -> str:
    return json.dumps(_with_damage(json.loads(text), random))


def _yaml(text: str, random: Random) -> str:
    """Return a YAML document in the form of JSON, which is YAML too."""
    return json.dumps(_with_damage(_YAML.load(text), random), default=str)


def _csv(text: str, random: Random) -> str:
    rows = list(csv.reader(io.StringIO(text)))
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.choice(rows)
        column = random.randrange(len(row)) if row else 0
        match random.randrange(5):
            case 0:
                del row[column : column + 1]
            case 1:
                row.insert(column, str(random.choice(VALUES)))
            case 2:
                rows.append(list(row))
            case _:
                row[column : column + 1] = [str(random.choice(VALUES))]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue()


def _lines(text: str, random: Random) -> str:
    """Return JSON Lines of which one is damaged."""
    lines = text.splitlines()
    at = random.randrange(len(lines))
    return "\n".join([*lines[:at], _json(lines[at], random), *lines[at + 1 :], ""])


_DOCUMENTS: dict[str, Callable[[str, Random], str]] = {
    ".json": _json, ".yaml": _yaml, ".csv": _csv, ".jsonl": _lines,
}  # fmt: skip


def _with_damage(document: object, random: Random) -> object:
    """Return a document in which one to three places are damaged."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return random.choice(VALUES)
        holder, key = random.choice(places)
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[random.choice(TEXTS)] = holder.pop(key)
            case 2:
                holder[key] = [holder[key]]
            case 3:
                value: object = random.choice(VALUES)
                for _ in range(random.randint(1, DEEP)):
                    value = [value]
                holder[key] = value
            case _:
                holder[key] = random.choice(VALUES)
    return document


def _places(document: object) -> list[tuple[Any, Any]]:
    """Return every place of a document: the mapping or list that holds it, and its key there."""
    found = []
    left = [document]
    while left:
        holder = left.pop()
        pairs = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, value in list(pairs):
            found.append((holder, key))
            left.append(value)
    return found
