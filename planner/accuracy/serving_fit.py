"""Fits the constants of serving engines to measured runs, and shows how the fit holds for what it has not seen.

Residuals are logarithms of predicted over measured times between tokens and, with less weight, to the first token, of
at most `MOST_ROWS` rows of each cell (model, engine, hardware, format), every cell weighing the same; large ones count
less (soft l1). Each constant is drawn, weakly, to its value by hand (`PRIORS`), so that one that no row says anything
about stays there. Derivatives are differences of whole simulations; constants of different engines are moved together,
since a row has one engine.

A group is left out by fitting the others anew, with the derivatives at the joint fit, and predicting it exactly.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.accuracy.measurements import Row
from planner.accuracy.serving import ServingPrediction, ServingPredictor
from planner.accuracy.serving_exclusions import Sorting
from planner.accuracy.serving_rows import Mode
from planner.serving.engines import Calibration, KernelFactors

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

MOST_ROWS = 10
FULL_WEIGHT_ROWS = 8
TOKEN_SCALE = 0.05
FIRST_TOKEN_SCALE = 0.15
FIRST_TOKEN_WEIGHT = 0.5
PRIOR_WEIGHT = 0.3
LOG_STEP = 0.05

ENGINE_PRIORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "step_seconds": (8e-4, 2e-4, 4e-3),
        "sequence_seconds": (15e-6, 1e-6, 1e-4),
        "kernel_seconds": (1.8e-6, 3e-7, 8e-6),
        "experts_seconds": (8e-6, 1e-6, 8e-5),
        "compute_factor": (1.05, 0.8, 1.6),
        "first_token_seconds": (4e-2, 2e-3, 0.3),
        "first_token_experts_seconds": (8e-2, 2e-3, 0.6),
    }
)
"""Value by hand, least and most of each constant of an engine."""

KERNEL_PRIORS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "blackwell_fp8": (0.85, 0.4, 1.2),
        "blackwell_fp4": (0.85, 0.3, 1.2),
        "blackwell_memory": (0.95, 0.6, 1.15),
        "experts_memory": (1.0, 0.6, 1.15),
        "hidden_start": (0.4, 0.1, 0.95),
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
        self._engine_of = [entry.run.engine.name for entry in self._sampled if entry.run is not None]
        self.names = [f"{engine}.{name}" for engine in start.engines for name in ENGINE_PRIORS] + [
            f"kernels.{name}" for name in KERNEL_PRIORS
        ]
        priors = [ENGINE_PRIORS[name] for _ in start.engines for name in ENGINE_PRIORS] + list(KERNEL_PRIORS.values())
        self._prior, self._low, self._high = np.log(np.array(priors)).T
        self._measured = np.log(
            [[entry.measured_tpot_seconds or math.nan, entry.measured_ttft_seconds or math.nan] for entry in self._sampled]
        )
        first = np.array([entry.row.id not in sorting.no_first_token for entry in self._sampled])
        weights = _weights(self._sampled)
        self._weights = np.stack([weights, weights * first * FIRST_TOKEN_WEIGHT], axis=1)

    @property
    def num_rows(self) -> int:
        """Return the rows that the fit looks at."""
        return len(self._rows)

    def fitted(self, *, steps: int = 5) -> Calibration:
        """Return the constants that fit all cells best, after so many linear steps."""
        point = self._point(self._start)
        keep = np.ones(len(self._rows), dtype=np.bool_)
        best, best_loss = point, math.inf
        for step in range(steps + 1):
            errors = self._errors(point)
            loss = self._loss(errors, point, keep)
            self._progress(f"step {step}: loss {loss:.4f}")
            if loss < best_loss:
                best, best_loss = point, loss
            if step < steps:
                point = self._moved(point, errors, self._slopes(point, errors), keep)
        return self._constants(best)

    def leave_out(self, group_of: Callable[[ServingPrediction], str]) -> tuple[LeftOut, ...]:
        """Return every group as a fit without it predicts it.

        Args:
            group_of: The group of a row.
        """
        point = self._point(self._start)
        errors = self._errors(point)
        slopes = self._slopes(point, errors)
        groups = sorted({group_of(entry) for entry in self._counted})
        found = []
        for group in groups:
            self._progress(f"without {group}")
            keep = np.array([group_of(entry) != group for entry in self._sampled])
            constants = self._constants(self._moved(point, errors, slopes, keep))
            predictor = ServingPredictor(constants)
            rows = [entry.row for entry in self._counted if group_of(entry) == group]
            found.append(
                LeftOut(group=group, constants=constants, predictions=tuple(predictor.predict(row) for row in rows))
            )
        return tuple(found)

    def _point(self, constants: Calibration) -> FloatArray:
        values = [getattr(engine, name) for engine in constants.engines.values() for name in ENGINE_PRIORS]
        values += [getattr(constants.kernels, name) for name in KERNEL_PRIORS]
        return np.clip(np.log(values), self._low, self._high)

    def _constants(self, point: FloatArray) -> Calibration:
        values = dict(zip(self.names, np.exp(point).tolist(), strict=True))
        engines = {
            name: replace(engine, **{field: values[f"{name}.{field}"] for field in ENGINE_PRIORS})
            for name, engine in self._start.engines.items()
        }
        kernels = KernelFactors(**{field.name: values[f"kernels.{field.name}"] for field in fields(KernelFactors)})
        return Calibration(engines=engines, kernels=kernels, source=self._start.source)

    def _errors(self, point: FloatArray) -> FloatArray:
        """Return the log errors of the sampled rows: between tokens, to the first token."""
        predictor = ServingPredictor(self._constants(point))
        found = [predictor.predict(row) for row in self._rows]
        return np.log([[entry.tpot_seconds or math.nan, entry.ttft_seconds or math.nan] for entry in found]) - self._measured

    def _slopes(self, point: FloatArray, errors: FloatArray) -> FloatArray:
        """Return the derivatives of all errors by all constants' logarithms: rows, kinds of error, constants."""
        slopes = np.zeros((*errors.shape, len(point)))
        engines = list(self._start.engines)
        each = len(ENGINE_PRIORS)
        for index, name in enumerate(ENGINE_PRIORS):
            self._progress(f"derivative by {name}")
            moved = point.copy()
            places = [index + each * number for number in range(len(engines))]
            moved[places] += LOG_STEP
            change = (self._errors(moved) - errors) / LOG_STEP
            for number, engine in enumerate(engines):
                mine = np.array([found == engine for found in self._engine_of])
                slopes[mine, :, places[number]] = change[mine]
        for index, name in enumerate(KERNEL_PRIORS):
            self._progress(f"derivative by {name}")
            place = each * len(engines) + index
            moved = point.copy()
            moved[place] += LOG_STEP
            slopes[:, :, place] = (self._errors(moved) - errors) / LOG_STEP
        return slopes

    def _moved(self, point: FloatArray, errors: FloatArray, slopes: FloatArray, keep: BoolArray) -> FloatArray:
        """Return the best point of the problem that is linear around `point`."""

        def residuals(moved: FloatArray) -> FloatArray:
            return self._residuals(errors + slopes @ (moved - point), moved, keep)

        margin = 1e-6
        start = np.clip(point, self._low + margin, self._high - margin)
        found: FloatArray = least_squares(residuals, start, bounds=(self._low, self._high), x_scale=0.1).x
        return found

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
