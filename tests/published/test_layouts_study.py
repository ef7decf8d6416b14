"""A published study of layouts whose licence keeps its rows out of this repository: 638 runs, 372 out of memory.

Set `SHARDWRIGHT_LAYOUTS_STUDY` to its table in the columns of `planner.accuracy.measurements` to run these tests.
"""

import os
from pathlib import Path

import pytest

from planner.accuracy.measurements import read_measurements
from planner.accuracy.scores import choices_of, out_of_memory, step_errors
from planner.accuracy.training import Prediction, TrainingPredictor

VARIABLE = "SHARDWRIGHT_LAYOUTS_STUDY"

pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"{VARIABLE} does not say where the study's table lies: its licence forbids a copy",
)


@pytest.fixture(scope="module")
def predictions() -> tuple[Prediction, ...]:
    predictor = TrainingPredictor()
    return tuple(predictor.predict(row) for row in read_measurements(Path(os.environ[VARIABLE])).rows)


def test_every_run_has_a_prediction(predictions: tuple[Prediction, ...]) -> None:
    assert len(predictions) == 638
    assert [entry.row.id for entry in predictions if entry.error is not None] == []


def test_what_runs_out_of_memory_is_foreseen(predictions: tuple[Prediction, ...]) -> None:
    found = out_of_memory(predictions)
    assert found.failed == 372
    assert found.recall is not None
    assert found.f1 is not None
    assert found.recall >= 0.985
    assert found.f1 >= 0.96


def test_step_times_are_near_and_layouts_ranked(predictions: tuple[Prediction, ...]) -> None:
    errors = step_errors(predictions)
    assert errors is not None
    assert errors.median_absolute < 0.07
    choices = choices_of(predictions)
    assert len(choices) == 6
    assert max(choice.top_regret for choice in choices) < 0.01
    assert min(choice.spearman for choice in choices) > 0.65
