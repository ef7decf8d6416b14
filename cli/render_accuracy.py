"""Accuracy as tables and as JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from cli.render import Block, Facts, Line, Style, Table, columns, count, milliseconds, section, signed_percent
from planner.accuracy.measurements import MEASURED_OF_RUNS, Kind, misnamed_columns
from planner.accuracy.operations import OperationPrediction
from planner.accuracy.scores import (
    CHOICE_COLUMNS,
    Errors,
    Predicted,
    choices_of,
    grouped,
    memory_errors,
    out_of_memory,
    ratio_errors,
    step_errors,
    summary_of_choices,
)
from planner.accuracy.training import FUNCTIONAL_TEST, Prediction
from planner.errors import InputError
from profiles.constants import Origin, named_constants
from profiles.kernel_constants import named_kernel_constants

SCHEMA_VERSION = 1
MOST_REASONS = 8
ABSURD = 100.0
"""Errors from here on say that a row is not what it seems."""

MOST_ASSUMED = 10
MOST_RUNS = 12
"""Training runs of which each gets a line: as many as somebody made to choose between layouts."""


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
        {
            "name": name,
            "value": entry.value,
            "low": entry.low,
            "high": entry.high,
            "origin": entry.origin.value,
            "source": entry.source,
        }
        for name, entry in (named_constants() | named_kernel_constants()).items()
    ]


def constants_blocks() -> tuple[Block, ...]:
    """Return every constant as a table, those that were fitted first."""
    found = named_constants() | named_kernel_constants()
    # A constant that two names share counts once.
    counts = Counter(entry.origin for entry in {id(entry): entry for entry in found.values()}.values())
    rows = tuple(
        (name, f"{entry.value:.4g}", f"{entry.low:g} to {entry.high:g}", entry.origin.value)
        for origin in Origin
        for name, entry in found.items()
        if entry.origin is origin
    )
    return (
        *section("Constants", Table(columns=columns("name", ">value", "range", "how it came by its value"), rows=rows)),
        Line("  " + ", ".join(f"{counts[origin]} {origin}" for origin in Origin if counts[origin])),
    )


def _training_row(entry: Prediction) -> dict[str, object]:
    band = None
    if entry.predicted_step_seconds is not None:
        factor = 1 + (entry.band_half_width or 0.0)
        band = [entry.predicted_step_seconds / factor, entry.predicted_step_seconds * factor]
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
        "ratios_of_layouts": or_none(ratio_errors(runs)),
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


def in_groups(
    found: Sequence[Predicted], by: Sequence[str]
) -> tuple[Sequence[str], Sequence[tuple[tuple[str, ...], Sequence[Predicted]]]]:
    """Return headers of the columns that name groups, and the groups, all predictions together last.

    A file may have none of the columns: then one without a header names the last.
    """
    headers = tuple(by) or ("",)
    every = ("all", *[""] * (len(headers) - 1))
    groups = tuple(grouped(found, by).items()) if by else ()
    return headers, (*groups, (every, found))


def training_blocks(runs: Sequence[Prediction], by: Sequence[str]) -> tuple[Block, ...]:
    """Return what `accuracy` prints of training runs."""
    headers, groups = in_groups(runs, by)
    rows = [
        (*key, count(len(entries)), *error_cells(step_errors(entries)), *error_cells(memory_errors(entries))[:1])
        for key, entries in groups
    ]
    names = [*headers, ">rows", ">median error", ">mean error", ">bias", ">peak memory"]
    choices = summary_of_choices(choices_of(runs))
    facts: list[tuple[str, str]] = []
    if choices.spearman_median is not None and choices.regret_mean is not None and choices.top_regret_mean is not None:
        facts.append(("choice sets", f"{choices.sets}, median rank correlation {choices.spearman_median:.3f}"))
        regrets = f"{100 * choices.regret_mean:.1f} % of the best predicted"
        ratios = ratio_errors(runs)
        if ratios is not None:
            text = f"four of five within {100 * ratios.four_of_five:.1f} %, of {count(ratios.count)} pairs"
            facts.append(("ratio of two layouts", text))
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
        *(_single_runs(runs) if len(runs) <= MOST_RUNS else ()),
        *reasons([entry.error for entry in runs]),
        *_unscored(runs),
        *_assumed(runs),
    )


def _unscored(runs: Sequence[Prediction]) -> tuple[Block, ...]:
    """Return which predicted runs have no error and why: nothing is measured, or nothing that measures training."""
    predicted = [entry for entry in runs if entry.error is None and entry.measured_fits]
    tests = sum(entry.row.text("mode") == FUNCTIONAL_TEST for entry in predicted)
    silent = sum(
        entry.measured_step_seconds is None and entry.measured_peak_bytes is None
        for entry in predicted
        if entry.row.text("mode") != FUNCTIONAL_TEST
    )
    lines = []
    if silent:
        wanted = ", ".join(f"{column} ({unit})" for column, unit in MEASURED_OF_RUNS.items())
        lines.append(Line(f"  {silent} x nothing measured: one of {wanted}"))
        lines += [
            Line(f"  column {column} is not read; {meant} is, in {MEASURED_OF_RUNS[meant]}")
            for column, meant in misnamed_columns([entry.row for entry in runs]).items()
        ]
    if tests:
        lines.append(Line(f"  {tests} x the step time of a functional test, which measures no training"))
    return section("Not scored", *lines) if lines else ()


def _assumed(runs: Sequence[Prediction]) -> tuple[Block, ...]:
    """Return what was assumed of most runs, each with their number; nothing without any."""
    counts = Counter(text for entry in runs for text in entry.filled)
    if not counts:
        return ()
    listed = tuple(Line(f"  {number:,} x {text}") for text, number in counts.most_common(MOST_ASSUMED))
    more = len(counts) - len(listed)
    tail = (Line(f"  and {more} more, with those behind each figure in --format json"),) if more > 0 else ()
    return (*section("Assumed of the runs", *listed), *tail)


def _single_runs(runs: Sequence[Prediction]) -> tuple[Block, ...]:
    """Return a line for each run, and where they are runs of one choice which of them is best.

    Runs of a verification carry what their plan predicted, which knew more of them than the columns say.
    """
    planned = [_planned_seconds(entry) for entry in runs]
    known = any(planned)
    names = ["id", ">predicted", *([">by its plan"] if known else []), ">measured", ">error"]
    rows = tuple(
        (
            entry.row.id,
            _seconds_in_words(entry.predicted_step_seconds),
            *([_seconds_in_words(seconds)] if known else []),
            _seconds_in_words(entry.measured_step_seconds) if entry.measured_fits else "out of memory",
            _ratio_in_words(entry),
        )
        for entry, seconds in zip(runs, planned, strict=True)
    )
    lines = [Line("  A plan knew what no column says, such as uneven stages: its own prediction is the one to judge.")]
    return (
        *section("Each run", Table(columns=columns(*names), rows=rows)),
        *(lines if known else []),
        *_best_runs(runs, planned if all(planned) else [entry.predicted_step_seconds for entry in runs]),
    )


def _planned_seconds(entry: Prediction) -> float | None:
    try:
        return entry.row.number("predicted_step_time_s")
    except ValueError as error:
        message = f"The row of {entry.row.id} in line {entry.row.line} is damaged: {error}."
        raise InputError(message, hint="Collect the runs again, or leave the cell empty.") from None


def _seconds_in_words(seconds: float | None) -> str:
    return "" if seconds is None else milliseconds(seconds)


def _ratio_in_words(entry: Prediction) -> str:
    if not entry.predicted_step_seconds or not entry.measured_step_seconds:
        return ""
    return signed_percent(entry.predicted_step_seconds / entry.measured_step_seconds - 1)


def _best_runs(runs: Sequence[Prediction], predicted_seconds: Sequence[float | None]) -> tuple[Line, ...]:
    if len({tuple(entry.row.text(column) for column in CHOICE_COLUMNS) for entry in runs}) != 1:
        return ()
    predicted = [
        (seconds, entry.row.id) for seconds, entry in zip(predicted_seconds, runs, strict=True) if seconds is not None
    ]
    measured = [
        (entry.measured_step_seconds, entry.row.id) for entry in runs if entry.measured_step_seconds is not None
    ]
    if not predicted or not measured:
        return ()
    return (Line(f"  Best measured: {min(measured)[1]}. Best predicted: {min(predicted)[1]}."),)


def error_cells(errors: Errors | None) -> tuple[str, str, str]:
    """Return the cells of median, mean and bias."""
    if errors is None:
        return "", "", ""
    absolute = (errors.median_absolute, errors.mean_absolute)
    cells = [f"{100 * error:.1f} %" if error < ABSURD else f"over {100 * ABSURD:,.0f} %" for error in absolute]
    bias = f"{100 * errors.bias:+.1f} %" if errors.bias < ABSURD else f"over {100 * ABSURD:+,.0f} %"
    return cells[0], cells[1], bias


def reasons(errors: Sequence[str | None]) -> tuple[Block, ...]:
    """Return why rows were not predicted, the most frequent reasons first."""
    found = Counter(error for error in errors if error is not None)
    if not found:
        return ()
    lines = [Line(f"  {number} x {reason}") for reason, number in found.most_common(MOST_REASONS)]
    if len(found) > MOST_REASONS:
        lines.append(Line(f"  and {len(found) - MOST_REASONS} other reasons"))
    return section(f"Not predicted: {sum(found.values())} of {len(errors)} rows", *lines)
