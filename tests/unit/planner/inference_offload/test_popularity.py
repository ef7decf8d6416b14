"""Experts in groups of equal popularity."""

import numpy as np
import pytest

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram
from planner.inference_offload.popularity import expert_groups

HISTOGRAM = RoutingHistogram(
    source="counts.json", tokens_LE=np.array([[1.0, 6.0, 1.0, 2.0], [4.0, 0.0, 4.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
)


def test_experts_of_one_rank_are_one_group_whatever_their_numbers() -> None:
    groups = expert_groups(4, 2, HISTOGRAM)
    assert [group.experts for group in groups] == [1, 1, 1, 1]
    assert [group.share for group in groups] == pytest.approx([0.5, 0.3, 0.15, 0.05])
    assert [group.chosen for group in groups] == pytest.approx([1.0, 0.6, 0.3, 0.1])
    assert groups[2].reached(2) == pytest.approx(1 - 0.7**2)


def test_without_a_histogram_all_are_alike() -> None:
    (group,) = expert_groups(64, 4, None)
    assert (group.experts, group.share, group.chosen) == (64, 1.0, 4 / 64)


def test_many_experts_make_eight_groups() -> None:
    histogram = RoutingHistogram(source="x", tokens_LE=np.arange(1.0, 101.0)[None])
    groups = expert_groups(100, 8, histogram)
    assert [group.experts for group in groups] == [13, 13, 13, 13, 12, 12, 12, 12]
    assert sum(group.share for group in groups) == pytest.approx(1.0)
    assert [group.chosen for group in groups] == sorted((group.chosen for group in groups), reverse=True)


def test_a_histogram_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"counts\.json counts 4 experts; the model has 8\."):
        expert_groups(8, 2, HISTOGRAM)
    with pytest.raises(InputError, match=r"none counts no token\."):
        expert_groups(4, 2, RoutingHistogram(source="none", tokens_LE=np.zeros((2, 4))))
