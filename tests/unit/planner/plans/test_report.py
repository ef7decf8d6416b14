"""What a plan says about itself."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout import Granularity, Layout, Overlap, Recompute, stages_from_counts
from planner.plans.plan import Phase
from planner.plans.report import (
    compare,
    compare_all,
    documents_in_words,
    experts_in_words,
    heaviest_rank,
    layout_in_words,
    layout_settings,
    memory_by_rank,
    overlap_in_words,
    peak_terms,
    rank_places,
    recompute_in_words,
    stages_in_words,
    telling_ranks,
    time_terms,
    total_parameters,
)
from planner.requests.workload import DEFAULT_ROUTING_SKEW, DocumentLengths, Packing
from tests.unit.cli.samples import GIB, sample_layout, sample_model, sample_plan, sample_planned


def test_a_layout_is_named_in_one_line() -> None:
    assert layout_in_words(sample_layout()) == (
        "tp 2 with sequence parallelism, pp 2, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none"
    )


def spread_layout() -> Layout:
    """Return tp 2, cp 4, dp 4, pp 2 beside etp 1, ep 8, edp 4."""
    return replace(sample_layout(), cp=4, dp=4, ep=8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"cp": 8},
            (
                "tp 2 with sequence parallelism, pp 2, cp 8 ring, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; "
                "recompute none"
            ),
        ),
        (
            {"cp": 8, "ulysses": 8, "state_exchange": True},
            (
                "tp 2 with sequence parallelism, pp 2, cp 8 ulysses, exchanging states, dp 1; zero_stage 1; "
                "16 micro-batches of 1; 1f1b; recompute none"
            ),
        ),
        (
            {"cp": 16, "ulysses": 8, "ep": 4, "etp": 2},
            (
                "tp 2 with sequence parallelism, pp 2, cp 16 ulysses 8 x ring 2, ep 4, etp 2, dp 1; zero_stage 1; "
                "16 micro-batches of 1; 1f1b; recompute none"
            ),
        ),
        (
            {"dp": 32, "zero_stage": 3, "state_replicas": 4, "secondary_shard": 8},
            (
                "tp 2 with sequence parallelism, pp 2, dp 32; zero_stage 3 in 4 groups of 8 ranks (hybrid sharding), "
                "a second copy of the weights over 8 ranks; 16 micro-batches of 1; 1f1b; recompute none"
            ),
        ),
    ],
)
def test_every_dimension_above_1_is_named(change: dict[str, int], words: str) -> None:
    assert layout_in_words(replace(sample_layout(), **change)) == words  # type: ignore[arg-type]


def test_every_rank_stands_in_both_grids() -> None:
    layout = spread_layout()
    places = rank_places(layout, range(layout.world_size))
    assert len({place.dense for place in places}) == len({place.expert for place in places}) == layout.world_size
    assert [max(place.dense[axis] + 1 for place in places) for axis in range(4)] == [2, 4, 4, 2]
    assert [max(place.expert[axis] + 1 for place in places) for axis in range(4)] == [1, 8, 4, 2]
    for place in places:
        tp, cp, dp, pp = place.dense
        assert place.rank == tp + 2 * cp + 8 * dp + 32 * pp
        etp, ep, edp, expert_pp = place.expert
        assert place.rank == etp + ep + 8 * edp + 32 * expert_pp
        assert place.rank // layout.stage_ranks == pp == expert_pp


def test_of_many_ranks_those_are_told_that_step_along_an_axis() -> None:
    layout = spread_layout()
    assert telling_ranks(layout, at_most=64) == tuple(range(64))
    assert telling_ranks(layout, at_most=63) == (0, 1, 2, 8, 32, 63)


@pytest.mark.parametrize(
    ("layout", "skew", "words"),
    [
        (
            spread_layout(),
            DEFAULT_ROUTING_SKEW,
            "etp 1 x ep 8 x edp 4; routing skew 1.2 (assumed): load of the busiest rank over the mean",
        ),
        (
            replace(spread_layout(), etp=2),
            1.5,
            "etp 2 x ep 8 x edp 2; routing skew 1.5 (given): load of the busiest rank over the mean",
        ),
        (replace(spread_layout(), ep=1), 1.2, "etp 1 x ep 1 x edp 32; every rank holds all of them"),
    ],
)
def test_the_experts_grid_is_said_with_its_assumption(layout: Layout, skew: float, words: str) -> None:
    assert experts_in_words(layout, replace(sample_plan().request.workload, routing_skew=skew)) == words


def test_documents_are_said_by_their_mean() -> None:
    documents = DocumentLengths(lengths=(1000, 3000), weights=(0.25, 0.75), packing=Packing.PACKED)
    assert documents_in_words(documents) == "packed documents of 2,500 tokens on average"


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
    renamed = {"stages": "layers per stage", "ulysses": "cp"}
    assert set(layout_settings(sample_layout())) == {
        renamed.get(name, name) for name in type(sample_layout()).__dataclass_fields__
    }


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
