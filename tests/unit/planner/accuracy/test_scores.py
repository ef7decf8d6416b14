"""Scores of predictions, by hand."""

from dataclasses import replace

import pytest

from planner.accuracy.scores import choices_of, equal_groups, errors_of, out_of_memory, ratio_errors
from planner.accuracy.training import Prediction
from tests.unit.planner.accuracy.rows import run_row


def prediction(
    predicted: float, measured: float, *, fits: bool = True, foreseen: bool = True, **cells: str
) -> Prediction:
    return Prediction(
        row=run_row(**cells),
        measured_step_seconds=measured,
        predicted_step_seconds=predicted,
        measured_fits=fits,
        predicted_fits=foreseen,
    )


def test_groups_weigh_the_same_however_many_rows_they_have() -> None:
    pairs = [("one", 1.1, 1.0)] * 99 + [("two", 0.5, 1.0), ("three", 0.5, 1.0)]
    found = errors_of(pairs)
    assert found is not None
    assert (found.count, found.groups) == (101, 3)
    assert found.mean_absolute == pytest.approx((0.1 + 0.5 + 0.5) / 3)
    assert found.median_absolute == pytest.approx(0.5)
    assert found.bias == pytest.approx(-0.5)
    assert errors_of([]) is None


def test_a_choice_set_is_ranked_and_its_regret_is_what_the_choice_costs() -> None:
    measured = (1.0, 1.2, 1.4, 1.6, 2.0)
    right = [prediction(2 * value, value, tp=str(index + 1)) for index, value in enumerate(measured)]
    (found,) = choices_of(right)
    assert (found.count, found.regret) == (5, 0.0)
    assert found.spearman == pytest.approx(1.0)
    assert found.kendall == pytest.approx(1.0)
    predicted = (9.0, 1.0, 2.0, 3.0, 4.0)
    wrong = [replace(entry, predicted_step_seconds=value) for entry, value in zip(right, predicted, strict=True)]
    (found,) = choices_of(wrong)
    assert found.regret == pytest.approx(0.2)
    assert found.top_regret == pytest.approx(0.2)
    assert choices_of(right[:4]) == ()
    assert choices_of([*right[:4], prediction(1.0, 1.0, seq_len="1")]) == ()


def test_repeats_of_one_layout_count_once_and_equal_predictions_are_drawn_from() -> None:
    layouts = [prediction(float(index), float(index), tp=str(index)) for index in range(1, 6)]
    assert choices_of([*layouts[:4], *layouts[:4]]) == ()
    (found,) = choices_of([*layouts, prediction(5.0, 7.0, tp="5", notes="again"), prediction(5.0, 6.0, tp="5")])
    assert found.count == 5
    assert found.spearman == pytest.approx(1.0)
    # The two first are predicted to be alike: either may be chosen, at 1 s or at 2 s.
    (found,) = choices_of([layouts[0], replace(layouts[1], predicted_step_seconds=1.0), *layouts[2:]])
    assert found.regret == pytest.approx(0.5)
    assert found.top_regret == 0.0


def test_the_ratio_of_two_layouts_keeps_nothing_of_an_error_that_both_have() -> None:
    times = (1.0, 1.1, 1.3, 1.6, 2.0)
    common = [prediction(1.5 * value, value, tp=str(index)) for index, value in enumerate(times, start=1)]
    found = ratio_errors(common)
    assert found is not None
    assert found.count == 10
    assert found.four_of_five == pytest.approx(0.0, abs=1e-12)
    off = ratio_errors([*common[:4], prediction(3.0, 1.0, tp="5")])
    assert off is not None
    assert off.four_of_five == pytest.approx(1.0)  # 4 of the 10 pairs are off by a factor of 2
    assert ratio_errors(common[:4]) is None


def test_four_of_five_predictions_lie_within_the_factor_that_says_so() -> None:
    found = errors_of([("one", 1.0, 1.0)] * 7 + [("one", 1.0, 1.25), ("one", 1.5, 1.0), ("one", 9.0, 1.0)])
    assert found is not None
    assert found.four_of_five == pytest.approx(0.25)


def test_out_of_memory_is_recall_precision_and_f1() -> None:
    runs = [
        prediction(1, 1, fits=False, foreseen=False),
        prediction(1, 1, fits=False, foreseen=False),
        prediction(1, 1, fits=False, foreseen=True),
        prediction(1, 1, fits=True, foreseen=False),
        prediction(1, 1),
    ]
    found = out_of_memory(runs)
    assert (found.count, found.failed) == (5, 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.precision == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(2 / 3)
    assert out_of_memory([prediction(1, 1)]).recall is None


def test_a_statistic_over_groups_counts_each_once() -> None:
    assert equal_groups([("a", 1.0), ("a", 3.0), ("b", 10.0)], max) == pytest.approx(6.5)
    assert equal_groups([], max) is None
