"""Fits the constants of serving engines to measured runs, and shows how the fit holds for what it has not seen.

Residuals are logarithms of predicted over measured times between tokens and, with less weight, to the first token, of
at most `MOST_ROWS` rows of each cell (model, engine, hardware, format), every cell weighing the same; large ones count
less (soft l1). Each constant is drawn, weakly, to its value by hand, so that one that no row says anything about stays
there.

Rows are simulated once a step. Between two simulations their times move as the closed form of `planner.serving.steady`
says: time between tokens in proportion to it, time to the first token in proportion to a prompt's prefill, beside what
every first token takes. Derivatives are differences of that; constants of different engines are moved together, since a
row has one engine.

A group is left out by fitting the others anew, from the same simulation, and predicting it exactly.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np
from scipy.optimize import least_squares

from planner.accuracy.measurements import Row
from planner.accuracy.serving import ServingPrediction, ServingPredictor, closed_form
from planner.accuracy.serving_exclusions import Sorting
from planner.accuracy.serving_rows import Mode
from planner.arrays import BoolArray, FloatArray
from planner.serving.engines import Calibration, KernelFactors

Predicted = Callable[[FloatArray], FloatArray]
"""From constants' logarithms to the times of all sampled rows."""

MOST_ROWS = 12
"""Rows of a cell that are simulated."""

FULL_WEIGHT_ROWS = 8
"""Cells with fewer rows weigh less, in proportion."""

TOKEN_SCALE, FIRST_TOKEN_SCALE = 0.05, 0.15
"""Log errors, of the time between tokens and of that to the first, from which on residuals count less."""

FIRST_TOKEN_WEIGHT = 0.5
"""Weight of times to the first token beside those between tokens."""

PRIOR_WEIGHT = 1.0
"""Weight of the pull towards the value by hand, at a quarter of the range from it."""

LOG_STEP = 0.05
"""Change of a constant's logarithm by which derivatives are taken."""

LINEAR_STEPS = 2
"""Linear problems between two simulations, each around where the one before ended."""

ENGINE_PRIORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "step_seconds": (9e-4, 5e-4, 2e-3),
        "sequence_seconds": (18e-6, 1e-6, 1e-4),
        "kernel_seconds": (2.4e-6, 3e-7, 8e-6),
        "experts_seconds": (2e-5, 1e-6, 5e-5),
        "latent_seconds": (1e-5, 5e-7, 8e-5),
        "compute_factor": (1.08, 0.85, 1.3),
        "first_token_seconds": (4e-2, 2e-3, 0.3),
        "first_token_experts_seconds": (8e-2, 2e-3, 0.6),
    }
)
"""Value by hand, least and most of each constant of an engine."""

ERA_PRIOR = "sequence_seconds"
"""The constant that earlier versions of an engine have of their own."""

KERNEL_PRIORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "blackwell_fp8": (0.85, 0.4, 1.2),
        "blackwell_fp4": (0.85, 0.3, 1.2),
        "blackwell_memory": (0.95, 0.6, 1.15),
        "experts_memory": (1.05, 0.6, 1.15),
        "hidden_start": (0.7, 0.1, 0.95),
        "fp4_experts_share": (0.4, 0.1, 1.0),
        "fp4_start_seconds": (8e-6, 2e-7, 2e-5),
        "routing_spread": (0.5, 0.1, 1.2),
    }
)
"""The same of what kernels reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One group, predicted by constants that were fitted without it.

    Args:
        group: The group.
        constants: Those.
        predictions: Its rows.
    """

    group: str
    constants: Calibration
    predictions: tuple[ServingPrediction, ...]


