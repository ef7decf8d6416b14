"""The fit finds constants again that made up its measurements, and groups that are left out say how it holds."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from planner.accuracy.fit import SCALE_RUNS, TrainingFit, error_after_one_scale, source_group
from planner.accuracy.measurements import Row
from planner.accuracy.scores import step_errors
from planner.accuracy.training import Prediction, TrainingPredictor
from profiles.constants import Origin, named_constants, values_tried
from tests.unit.planner.accuracy.rows import run_row

TRUTH = {"GEMM[hopper, bf16].sustained_fraction": 0.6, "ATTENTION_FRACTION[hopper]": 0.25}


def runs() -> Iterator[Row]:
    """Yield runs whose products and attention weigh differently, in two groups."""
    for index, (seq_len, micro_batch) in enumerate((s, m) for s in ("2048", "8192", "32768") for m in ("1", "2")):
        for group in ("one", "two"):
            cells = {"seq_len": seq_len, "micro_batch": micro_batch, "global_batch": "64", "source_group": group}
            yield run_row(id=f"{group}-{index}", precision="bf16", recompute="full", **cells)


def measured(rows: Iterator[Row]) -> list[Row]:
    """Return the rows with the times that the true constants give."""
    found = []
    with values_tried(TRUTH):
        for row, entry in ((row, TrainingPredictor().predict(row)) for row in rows):
            assert entry.predicted_step_seconds is not None, entry.error
            found.append(replace(row, cells={**row.cells, "step_time_s": str(entry.predicted_step_seconds)}))
    return found


def fit_of(rows: list[Row]) -> TrainingFit:
    """Return a fit to the rows."""
    predictor = TrainingPredictor()
    return TrainingFit(predictor, [predictor.predict(row) for row in rows])


def test_a_fit_finds_the_constants_behind_its_runs_and_puts_all_others_back() -> None:
    rows = measured(runs())
    before = {name: constant.value for name, constant in named_constants().items()}
    fit = fit_of(rows)
    assert set(fit.constants) == {
        name for name, constant in named_constants().items() if constant.origin is Origin.TRAINED
    }
    found = fit.fitted()
    assert {name: constant.value for name, constant in named_constants().items()} == before
    start = step_errors(map(TrainingPredictor().predict, rows))
    with values_tried(found):
        end = step_errors(map(TrainingPredictor().predict, rows))
    assert start is not None
    assert end is not None
    assert start.median_absolute > 0.1
    assert end.median_absolute < 0.02


def test_a_group_is_predicted_by_what_the_others_say() -> None:
    one, two = (group for group in ("one", "two"))
    rows = measured(runs())
    with values_tried(TRUTH):
        left_out = fit_of(rows).leave_out(source_group)
    assert [entry.group for entry in left_out] == [one, two]
    for entry in left_out:
        errors = step_errors(entry.predictions)
        assert errors is not None
        assert errors.count == len(rows) // 2
        assert errors.median_absolute < 0.02  # the other group has the same constants


def prediction(predicted: float, *, hardware: str = "DGX-H100", group: str = "one") -> Prediction:
    return Prediction(
        row=run_row(hardware=hardware, source_group=group),
        predicted_step_seconds=predicted,
        measured_step_seconds=1.0,
    )


def test_one_scale_takes_a_common_factor_away_and_leaves_the_spread() -> None:
    common = [prediction(1.7) for _ in range(10)]
    assert error_after_one_scale(common) == pytest.approx(0.0, abs=1e-12)
    assert error_after_one_scale(common[:SCALE_RUNS]) is None
    two_machines = [*common, *(prediction(0.4, hardware="DGX-B200") for _ in range(10))]
    assert error_after_one_scale(two_machines) == pytest.approx(0.0, abs=1e-12)
    spread = [prediction(float(value)) for value in np.linspace(0.8, 1.2, 41)]
    left = error_after_one_scale(spread)
    assert left is not None
    assert 0.05 < left < 0.2
    assert left == error_after_one_scale(spread)
