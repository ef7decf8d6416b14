"""Findings for people: the line that is wrong, what to do, and what the framework would have said and when."""

from collections.abc import Iterator
from pathlib import Path

from cli.render import Blank, Block, Line, Style, as_text, counted, hanging
from planner.rules.rule import Finding, Severity
from planner.validation.judge import Judged

STYLES = {Severity.ERROR: Style.BAD, Severity.WARNING: Style.HEADING, Severity.NOTE: Style.QUIET}


def render(judged: Judged) -> str:
    """Return the findings as plain text."""
    return as_text(blocks(judged))


def blocks(judged: Judged) -> Iterator[Block]:
    """Yield the findings and their summary."""
    for finding in judged.findings:
        yield from _finding(finding)
        yield Blank()
    yield from _summary(judged)


def _finding(finding: Finding) -> Iterator[Block]:
    found = finding.found
    yield Line(f"{found.place}: {finding.severity} {finding.rule_id} {finding.rule_name}", STYLES[finding.severity])
    yield Line(hanging(f"  {found.message}", width=100))
    shown = _line_of(found.place.file, found.place.line)
    if shown is not None:
        yield Line(f"  {found.place.line:>5} | {shown}", Style.QUIET)
    if found.hint:
        yield Line(hanging(f"  {found.hint}", width=100))
    if finding.prevents:
        yield Line(hanging(f"  Prevents: {finding.prevents} ({finding.found_at})", width=100), Style.QUIET)


def _line_of(file: str, number: int | None) -> str | None:
    """Return a line of a file, shortened; None where there is none to show."""
    if number is None:
        return None
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    text = lines[number - 1].strip() if number <= len(lines) else ""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable if len(printable) <= 88 else printable[:85] + "..."


def _summary(judged: Judged) -> Iterator[Block]:
    numbers = {severity: sum(f.severity is severity for f in judged.findings) for severity in Severity}
    found = ", ".join(counted(number, severity.value) for severity, number in numbers.items() if number)
    style = Style.BAD if numbers[Severity.ERROR] else Style.GOOD
    yield Line(f"{counted(len(judged.files), 'file')}: {found or 'nothing wrong'}.", style)
    if judged.hidden:
        yield Line(f"{counted(len(judged.hidden), 'finding')} hidden by comments in the files.", Style.QUIET)
    if judged.undecided:
        whats = ", ".join(sorted({undecided.what for undecided in judged.undecided}))
        rules = counted(len({undecided.rule_id for undecided in judged.undecided}), "rule")
        yield Line(hanging(f"Not decided: {rules}, because the files do not say {whats}.", width=100), Style.QUIET)
    if judged.skipped:
        yield Line(f"{counted(len(judged.skipped), 'file')} of the folders start nothing that is known.", Style.QUIET)
