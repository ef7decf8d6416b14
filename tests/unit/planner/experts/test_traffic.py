"""How often a token is sent to another node: against tokens that are drawn one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.experts.traffic import (
    RouterShape,
    least_sends_L,
    least_split_L,
    node_share_LEN,
    sends_per_token_L,
    split_pairs_L,
)
from solvers.replicas.problem import imbalance_L

NODES, GPUS = 4, 8


def test_without_groups_an_even_placement_sends_as_balls_fall_into_urns() -> None:
    experts = np.arange(16).reshape(1, GPUS, 2)
    sends = sends_per_token_L(np.ones((1, 16)), experts, num_nodes=NODES, router=RouterShape(experts_per_token=3))
    assert sends[0] == pytest.approx((1 - 1 / NODES) * NODES * (1 - (1 - 1 / NODES) ** 3))


def test_one_node_sends_nothing() -> None:
    experts = np.arange(16).reshape(1, GPUS, 2)
    sends = sends_per_token_L(np.ones((1, 16)), experts, num_nodes=1, router=RouterShape(experts_per_token=3))
    assert sends[0] == 0


def test_groups_within_nodes_are_sent_to_as_many_nodes_as_a_token_has_groups_at_most() -> None:
    router = RouterShape(experts_per_token=4, num_groups=4, groups_per_token=2)
    kept = np.arange(16).reshape(1, GPUS, 2)
    apart = np.arange(16).reshape(2, 8).T.reshape(1, GPUS, 2)
    loads = np.ones((1, 16))
    at_home = sends_per_token_L(loads, kept, num_nodes=NODES, router=router)[0]
    assert at_home == pytest.approx((1 - 1 / NODES) * 2)
    assert sends_per_token_L(loads, apart, num_nodes=NODES, router=router)[0] > at_home


def test_it_agrees_with_drawn_tokens() -> None:
    generator = np.random.default_rng(5)
    router = RouterShape(experts_per_token=4, num_groups=4, groups_per_token=2)
    experts = generator.permutation(16).reshape(1, GPUS, 2)
    weights = generator.uniform(0.5, 1.0, 16)
    node_E = np.empty(16, dtype=int)
    node_E[experts.ravel()] = np.arange(16) // 4
    counts, visited, tokens = np.zeros(16), 0.0, 20_000
    by_group = weights.reshape(4, 4)
    for _ in range(tokens):
        groups = np.flatnonzero(generator.random(4) < 0.5)
        chosen = np.concatenate(
            [4 * group + generator.choice(4, 2, p=by_group[group] / by_group[group].sum()) for group in groups]
            or [np.empty(0, dtype=int)]
        )
        np.add.at(counts, chosen, 1)
        home = generator.integers(NODES)
        visited += len(set(node_E[chosen].tolist()) - {home})
    expected = sends_per_token_L(counts[None, :], experts, num_nodes=NODES, router=router)[0]
    assert visited / tokens == pytest.approx(expected, rel=0.03)


def test_shares_of_copies_in_nodes_add_up_to_one() -> None:
    experts = np.array([[[0, 1], [0, 2], [0, 3], [1, 2]]])
    share = node_share_LEN(experts, num_experts=4, num_nodes=2)[0]
    assert share.tolist() == [[2 / 3, 1 / 3], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]


@settings(max_examples=150, deadline=None)
@given(
    tokens=st.lists(st.floats(0.01, 50), min_size=16, max_size=16),
    grouped=st.booleans(),
    per_token=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_no_placement_sends_less_than_the_bound_for_its_load(
    tokens: list[float], per_token: int, seed: int, *, grouped: bool
) -> None:
    groups, chosen = (4, 2) if grouped else (1, 1)
    router = RouterShape(experts_per_token=per_token, num_groups=groups, groups_per_token=chosen)
    generator = np.random.default_rng(seed)
    slots = np.concatenate([np.arange(16), generator.integers(0, 16, 8)])
    by_load = slots[np.argsort(np.array(tokens)[slots])]
    together = np.sort(slots)
    loads = np.array([tokens])
    for order in (generator.permutation(slots), together, by_load):
        placed = order.reshape(1, GPUS, 3)
        sends = sends_per_token_L(loads, placed, num_nodes=NODES, router=router)
        least = least_sends_L(loads, imbalance_L(loads, placed), num_nodes=NODES, router=router)
        assert 0 < least[0] <= sends[0] + 1e-9


def test_the_bound_is_met_by_an_even_placement_without_groups() -> None:
    experts = np.arange(16).reshape(1, GPUS, 2)
    router = RouterShape(experts_per_token=3)
    sends = sends_per_token_L(np.ones((1, 16)), experts, num_nodes=NODES, router=router)
    assert least_sends_L(np.ones((1, 16)), np.ones(1), num_nodes=NODES, router=router) == pytest.approx(sends)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_placement_splits_fewer_pairs_than_the_bound(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = generator.exponential(1.0, (1, 8, 8)) ** 3
    pairs += pairs.transpose(0, 2, 1).copy()
    pairs[:, np.arange(8), np.arange(8)] = 0.0
    slots = np.concatenate([np.arange(8), generator.integers(0, 8, 4)])
    placed = generator.permutation(slots).reshape(1, 4, 3)
    split = split_pairs_L(pairs, placed, num_nodes=2)
    assert least_split_L(pairs, slots_per_node=6)[0] <= split[0] + 1e-12


def test_a_pair_of_experts_is_split_only_by_nodes_of_one_slot() -> None:
    pair = np.zeros((1, 4, 4))
    pair[0, 0, 1] = pair[0, 1, 0] = 1.0
    assert least_split_L(pair, slots_per_node=2)[0] == 0.0
    assert least_split_L(pair, slots_per_node=1)[0] == 1.0
