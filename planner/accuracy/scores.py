"""How good predictions are: errors with every source group weighing the same, ranking, regret, out of memory.

Error is predicted over measured, less one. A choice set is what a user would choose from: at least `LEAST_CHOICES`
runs of one source, model, hardware, number of GPUs, sequence length and batch.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Protocol, TypeVar

import numpy as np
from scipy.stats import kendalltau, spearmanr

from planner.accuracy.measurements import Row
from planner.accuracy.operations import OperationPrediction
from planner.accuracy.training import Prediction

LEAST_CHOICES = 5
TOP = 3
CHOICE_COLUMNS = ("source", "model", "hardware", "num_gpus", "seq_len", "global_batch")
LAYOUT_COLUMNS = (
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "etp",
    "dp",
    "sequence_parallel",
    "micro_batch",
    "recompute",
    "schedule",
    "optimizer",
    "precision",
    "flash_attention",
    "mode",
)
"""What a user chooses: layout, number format and kernels. Releases of a framework are no choice of his."""


class OfRow(Protocol):
    """What was predicted of a row."""

    @property
    def row(self) -> Row:
        """Return the row."""
        ...


Predicted = TypeVar("Predicted", bound=OfRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of some predictions, each group of them weighing the same.

    Args:
        count: Predictions.
        groups: Groups.
        median_absolute: Weighted median of the absolute error.
        mean_absolute: Mean over groups of the mean absolute error.
        bias: Weighted median of the error; above 0 where predictions are too large.
        four_of_five: Factor, less one, by which four of five predictions are off at most, either way; weighted.
    """

    count: int
    groups: int
    median_absolute: float
    mean_absolute: float
    bias: float
    four_of_five: float


def errors_of(pairs: Iterable[tuple[Hashable, float, float]]) -> Errors | None:
    """Return the errors of (group, predicted, measured); None where there are none."""
    by_group: dict[Hashable, list[float]] = defaultdict(list)
    for group, predicted, measured in pairs:
        by_group[group].append(predicted / measured - 1.0)
    if not by_group:
        return None
    errors = np.concatenate([np.array(found) for found in by_group.values()])
    weights = np.concatenate([np.full(len(found), 1.0 / len(found)) for found in by_group.values()])
    return Errors(
        count=len(errors),
        groups=len(by_group),
        median_absolute=_weighted_median(np.abs(errors), weights),
        mean_absolute=float(np.mean([np.mean(np.abs(found)) for found in by_group.values()])),
        bias=_weighted_median(errors, weights),
        four_of_five=_weighted_quantile(np.expm1(np.abs(np.log1p(errors))), weights, 0.8),
    )


def step_errors(runs: Iterable[Prediction]) -> Errors | None:
    """Return the errors of step times, by source group."""
    return errors_of(
        (entry.row.text("source_group"), entry.predicted_step_seconds, entry.measured_step_seconds)
        for entry in runs
        if entry.measured_fits and entry.predicted_step_seconds and entry.measured_step_seconds
    )


def memory_errors(runs: Iterable[Prediction]) -> Errors | None:
    """Return the errors of the allocator's peak, by source group."""
    return errors_of(
        (entry.row.text("source_group"), entry.predicted_allocated_bytes, entry.measured_peak_bytes)
        for entry in runs
        if entry.measured_fits and entry.predicted_allocated_bytes and entry.measured_peak_bytes
    )


def operation_errors(found: Iterable[OperationPrediction]) -> Errors | None:
    """Return the errors of single operations, by system."""
    return errors_of(
        (entry.row.text("system"), entry.predicted_us, entry.measured_us)
        for entry in found
        if entry.predicted_us and entry.measured_us
    )


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    return _weighted_quantile(values, weights, 0.5)


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, part: float) -> float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] * part)])


def ratio_errors(predictions: Sequence[Prediction]) -> Errors | None:
    """Return the errors of the ratio of two layouts' step times, over all pairs of each choice set of dense models."""
    pairs: list[tuple[Hashable, float, float]] = []
    for entries in _choice_sets(predictions):
        for one, other in combinations(entries, 2):
            if one.has_experts or _layout(one) == _layout(other):
                continue
            predicted = (one.predicted_step_seconds or 0.0) / (other.predicted_step_seconds or 1.0)
            measured = (one.measured_step_seconds or 0.0) / (other.measured_step_seconds or 1.0)
            pairs.append((one.row.text("source_group"), predicted, measured))
    return errors_of(pairs)


