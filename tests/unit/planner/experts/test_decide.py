"""The main path: what traffic weighs and what moves cost, against what they trade."""

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from planner.experts.assumed import assumed_histogram
from planner.experts.decide import CLOSE, plan_experts
from planner.experts.histogram import RoutingHistogram, from_choices
from planner.experts.request import ExpertRequest, SlotMemory
from planner.experts.traffic import RouterShape
from solvers.replicas.moves import moved_L

HISTOGRAM = assumed_histogram("zipf:1.0", num_layers=3, num_experts=32, seed=1)
LATER = assumed_histogram("zipf:1.0", num_layers=3, num_experts=32, seed=2)
REQUEST = ExpertRequest(
    num_gpus=8,
    gpus_per_node=2,
    redundant=8,
    memory=SlotMemory(expert_bytes=1000, free_bytes=None),
    router=RouterShape(experts_per_token=4, num_groups=4, groups_per_token=2),
)


def test_the_front_has_nothing_that_is_better_in_both() -> None:
    points = plan_experts(HISTOGRAM, replace(REQUEST, traffic_weight=0.0)).front
    assert len(points) > 2
    loads = [point.placement.mean_imbalance for point in points]
    sends = [point.placement.mean_sends or 0.0 for point in points]
    assert loads == sorted(loads)
    assert sends == sorted(sends, reverse=True)


def test_more_weight_of_traffic_never_sends_more() -> None:
    sends, totals = [], []
    for weight in (0.0, 0.5, 5.0):
        best = plan_experts(HISTOGRAM, replace(REQUEST, traffic_weight=weight)).best
        assert best.mean_sends is not None
        sends.append(best.mean_sends)
        totals.append(best.mean_imbalance + 5.0 * best.mean_sends)
    assert sends == sorted(sends, reverse=True)
    assert min(totals) == totals[-1]


def test_pairs_that_were_counted_are_kept_together() -> None:
    # Tokens choose two experts of four that are not neighbours: 0, 4, 8, 12; 1, 5, 9, 13; ...
    generator = np.random.default_rng(4)
    kind = generator.integers(0, 4, 400)
    chosen = np.stack([kind + 4 * generator.permuted(np.arange(4))[:2][0] for kind in kind])
    other = (chosen + 4 * generator.integers(1, 4, 400)) % 16
    histogram = from_choices("drawn", np.stack([chosen, other], axis=1)[:, None, :], 16)
    request = ExpertRequest(num_gpus=4, gpus_per_node=1, redundant=0)
    alone = plan_experts(histogram, replace(request, traffic_weight=0.0)).best
    together = plan_experts(histogram, replace(request, traffic_weight=5.0)).best
    assert alone.split_L is not None
    assert together.split_L is not None
    assert together.split_L[0] == pytest.approx(0.0, abs=1e-12)
    assert alone.split_L[0] > 0.3


def test_few_moves_gain_most_and_all_anew_moves_most() -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    plan = plan_experts(LATER, replace(REQUEST, redundant=None), present)
    copies = [move.copies for move in plan.moves]
    loads = [move.placement.mean_imbalance for move in plan.moves]
    assert (plan.moves[0].name, copies[0]) == ("keep", 0)
    assert plan.before is plan.moves[0].placement
    assert loads[:-1] == sorted(loads[:-1], reverse=True)
    for move in plan.moves:
        assert moved_L(move.placement.expert_LGS, present).sum() == move.copies
    assert plan.best.mean_imbalance <= min(loads) * (1 + CLOSE)
    assert (loads[0] - loads[2]) / copies[2] > (loads[0] - loads[-1]) / copies[-1]


def test_no_more_is_moved_than_may_be() -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    request = replace(REQUEST, redundant=None, most_moved_bytes=12_500)
    plan = plan_experts(LATER, request, present)
    chosen = plan.moves[plan.chosen_move]
    assert 0 < chosen.copies <= 12
    assert all(
        chosen.placement.mean_imbalance <= move.placement.mean_imbalance * (1 + CLOSE)
        for move in plan.moves
        if move.copies <= 12
    )
    same = plan_experts(HISTOGRAM, replace(REQUEST, redundant=None), present)
    assert same.moves[same.chosen_move].name == "keep"


