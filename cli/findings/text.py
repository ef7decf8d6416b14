"""Findings for people: the line that is wrong with a mark under the place, what to do, and what it prevents.

Findings of one line stand together. Nothing is wider than 80 characters but names that cannot be folded.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

from cli.findings.places import length_at, line_of
from cli.findings.plain import plain
from cli.render import Blank, Block, Line, Style, as_text, counted, hanging
from planner.rules.rule import Finding, Severity
from planner.validation.judge import Judged

STYLES = {Severity.ERROR: Style.BAD, Severity.WARNING: Style.HEADING, Severity.NOTE: Style.QUIET}
WIDTH = 80
GUTTER = 8
"""Characters before a source line: its number and a bar."""
ROOM = WIDTH - GUTTER
BEFORE = 24
"""Characters of a long source line that are shown before the place that is marked."""
CUT = "..."
MAX_UNREAD = 10
"""Files that could not be read that are named."""


def render(judged: Judged) -> str:
    """Return the findings as plain text."""
    return as_text(blocks(judged))


def blocks(judged: Judged) -> Iterator[Block]:
    """Yield the findings and their summary."""
    for _, same_line in groupby(judged.findings, key=lambda finding: _line(finding)[:2]):
        yield from _of_one_line(judged, tuple(same_line))
        yield Blank()
    yield from _summary(judged)


def _line(finding: Finding) -> tuple[str, int, int]:
    place = finding.found.place
    return place.file, place.line or 0, place.column or 0


def _of_one_line(judged: Judged, findings: Sequence[Finding]) -> Iterator[Block]:
    """Yield the findings of a line, each place in it marked once."""
    for index, (_, same_place) in enumerate(groupby(findings, key=_line)):
        here = tuple(same_place)
        if index == 0:
            yield Line(plain(str(here[0].found.place)), Style.HEADING)
        yield from _marked(here[0], line_of(judged, here[0].found.place))
        for finding in here:
            yield from _finding(finding)


def _marked(finding: Finding, source: str) -> Iterator[Line]:
    """Yield a source line, or the part of it that fits around the place, and a mark under the place."""
    place = finding.found.place
    if not source.strip():
        return
    start = (place.column or 1) - 1
    end = min(start + length_at(finding, source), len(source))
    # Blanks before the text say nothing here, and a tab is as wide as a blank, so that the mark stands right.
    first = len(source) - len(source.lstrip())
    if _cells(source[first:].rstrip()) > ROOM:
        first = max(first, start - BEFORE)
    before = CUT if source[:first].strip() else ""
    shown = before + _narrow(source[first:].rstrip(), ROOM - len(before))
    yield Line(f"{place.line:>5} | {shown}", Style.QUIET)
    if place.column is not None and start >= first:
        indent = len(before) + _cells(source[first:start])
        marks = max(min(_cells(source[start:end]), ROOM - indent), 1)
        yield Line(f"{'':>5} | {' ' * indent}{'^' * marks}", STYLES[finding.severity])


def _narrow(text: str, room: int) -> str:
    """Return text as it prints, cut at the right where it has no room."""
    shown = [_printed(character) for character in text[: 2 * room]]
    if len(text) <= 2 * room and _cells("".join(shown)) <= room:
        return "".join(shown)
    while _cells("".join(shown)) > room - len(CUT):
        shown.pop()
    return "".join(shown) + CUT


def _printed(character: str) -> str:
    return character if character.isprintable() else " "


def _cells(text: str) -> int:
    """Return how many columns of a terminal text takes: wide characters take two, marks on others none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _finding(finding: Finding) -> Iterator[Block]:
    found = finding.found
    title = f"  {finding.severity} {finding.rule_id} {finding.rule_name}: {plain(found.message)}"
    yield Line(hanging(title, width=WIDTH), STYLES[finding.severity])
    if found.hint:
        yield Line(hanging(f"    {plain(found.hint)}", width=WIDTH))
    if finding.prevents:
        yield Line(hanging(f"    Prevents: {finding.prevents} ({finding.found_at})", width=WIDTH), Style.QUIET)


def summary_line(judged: Judged) -> str:
    """Return how many files there are and what was found in them."""
    numbers = {severity: sum(f.severity is severity for f in judged.findings) for severity in Severity}
    found = ", ".join(counted(number, severity.value) for severity, number in numbers.items() if number)
    return f"{counted(len(judged.files), 'file')}: {found or 'nothing wrong'}."


def _summary(judged: Judged) -> Iterator[Block]:
    is_bad = any(finding.severity is Severity.ERROR for finding in judged.findings)
    yield Line(summary_line(judged), Style.BAD if is_bad else Style.GOOD)
    if judged.hidden:
        yield Line(f"{counted(len(judged.hidden), 'finding')} hidden by comments in the files.", Style.QUIET)
    not_said = [undecided for undecided in judged.undecided if undecided.is_value]
    if not_said:
        whats = ", ".join(sorted({undecided.what for undecided in not_said}))
        rules = counted(len({undecided.rule_id for undecided in not_said}), "rule")
        yield Line(hanging(f"Not decided: {rules}, because the files do not say {whats}.", width=WIDTH), Style.QUIET)
    for reason in sorted({undecided.reason for undecided in judged.undecided if not undecided.is_value}):
        rules = ", ".join(sorted({undecided.rule_id for undecided in judged.undecided if undecided.reason == reason}))
        yield Line(hanging(f"Not decided: {rules}. {reason[:1].upper()}{reason[1:]}.", width=WIDTH), Style.QUIET)
    if judged.unread:
        places = ", ".join(str(unread.place) for unread in judged.unread[:MAX_UNREAD])
        more = f" and {len(judged.unread) - MAX_UNREAD} more" if len(judged.unread) > MAX_UNREAD else ""
        numbers = counted(len(judged.unread), "file")
        told = f"Not read, because they are damaged or too large: {numbers} ({plain(places)}{more})."
        yield Line(hanging(told, width=WIDTH), STYLES[Severity.WARNING])
    if judged.skipped:
        skipped = counted(len(judged.skipped), "file")
        verb = "starts" if len(judged.skipped) == 1 else "start"
        yield Line(f"Passed over: {skipped} that {verb} nothing that is known.", Style.QUIET)
