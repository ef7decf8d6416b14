"""Predicted step times, memory and rankings against published runs, a few of each source.

Tolerances are what the cost model reaches, with a margin of a few points: a change that loses more is not one of
rounding.
"""

from pathlib import Path

import pytest

from planner.accuracy.measurements import read_measurements
from planner.accuracy.scores import choices_of, errors_of
from planner.accuracy.training import Prediction, TrainingPredictor

FILE = Path(__file__).parents[2] / "examples" / "measured-runs" / "training.csv"

LARGEST_MEDIAN_ERROR = {
    "fms-fsdp": 0.06,
    "internevo": 0.04,
    "llm-foundry": 0.07,
    "megatron-lm": 0.14,
    "nvidia-recipes": 0.06,
    "simumax": 0.06,
    "torchtitan": 0.08,
    "vtrain": 0.08,
}
"""Median absolute error of the step time, by source."""


@pytest.fixture(scope="module")
def predictions() -> tuple[Prediction, ...]:
    predictor = TrainingPredictor()
    return tuple(predictor.predict(row) for row in read_measurements(FILE).rows)


def test_every_run_has_a_source_and_a_prediction(predictions: tuple[Prediction, ...]) -> None:
    assert len(predictions) > 150
    assert [entry.row.id for entry in predictions if entry.error is not None] == []
    assert all(entry.row.text("source") for entry in predictions)


@pytest.mark.parametrize("group", LARGEST_MEDIAN_ERROR)
def test_step_times_are_as_near_as_ever(group: str, predictions: tuple[Prediction, ...]) -> None:
    pairs = [
        (group, entry.predicted_step_seconds, entry.measured_step_seconds)
        for entry in predictions
        if entry.row.text("source_group") == group and entry.predicted_step_seconds and entry.measured_step_seconds
    ]
    found = errors_of(pairs)
    assert found is not None
    assert found.median_absolute < LARGEST_MEDIAN_ERROR[group]


def test_layouts_are_ranked_as_they_ran(predictions: tuple[Prediction, ...]) -> None:
    choices = choices_of(predictions)
    assert len(choices) >= 4
    # The best of three is the best of all, but in one set of 14 layouts of a GPT-18.4B, where it is 4.5 % slower.
    *most, worst = sorted(choice.top_regret for choice in choices)
    assert most == [0.0] * len(most)
    assert worst < 0.05
    ranks = sorted(choice.spearman for choice in choices)
    assert ranks[len(ranks) // 2] > 0.8


def test_peaks_of_a_run_on_megatron_core_are_within_a_few_hundredths(predictions: tuple[Prediction, ...]) -> None:
    pairs = [
        ("simumax", entry.predicted_allocated_bytes, entry.measured_peak_bytes)
        for entry in predictions
        if entry.row.text("source_group") == "simumax"
        if entry.predicted_allocated_bytes and entry.measured_peak_bytes
    ]
    found = errors_of(pairs)
    assert found is not None
    assert found.median_absolute < 0.03
    assert max(abs(predicted / measured - 1) for _, predicted, measured in pairs) < 0.08
