"""Laws of nodes that differ: equal ones cost what they always did, names do not matter, better is never worse."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import evaluate, simulated_step_seconds
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Layout
from planner.memory.ledger import memory_ledger
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.plans.plan import Status
from planner.ranks.placement import place
from planner.requests.request import Bounds, Constraints
from planner.search.bounds.costs import CostTable
from planner.search.search import search
from planner.search.splits.rank_map import pricer_on
from profiles.hardware import Cluster, NodeKind
from profiles.planned import cost_model_on
from tests.builders import tiny_dense_model, tiny_device, tiny_request, tiny_workload
from tests.examples import examples
from tests.small_spaces import SmallSpace
from tests.unequal_clusters import RATE, equal_cluster, older_device, renumbered, unequal_cluster, with_nodes

LAWS = settings(max_examples=examples(few=20, many=40), deadline=None, derandomize=True)
SEARCH_LAWS = settings(max_examples=examples(few=3, many=6), deadline=None, derandomize=True)
NODES = 4
ROUNDING = 1e-12


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Return four nodes of two GPUs, some of them older, with links of a few rates."""
    pairs = [(here, there) for there in range(NODES) for here in range(there)]
    slow = {pair: RATE / draw(st.sampled_from((1, 1, 3, 20))) for pair in pairs}
    older = draw(st.sampled_from(((), (), (0,), (3,), (1, 2))))
    return unequal_cluster(NODES, slow=slow, older=older)


def _models() -> Iterator[ModelSpec]:
    dense = tiny_dense_model()
    yield dense
    block = dense.runs[0].block
    experts = MixtureOfExperts(
        num_experts=8,
        experts_per_token=2,
        expert=DenseFeedForward(intermediate_size=64, gated=True, activation=Activation.SILU),
        router=Router(),
    )
    yield replace(dense, runs=(BlockRun(block=replace(block, feed_forward=experts), count=4),))


@cache
def small_spaces() -> tuple[SmallSpace, ...]:
    """Return the spaces of a dense model and of one with experts, on equal nodes."""
    return tuple(SmallSpace(model, tiny_workload(), equal_cluster(NODES)) for model in _models())


@st.composite
def placed(draw: st.DrawFn) -> tuple[SmallSpace, Layout]:
    """Return a space, and a layout of it with its layers placed."""
    space = draw(st.sampled_from(small_spaces()))
    index = draw(st.integers(0, len(space.points) - 1))
    return space, draw(st.sampled_from(list(space.splits(space.layout(index)))))


def seconds_on(cluster: Cluster, space: SmallSpace, layout: Layout, order: tuple[int, ...] = ()) -> float:
    """Return the step time of a layout by the evaluator, the nodes in some order."""
    cost_model = cost_model_on(cluster, space.capabilities.software)
    return simulated_step_seconds(space.place(replace(layout, node_order=order)), cost_model)


@LAWS
@given(point=placed(), order=st.permutations(range(NODES)))
def test_nodes_that_differ_in_nothing_cost_what_equal_nodes_cost(
    point: tuple[SmallSpace, Layout], order: list[int]
) -> None:
    space, layout = point
    alike = unequal_cluster(NODES)
    expected = evaluate(space.place(layout), cost_model_on(equal_cluster(NODES), space.capabilities.software))
    found = evaluate(
        space.place(replace(layout, node_order=tuple(order))), cost_model_on(alike, space.capabilities.software)
    )
    assert found.step_seconds == expected.step_seconds
    assert found.time == expected.time
    assert found.memory == expected.memory


@LAWS
@given(point=placed(), cluster=clusters(), order=st.permutations(range(NODES)))
def test_renumbering_nodes_changes_nothing(
    point: tuple[SmallSpace, Layout], cluster: Cluster, order: list[int]
) -> None:
    space, layout = point
    # Node i of the renumbered cluster is node order[i] of this one.
    assert seconds_on(renumbered(cluster, order), space, layout) == seconds_on(cluster, space, layout, tuple(order))


