"""What other layouts would cost, beside the best."""

from dataclasses import replace

import pytest

from planner.plans.comparison import compare, compare_all, time_terms
from tests.unit.cli.samples import GIB, sample_plan, sample_planned


def test_a_layout_differs_from_itself_in_nothing() -> None:
    planned = sample_planned()
    comparison = compare(planned, planned, index=0, is_baseline=False)
    assert comparison.differences == ()
    assert comparison.terms == ()
    assert comparison.change_seconds == 0.0
    assert comparison.peak_change_bytes == 0


def test_changes_of_terms_add_up_to_the_change_of_the_step() -> None:
    plan = sample_plan()
    comparison = compare(plan.plans[1], plan.plans[0], index=1, is_baseline=False)
    assert sum(change.change_seconds for change in comparison.terms) == pytest.approx(comparison.change_seconds)
    assert [change.term for change in comparison.terms] == ["tensor-parallel collectives", "pipeline bubble", "gemm"]
    assert comparison.change_fraction == pytest.approx(0.25)
    assert comparison.peak_change_bytes == -GIB


def test_only_settings_that_differ_are_named() -> None:
    plan = sample_plan()
    comparison = compare(plan.plans[1], plan.plans[0], index=1, is_baseline=False)
    assert [(entry.setting, entry.value, entry.reference) for entry in comparison.differences] == [
        ("tp", "4", "2"),
        ("pp", "1", "2"),
        ("schedule", "none", "1f1b"),
        ("layers per stage", "4", "2 x 2"),
    ]


def test_every_field_of_a_layout_makes_a_difference() -> None:
    plan = sample_plan()
    wide = replace(plan.best.layout, cp=4, dp=4, ep=2)
    changes: dict[str, dict[str, object]] = {
        "cp": {"cp": 8, "dp": 2},
        "ulysses": {"ulysses": 4},
        "state_exchange": {"state_exchange": True},
        "ep": {"ep": 8},
        "etp": {"etp": 2},
        "state_replicas": {"state_replicas": 2},
        "secondary_shard": {"secondary_shard": 2},
    }
    for change in changes.values():
        other = replace(plan.best, layout=replace(wide, **change))  # type: ignore[arg-type]
        found = compare(other, replace(plan.best, layout=wide), index=1, is_baseline=False)
        assert len(found.differences) == len(change)


def test_a_runner_up_is_told_by_its_context_parallelism() -> None:
    plan = sample_plan()
    ring = replace(plan.best, layout=replace(plan.best.layout, cp=8))
    ulysses = replace(plan.best, layout=replace(plan.best.layout, cp=8, ulysses=8))
    (difference,) = compare(ulysses, ring, index=1, is_baseline=False).differences
    assert (difference.setting, difference.value, difference.reference) == ("cp", "8 ulysses", "8 ring")


def test_a_baseline_among_the_plans_is_compared_once() -> None:
    assert [(entry.index, entry.is_baseline) for entry in compare_all(sample_plan())] == [(1, True)]


def test_a_baseline_of_its_own_comes_last() -> None:
    plan = sample_plan()
    baseline = replace(plan.plans[1], layout=replace(plan.plans[1].layout, zero_stage=0))
    plan = replace(plan, baseline=baseline)
    assert [(entry.index, entry.is_baseline) for entry in compare_all(plan)] == [(1, False), (None, True)]


def test_a_runner_up_is_compared_with_the_best() -> None:
    assert [entry.index for entry in compare_all(sample_plan(), index=1)] == [0]


def test_time_terms_come_largest_first() -> None:
    assert [line.term for line in time_terms(sample_planned())] == ["gemm", "pipeline bubble"]
