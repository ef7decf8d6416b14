"""What a profile holds, on one screen: where it comes from, what was measured, and what the gates leave out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cli.render import Block, Facts, Item, Line, Style, Table, columns, count, counted, percent, section
from profiles.achieved import achieved
from profiles.hardware import Device
from profiles.judging import Judged
from profiles.measure.journal import Entry
from profiles.measured_operations import Family
from profiles.profiled import lost_fraction
from profiles.recorded import Recording

MOST_LISTED = 20
"""Rows that are listed on a terminal; the JSON document and `export` hold all."""

_NAMED_WORDS = {"gemm": 2, "experts": 2, "attention": 2, "elementwise": 3, "collectives": 3, "copies": 3}
"""Words that tell the rows of a suite apart; of the others all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the summary: points of one suite and kind.

    Args:
        suite: The suite.
        kind: Its words.
        points: Points measured.
        failed: Points that could not be.
        excluded: Points that the gates leave out.
        best: Best rate, in words; for suites without one their median figure.
        fraction: The median part of the datasheet's rate; None where that is not known.
    """

    suite: str
    kind: str
    points: int
    failed: int
    excluded: int
    best: str
    fraction: float | None


def summary_rows(recording: Recording, judged: Judged, device: Device | None) -> tuple[Row, ...]:
    """Return the summary, in the order in which suites and kinds first occur."""
    by_kind: dict[tuple[str, str], list[Entry]] = {}
    for entry in recording.content.entries:
        words = entry.point.words[: _NAMED_WORDS.get(entry.point.suite, 9)]
        by_kind.setdefault((entry.point.suite, " ".join(words)), []).append(entry)
    gone = {entry.row.line for entry in judged.excluded}
    rows = []
    for (suite, kind), entries in sorted(by_kind.items(), key=lambda item: item[0]):
        measured = [entry for entry in entries if not entry.reason]
        used = [entry for entry in measured if entry.line not in gone]
        best, fraction = _figures(suite, used, device)
        rows.append(
            Row(
                suite=suite,
                kind=kind,
                points=len(measured),
                failed=len(entries) - len(measured),
                excluded=len(measured) - len(used),
                best=best,
                fraction=fraction,
            )
        )
    return tuple(rows)


def _figures(suite: str, entries: Sequence[Entry], device: Device | None) -> tuple[str, float | None]:
    """Return the best rate in words, and the median part of the datasheet's."""
    if not entries:
        return "", None
    if suite == "memory":
        return f"{median(float(str(entry.result['bytes'])) for entry in entries) / 2**20:,.0f} MiB", None
    if suite == "overlap":
        return f"{median(lost_fraction(entry) for entry in entries):.2f} s lost a second", None
    rates = [rate for entry in entries if (rate := achieved(entry, device)) is not None]
    if not rates:
        return f"{median(float(str(entry.result['seconds'])) for entry in entries) * 1e6:,.1f} us", None
    best = max(rates, key=lambda rate: rate.per_second)
    fractions = [rate.fraction for rate in rates if rate.fraction is not None]
    return in_words(best.per_second, best.unit), median(fractions) if fractions else None


def in_words(per_second: float, unit: str) -> str:
    """Return a rate with its unit: "612 TFLOP/s", "2,900 GB/s"."""
    scale, prefix = (1e12, "T") if unit == "FLOP/s" and per_second >= 1e11 else (1e9, "G")
    value = per_second / scale
    return f"{value:,.0f} {prefix}{unit}" if value >= 100 else f"{value:,.2f} {prefix}{unit}"


def profile_blocks(
    recording: Recording, judged: Judged, device: Device | None, *, verbose: bool = False
) -> tuple[Block, ...]:
    """Return what `profile show` prints."""
    rows = summary_rows(recording, judged, device)
    table = Table(
        columns=columns(
            "suite", "kind", ">points", ">failed", ">left out", ">best", ">of datasheet", spare=("failed", "left out")
        ),
        rows=tuple(
            (
                row.suite,
                row.kind,
                count(row.points),
                count(row.failed) if row.failed else "",
                count(row.excluded) if row.excluded else "",
                row.best,
                "" if row.fraction is None else percent(row.fraction),
            )
            for row in rows
        ),
    )
    total = len(recording.measured)
    return (
        Line(f"{recording.directory}: {counted(total, 'point')} of {recording.device}", Style.HEADING),
        Facts(pairs=tuple(provenance_facts(recording))),
        *section("Measured", table),
        *remark_blocks(recording.stale),
        *(excluded_blocks(judged) if verbose else brief_blocks(judged)),
        *(refused_blocks(recording) if verbose else ()),
        *(failed_blocks(recording) if verbose else ()),
    )


