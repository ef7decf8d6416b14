"""What a run says of its prediction, class by class."""

from cli.render import Block, Facts, Item, Line, Style, Table, columns, milliseconds, section, signed_percent
from planner.calibration.fit import Fit


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
    common = Line(f"All classes of operations  x {fit.calibration.factors[0][1]:.3f}")
    table = Table(columns=columns("kernels of one step", ">predicted", ">measured", ">factor"), rows=rows)
    notes = [Item(remark) for remark in fit.remarks]
    if fit.unknown:
        notes.append(Item(f"the longest kernels taken as memory-bound: {', '.join(fit.unknown)}"))
    return (
        Line(f"Calibration by {fit.calibration.source}", Style.HEADING),
        common if fit.is_common else table,
        *section("The step", Facts(pairs=tuple(steps))),
        *section("What it does not say", *notes),
    )


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _beside(seconds: float, measured: float | None) -> str:
    found = milliseconds(seconds)
    return found if measured is None else f"{found} ({signed_percent(seconds / measured - 1)})"
