"""A layout in words says all of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.layout import Granularity, Overlap, Recompute, stages_from_counts
from planner.plans.layout_words import (
    layout_in_words,
    layout_settings,
    overlap_in_words,
    recompute_in_words,
    stages_in_words,
)
from tests.unit.cli.samples import sample_layout


def test_a_layout_is_named_in_one_line() -> None:
    assert layout_in_words(sample_layout()) == (
        "tp 2 with sequence parallelism, pp 2, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none"
    )


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


def test_every_field_of_a_layout_has_a_setting() -> None:
    renamed = {"stages": "layers per stage", "ulysses": "cp"}
    assert set(layout_settings(sample_layout())) == {
        renamed.get(name, name) for name in type(sample_layout()).__dataclass_fields__
    }
