"""Experts of servers by how often tokens choose them: loads, prices, memory."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from planner.models.bundled import load_bundled
from planner.requests.request import Bounds
from planner.requests.routing import Routing
from planner.serving.engines import calibration, engine_named
from planner.serving.formats import formats_of
from planner.serving.placed_experts import PlacedExperts, in_their_order
from planner.serving.prices import ServingPrices
from planner.serving.rank_operators import EVEN, Balance
from planner.serving.step_tables import StepTables
from planner.serving_plans.layout import EngineShape
from planner.serving_search.expert_places import balance_of, balances, in_order
from profiles.catalogue import load_preset

MODEL = "qwen3-30b-a3b"
EP8 = EngineShape(tp=1, dp=8, expert_parallel=True)


def weighted(exponent: float, *, layers: int = 3, experts: int = 128) -> Routing:
    generator = np.random.default_rng(5)
    weights = 1.0 / np.arange(1, experts + 1) ** exponent
    rows = [np.rint(1e6 * generator.permutation(weights)).astype(int).tolist() for _ in range(layers)]
    return Routing(
        source="made up",
        layers=tuple(range(layers)),
        counts=tuple(",".join(map(str, row)) for row in rows),
    )


ALIKE = replace(calibration().kernels, routing_spread=0.0)
"""Experts that were not counted are chosen alike."""


def tables_of(balance: Balance, shape: EngineShape = EP8) -> StepTables:
    prices = ServingPrices(load_bundled(MODEL), load_preset("dgx-h100").to_cluster(), factors=ALIKE)
    formats = formats_of("fp8", prices.model, cache="bfloat16")
    return prices.costs(shape, formats, engine_named("vllm"), balance=balance).tables


@pytest.mark.parametrize(
    ("shape", "ranks"), [(EngineShape(tp=4), 1), (EngineShape(tp=4, expert_parallel=True), 4), (EP8, 8)]
)
def test_equal_counts_cost_what_uniform_routing_does(shape: EngineShape, ranks: int) -> None:
    placed = tables_of(in_order(weighted(0.0), ranks), shape)
    np.testing.assert_allclose(placed.experts_T, tables_of(EVEN, shape).experts_T, rtol=1e-9)


def test_the_busier_the_busiest_rank_the_longer_a_large_step_takes() -> None:
    steps = [tables_of(in_order(weighted(exponent), 8)).experts_T[-1] for exponent in (0.0, 0.4, 0.8, 1.2)]
    assert all(more > 1.05 * less for less, more in pairwise(steps))


def test_copies_of_busy_experts_take_a_large_step_towards_the_even_one() -> None:
    even, uneven = (tables_of(in_order(weighted(exponent), 8)).experts_T[-1] for exponent in (0.0, 1.0))
    with_copies = tables_of(balance_of(weighted(1.0), 8, 18)).experts_T[-1]
    assert even <= with_copies < even + 0.1 * (uneven - even)


def test_copies_are_no_faster_than_the_same_experts_on_even_ranks() -> None:
    """Smaller tiles of copies must not look like a gain: of even experts copies gain nothing at any size of a step."""
    alone = tables_of(in_order(weighted(0.0), 8)).experts_T
    for slots in (17, 20, 24):
        assert (tables_of(balance_of(weighted(0.0), 8, slots)).experts_T >= alone * (1 - 1e-9)).all()


def test_copies_take_memory_and_no_more_than_they_are() -> None:
    prices = ServingPrices(load_bundled(MODEL), load_preset("dgx-h100").to_cluster())
    formats = formats_of("fp8", prices.model, cache="bfloat16")
    plain, balanced, eight, sixteen = (
        prices.rank(EP8, formats, balance) for balance in balances(weighted(1.0), ranks=8)[:4]
    )
    assert balanced.weight_bytes == plain.weight_bytes
    # 48 layers, three matrices of 2,048 x 768 an expert, a byte each and scales.
    assert plain.bytes_of_one_expert == pytest.approx(48 * 3 * 2048 * 768, rel=1e-3)
    assert eight.weight_bytes == pytest.approx(plain.weight_bytes + plain.bytes_of_one_expert)
    assert sixteen.weight_bytes == pytest.approx(plain.weight_bytes + 2 * plain.bytes_of_one_expert)


def test_what_is_reached_is_what_drawn_tokens_reach() -> None:
    routing = weighted(1.0, layers=1, experts=16)
    placed = in_their_order(routing, 4)
    shares = np.array(routing.tokens_LE[0]) / sum(routing.tokens_LE[0])
    generator = np.random.default_rng(1)
    reached = []
    for _ in range(4000):
        # Each token visits expert e with probability 2 p[e], independently of others: the formula's own assumption.
        visits = generator.random((6, 16)) < np.minimum(2 * shares, 1.0)
        reached.append(visits.any(axis=0).reshape(4, 4).sum(axis=1))
    assert placed.most_reached_LT(np.array([6.0]), 2)[0, 0] == pytest.approx(np.mean(reached, axis=0).max(), abs=0.05)


def test_loads_are_those_of_the_training_side_where_experts_stand_in_their_order() -> None:
    routing = weighted(0.7)
    np.testing.assert_allclose(in_their_order(routing, 8).loads.factor_L, routing.loads(8).factor_L, atol=2e-6)


def test_copies_share_the_tokens_of_their_expert() -> None:
    routing = Routing(source="", layers=(0,), counts=("6,1,1",))
    placed = PlacedExperts(routing=routing, expert_LGS=np.array([[[0, 1], [0, 2]]]))
    np.testing.assert_allclose(placed.share_LGS, [[[3 / 8, 1 / 8], [3 / 8, 1 / 8]]])
    assert placed.loads.factor_L == (1.0,)
    assert placed.redundant == 1


def test_no_rank_holds_an_expert_twice_whatever_is_asked_for() -> None:
    found = balances(weighted(1.0, layers=2, experts=16), ranks=8, asked=Bounds(allowed=(0, 3, 48, 112, 4000)))
    assert [balance.redundant for balance in found] == [0, 48, 112]
    for balance in found:
        assert balance.placed is not None
        ordered = np.sort(balance.placed.expert_LGS, axis=2)
        assert (ordered[:, :, 1:] > ordered[:, :, :-1]).all()


def test_more_copies_lighten_the_busiest_rank_and_even_experts_need_none() -> None:
    skews = [balance.placed.loads.mean for balance in balances(weighted(1.0), ranks=8) if balance.placed is not None]
    assert [round(skew, 3) for skew in skews] == sorted((round(skew, 3) for skew in skews), reverse=True)
    # The most popular of 128 experts has 18.4 % of all tokens, an eighth is even; fifteen others stand beside it.
    assert 8 / sum(1 / rank for rank in range(1, 129)) < skews[1] < skews[0]
    assert skews[-1] < 1.01
    even = balances(weighted(0.0), ranks=8)
    assert {balance.placed.loads.worst for balance in even if balance.placed is not None} == {1.0}


def test_drawn_tokens_reach_as_many_experts_of_all_as_is_said() -> None:
    routing = weighted(1.0, layers=1, experts=16)
    shares = in_their_order(routing, 4).part_LE[0]
    generator = np.random.default_rng(2)
    reached = [
        np.count_nonzero((generator.random((6, 16)) < np.minimum(2 * shares, 1.0)).any(axis=0)) for _ in range(4000)
    ]
    assert in_their_order(routing, 4).reached_LT(np.array([6.0]), 2)[0, 0] == pytest.approx(np.mean(reached), abs=0.05)
