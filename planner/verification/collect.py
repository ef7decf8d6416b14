"""The folder after the runs -> rows of training measurements, and what cannot be told of the others."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from planner.accuracy.measurements import Kind, Row, read_measurements
from planner.errors import InputError, Location
from planner.units import GIB
from planner.verification.logs import RunLog, merged, read_log
from planner.verification.rows import COLUMNS, ROWS_FILE

WARM_UP_STEPS = 3
"""Steps that do not count: kernels are chosen, memory is allocated, and Megatron-LM's second line holds two steps."""

LEAST_STEPS = 3
"""Fewer counted steps are no measurement."""

RUN_FOLDER = re.compile(r"layout-\d+-[0-9a-f]{8}")

TIME_LIMIT_CODE, KILL_CODE = "124", "137"
"""What `timeout` ends with; what a kill leaves, its own or that of a host out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedRun:
    """One run.

    Args:
        name: Its folder.
        predicted_step_seconds: By the plan.
        predicted_peak_bytes: Of the framework's allocator, by the plan.
        step_seconds: Median of the counted steps; None where memory ran out, or there is no measurement.
        num_steps: Steps that count.
        peak_bytes: Largest peak of the allocator; None where none was printed.
        out_of_memory: Memory ran out.
        problem: Why there is no measurement; empty where there is one.
        cells: Its row.
    """

    name: str
    predicted_step_seconds: float
    predicted_peak_bytes: float
    step_seconds: float | None
    num_steps: int
    peak_bytes: int | None
    out_of_memory: bool
    problem: str
    cells: Mapping[str, str]


def collect(folder: Path) -> tuple[CollectedRun, ...]:
    """Return every run of a kit, in the order of the prediction.

    Args:
        folder: The kit's folder.

    Raises:
        InputError: The folder holds no kit, or no run of it has left a measurement.
    """
    path = folder / ROWS_FILE
    read = read_measurements(path)
    if read.kind is not Kind.TRAINING or any(set(COLUMNS) - set(row.cells) for row in read.rows) or not read.rows:
        raise InputError(
            "This is not the list of runs that a plan wrote.",
            location=Location(file=str(path)),
            hint="Plan again with --out; the list is not edited by hand.",
        )
    runs = tuple(_run(row, folder, path) for row in read.rows)
    if all(run.problem for run in runs):
        raise InputError(
            "No run has left a measurement.",
            location=Location(file=str(folder)),
            hint="\n".join(f"{run.name}: {run.problem}" for run in runs),
        )
    return runs


def best_of(runs: Iterable[CollectedRun]) -> CollectedRun | None:
    """Return the run with the shortest measured step; None where no run has one."""
    timed = [(run.step_seconds, index, run) for index, run in enumerate(runs) if run.step_seconds is not None]
    return min(timed)[2] if timed else None


def _run(row: Row, folder: Path, rows_path: Path) -> CollectedRun:
    try:
        predicted, predicted_peak = row.number("predicted_step_time_s"), row.number("predicted_peak_mem_gb")
        tokens, num_gpus = row.needed("seq_len") * row.needed("global_batch"), row.needed("num_gpus")
    except ValueError as error:
        raise InputError(
            f"The row of {row.id} is damaged: {error}.",
            location=Location(file=str(rows_path), line=row.line),
            hint="Plan again with --out; the list is not edited by hand.",
        ) from None
    if predicted is None or predicted_peak is None or RUN_FOLDER.fullmatch(row.id) is None:
        raise InputError(
            f"The row of {row.id} is damaged: its prediction or the name of its folder is missing.",
            location=Location(file=str(rows_path), line=row.line),
            hint="Plan again with --out; the list is not edited by hand.",
        )
    log, codes = _logs_of(folder / row.id)
    counted = tuple(log.step_seconds.values())[WARM_UP_STEPS:] if log is not None else ()
    seconds = median(counted) if len(counted) >= LEAST_STEPS else None
    out_of_memory = log is not None and log.out_of_memory
    if out_of_memory:
        seconds = None
    cells = dict(row.cells)
    if out_of_memory:
        cells["status"] = "oom"
    elif seconds is not None:
        cells["status"] = "ok"
        cells["step_time_s"] = f"{seconds:.6g}"
        cells["tokens_per_s_per_gpu"] = f"{tokens / seconds / num_gpus:.6g}"
        cells["notes"] += f"; median of {len(counted)} steps after {WARM_UP_STEPS}"
    peak_bytes = log.peak_bytes if log is not None else None
    if peak_bytes is not None:
        cells["peak_mem_gb"] = f"{peak_bytes / GIB:.3f}"
    return CollectedRun(
        name=row.id,
        predicted_step_seconds=predicted,
        predicted_peak_bytes=predicted_peak * GIB,
        step_seconds=seconds,
        num_steps=len(counted),
        peak_bytes=peak_bytes,
        out_of_memory=out_of_memory,
        problem="" if out_of_memory or seconds is not None else _problem(log, codes),
        cells=cells,
    )


def _logs_of(folder: Path) -> tuple[RunLog | None, tuple[str, ...]]:
    """Return what the logs of a run say together, None without any, and the exit codes that its nodes left."""
    try:
        logs = [
            read_log(path.read_text(encoding="utf-8", errors="replace")) for path in sorted(folder.glob("node-*.log"))
        ]
        codes = tuple(
            path.read_text(encoding="utf-8", errors="replace").strip() for path in sorted(folder.glob("node-*.exit"))
        )
    except OSError as error:
        raise InputError(
            f"A log cannot be read: {error.strerror}.",
            location=Location(file=str(error.filename or folder)),
            hint="Make it readable, or remove it and make the run again.",
        ) from None
    return (merged(logs) if logs else None), codes


def _problem(log: RunLog | None, codes: tuple[str, ...]) -> str:
    """Return why a run has left no measurement, and what to do."""
    if log is None:
        return "it was not made yet; run run.sh or job.sbatch beside its folder."
    steps = len(log.step_seconds)
    found = (
        f"its log holds {steps} steps, {WARM_UP_STEPS + LEAST_STEPS} are needed" if steps else "its log holds no step"
    )
    if log.num_skipped:
        found += f" beside {log.num_skipped} that the loss scaler skipped; append --initial-loss-scale 65536 to run.sh"
    ended = ""
    if TIME_LIMIT_CODE in codes:
        ended = "; it was ended by its time limit, which VERIFY_LIMIT_SECONDS replaces"
    elif KILL_CODE in codes:
        ended = "; it was killed, by its time limit, which VERIFY_LIMIT_SECONDS replaces, or for the host's memory"
    elif any(code != "0" for code in codes):
        ended = f"; it failed with exit code {next(code for code in codes if code != '0')}"
    elif not codes:
        ended = "; it has not ended"
    last = f"; last line: {log.last_line}" if log.last_line else ""
    return f"{found}{ended}{last}"
