"""Judges files: the main path of `shardwright validate`.

Files are read one by one, each run that one starts is put before the rules of its framework and version, and what a
comment in the file hides is set apart. A rule that needs a value which only a run of the script could tell is listed as
not decided; it is never taken for kept.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError, Location, PlannerError
from planner.readers.arguments import NotSaidError
from planner.rules.registry import lock_rules, own_rules, priced_rules, rules_of, spelling_rules, unread_rules
from planner.rules.rule import Finding, Fix, NoPriceError, Severity
from planner.validation.source import Asked, Run, Source
from planner.validation.sources import files_named, read_source, text_of, with_configurations
from profiles.errors import CoverageError
from solvers.errors import SolverError

if TYPE_CHECKING:
    from planner.rules.own_files import OwnFile
    from planner.rules.unread_files import UnreadFile
    from planner.validation.held_servers import ServeBaseline
    from planner.validation.pricing import Baseline, Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """A rule that could not be decided.

    Args:
        file: The file.
        rule_id: The rule.
        what: The value that is not said; or why there is no price.
        is_value: It is a value.
    """

    file: str
    rule_id: str
    what: str
    is_value: bool = True

    @property
    def reason(self) -> str:
        """Return why the rule could not be decided, as a clause."""
        return f"it does not say {self.what}" if self.is_value else self.what.rstrip(".")


OUR_NAME = "shardwright"
"""What a comment that hides findings names."""

COMMAND = "<command>"
"""What a command line that is given as text is called, where others have a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What came of the files.

    Args:
        files: Those that start something that is known, in order.
        skipped: Files of folders that start nothing that is known.
        unread: Files of folders that are damaged, too large or no text.
        findings: Broken rules, sorted by place.
        hidden: Broken rules that a comment hides.
        undecided: Rules that could not be decided.
        checked: The ids of the rules that each file was put before.
        texts: The text of each file.
    """

    files: tuple[str, ...]
    skipped: tuple[str, ...]
    unread: "tuple[UnreadFile, ...]"
    findings: tuple[Finding, ...]
    hidden: tuple[Finding, ...]
    undecided: tuple[Undecided, ...]
    checked: Mapping[str, tuple[str, ...]]
    texts: Mapping[str, str]


def judge(
    names: Sequence[str],
    asked: Asked,
    *,
    command: str | None = None,
    machine: "Machine | None" = None,
    baseline: "Baseline | ServeBaseline | None" = None,
) -> Judged:
    """Return what is wrong with files, folders and patterns, and with a command line that is given as text.

    Args:
        names: Files, folders and patterns.
        asked: What the user says beside the files.
        command: A command line.
        machine: Where runs are priced; None leaves memory and speed alone.
        baseline: A locked plan that runs are held against.

    Raises:
        InputError: One that was named itself cannot be read, or starts nothing that is known.
    """
    parts: list[Judged] = []
    skipped: list[str] = []
    unread: list[UnreadFile] = []
    listed = tuple(files_named(names))
    also = _Also(machine=machine, baseline=baseline, files=tuple(path for path, _ in listed))
    if command is not None:
        source = _known(read_source(command, file=COMMAND, asked=asked))
        parts.append(judged_text(source.text, also.seen(source.runs), file=source.file, also=also))
    for path, named in with_configurations(listed):
        try:
            source = _known(read_source(text_of(path), file=_name(path), asked=asked, named=also.files), path)
        except InputError as error:
            if named and not asked.skip_unknown:
                raise
            if isinstance(error, NothingKnownError):
                skipped.append(_name(path))
                continue
            from planner.validation.unread import is_for_us, unread_file  # noqa: PLC0415 - most files can be read

            unread.append(unread_file(path, error, file=_name(path)))
            if is_for_us(unread[-1].text, path, asked):
                parts.append(_judged_unread(unread[-1]))
            continue
        parts.append(_judged_source(source, path, also=also))
    findings = (finding for part in parts for finding in part.findings)
    hidden = (finding for part in parts for finding in part.hidden)
    return Judged(
        files=tuple(file for part in parts for file in part.files),
        skipped=tuple(skipped),
        unread=tuple(unread),
        findings=tuple(sorted(findings, key=_order)),
        hidden=tuple(sorted(hidden, key=_order)),
        undecided=tuple(undecided for part in parts for undecided in part.undecided),
        checked={file: rules for part in parts for file, rules in part.checked.items()},
        texts={file: text for part in parts for file, text in part.texts.items()},
    )


def _order(finding: Finding) -> tuple[str, int, int, str, str]:
    return finding.order


def _name(path: Path) -> str:
    """Return what messages call a file; bytes of its name that are no UTF-8 are written out."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Also:
    """What a run is held against beside the rules of its framework."""

    machine: "Machine | None" = None
    baseline: "Baseline | ServeBaseline | None" = None
    files: tuple[Path, ...] = ()

    def seen(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Return runs with what a cluster preset says of the links that they run over."""
        if self.machine is None or self.machine.cluster is None:
            return runs
        from planner.validation.pricing import on_links  # noqa: PLC0415 - a cluster loads numpy

        return on_links(runs, self.machine.cluster)


def _judged_source(source: Source, path: Path, *, also: _Also) -> Judged:
    """Return what is wrong with one file."""
    if source.own is not None:
        from planner.validation.own_files import read_own_file  # noqa: PLC0415 - scripts are none of ours

        return _judged_own(read_own_file(path, source.own), source.text)
    return judged_text(source.text, also.seen(source.runs), file=source.file, also=also)


def _judged_unread(file: "UnreadFile") -> Judged:
    """Return what is said of a file that should be judged and cannot be read."""
    findings = [finding for rule in unread_rules() for finding in rule.broken_by(file)]
    found = _without_hidden(file.text, file.file, findings, undecided=(), checked=[rule.id for rule in unread_rules()])
    return replace(found, files=())


class NothingKnownError(InputError):
    """A file starts nothing that is known."""


def _known(source: Source, path: Path | None = None) -> Source:
    """Return a source that starts something, or names a DeepSpeed configuration, which is judged in its place.

    Raises:
        InputError: It does not; or it names a configuration that is not there.
    """
    if source.launches and not source.runs:
        from planner.validation.deepspeed_files import configurations_of  # noqa: PLC0415 - few scripts name one

        if path is not None and next(configurations_of(source.launches, path), None) is not None:
            return source
        word = source.launches[0].config
        raise InputError(
            f"The configuration `{word.text}` is not there.",
            location=Location(file=source.file, line=word.line, column=word.column),
            hint="Name it beside the script: shardwright validate SCRIPT CONFIGURATION.",
        )
    if not source.runs and source.own is None:
        raise NothingKnownError(
            "This starts nothing that is known.",
            location=Location(file=source.file),
            hint="Known are commands and configurations of Megatron-LM, DeepSpeed and vLLM, our specs and plans.",
        )
    return source


def _judged_own(own: "OwnFile", text: str) -> Judged:
    """Return what is wrong with a file of ours."""
    from planner.rules.own_files import refused_serving_layout  # noqa: PLC0415 - as above

    findings = [finding for rule in own_rules() for finding in rule.broken_by(own)]
    undecided = [Undecided(file=own.file, rule_id=refused_serving_layout.id, what=what) for what in own.not_said]
    return _without_hidden(text, own.file, findings, undecided=undecided, checked=[rule.id for rule in own_rules()])


def judged_text(text: str, runs: Sequence[Run], *, file: str, also: "_Also | None" = None) -> Judged:
    """Return what is wrong with the runs of one file."""
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    checked: list[str] = []
    for run in runs:
        if run.arguments is not None:
            for rule in spelling_rules(run.framework):
                checked.append(rule.id)
                findings.extend(rule.broken_by(run.arguments))
        for rule in rules_of(run.framework, run.version):
            checked.append(rule.id)
            try:
                findings.extend(rule.broken_by(run))
            except NotSaidError as error:
                undecided.append(Undecided(file=file, rule_id=rule.id, what=error.what))
        if also is not None and not any(finding.severity is Severity.ERROR for finding in findings):
            priced, open_ = _priced(run, text, also, file=file, checked=checked)
            findings.extend(priced)
            undecided.extend(open_)
    # Commands of one configuration find the same of what only the configuration says.
    return _without_hidden(text, file, tuple(dict.fromkeys(findings)), undecided=undecided, checked=checked)


def _without_hidden(
    text: str, file: str, findings: Sequence[Finding], *, undecided: Sequence[Undecided], checked: list[str]
) -> Judged:
    """Return what was found in a file, what its comments hide set apart, and what is wrong with the comments added."""
    left: tuple[Finding, ...] = tuple(findings)
    hidden: tuple[Finding, ...] = ()
    if OUR_NAME in text:
        from planner.validation.suppressions import judged_comments  # noqa: PLC0415 - most files have no such comment

        decided = frozenset(checked).difference(one.rule_id for one in undecided)
        judged = judged_comments(text, findings, file=file, decided=decided)
        left, hidden = judged.left, judged.hidden
        checked.extend(judged.checked)
    lines = text.split("\n")
    return Judged(
        files=(file,),
        skipped=(),
        unread=(),
        findings=tuple(_with_true_fix(finding, lines, file=file) for finding in sorted(left, key=_order)),
        hidden=hidden,
        undecided=tuple(dict.fromkeys(undecided)),
        checked={file: tuple(dict.fromkeys(checked))},
        texts={file: text},
    )


def _with_true_fix(finding: Finding, lines: Sequence[str], *, file: str) -> Finding:
    """Return the finding; without its fix, where what it would replace does not stand there as it says."""
    fix = finding.found.fix
    if fix is None or _stands_there(fix, lines, file=file):
        return finding
    return replace(finding, found=replace(finding.found, fix=None))


def _stands_there(fix: Fix, lines: Sequence[str], *, file: str) -> bool:
    """Return whether a file holds what a fix replaces: a variable's value, for one, is written somewhere else."""
    place = fix.location
    if place.file != file or place.line is None or place.column is None or place.line > len(lines):
        return False
    return lines[place.line - 1].startswith(fix.old, place.column - 1)


def _priced(
    run: Run, text: str, also: _Also, *, file: str, checked: list[str]
) -> tuple[list[Finding], list[Undecided]]:
    """Return the findings of rules that need a price, and those that could not be decided; note which they are."""
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    for asked, rules in ((also.machine, priced_rules), (also.baseline, lock_rules)):
        if asked is None or not rules(run.framework):
            continue
        checked.extend(rule.id for rule in rules(run.framework))
        from planner.validation.pricing import (  # noqa: PLC0415 - a price loads numpy
            Machine,
            held_against,
            launched,
            priced_run,
        )

        ours = {file, run.start.file}
        try:
            source = launched(run, file=file, text=text)
            config = priced_run(source, run, asked) if isinstance(asked, Machine) else held_against(source, run, asked)
        except (PlannerError, CoverageError, SolverError, NotSaidError) as error:
            elsewhere = isinstance(error, InputError) and error.location is not None and error.location.file not in ours
            if elsewhere and (not isinstance(asked, Machine) or asked.spec is not None):
                raise  # a spec or a plan that the user named, not the file that is judged
            first = str(error).partition("\n")[0]
            is_value = isinstance(error, NotSaidError)
            undecided.extend(
                Undecided(file=file, rule_id=rule.id, what=first, is_value=is_value) for rule in rules(run.framework)
            )
            continue
        for rule in rules(run.framework):
            try:
                for finding in rule.broken_by(config):
                    findings.append(finding)  # noqa: PERF402 - what was found before the rule gave up is kept
            except NoPriceError as error:
                undecided.append(Undecided(file=file, rule_id=rule.id, what=error.why, is_value=False))
    return findings, undecided
