"""Fits the constants of training to measured runs, and shows how the fit holds for sources that it has not seen.

Residuals are logarithms of predicted over measured step times, at most `MOST_ROWS` runs of a source group, every group
weighing the same; large ones count less (soft l1), since published tables have faults. Each constant is also drawn,
weakly, towards the geometric middle of its physical range, so that one which no run says anything about goes there and
not to what another fit had found.

A group is left out by fitting the others anew: by the derivatives at the joint fit, one linear robust problem a
group, whose solution then predicts the group left out exactly. Those errors are what a user of a stack and hardware
of his own has to expect; the errors after one scale, fitted on a few runs of the group, are what is left once he has
measured some.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from planner.accuracy.scores import errors_of
from planner.accuracy.training import Prediction, TrainingPredictor
from planner.arrays import BoolArray, FloatArray
from profiles.constants import Constant, Origin, named_constants, values_tried

GroupOf = Callable[[Prediction], str]

MOST_ROWS = 150
"""Runs of one group that a fit looks at, evenly spread over its rows. A choice: groups weigh the same, however many."""

FULL_WEIGHT_ROWS = 12
"""Groups with fewer runs weigh less, in proportion."""

ERROR_SCALE = 0.05
"""Log error from which on residuals count less than their square."""

PRIOR_WEIGHT = 0.1
"""Weight of the pull towards the middle of a range, against one of a group that is off by `ERROR_SCALE`."""

LOG_STEP = 0.02
"""Change of a constant's logarithm by which derivatives are taken."""

SCALE_RUNS = 3
"""Runs of a stack that give its scale; the others are predicted with it."""

DRAWS = 2000
"""The median over so many draws is within a tenth of a point of that over all."""

SEED = 2026
"""Of the draws."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One group, predicted by constants that were fitted without it.

    Args:
        group: The group.
        values: The constants without it, by name.
        predictions: Its runs.
    """

    group: str
    values: Mapping[str, float]
    predictions: tuple[Prediction, ...]


class TrainingFit:
    """A fit of the constants that training runs decide.

    Args:
        predictor: Predicts runs.
        runs: What it predicted of training rows; those without a time are left out.
        progress: Called with what is done next.
    """

    def __init__(
        self,
        predictor: TrainingPredictor,
        runs: Sequence[Prediction],
        *,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._progress = progress
        self._predictor = predictor
        self.constants: Mapping[str, Constant] = {
            name: constant for name, constant in named_constants().items() if constant.origin is Origin.TRAINED
        }
        self._low = np.log([constant.low for constant in self.constants.values()])
        self._high = np.log([constant.high for constant in self.constants.values()])
        self._found = [entry for entry in runs if _measured_seconds(entry) is not None]
        self._sampled = [entry for entries in _by(source_group, self._found).values() for entry in _spread(entries)]
        self._runs = [predictor.placed(entry.row) for entry in self._sampled]
        self._measured = np.log(
            [seconds for entry in self._sampled if (seconds := _measured_seconds(entry)) is not None]
        )
        self._weights = _weights([(source_group(entry), entry.has_experts) for entry in self._sampled])

    def fitted(self, *, most_steps: int = 10) -> Mapping[str, float]:
        """Return the values that fit all groups best, by exact predictions, from the present ones on."""
        keep = np.ones(len(self._runs), dtype=np.bool_)

        def residuals(point: FloatArray) -> FloatArray:
            return self._residuals(self._errors(point), point, keep)

        def jacobian(point: FloatArray) -> FloatArray:
            errors = self._errors(point)
            return self._jacobian(errors, self._slopes(point, errors), keep)

        return self._values(self._solved(residuals, jacobian, most_steps=most_steps))

    def leave_out(self, group_of: GroupOf) -> tuple[LeftOut, ...]:
        """Return every group as a fit without it predicts it.

        Args:
            group_of: The group of a run.
        """
        start = self._inside(self._present())
        errors = self._errors(start)
        slopes = self._slopes(start, errors)
        found: list[LeftOut] = []
        for group, entries in _by(group_of, self._found).items():
            self._progress(f"without {group}")
            keep = np.array([group_of(entry) != group for entry in self._sampled])
            values = self._without(keep, start, errors, slopes)
            with values_tried(values):
                self._predictor.forget_prices()
                predictions = tuple(self._predictor.predict(entry.row) for entry in entries)
            found.append(LeftOut(group=group, values=values, predictions=predictions))
        self._predictor.forget_prices()
        return tuple(found)

    def _without(
        self, keep: BoolArray, start: FloatArray, errors: FloatArray, slopes: FloatArray
    ) -> Mapping[str, float]:
        """Return the constants that some runs alone lead to, by the derivatives at `start`."""

        def residuals(point: FloatArray) -> FloatArray:
            return self._residuals(errors + slopes @ (point - start), point, keep)

        def jacobian(point: FloatArray) -> FloatArray:
            return self._jacobian(errors + slopes @ (point - start), slopes, keep)

        return self._values(self._solved(residuals, jacobian))

    def _solved(
        self,
        residuals: Callable[[FloatArray], FloatArray],
        jacobian: Callable[[FloatArray], FloatArray],
        *,
        most_steps: int | None = None,
    ) -> FloatArray:
        """Return the point inside the ranges with the least squares, from the present one on."""
        found = least_squares(
            residuals,
            self._inside(self._present()),
            jac=jacobian,
            bounds=(self._low, self._high),
            x_scale=0.1,
            max_nfev=most_steps,
        )
        point: FloatArray = found.x
        return point

    def _present(self) -> FloatArray:
        return np.log([constant.value for constant in self.constants.values()])

    def _inside(self, point: FloatArray) -> FloatArray:
        """Return a point that is strictly inside the ranges, as the solver wants its start."""
        margin = 1e-3 * (self._high - self._low)
        return np.clip(point, self._low + margin, self._high - margin)

    def _values(self, point: FloatArray) -> dict[str, float]:
        """Return the constants at `exp(point)`, which rounding may put a hair outside their ranges."""
        return {
            name: min(max(float(value), constant.low), constant.high)
            for (name, constant), value in zip(self.constants.items(), np.exp(point), strict=True)
        }

    def _errors(self, point: FloatArray) -> FloatArray:
        """Return the log error of each sampled run with the constants at `exp(point)`."""
        with values_tried(self._values(point)):
            self._predictor.forget_prices()
            seconds = [self._predictor.step_seconds(run) for run in self._runs]
        self._predictor.forget_prices()
        errors: FloatArray = np.log(seconds) - self._measured
        return errors

    def _slopes(self, point: FloatArray, errors: FloatArray) -> FloatArray:
        """Return the derivative of each log error, here `errors`, by each constant's logarithm."""
        columns = []
        for index, name in enumerate(self.constants):
            self._progress(f"derivative by {name}")
            step = LOG_STEP if point[index] + LOG_STEP <= self._high[index] else -LOG_STEP
            moved = point.copy()
            moved[index] += step
            columns.append((self._errors(moved) - errors) / step)
        return np.stack(columns, axis=1)

    def _residuals(self, errors: FloatArray, point: FloatArray, keep: BoolArray) -> FloatArray:
        """Return what least squares minimises: the soft l1 loss of each run, and the pull on each constant."""
        scaled = errors[keep] / ERROR_SCALE
        soft = np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1)) * self._weights[keep]
        middle, quarter = (self._low + self._high) / 2, (self._high - self._low) / 4
        return np.concatenate([soft, PRIOR_WEIGHT * (point - middle) / quarter])

    def _jacobian(self, errors: FloatArray, slopes: FloatArray, keep: BoolArray) -> FloatArray:
        """Return the derivatives of `_residuals` by the constants' logarithms."""
        scaled = errors[keep] / ERROR_SCALE
        root = np.sqrt(1 + scaled**2)
        by_scaled = np.sqrt((root + 1) / 2) / root  # of sign(z) sqrt(2 (sqrt(1 + z^2) - 1))
        of_runs = (by_scaled * self._weights[keep] / ERROR_SCALE)[:, np.newaxis] * slopes[keep]
        return np.concatenate([of_runs, np.diag(4 * PRIOR_WEIGHT / (self._high - self._low))])


