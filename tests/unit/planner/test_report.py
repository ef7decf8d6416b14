"""What a plan says about itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout import Granularity, Overlap, Recompute, stages_from_counts
from planner.plan import Phase
from planner.report import (
    compare,
    compare_all,
    heaviest_rank,
    layout_in_words,
    layout_settings,
    memory_by_rank,
    overlap_in_words,
    peak_terms,
    recompute_in_words,
    stages_in_words,
    time_terms,
    total_parameters,
)
from tests.unit.cli.samples import GIB, sample_layout, sample_model, sample_plan, sample_planned


def test_a_layout_is_named_in_one_line() -> None:
    assert layout_in_words(sample_layout()) == (
        "tp 2 with sequence parallelism, pp 2, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none"
    )


@pytest.mark.parametrize(
    ("recompute", "words"),
    [
        (Recompute(granularity=Granularity.NONE), "none"),
        (Recompute(granularity=Granularity.SELECTIVE, modules=("core_attn", "mlp")), "selective (core_attn, mlp)"),
        (Recompute(granularity=Granularity.FULL), "full"),
        (Recompute(granularity=Granularity.FULL, num_layers=3), "full for the first 3 layers of each stage"),
        (Recompute(granularity=Granularity.FULL, num_layers=1), "full for the first layer of each stage"),
    ],
)
def test_recompute_is_said_with_its_extent(recompute: Recompute, words: str) -> None:
    assert recompute_in_words(recompute) == words


def test_no_overlap_is_said() -> None:
    assert overlap_in_words(Overlap(grad_reduce=False, param_gather=False, p2p=False)) == "none"


def test_equal_neighbouring_stages_are_collapsed() -> None:
    assert stages_in_words(stages_from_counts((19, 20, 20, 20, 21))) == "19, 20 x 3, 21"


@given(st.lists(st.integers(min_value=0, max_value=30), min_size=1, max_size=12).map(tuple))
def test_collapsed_stages_hold_every_layer(counts: tuple[int, ...]) -> None:
    words = stages_in_words(stages_from_counts(counts))
    runs = [
        (int(part.split(" x ")[0]), int(part.split(" x ")[1]) if " x " in part else 1) for part in words.split(", ")
    ]
    assert tuple(layers for layers, times in runs for _ in range(times)) == counts


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


def test_every_field_of_a_layout_has_a_setting() -> None:
    renamed = {"stages": "layers per stage"}
    assert set(layout_settings(sample_layout())) == {
        renamed.get(name, name) for name in type(sample_layout()).__dataclass_fields__
    }


def test_a_baseline_among_the_plans_is_compared_once() -> None:
    assert [(entry.index, entry.is_baseline) for entry in compare_all(sample_plan())] == [(1, True)]


def test_a_baseline_of_its_own_comes_last() -> None:
    plan = sample_plan()
    baseline = replace(plan.plans[1], layout=replace(plan.plans[1].layout, zero_stage=0))
    plan = replace(plan, baseline=baseline)
    assert [(entry.index, entry.is_baseline) for entry in compare_all(plan)] == [(1, False), (None, True)]


def test_a_runner_up_is_compared_with_the_best() -> None:
    assert [entry.index for entry in compare_all(sample_plan(), index=1)] == [0]


def test_memory_adds_up_by_rank_and_phase() -> None:
    lines = sample_planned().memory
    first, second = memory_by_rank(lines, limit_bytes=7 * GIB)
    assert (first.rank, second.rank) == (0, 2)
    assert first.phase_bytes == {
        Phase.INITIALISATION: 2 * GIB,
        Phase.FORWARD_BACKWARD: 6 * GIB,
        Phase.OPTIMIZER_STEP: 2 * GIB,
    }
    assert (second.peak_bytes, second.peak_phase, second.left_bytes) == (4 * GIB, Phase.FORWARD_BACKWARD, 3 * GIB)
    assert sum(sum(rank.phase_bytes.values()) for rank in (first, second)) == sum(line.num_bytes for line in lines)


def test_the_heaviest_rank_holds_the_peak_of_the_plan() -> None:
    planned = sample_planned()
    heaviest = heaviest_rank(memory_by_rank(planned.memory, limit_bytes=planned.memory_limit_bytes))
    assert heaviest.rank == 0
    assert heaviest.peak_bytes == planned.peak_memory_bytes
    assert [line.term for line in peak_terms(planned.memory, heaviest)] == ["activations", "weights"]


def test_of_equally_heavy_ranks_the_lowest_is_named() -> None:
    lines = tuple(replace(line, num_bytes=GIB) for line in sample_planned().memory)
    assert heaviest_rank(memory_by_rank(lines, limit_bytes=7 * GIB)).rank == 0


def test_time_terms_come_largest_first() -> None:
    assert [line.term for line in time_terms(sample_planned())] == ["gemm", "pipeline bubble"]


def test_parameters_are_counted_from_the_shapes() -> None:
    attention = 512 * (512 + 2 * 128) + 512 * 512
    feed_forward = 3 * 512 * 1024
    layer = attention + feed_forward + 2 * 512
    assert total_parameters(sample_model()) == 2 * 1000 * 512 + 4 * layer + 512
