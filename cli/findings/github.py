"""Findings as annotations of GitHub Actions, and as the summary of a job.

A step shows ten errors, ten warnings and ten notices and drops the others without a word; so the first ten of each
are printed, and how many more there are is said.
"""

from collections.abc import Iterator, Mapping
from html import escape

from cli.findings.places import relative, worst_first
from cli.findings.plain import plain
from cli.findings.text import summary_line
from cli.render import counted
from planner.rules.rule import Finding, Severity
from planner.validation.judge import Judged

COMMANDS: Mapping[Severity, str] = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
MAX_OF_EACH = 10
MAX_ROWS = 500
"""Rows of a summary; a step's may have 1 MiB."""


def render(judged: Judged) -> str:
    """Return the workflow commands, the worst first, and how many there was no room for."""
    lines: list[str] = []
    left_out: list[str] = []
    for severity in Severity:
        found = [finding for finding in judged.findings if finding.severity is severity]
        lines += [_annotation(finding) for finding in found[:MAX_OF_EACH]]
        if len(found) > MAX_OF_EACH:
            left_out.append(counted(len(found) - MAX_OF_EACH, severity.value))
    if judged.unread:
        numbers = counted(len(judged.unread), "file")
        places = ", ".join(plain(str(unread.place)) for unread in judged.unread[:MAX_OF_EACH])
        lines.append(f"Not read, because they are damaged or too large: {numbers} ({places}).")
    if left_out:
        lines.append(f"Not annotated, because a step shows {MAX_OF_EACH} of each: {', '.join(left_out)}.")
    return "".join(f"{line}\n" for line in lines)


def _annotation(finding: Finding) -> str:
    found = finding.found
    properties = {"file": relative(found.place.file), "line": found.place.line, "col": found.place.column}
    properties["title"] = f"{finding.rule_id} {finding.rule_name}"
    given = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None)
    return f"::{COMMANDS[finding.severity]} {given}::{_data(f'{found.message} {found.hint}'.strip())}"


def _data(text: str) -> str:
    """Return text as a workflow command takes it."""
    return plain(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(judged: Judged) -> str:
    """Return the findings as Markdown, for the summary of a job."""
    return "\n".join(_summary(judged)) + "\n"


def _summary(judged: Judged) -> Iterator[str]:
    yield "### shardwright validate"
    yield ""
    yield summary_line(judged)
    if judged.findings:
        yield ""
        yield "| severity | rule | place | what is wrong |"
        yield "|---|---|---|---|"
        for index in worst_first(judged)[:MAX_ROWS]:
            finding = judged.findings[index]
            place = finding.found.place
            where = ":".join(str(part) for part in (relative(place.file), place.line, place.column) if part is not None)
            what = f"{finding.found.message} {finding.found.hint}".strip()
            yield f"| {finding.severity} | {finding.rule_id} {finding.rule_name} | {_cell(where)} | {_cell(what)} |"
    if len(judged.findings) > MAX_ROWS:
        yield ""
        yield f"{counted(len(judged.findings) - MAX_ROWS, 'finding')} more."
    if judged.unread:
        yield ""
        yield f"Not read, because they are damaged or too large: {counted(len(judged.unread), 'file')}."
    if judged.undecided:
        yield ""
        yield f"Not decided: {counted(len({one.rule_id for one in judged.undecided}), 'rule')}."


def _cell(text: str) -> str:
    """Return text that Markdown and HTML leave as it is."""
    escaped = escape(plain(text), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|~!#@" else character for character in escaped)