def source_group(entry: Prediction) -> str:
    """Return the source group of a run."""
    return entry.row.text("source_group")


def _by(group_of: GroupOf, entries: Sequence[Prediction]) -> Mapping[str, list[Prediction]]:
    """Return runs by group, in order of first occurrence."""
    found: dict[str, list[Prediction]] = defaultdict(list)
    for entry in entries:
        found[group_of(entry)].append(entry)
    return found


def _measured_seconds(entry: Prediction) -> float | None:
    """Return the measured step time of a run that was predicted too; None of any other."""
    return entry.measured_step_seconds if entry.measured_fits and entry.predicted_step_seconds else None


def _spread(entries: Sequence[Prediction]) -> list[Prediction]:
    """Return at most `MOST_ROWS` of the entries, evenly spread."""
    if len(entries) <= MOST_ROWS:
        return list(entries)
    return [entries[int(index)] for index in np.linspace(0, len(entries) - 1, MOST_ROWS)]


def _weights(kinds: Sequence[tuple[str, bool]]) -> FloatArray:
    counts: dict[tuple[str, bool], int] = defaultdict(int)
    for kind in kinds:
        counts[kind] += 1
    return np.array([np.sqrt(min(1.0, counts[kind] / FULL_WEIGHT_ROWS) / counts[kind]) for kind in kinds])


def error_after_one_scale(predictions: Sequence[Prediction]) -> float | None:
    """Return the median absolute error that is left once every stack has been measured a few times.

    A stack is a source group's runs on one GPU, dense models and mixtures apart. Of each, `SCALE_RUNS` random runs give
    one factor by which the others are corrected; groups weigh the same, and the median over `DRAWS` draws counts. None
    where no stack has more runs than that.
    """
    stacks: dict[tuple[str, str, bool], list[tuple[float, float]]] = defaultdict(list)
    for entry in predictions:
        if entry.predicted_step_seconds and entry.measured_step_seconds:
            stack = (entry.row.text("source_group"), entry.row.text("hardware"), entry.has_experts)
            stacks[stack].append((entry.predicted_step_seconds, entry.measured_step_seconds))
    # Sorted, so that neither the order of files nor of rows decides which runs are drawn.
    times = {stack: np.array(sorted(pairs)) for stack, pairs in sorted(stacks.items()) if len(pairs) > SCALE_RUNS}
    if not times:
        return None
    draws = np.random.default_rng(SEED)
    medians = []
    for _ in range(DRAWS):
        corrected: list[tuple[str, float, float]] = []
        for (group, _, _), pairs in times.items():
            order = draws.permutation(len(pairs))
            few, rest = pairs[order[:SCALE_RUNS]], pairs[order[SCALE_RUNS:]]
            scale = float(np.median(few[:, 1] / few[:, 0]))
            corrected += [(group, predicted * scale, measured) for predicted, measured in rest.tolist()]
        errors = errors_of(corrected)
        assert errors is not None, "a stack has runs that gave no scale"
        medians.append(errors.median_absolute)
    return float(np.median(medians))
