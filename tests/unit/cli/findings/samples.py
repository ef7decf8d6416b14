"""Findings to print: of real scripts, and made up ones with hostile text."""

from collections.abc import Mapping, Sequence

from planner.errors import Location
from planner.readers.flag_tables import Framework
from planner.rules.registry import all_rules
from planner.rules.rule import Finding, Fix, Found, FoundAt, Severity
from planner.validation.judge import Judged, Undecided, judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.unit.rules.megatron_cases import script

HOSTILE = "a\x1b[2J\n::error::x%,:|<b>`]]>&\u202e\x00\ufffe[l](http://x) *_~ \ud7ff\U0001f600"
"""Text that would do something to a terminal, a log, a table, XML or Markdown."""

ONE_LINE = script(tensor_model_parallel_size="3 --sequnce-parallel")
"""One line breaks five rules, in two places, and another line one."""


def judged(text: str, *, file: str = "train.sh", num_gpus: int | None = None) -> Judged:
    """Return what is wrong with a text."""
    versions: Mapping[Framework, str] = {}
    source = read_source(text, file=file, asked=Asked(versions=versions, num_gpus=num_gpus))
    return judged_text(text, source.runs, file=file)


def finding(
    *,
    rule_id: str = "MLM101",
    severity: Severity = Severity.ERROR,
    file: str = "train.sh",
    line: int | None = 1,
    column: int | None = 1,
    message: str = "It is wrong.",
    hint: str = "Mend it.",
    fix: tuple[str, str] | None = None,
) -> Finding:
    """Return a finding; `fix` is the old and the new text at its place."""
    place = Location(file=file, line=line, column=column)
    return Finding(
        rule_id=rule_id,
        rule_name=all_rules()[rule_id].name,
        severity=severity,
        found=Found(
            place=place,
            message=message,
            hint=hint,
            fix=None if fix is None else Fix(location=place, old=fix[0], new=fix[1]),
        ),
        prevents="it stops",
        found_at=FoundAt.START,
    )


def made(*findings: Finding, texts: Mapping[str, str] | None = None, undecided: Sequence[Undecided] = ()) -> Judged:
    """Return findings as if files had been judged."""
    files = tuple(dict.fromkeys([*(texts or {}), *(one.found.place.file for one in findings)]))
    return Judged(
        files=files,
        skipped=(),
        unread=(),
        findings=tuple(sorted(findings, key=lambda one: one.order)),
        hidden=(),
        undecided=tuple(undecided),
        checked=dict.fromkeys(files, ("MLM101", "MLM102", "S001")),
        texts=texts or {},
    )
