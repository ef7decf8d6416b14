"""What the space leaves out is looked for around the best layout."""

import pytest

from planner.inputs.load import Inputs, load_inputs
from planner.layout import Granularity
from planner.search.search import search
from tests.unit.planner.search.splits.test_uneven import EXAMPLES


def planned_on(nodes: int, *sets: str) -> Inputs:
    return load_inputs(EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "spec.yaml", [f"cluster.nodes={nodes}", *sets])


def test_groups_of_another_size_shard_where_that_is_faster() -> None:
    # 1,024 ranks reduce one micro-batch of a small model: all of them together start slowly.
    inputs = planned_on(128, "model=gpt2-xl", "workload.seq_len=1024", "workload.global_batch_size=2048")
    plan = search(inputs.model, inputs.cluster, inputs.request)
    best = plan.plans[0].layout
    assert 1 < best.state_replicas < best.dp
    assert best.dp // best.state_replicas > inputs.cluster.fast_domain_size
    in_space = [entry for entry in plan.plans if entry.layout.state_replicas == 1]
    assert in_space
    assert plan.plans[0].step_seconds < in_space[0].step_seconds
    uneven = plan.search.uneven_bound_seconds
    assert uneven is None or uneven < plan.plans[0].step_seconds
    assert plan.plans[0].step_seconds == pytest.approx(plan.plans[0].reevaluated_step_seconds, rel=1e-9)


def test_what_experts_leave_free_keeps_layers_from_being_recomputed_whole() -> None:
    # Halves of experts on pairs of ranks cost exchanges, but leave room for what full recomputation would drop.
    workload = ("workload.seq_len=4096", "workload.global_batch_size=2048")
    inputs = planned_on(128, "model=mixtral-8x7b", *workload, "constraints={tp: 1, pp: 1}")
    plan = search(inputs.model, inputs.cluster, inputs.request)
    best = plan.best.layout
    assert best.etp > 1
    assert best.recompute.granularity is not Granularity.FULL
    (in_space, *_) = (entry for entry in plan.plans if entry.layout.etp == 1)
    assert in_space.layout.recompute.granularity is Granularity.FULL
    assert plan.best.step_seconds < in_space.step_seconds
    assert plan.best.step_seconds == pytest.approx(plan.best.reevaluated_step_seconds, rel=1e-9)


def test_a_pinned_degree_of_the_experts_stays() -> None:
    inputs = planned_on(8, "model=mixtral-8x7b", "workload.seq_len=4096", "constraints={etp: 1}")
    plan = search(inputs.model, inputs.cluster, inputs.request)
    assert {entry.layout.etp for entry in plan.plans} == {1}
