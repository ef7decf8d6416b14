"""What came of the checks, as a table and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import zip_longest

from benchmarks.checks.check import Check, Command, Suite
from benchmarks.checks.running import LOOP_STEPS, Row
from benchmarks.checks.targets import Verdict

SCHEMA_VERSION = 1
FIGURE_WIDTH = 16
NAMES = ("check", "measure", "target")


class Table:
    """Lines of one width for the rows of some checks; they are known before anything has run.

    Args:
        checks: The checks.
    """

    def __init__(self, checks: Sequence[Check]) -> None:
        wanted = [(check.full_name, *pair) for check in checks for pair in check.wanted]
        self._widths = [max(len(words[column]) for words in (NAMES, *wanted)) for column in range(len(NAMES))]

    @property
    def header(self) -> str:
        """Return the names of the columns."""
        return self._line(NAMES, "figure", "verdict", "seconds", "loop")

    def lines_of(self, rows: Sequence[Row]) -> tuple[str, ...]:
        """Return the lines of a check's rows: one each, and one more for a reason, once for all that have it."""
        lines: list[str] = []
        for row, following in zip_longest(rows, rows[1:]):
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            loop = "" if row.loop_seconds is None else f"{row.loop_seconds:.2f}"
            names = (row.check, row.measure, row.target)
            lines.append(self._line(names, row.said, row.verdict.value, seconds, loop))
            if row.reason and (following is None or following.reason != row.reason):
                lines.append(f"    {row.reason}")
        return tuple(lines)

    def _line(self, names: tuple[str, str, str], figure: str, verdict: str, seconds: str, loop: str) -> str:
        cells = [name.ljust(width) for name, width in zip(names, self._widths, strict=True)]
        found = (figure.ljust(FIGURE_WIDTH), verdict.ljust(7), seconds.rjust(8), loop.rjust(5))
        return "  ".join((*cells, *found)).rstrip()


def summary_lines(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return how many measures met their targets, and how long the loop took."""
    counted = Counter(row.verdict for row in rows)
    lines = ["", f"{', '.join(f'{counted[verdict]} {verdict}' for verdict in Verdict)}, of {len(rows)}"]
    loops = [row.loop_seconds for row in rows if row.loop_seconds is not None]
    if loops:
        lines.append(
            f"seconds: wall time of a run; loop: of {LOOP_STEPS:,} additions of Python just before it,"
            f" {min(loops):.2f} to {max(loops):.2f} s here"
        )
    return tuple(lines)


def document_of(rows: Sequence[Row]) -> dict[str, object]:
    """Return the rows as JSON."""
    counted = Counter(row.verdict for row in rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "loop_steps": LOOP_STEPS,
        "rows": [{**asdict(row), "verdict": row.verdict.value} for row in rows],
        "summary": {"rows": len(rows), **{verdict.value: counted[verdict] for verdict in Verdict}},
    }


def listed(checks: Sequence[Check]) -> tuple[str, ...]:
    """Return the lines that say what checks there are, and how each is run."""
    lines: list[str] = []
    for check in checks:
        lines += [check.full_name, f"    {check.about}"]
        lines += [f"    {name}: {target}" for name, target in check.wanted]
        lines.append(f"    {command_of(check)}")
    return tuple(lines)


def command_of(check: Check) -> str:
    """Return how a check is run, in words."""
    run = check.run
    if isinstance(run, Command):
        return "; then ".join(f"python {' '.join(words)}" for words in (run.before, run.words) if words)
    if isinstance(run, Suite):
        return f"pytest -m '{run.marker}' {' '.join(run.nodes)}"
    return f"by hand: {run.reason}"
