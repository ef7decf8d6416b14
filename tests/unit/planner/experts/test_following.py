"""Experts that follow one another stand together: what leaves its node and its GPU, before and after."""

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.experts.decide import plan_experts
from planner.experts.following import leaving_fraction
from planner.experts.histogram import RoutingHistogram, from_choices
from planner.experts.request import ExpertRequest

REQUEST = ExpertRequest(num_gpus=4, gpus_per_node=2, redundant=0, follow=True)


def chained(num_experts: int, layers: int) -> RoutingHistogram:
    """Return what tokens say of which each visits one expert a layer, those of one of four kinds."""
    generator = np.random.default_rng(6)
    experts_LE = np.array([generator.permutation(num_experts) for _ in range(layers)])
    kind = generator.integers(0, 4, 2000)
    part = num_experts // 4
    chosen = np.stack([row[kind * part + generator.integers(0, part, 2000)] for row in experts_LE], axis=1)
    return from_choices("drawn", chosen[:, :, None], num_experts)


@pytest.mark.parametrize(("experts", "layers"), [(8, 3), (32, 6)])
def test_what_follows_one_another_stays_on_its_gpu(experts: int, layers: int) -> None:
    plan = plan_experts(chained(experts, layers), REQUEST)
    assert plan.before.leaves_gpu is not None
    assert plan.before.leaves_gpu > 0.5
    assert plan.best.leaves_node == pytest.approx(0.0, abs=1e-12)
    assert plan.best.leaves_gpu == pytest.approx(0.0, abs=1e-12)


def test_leaving_is_counted_as_tokens_go() -> None:
    histogram = chained(8, 3)
    placed = np.array([np.random.default_rng(seed).permutation(8) for seed in range(3)]).reshape(3, 4, 2)
    gpu_LE = np.argsort(placed.reshape(3, 8), axis=1) // 2
    assert histogram.transitions_LEE is not None
    left = sum(
        histogram.transitions_LEE[layer, here, there]
        for layer in range(2)
        for here in range(8)
        for there in range(8)
        if gpu_LE[layer, here] != gpu_LE[layer + 1, there]
    )
    assert leaving_fraction(histogram, placed, num_bins=4) == pytest.approx(left / 4000)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(REQUEST, redundant=4), "Experts that follow one another are placed without copies."),
        (replace(REQUEST, traffic_weight=1.0), "Experts that follow one another are placed by that alone."),
    ],
)
def test_what_goes_not_with_following_is_refused(request_: ExpertRequest, message: str) -> None:
    with pytest.raises(InputError) as raised:
        plan_experts(chained(8, 3), request_)
    assert raised.value.message == message


def test_transitions_must_be_known() -> None:
    histogram = RoutingHistogram(source="", tokens_LE=np.ones((2, 8)))
    with pytest.raises(InputError, match=r"Which experts follow one another is not known\."):
        plan_experts(histogram, REQUEST)
