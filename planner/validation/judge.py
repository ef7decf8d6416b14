"""Judges files: the main path of `shardwright validate`.

Files are read one by one, each run that one starts is put before the rules of its framework and version, and what a
comment in the file hides is set apart. A rule that needs a value which only a run of the script could tell is listed as
not decided; it is never taken for kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError, Location, PlannerError
from planner.readers.arguments import NotSaidError
from planner.rules.registry import all_rules, lock_rules, priced_rules, rules_of, spelling_rules
from planner.rules.rule import Config, Finding, Rule, Severity
from planner.validation.sources import Asked, Run, files_named, read_source, text_of
from planner.validation.suppressions import suppressions, without_suppressed
from profiles.errors import CoverageError
from solvers.errors import SolverError

if TYPE_CHECKING:
    from planner.validation.pricing import Baseline, Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """A rule that could not be decided.

    Args:
        file: The file.
        rule_id: The rule.
        what: The value that is not said.
    """

    file: str
    rule_id: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of the files.

    Args:
        files: Those that start something that is known, in order.
        skipped: Files of folders that start nothing that is known.
        findings: Broken rules, sorted by place.
        hidden: Broken rules that a comment hides.
        undecided: Rules that could not be decided.
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...]
    findings: tuple[Finding, ...]
    hidden: tuple[Finding, ...]
    undecided: tuple[Undecided, ...]


def judge(
    names: Sequence[str], asked: Asked, *, machine: "Machine | None" = None, baseline: "Baseline | None" = None
) -> Judged:
    """Return what is wrong with files, folders and patterns.

    Args:
        names: Files, folders and patterns.
        asked: What the user says beside the files.
        machine: Where runs are priced; None leaves memory and speed alone.
        baseline: A locked plan that runs are held against.

    Raises:
        InputError: One that was named itself cannot be read, or starts nothing that is known.
    """
    files: list[str] = []
    skipped: list[str] = []
    findings: list[Finding] = []
    hidden: list[Finding] = []
    undecided: list[Undecided] = []
    for path, named in files_named(names):
        found = _judged_file(path, asked, named=named, also=_Also(machine=machine, baseline=baseline))
        if found is None:
            skipped.append(str(path))
            continue
        files.append(str(path))
        findings.extend(found.findings)
        hidden.extend(found.hidden)
        undecided.extend(found.undecided)
    return Judged(
        files=tuple(files),
        skipped=tuple(skipped),
        findings=tuple(sorted(findings, key=lambda finding: finding.order)),
        hidden=tuple(sorted(hidden, key=lambda finding: finding.order)),
        undecided=tuple(undecided),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Also:
    """What a run is held against beside the rules of its framework."""

    machine: "Machine | None" = None
    baseline: "Baseline | None" = None


def _judged_file(path: Path, asked: Asked, *, named: bool, also: _Also) -> Judged | None:
    """Return what is wrong with one file; None for one of a folder that is nothing of ours."""
    file = str(path)
    try:
        source = read_source(text_of(path), file=file, asked=asked)
    except InputError:
        if named:
            raise
        return None
    if not source.runs:
        if named:
            raise InputError(
                "This starts nothing that is known.",
                location=Location(file=file),
                hint="Known are commands of Megatron-LM, DeepSpeed and vLLM, and their configuration files.",
            )
        return None
    return judged_text(source.text, source.runs, file=file, also=also)


def judged_text(text: str, runs: Sequence[Run], *, file: str, also: "_Also | None" = None) -> Judged:
    """Return what is wrong with the runs of one file."""
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    for run in runs:
        if run.arguments is not None:
            for rule in spelling_rules(run.framework):
                findings.extend(_broken(rule, run.arguments))
        for rule in rules_of(run.framework, run.version):
            try:
                findings.extend(_broken(rule, run))
            except NotSaidError as error:
                undecided.append(Undecided(file=file, rule_id=rule.id, what=error.what))
        if also is not None and not any(finding.severity is Severity.ERROR for finding in findings):
            priced, open_ = _priced(run, file, also)
            findings.extend(priced)
            undecided.extend(open_)
    comments = suppressions(text, file=file)
    left, hidden = without_suppressed(findings, comments, known=frozenset(all_rules()) if comments else frozenset())
    return Judged(files=(file,), skipped=(), findings=left, hidden=hidden, undecided=tuple(dict.fromkeys(undecided)))


def _priced(run: Run, file: str, also: _Also) -> tuple[list[Finding], list[Undecided]]:
    """Return the findings of rules that need a price, and those that could not be decided."""
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    for asked, rules in ((also.machine, priced_rules), (also.baseline, lock_rules)):
        if asked is None or not rules(run.framework):
            continue
        from planner.validation.pricing import Baseline, held_run, priced_run  # noqa: PLC0415 - a price loads numpy

        try:
            config = (
                held_run(Path(file), run, asked) if isinstance(asked, Baseline) else priced_run(Path(file), run, asked)
            )
        except (PlannerError, CoverageError, SolverError) as error:
            if isinstance(error, InputError) and error.location is not None and error.location.file != file:
                raise  # a spec or a plan that the user named, not the file that is judged
            first = str(error).partition("\n")[0]
            undecided.extend(Undecided(file=file, rule_id=rule.id, what=first) for rule in rules(run.framework))
            continue
        for rule in rules(run.framework):
            findings.extend(_broken(rule, config))
    return findings, undecided


def _broken(rule: Rule[Config], config: Config) -> Iterator[Finding]:
    for found in rule.check(config):
        yield Finding(
            rule_id=rule.id,
            rule_name=rule.name,
            severity=rule.severity,
            found=found,
            prevents=rule.prevents,
            found_at=rule.found_at,
        )
