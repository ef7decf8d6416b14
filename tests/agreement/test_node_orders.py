"""The search on nodes that differ agrees with every layout, every split and every permutation of the nodes.

The oracle prices with the evaluator alone, and holds each pipeline rank against the memory of its own GPUs.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest

from planner.decisions.front import front_of
from planner.evaluation.evaluate import simulated_step_seconds
from planner.evaluation.node_costs import pipeline_rank_limits
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Layout, stages_from_counts
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import Status
from planner.ranks.placement import place
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.search.bounds.costs import CostTable
from planner.search.ground import ignore
from planner.search.search import search
from planner.search.space.dimensions import interleaved_counts
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Scope
from planner.search.splits.candidates import layout_at
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from tests.builders import GIB, tiny_dense_model, wide_dense_model
from tests.small_spaces import splits_of
from tests.unequal_clusters import RATE, unequal_cluster

MODEL = tiny_dense_model(num_layers=4)


def request(**pinned: tuple[int, ...]) -> PlanRequest:
    return PlanRequest(
        workload=TrainWorkload(seq_len=128, global_batch_size=12, precision=Precision.BF16),
        constraints=Constraints(
            degrees={
                "micro_batch_size": Bounds(allowed=(1, 2)),
                "zero_stage": Bounds(allowed=(0,)),  # sharding groups are tried outside the space
                **{name: Bounds(allowed=allowed) for name, allowed in pinned.items()},
            },
            recompute=("none",),
        ),
        memory_headroom=0.05,
        target=Target.ANY,
        objective=Objective.STEP_TIME,
    )


def every_layout(cluster: Cluster, asked: PlanRequest, model: ModelSpec = MODEL) -> Iterator[Layout]:
    """Yield every legal layout with every split that the search stands for."""
    capabilities = CAPABILITIES[asked.target]
    graph = build_graph(model, asked.workload, eager=capabilities.eager)
    scope = Scope(
        model=model,
        graph=graph,
        num_gpus=cluster.world_size,
        fast_domain_size=cluster.fast_domain_size,
        workload=asked.workload,
        constraints=asked.constraints,
        capabilities=capabilities,
    )
    space = enumerate_layouts(scope)
    table = CostTable(
        model=model,
        graph=graph,
        workload=asked.workload,
        cost_model=cost_model_on(cluster, capabilities.software),
        recomputes=space.recomputes,
        capabilities=capabilities,
    )
    for index in range(len(space.points)):
        layout = layout_at(space.points, index, table)
        splits = splits_of(model.num_layers, layout.pp)
        if layout.vpp > 1:
            counts = interleaved_counts(model.num_layers, layout.pp * layout.vpp)
            assert counts is not None
            splits = iter([counts])
        for counts in splits:
            if min(counts) < (layout.recompute.num_layers or 0):  # every stage holds as many as are recomputed whole
                continue
            yield replace(layout, stages=stages_from_counts(counts))


def everything(
    cluster: Cluster, asked: PlanRequest, model: ModelSpec = MODEL
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Yield every layout under every node order that fits: peaks and whole memories by pipeline rank, and its step."""
    capabilities = CAPABILITIES[asked.target]
    graph = build_graph(model, asked.workload, eager=capabilities.eager)
    cost_model = cost_model_on(cluster, capabilities.software)
    for layout in every_layout(cluster, asked, model):
        peaks_R = peaks_of_ranks(memory_ledger(place(model, graph, layout, asked.workload, capabilities)))
        for order in permutations(range(cluster.num_nodes)):
            ordered = replace(layout, node_order=order)
            limits_R = pipeline_rank_limits(ordered, cluster, headroom=asked.memory_headroom)
            if all(peak <= limit for peak, limit in zip(peaks_R, limits_R, strict=True)):
                placed = place(model, graph, ordered, asked.workload, capabilities)
                whole_R = pipeline_rank_limits(ordered, cluster, headroom=0.0)
                yield tuple(peaks_R), whole_R, simulated_step_seconds(placed, cost_model)