class ServingFit:
    """A fit of the constants that serving runs decide.

    Args:
        start: Constants to begin from.
        found: Predictions of the rows; those that are not steady or do not count are left out.
        sorting: Which rows count.
        progress: Called with what is done next.
    """

    def __init__(
        self,
        start: Calibration,
        found: Sequence[ServingPrediction],
        sorting: Sorting,
        *,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._progress = progress
        self._start = start
        self._counted = [entry for entry in found if _counts(entry, sorting)]
        self._sampled = _sample(self._counted)
        self._rows = [entry.row for entry in self._sampled]
        runs = [entry.run for entry in self._sampled if entry.run is not None]
        self._engine_of = [run.engine.name for run in runs]
        self._before_of = [run.before for run in runs]
        self._eras = [(engine, era) for engine, eras in start.eras.items() for era in eras]
        self.names = [
            *(f"{engine}.{name}" for engine in start.engines for name in ENGINE_PRIORS),
            *(f"{engine} before {era.before}.{ERA_PRIOR}" for engine, era in self._eras),
            *(f"kernels.{name}" for name in KERNEL_PRIORS),
        ]
        priors = [
            *(ENGINE_PRIORS[name] for _ in start.engines for name in ENGINE_PRIORS),
            *(ENGINE_PRIORS[ERA_PRIOR] for _ in self._eras),
            *KERNEL_PRIORS.values(),
        ]
        self._prior, self._low, self._high = np.log(np.array(priors)).T
        self._measured = np.log(
            [
                [entry.measured_tpot_seconds or math.nan, entry.measured_ttft_seconds or math.nan]
                for entry in self._sampled
            ]
        )
        first = np.array([entry.row.id not in sorting.no_first_token for entry in self._sampled])
        weights = _weights(self._sampled)
        self._weights = np.stack([weights, weights * first * FIRST_TOKEN_WEIGHT], axis=1)

    def fitted(self, *, steps: int = 3) -> Calibration:
        """Return the constants that fit all cells best, after so many simulations."""
        point = self._point(self._start)
        keep = np.ones(len(self._rows), dtype=np.bool_)
        best, best_loss = point, math.inf
        for step in range(steps + 1):
            simulated = self._simulated(point)
            loss = self._loss(np.log(simulated) - self._measured, point, keep)
            self._progress(f"simulation {step}: loss {loss:.4f}")
            if loss < best_loss:
                best, best_loss = point, loss
            if step < steps:
                point = self._moved(self._scaled(point, simulated), point, keep)
        return self._constants(best)

    def leave_out(self, group_of: Callable[[ServingPrediction], str]) -> tuple[LeftOut, ...]:
        """Return every group as a fit without it predicts it.

        Args:
            group_of: The group of a row.
        """
        point = self._point(self._start)
        predicted = self._scaled(point, self._simulated(point))
        groups = sorted({group_of(entry) for entry in self._counted})
        found = []
        for group in groups:
            self._progress(f"without {group}")
            keep = np.array([group_of(entry) != group for entry in self._sampled])
            constants = self._constants(self._moved(predicted, point, keep))
            predictor = ServingPredictor(constants)
            rows = [entry.row for entry in self._counted if group_of(entry) == group]
            found.append(
                LeftOut(group=group, constants=constants, predictions=tuple(predictor.predict(row) for row in rows))
            )
        return tuple(found)

    def _point(self, constants: Calibration) -> FloatArray:
        values = [getattr(engine, name) for engine in constants.engines.values() for name in ENGINE_PRIORS]
        values += [era.sequence_seconds for eras in constants.eras.values() for era in eras]
        values += [getattr(constants.kernels, name) for name in KERNEL_PRIORS]
        return np.clip(np.log(values), self._low, self._high)

    def _constants(self, point: FloatArray) -> Calibration:
        values = dict(zip(self.names, np.exp(point).tolist(), strict=True))
        engines = {
            name: replace(engine, **{field: values[f"{name}.{field}"] for field in ENGINE_PRIORS})
            for name, engine in self._start.engines.items()
        }
        kernels = KernelFactors(**{field.name: values[f"kernels.{field.name}"] for field in fields(KernelFactors)})
        eras = {
            name: tuple(
                replace(era, sequence_seconds=values[f"{name} before {era.before}.{ERA_PRIOR}"]) for era in listed
            )
            for name, listed in self._start.eras.items()
        }
        return Calibration(engines=engines, kernels=kernels, source=self._start.source, eras=eras)

    def _simulated(self, point: FloatArray) -> FloatArray:
        """Return the sampled rows' times by whole simulations: between tokens, to the first token."""
        predictor = ServingPredictor(self._constants(point))
        found = [predictor.predict(row) for row in self._rows]
        return np.array([[entry.tpot_seconds or math.nan, entry.ttft_seconds or math.nan] for entry in found])

    def _closed(self, point: FloatArray) -> FloatArray:
        """Return the sampled rows' times in closed form: between tokens, of a prefill, of every first token."""
        predictor = ServingPredictor(self._constants(point))
        return np.array([closed_form(predictor.runs.of(row)) for row in self._rows])

    def _scaled(self, point: FloatArray, simulated: FloatArray) -> Predicted:
        """Return what predicts the sampled rows' times near a point at which they were simulated."""
        closed = self._closed(point)

        def predicted(other: FloatArray) -> FloatArray:
            moved = self._closed(other)
            tokens = simulated[:, 0] * moved[:, 0] / closed[:, 0]
            first = (simulated[:, 1] - closed[:, 2]) * moved[:, 1] / closed[:, 1] + moved[:, 2]
            return np.stack([tokens, first], axis=1)

        return predicted

    def _slopes(self, predicted: Predicted, point: FloatArray, errors: FloatArray) -> FloatArray:
        """Return the derivatives of all errors by all constants' logarithms: rows, kinds of error, constants."""
        slopes = np.zeros((*errors.shape, len(point)))
        engines, each = list(self._start.engines), len(ENGINE_PRIORS)
        for index in range(each):
            places = [index + each * number for number in range(len(engines))]
            apart = list(ENGINE_PRIORS)[index] == ERA_PRIOR
            later = [each * len(engines) + number for number in range(len(self._eras) if apart else 0)]
            change = self._change(predicted, point, errors, [*places, *later])
            for number, engine in enumerate(engines):
                mine = np.array([found == engine for found in self._engine_of])
                if apart:
                    mine &= np.array([before is None for before in self._before_of])
                slopes[mine, :, places[number]] = change[mine]
            for place, (engine, era) in zip(later, self._eras, strict=False):
                rows = zip(self._engine_of, self._before_of, strict=True)
                mine = np.array([row == (engine, era.before) for row in rows])
                slopes[mine, :, place] = change[mine]
        for place in range(each * len(engines) + len(self._eras), len(point)):
            slopes[:, :, place] = self._change(predicted, point, errors, [place])
        return slopes

    def _change(self, predicted: Predicted, point: FloatArray, errors: FloatArray, places: Sequence[int]) -> FloatArray:
        """Return the derivatives of all errors by constants that are moved together."""
        moved = point.copy()
        moved[places] += LOG_STEP
        change: FloatArray = (np.log(predicted(moved)) - self._measured - errors) / LOG_STEP
        return change

    def _moved(self, predicted: Predicted, point: FloatArray, keep: BoolArray) -> FloatArray:
        """Return the best point by some rows, after `LINEAR_STEPS` linear problems around `point`."""
        margin = 1e-6
        for _ in range(LINEAR_STEPS):
            around = np.clip(point, self._low + margin, self._high - margin)
            errors = np.log(predicted(around)) - self._measured
            slopes = self._slopes(predicted, around, errors)

            def residuals(
                moved: FloatArray, errors: FloatArray = errors, slopes: FloatArray = slopes, at: FloatArray = around
            ) -> FloatArray:
                return self._residuals(errors + slopes @ (moved - at), moved, keep)

            point = least_squares(residuals, around, bounds=(self._low, self._high), x_scale=0.1).x
        return point

    def _residuals(self, errors: FloatArray, point: FloatArray, keep: BoolArray) -> FloatArray:
        scaled = errors[keep] / np.array([TOKEN_SCALE, FIRST_TOKEN_SCALE])
        soft = np.sign(scaled) * np.sqrt(2 * (np.sqrt(1 + scaled**2) - 1)) * self._weights[keep]
        pull = PRIOR_WEIGHT * (point - self._prior) / ((self._high - self._low) / 4)
        return np.concatenate([np.nan_to_num(soft).ravel(), pull])

    def _loss(self, errors: FloatArray, point: FloatArray, keep: BoolArray) -> float:
        return float((self._residuals(errors, point, keep) ** 2).sum())


def _counts(entry: ServingPrediction, sorting: Sorting) -> bool:
    return (
        entry.run is not None
        and entry.run.mode is Mode.STEADY
        and entry.row.id in sorting.clean
        and bool(entry.tpot_seconds)
        and bool(entry.measured_tpot_seconds)
    )


def group_of(entry: ServingPrediction, column: str) -> str:
    """Return what is left out together with a row: of models all with one architecture, whatever they are called."""
    if column == "model" and entry.run is not None:
        model = entry.run.model
        return f"{model.architecture}, {model.num_layers} layers"
    return entry.row.text(column)


def cell_of(row: Row) -> tuple[str, ...]:
    """Return the cell of a row: what weighs as one."""
    return tuple(row.text(column) for column in ("model", "engine", "hardware", "quant"))


def _sample(entries: Sequence[ServingPrediction]) -> list[ServingPrediction]:
    """Return at most `MOST_ROWS` of each cell, evenly spread."""
    cells: dict[tuple[str, ...], list[ServingPrediction]] = defaultdict(list)
    for entry in entries:
        cells[cell_of(entry.row)].append(entry)
    found = []
    for members in cells.values():
        places = np.linspace(0, len(members) - 1, min(MOST_ROWS, len(members)))
        found += [members[int(place)] for place in places]
    return found


def _weights(entries: Sequence[ServingPrediction]) -> FloatArray:
    counts: dict[tuple[str, ...], int] = defaultdict(int)
    for entry in entries:
        counts[cell_of(entry.row)] += 1
    return np.array(
        [
            math.sqrt(min(1.0, counts[cell] / FULL_WEIGHT_ROWS) / counts[cell])
            for cell in (cell_of(entry.row) for entry in entries)
        ]
    )
