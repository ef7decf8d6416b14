"""What changed between two plans, as tables, as Markdown for a pull request, and as JSON."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cli.render import (
    Block,
    Item,
    Line,
    Style,
    Table,
    columns,
    gib,
    milliseconds,
    section,
    signed_gib,
    signed_milliseconds,
    signed_percent,
)
from planner.locks.lock_changes import Level, LockChanges, Remark
from planner.locks.plan_lock import PlanLock

STYLES = {
    Level.BAD: Style.BAD,
    Level.WORTH_A_LOOK: Style.HEADING,
    Level.GOOD: Style.GOOD,
    Level.NEUTRAL: Style.PLAIN,
}
MARKS = {Level.BAD: "**worse**", Level.WORTH_A_LOOK: "**look**", Level.GOOD: "better", Level.NEUTRAL: "note"}
MOST_TERMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A table of a difference: what, before, after, change."""

    title: str
    rows: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A difference as it is shown.

    Args:
        title: Of the whole.
        remarks: What it means.
        tables: What changed; the first is there whatever changed.
        files: Files that changed.
        unchanged: Nothing of it did.
    """

    title: str
    remarks: tuple[Remark, ...]
    tables: tuple[Rows, ...]
    files: tuple[str, ...]
    unchanged: bool


def shown(found: LockChanges) -> Shown:
    """Return a difference of training plans as it is shown."""
    return Shown(
        title="Layout plan",
        remarks=found.remarks,
        tables=tuple(_tables(found)),
        files=found.files,
        unchanged=not found.remarks and not found.settings and not found.inputs,
    )


def diff_blocks(found: Shown) -> tuple[Block, ...]:
    """Return what `diff` prints."""
    blocks: list[Block] = [Line(remark.text, STYLES[remark.level]) for remark in found.remarks]
    if found.unchanged:
        return (Line("Nothing changed.", Style.GOOD),)
    for table in found.tables:
        blocks += section(table.title, _table(table))
    if found.files:
        blocks += section("Files", *(Item(name) for name in found.files))
    return tuple(blocks)


def _table(of: Rows) -> Table:
    """Return rows as a table; without the last column where no row has a change beside its before and after."""
    if any(change for *_, change in of.rows):
        return Table(columns=columns("", ">before", ">after", ">change"), rows=of.rows)
    return Table(columns=columns("", "before", "after"), rows=tuple(row[:3] for row in of.rows))


def diff_markdown(found: Shown) -> str:
    """Return the same as Markdown."""
    lines = [f"### {found.title}", ""]
    lines += [f"- {MARKS[remark.level]}: {_escaped(remark.text)}" for remark in found.remarks] or ["- no remark"]
    for table in found.tables:
        lines += ["", f"#### {table.title}", "", "| | before | after | change |", "|---|---:|---:|---:|"]
        lines += [f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in table.rows]
    if found.files:
        lines += ["", f"Files that changed: {', '.join(f'`{_escaped(name)}`' for name in found.files)}"]
    return "\n".join(lines) + "\n"


def remarks_document(remarks: Iterable[Remark]) -> list[dict[str, str]]:
    """Return remarks as JSON."""
    return [{"level": remark.level.value, "about": remark.about.value, "text": remark.text} for remark in remarks]


def term_rows(terms: Mapping[str, tuple[float, float]]) -> Rows:
    """Return the largest changes of terms of a time."""
    rows = [
        (term, milliseconds(old), milliseconds(new), signed_milliseconds(new - old))
        for term, (old, new) in [*terms.items()][:MOST_TERMS]
    ]
    left = len(terms) - len(rows)
    return Rows(title=f"Time by term{f', the largest {MOST_TERMS}' if left else ''}", rows=tuple(rows))


def pair_rows(title: str, pairs: Mapping[str, tuple[str, str]]) -> Rows:
    """Return what stood there and what stands there now."""
    return Rows(title=title, rows=tuple((name, old, new, "") for name, (old, new) in pairs.items()))


def _escaped(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#" else character for character in text)


def _tables(found: LockChanges) -> Iterator[Rows]:
    yield Rows(title="Prediction", rows=tuple(_figures(found.old, found.new, found)))
    for title, pairs in (("Inputs that changed", found.inputs), ("Layout", found.settings)):
        if pairs:
            yield pair_rows(title, pairs)
    if found.terms:
        yield term_rows(found.terms)


def _figures(old: PlanLock, new: PlanLock, found: LockChanges) -> Iterator[tuple[str, str, str, str]]:
    yield "step", milliseconds(old.step_seconds), milliseconds(new.step_seconds), signed_percent(found.step_fraction)
    speeds = old.tokens_per_second_per_gpu, new.tokens_per_second_per_gpu
    yield "tokens/s/GPU", f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", signed_percent(speeds[1] / speeds[0] - 1)
    peaks = old.tightest.peak_bytes, new.tightest.peak_bytes
    yield "peak memory", gib(peaks[0]), gib(peaks[1]), signed_gib(found.peak_change_bytes)
    lefts = old.tightest.left_bytes, new.tightest.left_bytes
    yield "left below the limit", gib(lefts[0]), gib(lefts[1]), signed_gib(lefts[1] - lefts[0])
    yield "gap", _gap(old.gap), _gap(new.gap), ""


def _gap(gap: float | None) -> str:
    return "not searched" if gap is None else f"{gap:.1%}"


def diff_document(found: LockChanges) -> dict[str, object]:
    """Return the same as JSON; seconds and bytes, never rounded."""
    return {
        "schema": 1,
        "remarks": remarks_document(found.remarks),
        "step_seconds": [found.old.step_seconds, found.new.step_seconds],
        "tokens_per_second_per_gpu": [found.old.tokens_per_second_per_gpu, found.new.tokens_per_second_per_gpu],
        "peak_memory_bytes": [found.old.tightest.peak_bytes, found.new.tightest.peak_bytes],
        "left_bytes": [found.old.tightest.left_bytes, found.new.tightest.left_bytes],
        "gap": [found.old.gap, found.new.gap],
        "inputs": {part: list(pair) for part, pair in found.inputs.items()},
        "settings": {name: list(pair) for name, pair in found.settings.items()},
        "seconds_by_term": {term: list(pair) for term, pair in found.terms.items()},
        "files": list(found.files),
    }