def _layout(entry: Prediction) -> tuple[str, ...]:
    return tuple(entry.row.text(column) for column in LAYOUT_COLUMNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How well predictions choose within one choice set.

    Args:
        group: The source group it belongs to.
        count: Layouts to choose from.
        spearman: Rank correlation of predicted and measured step times.
        kendall: Tau-b of the same.
        regret: Measured time of the run that is predicted best, over that of the best, less one.
        top_regret: The same of the best among the `TOP` that are predicted best.
    """

    group: str
    count: int
    spearman: float
    kendall: float
    regret: float
    top_regret: float


def choices_of(predictions: Sequence[Prediction]) -> tuple[Choice, ...]:
    """Return the choice sets among predictions, with how well each was chosen from."""
    found = (_choice(entries) for entries in _choice_sets(predictions))
    return tuple(choice for choice in found if choice is not None)


def _choice_sets(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Return runs that one could have chosen from, at least `LEAST_CHOICES` layouts each."""
    sets: dict[tuple[str, ...], list[Prediction]] = defaultdict(list)
    for entry in predictions:
        if entry.measured_fits and entry.predicted_step_seconds and entry.measured_step_seconds:
            sets[tuple(entry.row.text(column) for column in CHOICE_COLUMNS)].append(entry)
    return [entries for entries in sets.values() if len(set(map(_layout, entries))) >= LEAST_CHOICES]


def _choice(entries: Sequence[Prediction]) -> Choice | None:
    """Return how well one set was chosen from; None where nothing in it differs.

    Of rows with one layout the median counts. Of layouts that are predicted to be equally fast any may be chosen: the
    mean of their times counts.
    """
    times: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for entry in entries:
        times[_layout(entry)].append((entry.predicted_step_seconds or 0.0, entry.measured_step_seconds or 0.0))
    predicted = np.array([median(time for time, _ in pairs) for pairs in times.values()])
    measured = np.array([median(time for _, time in pairs) for pairs in times.values()])
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None
    order = np.argsort(predicted, kind="stable")
    best = measured.min()
    return Choice(
        group=entries[0].row.text("source_group"),
        count=len(times),
        spearman=float(spearmanr(predicted, measured).statistic),
        kendall=float(kendalltau(predicted, measured).statistic),
        regret=float(measured[predicted == predicted.min()].mean() / best - 1.0),
        top_regret=float(measured[order[:TOP]].min() / best - 1.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How well predictions choose, each source group weighing the same; None without choice sets.

    Args:
        sets: Choice sets.
        spearman_median: Median rank correlation.
        spearman_tenth_percentile: Its tenth percentile.
        kendall_median: Median tau-b.
        regret_mean: Mean regret.
        top_regret_mean: Mean regret of the best among the `TOP` that are predicted best.
    """

    sets: int
    spearman_median: float | None
    spearman_tenth_percentile: float | None
    kendall_median: float | None
    regret_mean: float | None
    top_regret_mean: float | None


def summary_of_choices(choices: Sequence[Choice]) -> Choices:
    """Return how well predictions choose over all choice sets."""

    def over(value: Callable[[Choice], float], statistic: Callable[[Sequence[float]], float]) -> float | None:
        return equal_groups(((choice.group, value(choice)) for choice in choices), statistic)

    return Choices(
        sets=len(choices),
        spearman_median=over(lambda choice: choice.spearman, median),
        spearman_tenth_percentile=over(lambda choice: choice.spearman, lambda found: float(np.quantile(found, 0.1))),
        kendall_median=over(lambda choice: choice.kendall, median),
        regret_mean=over(lambda choice: choice.regret, lambda found: float(np.mean(found))),
        top_regret_mean=over(lambda choice: choice.top_regret, lambda found: float(np.mean(found))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """How well predictions tell which runs do not fit.

    Args:
        count: Runs with a prediction.
        failed: Of them those that ran out of memory.
        recall: Part of the failed that were predicted to fail.
        precision: Part of those predicted to fail that did.
        f1: Harmonic mean of both.
    """

    count: int
    failed: int
    recall: float | None
    precision: float | None
    f1: float | None


def out_of_memory(predictions: Sequence[Prediction]) -> OutOfMemory:
    """Return how well predictions tell which runs do not fit."""
    judged = [
        (not entry.measured_fits, not entry.predicted_fits) for entry in predictions if entry.predicted_fits is not None
    ]
    hits = sum(failed and foreseen for failed, foreseen in judged)
    failed = sum(failed for failed, _ in judged)
    foreseen = sum(foreseen for _, foreseen in judged)
    return OutOfMemory(
        count=len(judged),
        failed=failed,
        recall=hits / failed if failed else None,
        precision=hits / foreseen if foreseen else None,
        f1=2 * hits / (failed + foreseen) if failed + foreseen else None,
    )


def grouped(
    predictions: Iterable[Predicted], columns: Sequence[str]
) -> Mapping[tuple[str, ...], tuple[Predicted, ...]]:
    """Return predictions by what some columns say, in order of first occurrence."""
    found: dict[tuple[str, ...], list[Predicted]] = defaultdict(list)
    for entry in predictions:
        found[tuple(entry.row.text(column) for column in columns)].append(entry)
    return {key: tuple(entries) for key, entries in found.items()}


def equal_groups(values: Iterable[tuple[str, float]], statistic: Callable[[Sequence[float]], float]) -> float | None:
    """Return the mean over groups of a statistic of each group's values; None where there are none."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for group, value in values:
        by_group[group].append(value)
    return float(np.mean([statistic(found) for found in by_group.values()])) if by_group else None