def test_the_more_moves_weigh_the_fewer_are_made_and_each_choice_is_the_best_for_its_weight() -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    copies = []
    for weight in (0.0, 1e3, 1e5, 1e9):
        plan = plan_experts(LATER, replace(REQUEST, redundant=None, move_weight=weight), present)
        each = weight * 1000 / 2**30 / 8
        totals = [move.placement.mean_imbalance + each * move.copies for move in plan.moves]
        assert totals[plan.chosen_move] == min(totals)
        copies.append(plan.moves[plan.chosen_move].copies)
    assert copies == sorted(copies, reverse=True)
    assert copies[0] > 0
    assert copies[-1] == 0


def test_moves_of_unknown_size_weigh_nothing_that_is_known() -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    with pytest.raises(InputError, match="it is not said what an expert takes"):
        plan_experts(LATER, replace(REQUEST, redundant=None, memory=None, move_weight=1.0), present)


def test_every_point_of_the_front_is_above_its_bounds_and_the_bounds_are_of_use() -> None:
    points = plan_experts(HISTOGRAM, replace(REQUEST, traffic_weight=0.0)).front
    for point in points:
        assert point.placement.mean_bound <= point.placement.mean_imbalance + 1e-12
        assert point.placement.mean_sends is not None
        assert 0.5 * point.placement.mean_sends < point.least_traffic <= point.placement.mean_sends + 1e-12
    bounds = [point.least_traffic for point in points]
    assert bounds == sorted(bounds, reverse=True), "heavier loads are allowed less traffic"


def test_one_more_slot_is_the_plan_with_one_more_slot() -> None:
    plan = plan_experts(HISTOGRAM, REQUEST)
    assert plan.one_more is not None
    more = plan_experts(HISTOGRAM, replace(REQUEST, redundant=16)).best
    np.testing.assert_array_equal(plan.one_more.expert_LGS, more.expert_LGS)
    full = replace(REQUEST, redundant=8 * 32 - 32)
    assert plan_experts(HISTOGRAM, full).one_more is None, "every GPU has every expert"


def test_groups_that_are_kept_stay_kept_through_moves() -> None:
    kept = replace(REQUEST, keep_groups=True)
    present = plan_experts(HISTOGRAM, kept).best.expert_LGS
    best = plan_experts(LATER, replace(kept, redundant=None), present).best
    node_G = np.arange(8) // 2
    for layer in best.expert_LGS:
        nodes: dict[int, set[int]] = {}
        for gpu, experts in enumerate(layer.tolist()):
            for expert in experts:
                nodes.setdefault(expert // 8, set()).add(int(node_G[gpu]))
        assert all(len(found) == 1 for found in nodes.values())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(REQUEST, redundant=16), "The present placement has 8 redundant experts, not 16."),
        (replace(REQUEST, router=None, traffic_weight=1.0), "What is sent between nodes is not known."),
    ],
)
def test_what_contradicts_the_present_placement_is_refused(request_: ExpertRequest, message: str) -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    with pytest.raises(InputError) as raised:
        plan_experts(LATER, request_, present)
    assert raised.value.message == message


def test_a_present_placement_that_splits_groups_cannot_keep_them() -> None:
    present = plan_experts(HISTOGRAM, REQUEST).best.expert_LGS
    with pytest.raises(InputError, match="has copies of one group in several nodes"):
        plan_experts(LATER, replace(REQUEST, redundant=None, keep_groups=True), present)


def test_small_layers_are_placed_as_well_as_can_be() -> None:
    histogram = RoutingHistogram(source="", tokens_LE=np.array([[17.0, 12, 11, 9, 8, 7, 7, 5, 5, 4, 3, 2]]))
    plan = plan_experts(histogram, ExpertRequest(num_gpus=3, gpus_per_node=3, redundant=3))
    assert plan.best.mean_imbalance == pytest.approx(plan.best.mean_bound, rel=1e-6)