def provenance_facts(recording: Recording) -> list[tuple[str, str]]:
    """Return where the newest run comes from."""
    run = recording.newest
    facts = [("device", str(run.get("device", "")))]
    software = run.get("software")
    if isinstance(software, Mapping):
        facts.append(("software", ", ".join(f"{name} {version}" for name, version in software.items())))
    facts.append(
        ("host", f"{run.get('host', '')}, {run.get('date', '')}, {counted(len(recording.content.runs), 'run')}")
    )
    facts.append(("ranks", f"{run.get('world_size')} over {run.get('backend')}, {run.get('gpus_per_node')} on a node"))
    conditions = [*recording.content.conditions]
    clocks = [float(str(found["sm_clock_mhz"])) for found in conditions if _is_number(found.get("sm_clock_mhz"))]
    if clocks:
        hottest = max(float(str(found.get("temperature_celsius") or 0)) for found in conditions)
        facts.append(("clocks", f"{min(clocks):,.0f} to {max(clocks):,.0f} MHz, at most {hottest:.0f} degrees Celsius"))
    unread = Counter(str(found["unread"]) for found in (*_of_runs(recording), *conditions) if found.get("unread"))
    facts += [("clocks unread", f"{reason}, {counted(number, 'time')}") for reason, number in unread.items()]
    facts.append(("sha256", recording.sha256))
    return facts