def best_of_all(cluster: Cluster, asked: PlanRequest) -> float:
    """Return the least step time of every layout under every node order that fits."""
    return min(seconds for _, _, seconds in everything(cluster, asked))


CASES: dict[str, tuple[Cluster, dict[str, tuple[int, ...]]]] = {
    "one slow link": (unequal_cluster(3, slow={(0, 1): RATE / 50}), {}),
    "two slow links": (unequal_cluster(3, slow={(0, 1): RATE / 50, (1, 2): RATE / 9}), {}),
    "an older node": (unequal_cluster(3, older=[0]), {}),
    "an older node behind a slow link": (unequal_cluster(3, older=[1], slow={(0, 2): RATE / 20}), {}),
    "two older nodes and a pipeline": (unequal_cluster(3, older=[0, 2]), {"pp": (3,)}),
    "pipelines of one GPU a stage": (
        unequal_cluster(4, older=[1], slow={(0, 3): RATE / 30}, gpus_per_node=1),
        {"pp": (2, 4)},
    ),
    "interleaved stages": (unequal_cluster(4, slow={(0, 1): RATE / 40}, gpus_per_node=1), {"vpp": (2,), "pp": (2,)}),
}


SLOW = {"two slow links", "an older node", "an older node behind a slow link"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_the_best_plan_is_the_best_of_all_layouts_splits_and_orders(case: str) -> None:
    cluster, pinned = CASES[case]
    asked = request(**pinned)
    plan = search(MODEL, cluster, asked)
    assert plan.status is Status.OPTIMAL
    assert plan.best.step_seconds == pytest.approx(best_of_all(cluster, asked), rel=1e-9)


def test_an_older_gpu_with_less_memory_holds_less() -> None:
    asked = replace(request(pp=(3,)), memory_headroom=0.0)
    roomy = search(MODEL, unequal_cluster(3, older=[0]), asked)
    assert roomy.best.on_nodes is not None
    held = peaks_of_ranks(roomy.best.memory)[roomy.best.on_nodes.order.index(0)]
    cluster = unequal_cluster(3, older=[0], older_memory_bytes=held - 1)
    plan = search(MODEL, cluster, asked)
    assert plan.status is Status.OPTIMAL
    assert plan.best.step_seconds == pytest.approx(best_of_all(cluster, asked), rel=1e-9)
    assert plan.best.on_nodes is not None
    rank = plan.best.on_nodes.order.index(0)
    assert peaks_of_ranks(plan.best.memory)[rank] <= held - 1 == plan.best.on_nodes.memory_limit_bytes_R[rank]
    assert plan.best.step_seconds >= roomy.best.step_seconds


def test_the_front_of_memory_where_gpus_differ_is_of_shares_of_their_own_memory() -> None:
    cluster, model = unequal_cluster(2, older=[1], older_memory_bytes=8 * GIB), wide_dense_model(num_layers=3)
    plain = request(vpp=(1,), cp=(1,))
    asked = replace(
        plain,
        constraints=replace(plain.constraints, recompute=("none", "full")),
        workload=replace(plain.workload, seq_len=2048),
    )
    front = front_of(search(model, cluster, asked, top=1), num_steps=60, watch=ignore)
    most = cluster.most_memory_bytes
    assert front.of_bytes == most
    assert len(front.points) >= 5
    found = [
        (max(peak * most / whole for peak, whole in zip(peaks_R, whole_R, strict=True)), seconds)
        for peaks_R, whole_R, seconds in everything(cluster, asked, model)
    ]
    for point in front.points:
        assert point.gap < 1e-9
        assert point.peak_memory_bytes <= point.limit_bytes
        assert any(
            seconds == pytest.approx(point.step_seconds, rel=1e-9) and abs(scaled - point.peak_memory_bytes) <= 2
            for scaled, seconds in found
        )
        assert not any(
            seconds < point.step_seconds * (1 - 1e-9) and scaled <= point.limit_bytes - 2 for scaled, seconds in found
        )
    last = front.points[-1].peak_memory_bytes - front.step_bytes
    assert front.open_below_bytes is None
    assert min(scaled for scaled, _ in found) > last - 2
