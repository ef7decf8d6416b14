"""Accuracy as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median

import numpy as np

from cli.render import Block, Facts, Line, Style, Table, columns, count, section
from planner.accuracy.measurements import Kind
from planner.accuracy.operations import OperationPrediction
from planner.accuracy.scores import Errors, choices_of, equal_groups, errors_of, grouped, out_of_memory
from planner.accuracy.training import Prediction
from profiles.constants import TRAINING_BAND, named_constants

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
        for name, entry in named_constants().items()
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


def _step_errors(runs: Sequence[Prediction]) -> Errors | None:
    return errors_of(
        (entry.row.text("source_group"), entry.predicted_step_seconds, entry.measured_step_seconds)
        for entry in runs
        if entry.measured_fits and entry.predicted_step_seconds and entry.measured_step_seconds
    )


def _memory_errors(runs: Sequence[Prediction]) -> Errors | None:
    return errors_of(
        (entry.row.text("source_group"), entry.predicted_allocated_bytes, entry.measured_peak_bytes)
        for entry in runs
        if entry.measured_fits and entry.predicted_allocated_bytes and entry.measured_peak_bytes
    )


def training_summary(runs: Sequence[Prediction]) -> dict[str, object]:
    """Return how good predictions of training runs are."""
    choices = choices_of(runs)
    of_sets = {
        "sets": len(choices),
        "spearman_median": equal_groups(((entry.group, entry.spearman) for entry in choices), median),
        "spearman_tenth_percentile": equal_groups(
            ((entry.group, entry.spearman) for entry in choices), lambda values: float(np.quantile(values, 0.1))
        ),
        "kendall_median": equal_groups(((entry.group, entry.kendall) for entry in choices), median),
        "regret_mean": equal_groups(((entry.group, entry.regret) for entry in choices), lambda v: float(np.mean(v))),
        "top_regret_mean": equal_groups(
            ((entry.group, entry.top_regret) for entry in choices), lambda values: float(np.mean(values))
        ),
    }
    return {
        "rows": len(runs),
        "predicted": sum(entry.error is None for entry in runs),
        "coverage": sum(entry.error is None for entry in runs) / len(runs) if runs else None,
        "step_time": {
            name: None if errors is None else asdict(errors)
            for name, errors in (
                ("all", _step_errors(runs)),
                ("dense", _step_errors([entry for entry in runs if not entry.has_experts])),
                ("experts", _step_errors([entry for entry in runs if entry.has_experts])),
            )
        },
        "choice_sets": of_sets,
        "out_of_memory": asdict(out_of_memory(runs)),
        "peak_memory": None if (memory := _memory_errors(runs)) is None else asdict(memory),
    }


def training_blocks(runs: Sequence[Prediction], by: Sequence[str]) -> tuple[Block, ...]:
    """Return what `accuracy` prints of training runs."""
    rows = [
        (*key, count(len(entries)), *_error_cells(_step_errors(entries)), *_error_cells(_memory_errors(entries))[:1])
        for key, entries in grouped(runs, by).items()
    ]
    every = ("all", *[""] * (len(by) - 1), count(len(runs)))
    rows.append((*every, *_error_cells(_step_errors(runs)), *_error_cells(_memory_errors(runs))[:1]))
    names = [*by, ">rows", ">median error", ">mean error", ">bias", ">peak memory"]
    choices = choices_of(runs)
    facts: list[tuple[str, str]] = []
    if choices:
        spearman = equal_groups(((entry.group, entry.spearman) for entry in choices), median)
        regret = equal_groups(((entry.group, entry.regret) for entry in choices), lambda v: float(np.mean(v)))
        top = equal_groups(((entry.group, entry.top_regret) for entry in choices), lambda v: float(np.mean(v)))
        facts.append(("choice sets", f"{len(choices)}, median rank correlation {spearman:.3f}"))
        facts.append(
            ("regret", f"{100 * (regret or 0):.1f} % of the best predicted, {100 * (top or 0):.1f} % of the best three")
        )
    memory = out_of_memory(runs)
    if memory.failed and memory.recall is not None and memory.f1 is not None:
        facts.append(
            ("out of memory", f"{memory.failed} of {memory.count} runs: recall {memory.recall:.3f}, F1 {memory.f1:.3f}")
        )
    return (
        Line("Predicted over measured, less one; sources weigh the same", Style.HEADING),
        Table(columns=columns(*names), rows=tuple(rows)),
        *((Facts(pairs=tuple(facts)),) if facts else ()),
        *_reasons([entry.error for entry in runs]),
    )


def _error_cells(errors: Errors | None) -> tuple[str, str, str]:
    if errors is None:
        return "", "", ""
    return (
        f"{100 * errors.median_absolute:.1f} %",
        f"{100 * errors.mean_absolute:.1f} %",
        f"{100 * errors.bias:+.1f} %",
    )


def _reasons(errors: Sequence[str | None]) -> tuple[Block, ...]:
    found = Counter(error for error in errors if error is not None)
    if not found:
        return ()
    lines = [Line(f"  {number} x {reason}") for reason, number in found.most_common(MOST_REASONS)]
    if len(found) > MOST_REASONS:
        lines.append(Line(f"  and {len(found) - MOST_REASONS} other reasons"))
    return section(f"Not predicted: {sum(found.values())} of {len(errors)} rows", *lines)


def operation_document(kind: Kind, found: Sequence[OperationPrediction]) -> dict[str, object]:
    """Return predictions of operations as JSON."""
    errors = _operation_errors(found)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind.value,
        "constants": constants_document(),
        "rows": [
            {
                "id": entry.row.id,
                "measured_us": entry.measured_us,
                "predicted_us": entry.predicted_us,
                "error": entry.error,
            }
            for entry in found
        ],
        "summary": {
            "rows": len(found),
            "predicted": sum(entry.error is None for entry in found),
            "coverage": sum(entry.error is None for entry in found) / len(found) if found else None,
            "latency": None if errors is None else asdict(errors),
        },
    }


def _operation_errors(found: Sequence[OperationPrediction]) -> Errors | None:
    return errors_of(
        (entry.row.text("system"), entry.predicted_us, entry.measured_us)
        for entry in found
        if entry.predicted_us and entry.measured_us
    )


def operation_blocks(kind: Kind, found: Sequence[OperationPrediction], by: Sequence[str]) -> tuple[Block, ...]:
    """Return what `accuracy` prints of operations."""
    groups: dict[tuple[str, ...], list[OperationPrediction]] = {}
    for entry in found:
        groups.setdefault(tuple(entry.row.text(column) for column in by), []).append(entry)
    rows = [(*key, count(len(entries)), *_error_cells(_operation_errors(entries))) for key, entries in groups.items()]
    return (
        Line(f"{kind}: predicted over measured, less one", Style.HEADING),
        Table(columns=columns(*by, ">rows", ">median error", ">mean error", ">bias"), rows=tuple(rows)),
        *_reasons([entry.error for entry in found]),
    )
