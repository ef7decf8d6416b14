"""Measured runs of a plan's best layouts beside their predictions, as a table and as JSON."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cli.render import (
    Blank,
    Block,
    Item,
    Line,
    Style,
    Table,
    columns,
    gib,
    milliseconds,
    percent,
    section,
    signed_percent,
)
from planner.verification.collect import CollectedRun, best_of

SCHEMA_VERSION = 1


def collect_blocks(runs: Sequence[CollectedRun], path: Path) -> tuple[Block, ...]:
    """Return what `collect` prints."""
    missing = [Item(f"{run.name}: {run.problem}") for run in runs if run.problem]
    return (
        Line("Measured beside predicted, best first by prediction", Style.HEADING),
        Table(
            columns=columns("run", ">predicted", ">measured", ">error", ">predicted peak", ">measured peak", "status"),
            rows=tuple(_row(run) for run in runs),
        ),
        Line("  error: predicted over measured, less one; peaks: of the framework's allocator"),
        Blank(),
        Line(verdict_in_words(runs), Style.GOOD),
        *(section("Not measured", *missing) if missing else ()),
        *section("Files", Item(f"{path}: as `shardwright accuracy {shlex.quote(str(path))}` reads it")),
    )


def _row(run: CollectedRun) -> tuple[str, ...]:
    seconds = run.step_seconds
    return (
        run.name,
        milliseconds(run.predicted_step_seconds),
        "" if seconds is None else milliseconds(seconds),
        "" if seconds is None else signed_percent(run.predicted_step_seconds / seconds - 1),
        gib(run.predicted_peak_bytes),
        "" if run.peak_bytes is None else gib(run.peak_bytes),
        _status(run),
    )


def _status(run: CollectedRun) -> str:
    if run.out_of_memory:
        return "out of memory"
    return "not measured" if run.problem else f"{run.num_steps} steps"


def verdict_in_words(runs: Sequence[CollectedRun]) -> str:
    """Return which run is best, and by how much it is ahead of the one that was predicted best."""
    best = best_of(runs)
    if best is None:
        return "No run has a step time: nothing tells which is best."
    first = runs[0]
    if sum(run.step_seconds is not None for run in runs) == 1 and len(runs) > 1:
        return f"Only {best.name} has a step time: nothing tells which is best."
    if best is first:
        return f"The best by prediction is the best measured: {best.name}."
    if first.step_seconds is None:
        return f"The best measured is {best.name}; the best by prediction has no step time."
    gain = percent(1 - best.step_seconds / first.step_seconds) if best.step_seconds is not None else ""
    return f"The best measured is {best.name}: its step takes {gain} less than that of the best by prediction."


def collect_document(runs: Sequence[CollectedRun], path: Path) -> dict[str, object]:
    """Return the runs as JSON."""
    best = best_of(runs)
    return {
        "schema_version": SCHEMA_VERSION,
        "measurements": str(path),
        "best": None if best is None else best.name,
        "runs": [
            {
                "name": run.name,
                "status": "oom" if run.out_of_memory else "missing" if run.problem else "ok",
                "predicted_step_seconds": run.predicted_step_seconds,
                "measured_step_seconds": run.step_seconds,
                "num_steps": run.num_steps,
                "predicted_peak_bytes": round(run.predicted_peak_bytes),
                "measured_peak_bytes": run.peak_bytes,
                "problem": run.problem or None,
            }
            for run in runs
        ],
    }
