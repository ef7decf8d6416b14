"""Expands Slurm's host lists: `node[01-03,07],login` (slurm.conf, NodeName)."""

import re

from planner.errors import InputError, Location
from planner.imports.facts import MOST_NODES

_PART = re.compile(r"(?P<text>[^\[\],]*)(?:\[(?P<ranges>[^\[\]]*)\])?")
_RANGE = re.compile(r"(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?")


def hosts(text: str, place: Location) -> tuple[str, ...]:
    """Return the names in a host list, in its order.

    Raises:
        InputError: It is none, or names too many.
    """
    found: list[str] = []
    for word in _words(text, place):
        names = [""]
        position = 0
        while position < len(word):
            part = _PART.match(word, position)
            if part is None or part.end() == position:
                raise _bad(text, place)
            position = part.end()
            endings = [part["text"]]
            if part["ranges"] is not None:
                endings = [part["text"] + number for number in _numbers(part["ranges"], text, place)]
            if len(names) * len(endings) > MOST_NODES:
                raise _too_many(place)
            names = [name + ending for name in names for ending in endings]
        found += names
        if len(found) > MOST_NODES:
            raise _too_many(place)
    return tuple(found)


def _words(text: str, place: Location) -> list[str]:
    """Return what commas outside brackets part."""
    words, depth, word = [], 0, ""
    for character in text:
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            raise _bad(text, place)
        if character == "," and not depth:
            words.append(word)
            word = ""
        else:
            word += character
    if depth or not all([*words, word]):
        raise _bad(text, place)
    return [*words, word]


def _numbers(ranges: str, text: str, place: Location) -> list[str]:
    """Return the numbers of one pair of brackets, as wide as the first of each range."""
    found: list[str] = []
    for entry in ranges.split(","):
        match = _RANGE.fullmatch(entry)
        if match is None:
            raise _bad(text, place)
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if last < first:
            raise _bad(text, place)
        if last - first >= MOST_NODES:
            raise _too_many(place)
        width = len(match["first"])
        found += [f"{number:0{width}d}" for number in range(first, last + 1)]
    return found


def _bad(text: str, place: Location) -> InputError:
    return InputError(
        f"{text[:60]!r} is no list of hosts.", location=place, hint="Write names as in node[01-16],login1."
    )


def _too_many(place: Location) -> InputError:
    return InputError(f"The list names more than {MOST_NODES:,} hosts.", location=place, hint="Check its ranges.")
