"""A check is run, and its figures are held against their targets.

Every run is a process of its own, its standard output and errors in files of their own. Before it a fixed loop of
Python is timed: machines differ and do other work besides, so a time says little without the loop's beside it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from xml.etree import ElementTree

from benchmarks.bare_loop import bare_loop
from benchmarks.checks.check import FOLDER, MEASUREMENTS, ROOT, Answer, ByHand, Check, Command, Measure, Need, Suite
from benchmarks.checks.targets import Verdict

MANY_EXAMPLES = "SHARDWRIGHT_MANY_EXAMPLES"
"""The variable by which tests try laws on many examples."""

LOOP_STEPS = 2_000_000
MOST_NAMED = 3
"""Tests that a reason names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What runs are given.

    Args:
        logs: Folder for what they print.
        measurements: Folder of the published measurements; None where there is none.
        workers: Processes that tests of several files are dealt to.
    """

    logs: Path
    measurements: Path | None = None
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of a measure.

    Args:
        check: Name of its check.
        measure: Its own.
        target: What was wanted, in words.
        figure: What was found; None without a figure.
        said: The same in words; "-" without.
        verdict: Whether the target is kept.
        reason: Why it is not, where the figure does not say it; empty where it does.
        seconds: Wall time of the run; None where there was none.
        loop_seconds: Wall time of the loop just before it.
    """

    check: str
    measure: str
    target: str
    figure: float | None
    said: str
    verdict: Verdict
    reason: str = ""
    seconds: float | None = None
    loop_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A process that has ended.

    Args:
        exit_code: Its exit code.
        output: What it printed.
        errors: What it printed as errors.
        seconds: Its wall time.
        loop_seconds: That of the loop before it.
    """

    exit_code: int
    output: str
    errors: str
    seconds: float
    loop_seconds: float

    @property
    def complaint(self) -> str:
        """Return its exit code with the last line of its errors, or of what it printed."""
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return f"exit code {self.exit_code}" + (f": {lines[-1].strip()}" if lines else "")


def gpu_is_there() -> bool:
    """Return whether NVIDIA's driver lists a GPU."""
    listing = shutil.which("nvidia-smi")
    if listing is None:
        return False
    found = subprocess.run([listing, "-L"], capture_output=True, text=True, check=False)
    return found.returncode == 0 and bool(found.stdout.strip())


def is_git_checkout() -> bool:
    """Return whether git knows the files of the repository."""
    return (ROOT / ".git").exists() and shutil.which("git") is not None


AT_HAND: Mapping[Need, Callable[[], bool]] = {Need.GPU: gpu_is_there, Need.GIT: is_git_checkout}


def lacking(run: Command | Suite | ByHand, settings: Settings) -> str:
    """Return what a run needs and is not at hand; empty where all is there."""
    if isinstance(run, ByHand):
        return run.reason
    needed = [need for need in run.needs if not AT_HAND[need]()]
    if needed:
        return f"needs {' and '.join(needed)}"
    files = run.files if isinstance(run, Command) else ()
    if files and settings.measurements is None:
        return f"needs {', '.join(files)}: say where with --measurements"
    missing = [name for name in files if settings.measurements and not (settings.measurements / name).is_file()]
    return f"{settings.measurements} has no {', '.join(missing)}" if missing else ""


def rows_of(check: Check, settings: Settings) -> tuple[Row, ...]:
    """Return what comes of a check, a row for each measure."""
    run = check.run
    reason = lacking(run, settings)
    if isinstance(run, ByHand) or reason:
        return _alike(check, Verdict.NOT_RUN, reason)
    if isinstance(run, Suite):
        return (_row_of_tests(check, run, settings),)
    with TemporaryDirectory() as folder:
        said = {FOLDER: folder, MEASUREMENTS: str(settings.measurements)}
        if run.before:
            ran = _ran(_filled(run.before, said), settings.logs / f"{check.full_name}.before")
            if ran.exit_code:
                return _alike(check, Verdict.MISSED, ran.complaint, ran)
        ran = _ran(_filled(run.words, said), settings.logs / check.full_name)
    if ran.exit_code not in run.exits:
        return _alike(check, Verdict.MISSED, ran.complaint, ran)
    answer = Answer(exit_code=ran.exit_code, output=ran.output, seconds=ran.seconds, measurements=settings.measurements)
    return tuple(_row_of_measure(check, measure, answer, ran) for measure in run.measures)


def _filled(words: Sequence[str], said: dict[str, str]) -> list[str]:
    """Return words with what stands for folders put in."""
    return [reduce(lambda text, mark: text.replace(mark, said[mark]), said, word) for word in words]


