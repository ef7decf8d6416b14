"""What is left of a plan when nodes are lost."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from planner.decisions.decide import decide
from planner.decisions.nodes import part_of
from planner.decisions.spare import spare_of
from planner.errors import InputError
from planner.evaluation.validate import violations
from planner.inputs.load import load_inputs
from planner.plans.choices import Spare
from planner.plans.plan import Plan
from planner.requests.request import Bounds, Constraints, PlanRequest
from planner.search.ground import ignore
from planner.search.search import search
from tests.builders import GIB, tiny_dense_model, tiny_request, two_node_cluster, wide_dense_model

MODEL = tiny_dense_model()
NODES = 4


def asked(global_batch_size: int = 48, **degrees: int) -> PlanRequest:
    request = tiny_request()
    pins = {name: Bounds(allowed=(value,)) for name, value in degrees.items()}
    return replace(
        request,
        workload=replace(request.workload, global_batch_size=global_batch_size),
        constraints=Constraints(degrees=pins),
    )


@cache
def planned(global_batch_size: int = 48) -> Plan:
    return search(MODEL, two_node_cluster(num_nodes=NODES), asked(global_batch_size))


def spare(plan: Plan, *, lost: int) -> Spare:
    return spare_of(plan, num_lost=lost, watch=ignore)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_new_plan_is_the_fastest_on_any_number_of_the_nodes_left(lost: int) -> None:
    found = spare(planned(), lost=lost).replanned
    assert found is not None
    alone = {
        nodes: search(MODEL, two_node_cluster(num_nodes=nodes), asked()).plans for nodes in range(1, NODES - lost + 1)
    }
    steps = {nodes: plans[0].step_seconds for nodes, plans in alone.items() if plans}
    assert found.step_seconds == min(steps.values())
    assert found.step_seconds == steps[found.num_nodes]
    assert found.lost_fraction == pytest.approx(1 - planned().best.step_seconds / found.step_seconds)


def test_a_batch_that_does_not_split_over_the_rest_leaves_nodes_idle() -> None:
    # One replica a node, and 16 sequences split over 1, 2 and 4 of them.
    request = asked(16, tp=4, pp=1, cp=1)
    request = replace(request, workload=replace(request.workload, seq_len=4096))
    plan = search(wide_dense_model(), two_node_cluster(num_nodes=NODES), request)
    found = spare(plan, lost=1)
    assert found.replanned is not None
    assert found.proven
    assert found.replanned.num_nodes == 2
    assert found.replanned.layout.dp == 2
    best, runner_up = found.kept[:2]
    assert (best.degraded, best.reason) == (None, "dp 2 needs 15.38 GiB a GPU, of 15.20 GiB usable")
    assert runner_up.degraded is not None
    assert (runner_up.degraded.num_nodes, runner_up.degraded.layout.dp) == (2, 2)


def test_layouts_that_are_kept_lose_replicas_and_nothing_else() -> None:
    plan = planned()
    found = spare(plan, lost=1)
    assert [entry.index for entry in found.kept] == list(range(len(plan.plans)))
    assert any(entry.degraded for entry in found.kept)
    for entry in found.kept:
        layout = plan.plans[entry.index].layout
        if entry.degraded is None:
            assert entry.reason
            continue
        fewer = entry.degraded.layout
        assert fewer.world_size == entry.degraded.num_nodes * 4 <= 12
        assert fewer.global_batch_size == layout.global_batch_size
        assert fewer.stages == layout.stages
        changed = {"dp", "num_microbatches", "zero_stage", "overlap"}
        assert {
            name
            for name in ("tp", "pp", "cp", "vpp", "micro_batch_size", "recompute", "dp", "num_microbatches")
            if getattr(fewer, name) != getattr(layout, name)
        } <= changed
        assert found.replanned is not None
        assert entry.degraded.step_seconds >= found.replanned.step_seconds * (1 - 1e-9)


def test_what_cannot_go_on_says_why() -> None:
    whole = search(MODEL, two_node_cluster(num_nodes=NODES), asked(dp=1), top=1)
    (entry,) = spare(whole, lost=1).kept
    assert (entry.degraded, entry.reason) == (None, "one replica takes 16 GPUs, 12 are left")
    odd = search(MODEL, two_node_cluster(num_nodes=NODES), asked(16, tp=1, pp=4, cp=1), top=1)
    (entry,) = spare(odd, lost=1).kept
    assert entry.degraded is not None
    assert entry.degraded.layout.dp == 2  # 16 sequences do not split over 3


def test_fewer_replicas_that_do_not_fit_say_by_how_much() -> None:
    plan = search(MODEL, two_node_cluster(num_nodes=NODES), asked(16, tp=1, pp=1, cp=1, zero_stage=1), top=1)
    limit = plan.best.peak_memory_bytes
    tight = replace(plan.cluster, device=replace(plan.cluster.device, memory_bytes=limit))
    request = replace(plan.request, memory_headroom=0.0)
    (entry,) = spare(replace(plan, cluster=tight, request=request), lost=2).kept
    assert entry.reason.startswith("dp 8 needs ")
    assert entry.reason.endswith(f" GiB a GPU, of {limit / GIB:,.2f} GiB usable")


def test_the_degraded_layouts_obey_every_rule() -> None:
    plan = planned()
    request = replace(plan.request, constraints=Constraints())
    for entry in spare(plan, lost=1).kept:
        if entry.degraded is not None:
            layout = replace(plan.best, layout=entry.degraded.layout)
            broken = violations(layout, plan.model, part_of(plan.cluster, entry.degraded.num_nodes), request)
            assert {violation.rule for violation in broken} <= {"price"}


def test_not_all_nodes_can_be_lost() -> None:
    with pytest.raises(InputError) as caught:
        decide(MODEL, two_node_cluster(), asked(), lost_nodes=2)
    assert str(caught.value) == (
        "--spare 2: no node is left of the 2 of the cluster.\nGive fewer nodes than the cluster has."
    )


def test_where_fewer_nodes_were_chosen_than_are_lost_none_is_left() -> None:
    chosen = replace(planned(), cluster=two_node_cluster(num_nodes=NODES))
    found = spare(chosen, lost=NODES)
    assert (found.replanned, found.reason) == (None, "no node is left")
    assert all(entry.degraded is None for entry in found.kept)


def test_a_replica_alone_keeps_the_zero_stage_that_the_target_wants() -> None:
    example = Path(__file__).parents[4] / "examples" / "llama-3.1-8b-deepspeed-1xdgx-h100" / "spec.yaml"
    inputs = load_inputs(example, ["cluster.nodes=2", "constraints={tp: 8}"])
    plan = search(inputs.model, inputs.cluster, inputs.request, top=1)
    (entry,) = spare(plan, lost=1).kept
    assert entry.degraded is not None, entry.reason
    assert (entry.degraded.layout.dp, entry.degraded.layout.zero_stage) == (1, 1)