@LAWS
@given(point=placed(), cluster=clusters(), data=st.data())
def test_a_better_link_or_gpu_is_never_worse(
    point: tuple[SmallSpace, Layout], cluster: Cluster, data: st.DataObject
) -> None:
    space, layout = point
    nodes = cluster.unequal
    assert nodes is not None
    here, there = data.draw(st.sampled_from([(a, b) for b in range(NODES) for a in range(b)]))
    rates = [list(row) for row in nodes.bytes_per_second_NN]
    rates[here][there] = rates[there][here] = RATE
    before = seconds_on(cluster, space, layout)
    better = with_nodes(cluster, kinds=nodes.kinds, kind_of_node_N=nodes.kind_of_node_N, rates=rates)
    assert seconds_on(better, space, layout) <= before * (1 + ROUNDING)
    new = tuple(NodeKind(device=tiny_device(), levels=kind.levels) for kind in nodes.kinds[:1])
    newer = with_nodes(cluster, kinds=new, kind_of_node_N=(0,) * NODES, rates=nodes.bytes_per_second_NN)
    assert seconds_on(newer, space, layout) <= before * (1 + ROUNDING)


@LAWS
@given(data=st.data(), cluster=clusters(), order=st.permutations(range(NODES)))
def test_the_search_prices_what_the_evaluator_prices_and_bounds_it_from_below(
    data: st.DataObject, cluster: Cluster, order: list[int]
) -> None:
    space = data.draw(st.sampled_from(small_spaces()))
    index = data.draw(st.integers(0, len(space.points) - 1))
    layout = data.draw(st.sampled_from(list(space.splits(space.layout(index)))))
    table = CostTable(
        model=space.model,
        graph=space.graph,
        workload=space.workload,
        cost_model=cost_model_on(cluster, space.capabilities.software),
        recomputes=space.table.recomputes,
        capabilities=space.capabilities,
    )
    pricer = pricer_on(cluster, table, headroom=0.0)
    seconds = seconds_on(cluster, space, layout, tuple(order))
    ordered = replace(layout, node_order=tuple(order))
    assert pricer.prices(ordered).step_seconds(ordered) == pytest.approx(seconds, rel=1e-9)
    point = space.points.where(np.arange(len(space.points)) == index)
    assert float(pricer.bounds(point).step_seconds_X[0]) <= seconds * (1 + 1e-9)


@SEARCH_LAWS
@given(cluster=clusters(), order=st.permutations(range(NODES)))
def test_the_best_plan_does_not_depend_on_how_nodes_are_numbered(cluster: Cluster, order: list[int]) -> None:
    request = replace(tiny_request(), constraints=Constraints(degrees={"micro_batch_size": Bounds(allowed=(1,))}))
    model = tiny_dense_model()
    here, there = search(model, cluster, request), search(model, renumbered(cluster, order), request)
    assert here.status is there.status is Status.OPTIMAL
    assert here.best.step_seconds == pytest.approx(there.best.step_seconds, rel=1e-9)
    assert here.best.on_nodes is not None
    assert here.best.reevaluated_step_seconds <= here.best.on_nodes.listed_step_seconds


def test_the_plan_of_nodes_that_differ_in_nothing_is_the_plan_of_equal_nodes() -> None:
    request, model = tiny_request(), tiny_dense_model()
    equal, alike = (search(model, cluster, request) for cluster in (equal_cluster(NODES), unequal_cluster(NODES)))
    assert [planned.layout for planned in alike.plans] == [planned.layout for planned in equal.plans]
    assert [planned.step_seconds for planned in alike.plans] == [planned.step_seconds for planned in equal.plans]
    assert (alike.status, alike.search.considered) == (equal.status, equal.search.considered)


def test_an_older_gpu_is_slower_at_everything_here() -> None:
    # What `clusters` relies on: a plan with it is never faster.
    request = tiny_request()
    graph = build_graph(tiny_dense_model(), request.workload, eager=False)
    new, old = equal_cluster(NODES), replace(equal_cluster(NODES), device=older_device())
    layout = search(tiny_dense_model(), new, request).best.layout
    spot = place(tiny_dense_model(), graph, layout, request.workload, CAPABILITIES[request.target])
    assert memory_ledger(spot)
    assert simulated_step_seconds(spot, cost_model_on(old)) > simulated_step_seconds(spot, cost_model_on(new))
