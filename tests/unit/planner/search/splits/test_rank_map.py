"""Plans on nodes that differ are what an expert expects, and beat the plan for equal nodes by the evaluator."""

from dataclasses import replace
from typing import Any

import pytest

from planner.evaluation.described import given_layout
from planner.evaluation.node_costs import mesh_of
from planner.evaluation.validate import violations
from planner.layout import Layout, stages_from_counts
from planner.memory.ledger import peaks_of_ranks
from planner.models.bundled import load_bundled
from planner.plans.plan import Plan, Status
from planner.ranks.communication import replica_groups
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.search.search import search
from profiles.hardware import Cluster
from profiles.schema import ClusterEntry, MixedClusterEntry

SLOW = (0, 1)
EQUAL: dict[str, Any] = {"preset": "dgx-h100", "nodes": 4}


def request(*, sequences: int, seq_len: int, **pinned: int) -> PlanRequest:
    return PlanRequest(
        workload=TrainWorkload(seq_len=seq_len, global_batch_size=sequences, precision=Precision.BF16),
        constraints=Constraints(degrees={name: Bounds(allowed=(value,)) for name, value in pinned.items()}),
        memory_headroom=0.05,
        target=Target.MEGATRON,
        objective=Objective.STEP_TIME,
    )


def equal_nodes() -> Cluster:
    return ClusterEntry.model_validate(EQUAL).to_cluster()


def one_slow_link() -> Cluster:
    link = {"nodes": list(SLOW), "bandwidth": "1GB/s"}
    return ClusterEntry.model_validate({**EQUAL, "slow_links": [link]}).to_cluster()


def one_older_node() -> Cluster:
    groups = [{"preset": "dgx-h100", "nodes": 3}, {"preset": "dgx-a100-40", "nodes": 1}]
    return MixedClusterEntry.model_validate({"groups": groups}).to_cluster()


def seconds_of(layout: Layout, plan: Plan) -> float:
    """Return the step time of another layout where a plan was made, by the evaluator."""
    return given_layout(layout, plan.model, plan.cluster, plan.request).reevaluated_step_seconds


def crossed_links(plan: Plan) -> set[tuple[int, int]]:
    """Return the pairs of nodes between which the best plan's data-parallel rings and transfers pass."""
    layout, order = plan.best.layout, plan.best.layout.node_order or tuple(range(plan.cluster.num_nodes))
    mesh = mesh_of(layout, plan.cluster)
    hops: set[tuple[int, int]] = set()
    replicas, _ = replica_groups(layout)
    for rank in range(layout.pp):
        hops |= mesh.group_hops(rank, (False, replicas.size, replicas.stride))
        hops |= mesh.boundary(rank) if layout.pp > 1 else set()
    return {(min(order[here], order[there]), max(order[here], order[there])) for here, there in hops}


