"""Where findings stand, as other programs name it: relative paths, lines, fingerprints that outlive shifted lines."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from planner.errors import Location
from planner.rules.rule import Finding
from planner.validation.judge import Judged

WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"\'()\[\]{},]+')


def relative(file: str) -> str:
    """Return a path as seen from the working directory, with slashes; an absolute one where it lies elsewhere."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def line_of(judged: Judged, place: Location) -> str:
    """Return the line in which something stands; nothing where that is not known."""
    lines = _lines(judged.texts.get(place.file, ""))
    return lines[place.line - 1] if place.line is not None and 0 < place.line <= len(lines) else ""


@lru_cache(maxsize=8)
def _lines(text: str) -> Sequence[str]:
    return text.split("\n")


def length_at(finding: Finding, line: str) -> int:
    """Return how many characters of its line a finding speaks of: what its fix replaces, or the word there."""
    found = finding.found
    if found.fix is not None and found.fix.location == found.place:
        return len(found.fix.old)
    word = WORD.match(line, found.place.column - 1) if found.place.column is not None else None
    return len(word.group()) if word is not None else 1


def fingerprints(judged: Judged) -> tuple[str, ...]:
    """Return for each finding what stays the same when lines are added or removed elsewhere in its file.

    That is a hash of its file, its rule and the text of its line without the white space, and for equal ones their
    number.
    """
    seen: Counter[str] = Counter()
    lines: dict[tuple[str, int | None], str] = {}
    prints: list[str] = []
    for finding in judged.findings:
        place = finding.found.place
        where = (place.file, place.line)
        if where not in lines:
            text = " ".join(line_of(judged, place).split())
            lines[where] = _hash(f"{relative(place.file)}\0{text}")
        key = f"{lines[where]}\0{finding.rule_id}"
        seen[key] += 1
        prints.append(_hash(f"{key}\0{seen[key]}"))
    return tuple(prints)


def _hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:32]


def worst_first(judged: Judged) -> tuple[int, ...]:
    """Return the numbers of the findings, the worst first and otherwise by their places."""
    return tuple(sorted(range(len(judged.findings)), key=lambda index: judged.findings[index].severity.rank))
