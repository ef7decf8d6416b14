"""What a little more memory gains where states are on the hosts: the least part that fits then, and nothing else."""

from dataclasses import replace

import pytest

from cli.render_explain import explanation_document
from planner.evaluation.described import given_layout
from planner.evaluation.more_memory import gained_by_memory
from planner.layout import Offload
from planner.models.bundled import load_bundled
from planner.plans.plan import Plan
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainMethod, TrainWorkload
from planner.search.search import search
from profiles.catalogue import load_preset
from tests.emitted.plans import layout_of_degrees

GIB = 1 << 30


@pytest.fixture(scope="module")
def hosted() -> Plan:
    """Return a plan for DeepSpeed of 7 billion parameters on four GPUs of 22 GiB, with a part of the states there."""
    cluster = load_preset("l40s-pcie-4").to_cluster().with_nodes(1)
    cluster = replace(cluster, device=replace(cluster.device, memory_bytes=22 * GIB), host_memory_bytes=1024 * GIB)
    request = PlanRequest(
        workload=TrainWorkload(
            seq_len=4096, global_batch_size=64, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE
        ),
        constraints=Constraints(parameter_offload=False),
        memory_headroom=0.05,
        target=Target.DEEPSPEED,
        objective=Objective.STEP_TIME,
    )
    return search(load_bundled("llama-2-7b"), cluster, request, top=1)


def with_part(plan: Plan, percent: int) -> Plan:
    """Return a plan whose only layout has another part on the hosts."""
    layout = plan.best.layout
    assert layout.offload is not None
    offload = replace(layout.offload, optimizer_fraction=percent / 100)
    found = given_layout(replace(layout, offload=offload), plan.model, plan.cluster, plan.request)
    return replace(plan, plans=(found,))


@pytest.mark.parametrize("more_bytes", [GIB, 3 * GIB])
def test_the_least_part_that_fits_then_is_named(hosted: Plan, more_bytes: int) -> None:
    gained = gained_by_memory(hosted, index=0, more_bytes=more_bytes)
    assert gained is not None
    percent = round(100 * gained.fraction)
    limit = hosted.best.memory_limit_bytes + more_bytes
    found, less = (with_part(hosted, part).best for part in (percent, percent - 1))
    assert found.peak_memory_bytes <= limit < less.peak_memory_bytes
    assert gained.step_seconds == found.step_seconds < hosted.best.step_seconds
    assert percent < round(100 * hosted.best.layout.offloaded_fraction)


def test_nothing_is_gained_where_no_state_can_come_back(hosted: Plan) -> None:
    assert gained_by_memory(hosted, index=0, more_bytes=0) is None
    on_gpus = replace(hosted, plans=(replace(hosted.best, layout=replace(hosted.best.layout, offload=None)),))
    assert gained_by_memory(on_gpus, index=0) is None
    pinned = replace(
        hosted.request, constraints=Constraints(optimizer_offload=(hosted.best.layout.offloaded_fraction,))
    )
    assert gained_by_memory(replace(hosted, request=pinned), index=0) is None


def test_behind_pipeline_stages_sharded_states_come_back_all_or_none(hosted: Plan) -> None:
    whole = Offload(optimizer_fraction=1.0, overlapped=False)
    layout = replace(layout_of_degrees(layers=(16, 16), pp=2, dp=2, num_microbatches=32, zero_stage=3), offload=whole)
    plan = replace(hosted, request=replace(hosted.request, target=Target.ANY))
    planned = given_layout(layout, plan.model, plan.cluster, plan.request)
    on_gpus = given_layout(replace(layout, offload=None), plan.model, plan.cluster, plan.request)
    missing = on_gpus.peak_memory_bytes - planned.memory_limit_bytes
    plan = replace(plan, plans=(planned,))
    assert gained_by_memory(plan, index=0, more_bytes=missing - 1) is None
    gained = gained_by_memory(plan, index=0, more_bytes=missing)
    assert gained is not None
    assert (gained.fraction, gained.step_seconds) == (0.0, on_gpus.step_seconds)


def test_enough_memory_brings_all_of_them_back(hosted: Plan) -> None:
    gained = gained_by_memory(hosted, index=0, more_bytes=64 * GIB)
    assert gained is not None
    assert gained.fraction == 0.0
    on_gpus = replace(hosted.best.layout, offload=None)
    found = given_layout(on_gpus, hosted.model, hosted.cluster, hosted.request)
    assert gained.step_seconds == found.step_seconds


def test_the_explanation_says_it(hosted: Plan) -> None:
    document = explanation_document(hosted, index=0)
    gained = gained_by_memory(hosted, index=0)
    assert gained is not None
    assert document["gained_by_memory"] == {
        "more_bytes": GIB,
        "offloaded_fraction": gained.fraction,
        "step_seconds": gained.step_seconds,
    }
    assert isinstance(document["limits"], list)
    assert document["limits"][-1].startswith(
        f"Hosts: with 1.00 GiB more of each GPU {100 * gained.fraction:.1f} % of the optimizer states would be there"
    )
