"""A backward pass cut into the gradients of inputs and those of weights is the same work, for every bundled model."""

import pytest

from planner.models.graph import ExpertLinear, Linear, Operator
from planner.ranks.pricing import launches_seconds, steps_seconds
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.step import split_backward
from profiles.analytic import AnalyticCostModel
from profiles.ops import Collective, ComputeOp, Gemm
from tests.builders import two_node_cluster
from tests.kinds import graph_of, model_cases, shardings_of, unsharded

COSTS = AnalyticCostModel(two_node_cluster(num_nodes=1024))


def layers_of(name: str) -> list[RankLayer]:
    """Return one rank's share of every layer of a model under shardings that cut it in every way."""
    return [shard_layer(layer, sharding) for sharding in shardings_of(name)[::7] for layer in graph_of(name).layers]


def kernels(layer: RankLayer) -> tuple[list[ComputeOp], list[Collective]]:
    """Return what the two parts of a layer's backward pass run."""
    steps = [step for part in split_backward(layer.backward) for step in part]
    return (
        [step.compute for step in steps if step.compute is not None],
        [step.collective for step in steps if step.collective is not None for _ in range(step.repeats)],
    )


@pytest.mark.parametrize("name", model_cases())
def test_both_parts_together_run_every_kernel_and_every_collective_once(name: str) -> None:
    for layer in layers_of(name):
        computed, sent = kernels(layer)
        assert sorted(map(repr, computed)) == sorted(repr(step.compute) for step in layer.backward if step.compute)
        assert sorted(map(repr, sent)) == sorted(
            repr(step.collective) for step in layer.backward if step.collective for _ in range(step.repeats)
        )


@pytest.mark.parametrize("name", model_cases())
def test_both_parts_take_as_long_as_the_whole_where_nothing_runs_beside_anything(name: str) -> None:
    for layer in (shard_layer(layer, unsharded()) for layer in graph_of(name).layers):
        whole, launched = steps_seconds(layer.backward, COSTS), launches_seconds(layer.backward, COSTS)
        parts = split_backward(layer.backward)
        assert sum(steps_seconds(part, COSTS) for part in parts) == pytest.approx(whole, rel=1e-12)
        assert sum(launches_seconds(part, COSTS) for part in parts) == pytest.approx(launched, rel=1e-12)


@pytest.mark.parametrize("name", model_cases())
def test_apart_they_never_take_less_than_together(name: str) -> None:
    for layer in layers_of(name):
        apart = sum(steps_seconds(part, COSTS) for part in split_backward(layer.backward))
        assert apart >= steps_seconds(layer.backward, COSTS) * (1.0 - 1e-12)


def has_weight_gradient(operator: Operator) -> bool:
    """Return whether a gradient of weights is a product of its own."""
    return isinstance(operator.work, Linear | ExpertLinear)


@pytest.mark.parametrize("name", model_cases())
def test_gradients_of_weights_are_the_products_of_linear_layers_and_experts_alone(name: str) -> None:
    for layer in layers_of(name):
        for operator in layer.operators:
            weights = [step.compute for step in split_backward(operator.backward)[1] if step.compute is not None]
            if not has_weight_gradient(operator.operator):
                assert weights == []
                continue
            products = [step.compute for step in operator.forward if isinstance(step.compute, Gemm)]
            assert [(gemm.m * gemm.n * gemm.k, gemm.batch) for gemm in weights if isinstance(gemm, Gemm)] == [
                (gemm.m * gemm.n * gemm.k, gemm.batch) for gemm in products
            ]
