"""Moves of a balancer of experts: their bytes, their time, the memory that they pass through."""

import pytest

from planner.documents import parse_document
from planner.inputs.load import read_cluster
from planner.models.bundled import load_bundled
from planner.serving.balancer import STEP_INTERVAL, balancer_bytes, moved_bytes, rearranging_seconds
from planner.serving.engines import engine_named
from planner.serving.exchange import ExchangeTimes
from planner.serving.formats import formats_of
from planner.serving.prices import ServingPrices
from planner.serving.rank_model import RankModel
from planner.serving.rank_operators import EVEN, Balance
from planner.serving_plans.layout import EngineShape
from profiles.hardware import Cluster

ENGINE = engine_named("vllm")
COPIES = Balance(redundant=16)
# Qwen3-30B-A3B: 48 layers, 128 experts of three matrices of 2,048 x 768, 2 bytes.
EXPERT_BYTES = 3 * 2048 * 768 * 2


def cluster_of(nodes: int) -> Cluster:
    text = f"cluster: {{preset: dgx-h100, nodes: {nodes}}}"
    return read_cluster(parse_document(text, file="cluster.yaml"), ("cluster",))


def prices_on(nodes: int) -> ServingPrices:
    return ServingPrices(load_bundled("qwen3-30b-a3b"), cluster_of(nodes))


def rank_of(prices: ServingPrices, shape: EngineShape, balance: Balance = COPIES) -> RankModel:
    return prices.rank(shape, formats_of("bf16", prices.model), balance)


def test_every_slot_moves_but_those_that_chance_leaves() -> None:
    prices = prices_on(1)
    shape = EngineShape(tp=1, dp=8, expert_parallel=True)
    # 144 slots over 8 ranks.
    assert moved_bytes(rank_of(prices, shape), shape) == pytest.approx(48 * 18 * EXPERT_BYTES * 7 / 8)
    staged = EngineShape(tp=4, pp=2, expert_parallel=True)
    assert moved_bytes(rank_of(prices, staged), staged) == pytest.approx(24 * 36 * EXPERT_BYTES * 3 / 4)


def test_moves_over_the_network_take_what_the_network_takes() -> None:
    one, two = prices_on(1), prices_on(2)
    near, far = EngineShape(tp=1, dp=8, expert_parallel=True), EngineShape(tp=1, dp=16, expert_parallel=True)
    seconds = {
        shape: rearranging_seconds(rank_of(prices, shape), shape, ExchangeTimes(prices.cluster, ENGINE.sums))
        for prices, shape in ((one, near), (two, far))
    }
    assert seconds[far] > seconds[near]
    # Of 15 other ranks 8 are on the other node, over 50 GB/s.
    crossing = 48 * 9 * EXPERT_BYTES * 15 / 16 * 8 / 15
    assert seconds[far] == pytest.approx(crossing / 50e9, rel=0.1)


def test_a_step_pays_its_part_of_a_rearrangement_with_a_balancer_alone() -> None:
    prices = prices_on(1)
    shape, formats = EngineShape(tp=1, dp=8, expert_parallel=True), formats_of("bf16", prices.model)
    terms = {
        balance.redundant: prices.costs(shape, formats, ENGINE, balance=balance).breakdown(decodes=8, context=1000.0)
        for balance in (EVEN, Balance(redundant=0), COPIES)
    }
    assert "moves of experts" not in terms[None]
    exchange = ExchangeTimes(prices.cluster, ENGINE.sums)
    whole = rearranging_seconds(rank_of(prices, shape), shape, exchange)
    assert terms[16]["moves of experts"] == pytest.approx(whole / STEP_INTERVAL)
    assert 0 < terms[0]["moves of experts"] < terms[16]["moves of experts"]
    costs = prices.costs(shape, formats, ENGINE, balance=COPIES)
    assert sum(terms[16].values()) == pytest.approx(costs.seconds(decodes=8, context=1000.0))


def test_memory_holds_a_layer_once_more_and_the_loads_of_a_window() -> None:
    prices = prices_on(1)
    shape = EngineShape(tp=1, dp=8, expert_parallel=True)
    assert balancer_bytes(rank_of(prices, shape)) == 18 * EXPERT_BYTES + 1000 * 48 * 144 * 4