def _of_runs(recording: Recording) -> list[Mapping[str, object]]:
    """Return clocks and temperature at the beginning of each run."""
    found = (run.get("conditions") for run in recording.content.runs.values())
    return [of_run for of_run in found if isinstance(of_run, Mapping)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def remark_blocks(texts: Sequence[str]) -> tuple[Block, ...]:
    """Return what to beware of; nothing without any."""
    return section("Beware", *(Item(text) for text in texts)) if texts else ()


def brief_blocks(judged: Judged) -> tuple[Block, ...]:
    """Return how many points are left out, by fault."""
    faults = Counter(entry.fault for entry in judged.excluded)
    if not faults:
        return ()
    told = ", ".join(f"{number} {fault}" for fault, number in faults.items())
    return section("Left out", Item(f"{told}; `shardwright profile check` lists them"))


def excluded_blocks(judged: Judged) -> tuple[Block, ...]:
    """Return every point that is left out, with the reason."""
    if not judged.excluded:
        return ()
    shown = [
        Item(f"line {entry.row.line}, {entry.row.name}: {entry.fault}: {entry.reason}")
        for entry in judged.excluded[:MOST_LISTED]
    ]
    more = len(judged.excluded) - len(shown)
    return section("Left out", *shown, *([Item(f"and {more} more")] if more else []))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Refusal:
    """A kernel that was tried before the one that was measured.

    Args:
        suite: The suite.
        kernel: The kernel.
        reason: Why it did not take the point.
        instead: What was measured.
    """

    suite: str
    kernel: str
    reason: str
    instead: str


def refusals(recording: Recording) -> Mapping[Refusal, int]:
    """Return the kernels that refused points, with how many, in the order of the store."""
    found: Counter[Refusal] = Counter()
    for entry in recording.measured:
        refused = entry.result.get("refused")
        for kernel, reason in (refused if isinstance(refused, Mapping) else {}).items():
            instead = str(entry.result.get("kernel", ""))
            found[Refusal(suite=entry.point.suite, kernel=str(kernel), reason=str(reason), instead=instead)] += 1
    return found


def refused_blocks(recording: Recording) -> tuple[Block, ...]:
    """Return which kernels refused points that others took, each reason once."""
    listed = [
        Item(f"{counted(number, 'point')} of {of.suite}: {of.kernel}: {of.reason}; measured: {of.instead}")
        for of, number in refusals(recording).items()
    ]
    return section("Kernels that refused", *listed) if listed else ()


def failed_blocks(recording: Recording) -> tuple[Block, ...]:
    """Return why points could not be measured, each reason once."""
    reasons = Counter(f"{entry.point.suite}: {entry.reason}" for entry in recording.failed)
    if not reasons:
        return ()
    return section(
        "Not measured", *(Item(f"{counted(number, 'point')}, {reason}") for reason, number in reasons.items())
    )


def check_blocks(recording: Recording, judged: Judged, remarks: Sequence[str]) -> tuple[Block, ...]:
    """Return what `profile check` prints."""
    against = (
        f"the datasheet of {judged.roofline}"
        if judged.roofline
        else f"no roofline, for {recording.device} is not in the catalogue"
    )
    kept = f"{counted(len(judged.kept), 'point')} kept, {count(len(judged.excluded))} left out"
    return (
        Line(f"{recording.directory}: {kept}; held against {against}."),
        *remark_blocks(remarks),
        *excluded_blocks(judged),
    )


def left_out_blocks(errors: Mapping[Family, Sequence[float]]) -> tuple[Block, ...]:
    """Return how far interpolation is off, by family; nothing where it was not asked for, or cannot be told."""
    if not errors:
        return ()
    table = Table(
        columns=columns("family", ">points left out", ">median error", ">90th percentile"),
        rows=tuple(
            (family.value, count(len(missed)), percent(median(missed)), percent(_high(missed)))
            for family, missed in errors.items()
        ),
    )
    return section("Predicted from the others", table)


def _high(missed: Sequence[float]) -> float:
    """Return the 90th percentile, the next larger of two."""
    return sorted(missed)[min(len(missed) - 1, int(0.9 * len(missed)))]


def left_out_document(errors: Mapping[Family, Sequence[float]]) -> dict[str, object]:
    """Return the same as a part of a document."""
    return {
        family.value: {"points": len(missed), "median": median(missed), "p90": _high(missed)}
        for family, missed in errors.items()
    }


def profile_document(
    recording: Recording, judged: Judged, device: Device | None, remarks: Sequence[str]
) -> dict[str, object]:
    """Return the same as one document."""
    return {
        "directory": str(recording.directory),
        "device": recording.device,
        "sha256": recording.sha256,
        "runs": {str(number): dict(run) for number, run in sorted(recording.content.runs.items())},
        "summary": [
            {
                "suite": row.suite,
                "kind": row.kind,
                "points": row.points,
                "failed": row.failed,
                "excluded": row.excluded,
                "best": row.best,
                "fraction": row.fraction,
            }
            for row in summary_rows(recording, judged, device)
        ],
        "remarks": list(remarks),
        "roofline": judged.roofline,
        "excluded": [
            {"line": entry.row.line, "point": entry.row.name, "fault": entry.fault, "reason": entry.reason}
            for entry in judged.excluded
        ],
        "refused": [
            {"suite": of.suite, "kernel": of.kernel, "reason": of.reason, "measured": of.instead, "points": number}
            for of, number in refusals(recording).items()
        ],
        "failed": [
            {"line": entry.line, "point": entry.point.key, "reason": entry.reason} for entry in recording.failed
        ],
    }


def export_text(recording: Recording, judged: Judged) -> str:
    """Return every measured point as a line of CSV, with what the gates say of it."""
    gone = {entry.row.line: entry.fault for entry in judged.excluded}
    lines = ["suite,point,seconds,p10,p90,bytes,samples,kernel,run,left_out"]
    for entry in recording.measured:
        columns_of = entry.point.key.removeprefix(f"{entry.point.suite} ")
        result = [str(entry.result.get(name, "")) for name in ("seconds", "p10", "p90", "bytes", "samples", "kernel")]
        cells = [entry.point.suite, columns_of, *(cell.replace(",", ";") for cell in result)]
        lines.append(",".join([*cells, str(entry.run), gone.get(entry.line, "")]))
    return "\n".join(lines) + "\n"
