"""What a run says of its prediction, class by class."""

from cli.render import (
    Block,
    Facts,
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
from planner.calibration.fit import Fit
from planner.calibration.held import MemoryFit


def calibration_account(fit: Fit) -> dict[str, object]:
    """Return how a calibration was found, as plain data."""
    return {
        "is_common": fit.is_common,
        "predicted_step_seconds": fit.predicted_step_seconds,
        "calibrated_step_seconds": fit.calibrated_step_seconds,
        "measured_step_seconds": fit.measured_step_seconds,
        "classes": [
            {
                "class": entry.kind.value,
                "predicted_seconds": entry.predicted_seconds,
                "measured_seconds": entry.measured_seconds,
                "factor": entry.factor,
            }
            for entry in fit.factors
        ],
        "remarks": list(fit.remarks),
        "taken_as_memory_bound": list(fit.unknown),
        "memory": None if fit.memory is None else _memory_account(fit.memory),
    }


def _memory_account(memory: MemoryFit) -> dict[str, object]:
    return {
        "rank": memory.rank,
        "predicted_bytes": memory.predicted_bytes,
        "calibrated_bytes": memory.calibrated_bytes,
        "found_bytes": memory.found_bytes,
        "lost_fraction": memory.calibration.lost_fraction,
        "fixed_bytes": memory.calibration.fixed_bytes,
    }


def calibration_blocks(fit: Fit) -> tuple[Block, ...]:
    """Return what `calibrate` prints."""
    measured = fit.measured_step_seconds
    steps = [("predicted step", _beside(fit.predicted_step_seconds, measured))]
    steps.append(("calibrated step", _beside(fit.calibrated_step_seconds, measured)))
    if measured is not None:
        steps.append(("measured step", milliseconds(measured)))
    rows = (
        ()
        if fit.is_common
        else tuple(
            (
                entry.kind.value,
                _shown(entry.predicted_seconds),
                _shown(entry.measured_seconds),
                "not shown" if entry.factor is None else f"x {entry.factor:.3f}",
            )
            for entry in fit.factors
        )
    )
    notes = [Item(remark) for remark in fit.remarks]
    if fit.unknown:
        notes.append(Item(f"the longest kernels taken as memory-bound: {', '.join(fit.unknown)}"))
    return (
        Line(f"Calibration by {fit.calibration.source}", Style.HEADING),
        *_factors(fit, rows),
        *(section("The step", Facts(pairs=tuple(steps))) if fit.factors else ()),
        *(() if fit.memory is None else section("The memory", _memory_facts(fit.memory))),
        *section("What it does not say", *notes),
    )


def _factors(fit: Fit, rows: tuple[tuple[str, ...], ...]) -> tuple[Block, ...]:
    if fit.is_common:
        return (Line(f"All classes of operations  x {fit.calibration.factors[0][1]:.3f}"),)
    if not fit.factors:
        return ()
    return (Table(columns=columns("kernels of one step", ">predicted", ">measured", ">factor"), rows=rows),)


def _memory_facts(memory: MemoryFit) -> Facts:
    lost, fixed = memory.calibration.lost_fraction, memory.calibration.fixed_bytes
    found = memory.found_bytes
    return Facts(
        pairs=(
            ("found", f"{gib(found)} held by the allocator on rank {memory.rank}"),
            ("ledger", f"{gib(memory.predicted_bytes)} ({signed_percent(memory.predicted_bytes / found - 1)})"),
            ("calibrated", f"{gib(memory.calibrated_bytes)} ({signed_percent(memory.calibrated_bytes / found - 1)})"),
            ("lost", f"{percent(lost)} beside activations and temporaries"),
            ("fixed", f"{gib(fixed)} beside what is there all the time"),
        )
    )


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _beside(seconds: float, measured: float | None) -> str:
    found = milliseconds(seconds)
    return found if measured is None else f"{found} ({signed_percent(seconds / measured - 1)})"
