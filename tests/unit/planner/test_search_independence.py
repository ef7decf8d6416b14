"""The evaluator shards and prices a plan again: a mistake in the search's tables is found, not repeated."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from planner.errors import BrokenPromiseError
from planner.models.graph import LayerGraph, ModelGraph
from planner.ranks import shard
from planner.ranks.placement import RankModel, shard_model
from planner.ranks.shard import RankLayer
from planner.ranks.sharding import Sharding
from planner.requests.request import Bounds, Constraints
from planner.search.bounds import costs
from planner.search.search import search
from planner.search.space.enumeration import MAX_SCHEDULED_OPERATIONS, UNSIMULATED
from solvers.errors import SolverError
from tests.builders import tiny_dense_model, tiny_request, two_node_cluster


def test_tables_of_half_the_tokens_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def shard_half(
        graph: ModelGraph, sharding: Sharding, *, cut: Callable[[LayerGraph, Sharding], RankLayer]
    ) -> RankModel:
        return shard_model(graph, replace(sharding, seq_len=sharding.seq_len // 2), cut=cut)

    search(tiny_dense_model(), two_node_cluster(), tiny_request())
    monkeypatch.setattr(costs, "shard_model", shard_half)
    with pytest.raises(BrokenPromiseError, match="rule='price'"):
        search(tiny_dense_model(), two_node_cluster(), tiny_request())


def test_operators_shared_between_the_wrong_shardings_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced = shard.reduced

    def wrong(kind: shard.Feels, felt: tuple[int, ...]) -> Sharding:
        return replace(reduced(kind, felt), tp=1, sequence_parallel=False)

    request = replace(tiny_request(), constraints=Constraints(degrees={"tp": Bounds(allowed=(2,))}))
    search(tiny_dense_model(), two_node_cluster(), request)
    monkeypatch.setattr(shard, "reduced", wrong)
    with pytest.raises(BrokenPromiseError, match="rule='price'"):
        search(tiny_dense_model(), two_node_cluster(), request)


def test_what_is_too_long_to_simulate_is_not_called_infeasible() -> None:
    request = tiny_request()
    batch = MAX_SCHEDULED_OPERATIONS
    request = replace(
        request,
        workload=replace(request.workload, global_batch_size=batch),
        constraints=Constraints(degrees={"pp": Bounds(allowed=(4,)), "micro_batch_size": Bounds(allowed=(1,))}),
    )
    with pytest.raises(SolverError) as caught:
        search(tiny_dense_model(), two_node_cluster(), request)
    assert "nothing found and nothing proved" in str(caught.value)
    assert UNSIMULATED == "schedule longer than the simulator runs"