@pytest.mark.parametrize("pp", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_nothing_heavy_crosses_the_slow_link(pp: int) -> None:
    model, asked = load_bundled("llama-3.1-8b"), request(sequences=128, seq_len=8192, pp=pp, tp=2, micro_batch_size=1)
    plan = search(model, one_slow_link(), asked)
    uniform = search(model, equal_nodes(), asked)

    assert plan.status is Status.OPTIMAL
    # Four nodes leave a way round one link: nothing is lost to the cluster without it.
    assert SLOW not in crossed_links(plan)
    assert plan.best.step_seconds == pytest.approx(uniform.best.step_seconds, rel=1e-9)
    as_listed = seconds_of(uniform.best.layout, plan)
    assert plan.best.reevaluated_step_seconds < as_listed
    assert plan.best.on_nodes is not None
    assert plan.best.on_nodes.listed_step_seconds == pytest.approx(
        seconds_of(replace(plan.best.layout, node_order=()), plan)
    )


def test_where_a_slow_link_cannot_be_avoided_it_carries_a_pipeline() -> None:
    # Two nodes: gradients of all weights, or the activations of a few micro-batches, must cross.
    link = {"nodes": [0, 1], "bandwidth": "200MB/s"}
    two = ClusterEntry.model_validate({**EQUAL, "nodes": 2, "slow_links": [link]}).to_cluster()
    model = load_bundled("llama-2-7b")
    asked = request(sequences=16, seq_len=4096, tp=2, cp=1, vpp=1, micro_batch_size=1)
    plan = search(model, two, asked)
    uniform = search(model, ClusterEntry.model_validate({**EQUAL, "nodes": 2}).to_cluster(), asked)

    assert uniform.best.layout.pp == 1
    assert plan.best.layout.pp > 1
    assert plan.best.layout.stage_ranks <= 8  # no data-parallel group leaves its node
    assert plan.best.reevaluated_step_seconds < seconds_of(uniform.best.layout, plan)


def test_the_node_of_older_gpus_holds_a_stage_with_fewer_layers() -> None:
    model = load_bundled("llama-2-13b")
    asked = request(sequences=96, seq_len=4096, pp=4, vpp=1, tp=2, cp=1, zero_stage=1, micro_batch_size=1)
    plan = search(model, one_older_node(), asked)

    assert plan.status is Status.OPTIMAL
    on_nodes, layout = plan.best.on_nodes, plan.best.layout
    assert on_nodes is not None
    assert layout.vpp == 1
    older = on_nodes.order.index(3)  # a node is a pipeline rank here
    counts = [stage.num_layers for stage in layout.stages]
    assert counts[older] < min(counts[:older] + counts[older + 1 :])
    gib = 1 << 30
    assert [limit // gib for limit in on_nodes.memory_limit_bytes_R].count(37) == 1
    peaks = peaks_of_ranks(plan.best.memory)
    assert all(peak <= limit for peak, limit in zip(peaks, on_nodes.memory_limit_bytes_R, strict=True))
    even = replace(layout, stages=stages_from_counts((10, 10, 10, 10)))
    assert plan.best.reevaluated_step_seconds < 0.7 * seconds_of(even, plan)
    uniform = search(model, equal_nodes(), asked)
    assert plan.best.reevaluated_step_seconds < seconds_of(uniform.best.layout, plan)


def test_what_fits_only_into_the_newer_gpus_is_refused() -> None:
    model = load_bundled("llama-2-13b")
    asked = request(sequences=96, seq_len=4096, pp=4, vpp=1, tp=4, cp=1, zero_stage=1, micro_batch_size=1)
    cluster = one_older_node()
    plan = search(model, cluster, asked)
    assert violations(plan.best, model, cluster, asked) == ()
    # The older node where most layers are.
    counts = (37, 1, 1, 1)
    layout = replace(plan.best.layout, stages=stages_from_counts(counts), node_order=(3, 0, 1, 2))
    planned = given_layout(layout, model, cluster, asked)
    found = violations(planned, model, cluster, asked)
    assert [entry.rule for entry in found] == ["memory", "memory"]  # of the pipeline rank, and of the heaviest
    limit, peak = planned.memory_limit_bytes, planned.peak_memory_bytes
    assert found[0].message == f"pipeline rank 0: {peak} bytes needed, {limit} allowed on its GPUs"
    assert planned.on_nodes is not None
    assert planned.on_nodes.memory_limit_bytes_R == (limit, *(4 * [max(planned.on_nodes.memory_limit_bytes_R)])[:3])


def test_an_order_of_other_nodes_is_a_violation() -> None:
    model = load_bundled("llama-3.2-3b")
    asked = request(sequences=64, seq_len=1024, tp=1, pp=1, cp=1, micro_batch_size=1, zero_stage=1)
    plan = search(model, equal_nodes(), asked)
    ordered = replace(plan.best, layout=replace(plan.best.layout, node_order=(1, 0, 2, 3)))
    assert [entry.message for entry in violations(ordered, model, plan.cluster, asked)] == [
        "node_order (1, 0, 2, 3) of 0 nodes that differ"
    ]
    with pytest.raises(ValueError, match=r"^node_order \(0, 2\) does not hold every node once$"):
        replace(plan.best.layout, node_order=(0, 2))
