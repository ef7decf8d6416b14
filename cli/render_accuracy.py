"""Accuracy as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from cli.render import Block, Facts, Line, Style, Table, columns, count, section
from planner.accuracy.measurements import Kind
from planner.accuracy.operations import OperationPrediction
from planner.accuracy.scores import (
    Errors,
    choices_of,
    grouped,
    memory_errors,
    out_of_memory,
    step_errors,
    summary_of_choices,
)
from planner.accuracy.training import Prediction
from profiles.constants import TRAINING_BAND, named_constants
from profiles.kernel_constants import named_kernel_constants

SCHEMA_VERSION = 1
MOST_REASONS = 8


def training_document(runs: Sequence[Prediction]) -> dict[str, object]:
    """Return predictions of training runs as JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": Kind.TRAINING.value,
        "constants": constants_document(),
        "rows": [_training_row(entry) for entry in runs],
        "summary": training_summary(runs),
    }


def constants_document() -> list[dict[str, object]]:
    """Return every constant of the cost model with its range and source."""
    return [
        {"name": name, "value": entry.value, "low": entry.low, "high": entry.high, "source": entry.source}
        for name, entry in (named_constants() | named_kernel_constants()).items()
    ]


def _training_row(entry: Prediction) -> dict[str, object]:
    band = None
    if entry.predicted_step_seconds is not None:
        half = TRAINING_BAND["experts" if entry.has_experts else "dense"].value
        band = [entry.predicted_step_seconds / (1 + half), entry.predicted_step_seconds * (1 + half)]
    return {
        "id": entry.row.id,
        "source_group": entry.row.text("source_group"),
        "model": entry.row.text("model"),
        "hardware": entry.row.text("hardware"),
        "measured_step_seconds": entry.measured_step_seconds,
        "measured_tokens_per_second_per_gpu": entry.measured_tokens_per_second_per_gpu,
        "measured_peak_bytes": entry.measured_peak_bytes,
        "measured_fits": entry.measured_fits,
        "predicted_step_seconds": entry.predicted_step_seconds,
        "predicted_tokens_per_second_per_gpu": entry.predicted_tokens_per_second_per_gpu,
        "predicted_peak_bytes": entry.predicted_peak_bytes,
        "predicted_allocated_bytes": entry.predicted_allocated_bytes,
        "predicted_fits": entry.predicted_fits,
        "band": band,
        "assumptions": list(entry.assumptions),
        "error": entry.error,
    }


def training_summary(runs: Sequence[Prediction]) -> dict[str, object]:
    """Return how good predictions of training runs are."""
    return {
        **coverage(runs),
        "step_time": {
            name: or_none(step_errors(chosen))
            for name, chosen in (
                ("all", runs),
                ("dense", [entry for entry in runs if not entry.has_experts]),
                ("experts", [entry for entry in runs if entry.has_experts]),
            )
        },
        "choice_sets": asdict(summary_of_choices(choices_of(runs))),
        "out_of_memory": asdict(out_of_memory(runs)),
        "peak_memory": or_none(memory_errors(runs)),
    }


def coverage(found: Sequence[Prediction] | Sequence[OperationPrediction]) -> dict[str, object]:
    """Return how many rows were predicted."""
    predicted = sum(entry.error is None for entry in found)
    return {"rows": len(found), "predicted": predicted, "coverage": predicted / len(found) if found else None}


def or_none(errors: Errors | None) -> dict[str, object] | None:
    """Return errors as JSON."""
    return None if errors is None else asdict(errors)


def training_blocks(runs: Sequence[Prediction], by: Sequence[str]) -> tuple[Block, ...]:
    """Return what `accuracy` prints of training runs."""
    every = ("all", *[""] * (len(by) - 1))
    rows = [
        (*key, count(len(entries)), *error_cells(step_errors(entries)), *error_cells(memory_errors(entries))[:1])
        for key, entries in (*grouped(runs, by).items(), (every, runs))
    ]
    names = [*by, ">rows", ">median error", ">mean error", ">bias", ">peak memory"]
    choices = summary_of_choices(choices_of(runs))
    facts: list[tuple[str, str]] = []
    if choices.spearman_median is not None and choices.regret_mean is not None and choices.top_regret_mean is not None:
        facts.append(("choice sets", f"{choices.sets}, median rank correlation {choices.spearman_median:.3f}"))
        regrets = f"{100 * choices.regret_mean:.1f} % of the best predicted"
        facts.append(("regret", f"{regrets}, {100 * choices.top_regret_mean:.1f} % of the best three"))
    memory = out_of_memory(runs)
    if memory.failed and memory.recall is not None and memory.f1 is not None:
        facts.append(
            ("out of memory", f"{memory.failed} of {memory.count} runs: recall {memory.recall:.3f}, F1 {memory.f1:.3f}")
        )
    return (
        Line("Predicted over measured, less one; sources weigh the same", Style.HEADING),
        Table(columns=columns(*names), rows=tuple(rows)),
        *((Facts(pairs=tuple(facts)),) if facts else ()),
        *reasons([entry.error for entry in runs]),
    )


def error_cells(errors: Errors | None) -> tuple[str, str, str]:
    """Return the cells of median, mean and bias."""
    if errors is None:
        return "", "", ""
    return (
        f"{100 * errors.median_absolute:.1f} %",
        f"{100 * errors.mean_absolute:.1f} %",
        f"{100 * errors.bias:+.1f} %",
    )


def reasons(errors: Sequence[str | None]) -> tuple[Block, ...]:
    """Return why rows were not predicted, the most frequent reasons first."""
    found = Counter(error for error in errors if error is not None)
    if not found:
        return ()
    lines = [Line(f"  {number} x {reason}") for reason, number in found.most_common(MOST_REASONS)]
    if len(found) > MOST_REASONS:
        lines.append(Line(f"  and {len(found) - MOST_REASONS} other reasons"))
    return section(f"Not predicted: {sum(found.values())} of {len(errors)} rows", *lines)
