"""How often a token is sent to another node: against tokens that are drawn one by one."""

import numpy as np
import pytest

from planner.experts.traffic import RouterShape, node_share_LEN, sends_per_token_L

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