def _alike(check: Check, verdict: Verdict, reason: str, ran: Ran | None = None) -> tuple[Row, ...]:
    """Return the rows of a check none of whose figures is known."""
    return tuple(
        Row(
            check=check.full_name,
            measure=name,
            target=target,
            figure=None,
            said="-",
            verdict=verdict,
            reason=reason,
            seconds=None if ran is None else ran.seconds,
            loop_seconds=None if ran is None else ran.loop_seconds,
        )
        for name, target in check.wanted
    )


def _row_of_measure(check: Check, measure: Measure, answer: Answer, ran: Ran) -> Row:
    reason = ""
    try:
        figure = measure.read(answer)
    except (LookupError, TypeError, ValueError) as error:
        figure, reason = None, f"its output is not what it should be: {type(error).__name__}: {error}"
    kept = figure is not None and measure.target.holds(figure)
    return Row(
        check=check.full_name,
        measure=measure.name,
        target=measure.target.text,
        figure=figure,
        said="-" if figure is None else measure.target.said(figure),
        verdict=Verdict.MET if kept else Verdict.MISSED,
        reason=reason or ("" if figure is not None else "it says no figure"),
        seconds=ran.seconds,
        loop_seconds=ran.loop_seconds,
    )


def _ran(words: Sequence[str], log: Path) -> Ran:
    """Run Python with some words in the repository, its output beside `log`.

    Without the variable CI: where it is set, tests of a framework that is not installed fail, and do not say so. Laws
    are tried on many examples.
    """
    loop_seconds = seconds_of_loop()
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {MANY_EXAMPLES: "1"}
    output, errors = Path(f"{log}.out"), Path(f"{log}.err")
    with output.open("wb") as out, errors.open("wb") as err:
        began = perf_counter()
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            check=False,
        )
        seconds = perf_counter() - began
    return Ran(
        exit_code=done.returncode,
        output=output.read_text(encoding="utf-8", errors="replace"),
        errors=errors.read_text(encoding="utf-8", errors="replace"),
        seconds=seconds,
        loop_seconds=loop_seconds,
    )


def seconds_of_loop() -> float:
    """Return the wall time of the fixed loop."""
    began = perf_counter()
    bare_loop(LOOP_STEPS)
    return perf_counter() - began


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What came of tests.

    Args:
        passed: How many passed.
        failed: Names of those that failed, or could not be tried.
        skipped: Why others were left out, a reason each.
    """

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return "12 passed, 1 failed"."""
        parts = (("passed", self.passed), ("failed", len(self.failed)), ("skipped", len(self.skipped)))
        return ", ".join(f"{number} {word}" for word, number in parts if number) or "-"


def counts_of(report: str) -> Counts:
    """Return what a report of pytest's in JUnit's form says."""
    passed, failed, skipped = 0, [], []
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        reason = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif reason is not None:
            skipped.append(reason.get("message") or name)
        else:
            passed += 1
    return Counts(passed=passed, failed=tuple(failed), skipped=tuple(skipped))


def words_of_tests(run: Suite, *, report: Path, workers: int) -> tuple[str, ...]:
    """Return how pytest is called; tests of one file stay together, as they may share what is slow to make."""
    several = len(run.nodes) > 1 or (ROOT / run.nodes[0]).is_dir()
    return (
        *("-m", "pytest", "-q", f"--junitxml={report}"),
        *("-m", run.marker),
        *(("-n", str(workers), "--dist", "loadfile") if several and workers > 1 else ()),
        *run.nodes,
    )


def _row_of_tests(check: Check, run: Suite, settings: Settings) -> Row:
    report = settings.logs / f"{check.full_name}.xml"
    report.unlink(missing_ok=True)
    ran = _ran(words_of_tests(run, report=report, workers=settings.workers), settings.logs / check.full_name)
    counts = counts_of(report.read_text(encoding="utf-8")) if report.is_file() else None
    verdict, reason = judged(counts, ran)
    ((name, target),) = check.wanted
    return Row(
        check=check.full_name,
        measure=name,
        target=target,
        figure=None if counts is None else counts.passed,
        said="-" if counts is None else counts.text,
        verdict=verdict,
        reason=reason,
        seconds=ran.seconds,
        loop_seconds=ran.loop_seconds,
    )


def judged(counts: Counts | None, ran: Ran) -> tuple[Verdict, str]:
    """Return the verdict on tests with its reason: one that was skipped leaves its check not run, never met."""
    if counts is not None and counts.failed:
        return Verdict.MISSED, _some(counts.failed)
    if counts is None or ran.exit_code or not (counts.passed or counts.skipped):
        return Verdict.MISSED, f"no test was run; {ran.complaint}" if counts is None else ran.complaint
    if counts.skipped:
        return Verdict.NOT_RUN, _some(dict.fromkeys(counts.skipped))
    return Verdict.MET, ""


def _some(texts: Iterable[str]) -> str:
    named = list(texts)
    more = len(named) - MOST_NAMED
    return "; ".join(named[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
