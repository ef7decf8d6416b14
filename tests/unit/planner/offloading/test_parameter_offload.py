"""Weights on the host: a model that fits only with them, what is asked for by name, and each refusal."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.emit.deepspeed import LAUNCH_SCRIPT, emit_deepspeed
from planner.errors import NotExpressibleError
from planner.evaluation.described import given_layout
from planner.evaluation.validate import violations
from planner.layout import Layout, Offload
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.offloading.states import parameter_copies, sharded_step, waited_for_link_seconds
from planner.plans.layout_words import offload_in_words
from planner.plans.plan import Plan, Status
from planner.ranks.shard import Elements
from planner.readers.deepspeed import layout_of_files
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from planner.targets.launch import launch_files
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.measure.journal import Journal
from profiles.measure.points import point
from profiles.ops import HostCopy
from profiles.recorded import read_recording
from tests.builders import tiny_dense_model
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of
from tests.unequal_clusters import unequal_cluster
from tests.written_profiles import run_line

GIB = 1 << 30
WORKLOAD = TrainWorkload(seq_len=4096, global_batch_size=64, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE)
STATES = Offload(optimizer_fraction=1.0, overlapped=False)
BOTH = replace(STATES, parameters=True)
LAYOUT = replace(layout_with((32,), dp=8, zero_stage=3, num_microbatches=8), offload=BOTH)


def asked(
    *, weights: bool | None = None, parts: tuple[float, ...] | None = None, target: Target = Target.DEEPSPEED
) -> PlanRequest:
    return PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(optimizer_offload=parts, parameter_offload=weights),
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )


@pytest.fixture(scope="module")
def small_gpus() -> Cluster:
    """Return four GPUs of 16 GiB beside 1 TiB of host memory."""
    cluster = load_preset("l40s-pcie-4").to_cluster().with_nodes(1)
    return replace(cluster, device=replace(cluster.device, memory_bytes=16 * GIB), host_memory_bytes=1024 * GIB)


@pytest.fixture(scope="module")
def fitted(small_gpus: Cluster) -> Plan:
    """Return the plan of 13 billion parameters: 6.5 GB of weights a GPU beside 10 GB of what is computed with."""
    return search(load_bundled("llama-2-13b"), small_gpus, asked())


@pytest.mark.parametrize(("beside", "is_longer"), [(1.0, False), (1.9, True)])
def test_passes_lose_what_a_profile_says_to_copies_of_weights_and_gradients(
    fitted: Plan, tmp_path: Path, beside: float, *, is_longer: bool
) -> None:
    """Search and checker take the same from it: 0 is less than what collectives cost a pass, and 0.9 more."""
    figures = {"alone": 1.0, "beside": beside, "other_alone": 1.0, "other_beside": 1.0, "seconds": beside}
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(fitted.cluster))
        journal.measured(point("overlap", dtype="bf16", beside="to_host", product=4096, bytes=1 << 24), figures)
    cluster = replace(fitted.cluster, profile=read_recording(tmp_path).reference)
    before = given_layout(fitted.best.layout, fitted.model, fitted.cluster, asked())
    after = given_layout(fitted.best.layout, fitted.model, cluster, asked())
    assert (after.reevaluated_step_seconds > before.reevaluated_step_seconds) is is_longer
    best = search(fitted.model, cluster, asked(), top=1).best
    assert best.layout.offload is not None
    assert best.step_seconds == pytest.approx(best.reevaluated_step_seconds, rel=1e-9)


def test_a_model_fits_with_weights_on_the_host_that_did_not_without(fitted: Plan, small_gpus: Cluster) -> None:
    without = search(fitted.model, small_gpus, asked(weights=False), top=1)
    assert without.status is Status.INFEASIBLE
    assert "parameter_offload" not in without.search.dimensions
    assert fitted.status is Status.OPTIMAL
    assert "parameter_offload" in fitted.search.dimensions
    assert sum(fitted.search.pruned.values()) + fitted.search.simulated == fitted.search.considered
    for planned in fitted.plans:
        assert (planned.layout.zero_stage, planned.layout.offload) == (3, BOTH)
        assert not violations(planned, fitted.model, fitted.cluster, fitted.request)


@pytest.mark.parametrize(("gib", "part", "is_faster"), [(22, 0.89, True), (24, 0.81, False)])
def test_of_states_and_of_weights_too_on_the_host_the_faster_is_the_plan(
    small_gpus: Cluster, gib: int, part: float, is_faster: bool
) -> None:
    """Both fit: without weights there is room for larger micro-batches, which may win what copies cost."""
    cluster = replace(small_gpus, device=replace(small_gpus.device, memory_bytes=gib * GIB))
    model = load_bundled("llama-2-7b")
    free, states, both = (search(model, cluster, asked(weights=weights), top=1).best for weights in (None, False, True))
    assert (states.layout.offload, both.layout.offload) == (replace(STATES, optimizer_fraction=part), BOTH)
    assert free.layout.offload == (states if is_faster else both).layout.offload
    assert free.step_seconds == min(states.step_seconds, both.step_seconds)


def test_the_ledgers_say_where_the_weights_are(fitted: Plan) -> None:
    share = -(-graph_parameters(fitted.model, build_graph(fitted.model, WORKLOAD, eager=True)) // 4)
    hosted = fitted.best.host_memory
    assert hosted is not None
    held = {line.term: line.num_bytes for line in hosted.lines}
    assert held["page-locked weights"] == 4 * (1 << (2 * share - 1).bit_length())
    assert held["weights as they were built"] == 4 * 2 * 2 * share
    terms = {line.term: line.num_bytes for line in fitted.best.memory}
    assert terms["weights"] == 0
    # A quarter of 50 million elements and of the largest tensor, the embedding of 32,000 rows of 5,120.
    assert terms["fetched weights"] == 2 * (50_000_000 + 32_000 * 5_120) // 4
    assert "master weights on their way" not in terms


def test_the_files_and_the_plan_say_it_and_are_read_back(fitted: Plan) -> None:
    assert layout_of_files(launch_files(fitted), script=LAUNCH_SCRIPT) == fitted.best.layout
    assert plan_from_document(parse_document(plan_to_text(fitted), file="plan.json")) == fitted
    assert offload_in_words(fitted.best.layout.offload) == (
        "100 % of optimizer states and the weights to the host, copied and updated in turn"
    )


def test_what_is_asked_for_by_name_is_searched_where_all_fits_on_the_gpus() -> None:
    cluster, model = load_preset("dgx-h100").to_cluster().with_nodes(1), load_bundled("llama-2-7b")
    free, hosted = (search(model, cluster, asked(weights=weights), top=1) for weights in (None, True))
    assert free.best.layout.offload is None
    assert hosted.best.layout.offload == BOTH
    assert hosted.best.step_seconds > free.best.step_seconds
    states = search(model, cluster, asked(parts=(0.0, 1.0)), top=3)
    assert not any(planned.layout.parameters_offloaded for planned in states.plans)


def test_one_gpu_trains_from_its_host(small_gpus: Cluster) -> None:
    device = replace(small_gpus.device, memory_bytes=24 * GIB)
    plan = search(load_bundled("llama-2-7b"), replace(small_gpus, device=device, gpus_per_node=1), asked(), top=1)
    assert (plan.best.layout.dp, plan.best.layout.zero_stage, plan.best.layout.offload) == (1, 3, BOTH)
    assert not plan.best.layout.overlap.param_gather
    assert layout_of_files(launch_files(plan), script=LAUNCH_SCRIPT) == plan.best.layout


def test_nodes_with_too_little_memory_are_named(small_gpus: Cluster) -> None:
    plan = search(load_bundled("llama-2-13b"), replace(small_gpus, host_memory_bytes=256 * GIB), asked())
    assert plan.infeasible is not None
    said = "would fit with 100 % of optimizer states and the weights on the host, where a node would need "
    assert said in plan.infeasible.binding
    assert plan.infeasible.binding.endswith(" GiB of its 256.00 GiB")


def test_enough_host_memory_is_offered_to_a_step_of_64_gib(small_gpus: Cluster) -> None:
    model, little = load_bundled("llama-2-13b"), replace(small_gpus, host_memory_bytes=250 * GIB)
    found = search(model, little, asked()).infeasible
    assert found is not None
    change = next(change for change in found.relaxations if change.path == "cluster.host_ram")
    gib = int(change.value.removesuffix("GiB"))
    assert change.change == f"{gib} GiB of host memory a node instead of 250"
    for size, fits in ((gib, True), (gib - 64, False)):
        assert bool(search(model, replace(little, host_memory_bytes=size * GIB), asked(), top=1).plans) == fits
    kept = search(model, little, asked(parts=(0.0,), weights=False)).infeasible
    assert kept is not None
    assert "cluster.host_ram" not in [change.path for change in kept.relaxations]


@pytest.mark.parametrize(
    ("target", "parts", "binding"),
    [
        (Target.MEGATRON, None, "Megatron-LM (megatron-core 0.19.2): plans put no weights on the host"),
        (Target.DEEPSPEED, (0.0,), "constraints: optimizer_offload"),
        (Target.DEEPSPEED, (0.5,), "constraints: optimizer_offload"),
    ],
)
def test_what_cannot_be_is_named(target: Target, parts: tuple[float, ...] | None, binding: str) -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    plan = search(load_bundled("llama-2-7b"), cluster, asked(weights=True, parts=parts, target=target))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith(binding)


def test_nodes_that_differ_have_no_such_layout() -> None:
    cluster, model = unequal_cluster(2, older=(1,)), tiny_dense_model()
    plan = search(model, cluster, asked(weights=True, target=Target.ANY))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("no framework in particular: plans put no optimizer states on the host")
    assert search(model, cluster, asked(weights=False, target=Target.ANY), top=1).plans


def test_bytes_of_copies_and_of_a_step() -> None:
    everything = Elements(dense=799)
    assert parameter_copies(everything, LAYOUT, WORKLOAD) == (HostCopy(num_bytes=100 * 2, pinned=True),)
    assert parameter_copies(everything, replace(LAYOUT, offload=STATES), WORKLOAD) == ()
    assert parameter_copies(everything, replace(LAYOUT, offload=None), WORKLOAD) == ()
    there, here = (sharded_step(updated=100, workload=WORKLOAD, parameters=parameters) for parameters in (True, False))
    assert (there.parameters.num_bytes, here.parameters.num_bytes) == (0, 200)
    assert replace(there, parameters=here.parameters) == here


@pytest.mark.parametrize(
    ("copied", "waited", "expected"),
    [
        (3.0, 0.0, 0.0),  # hidden behind 4 s
        (6.0, 0.5, 1.5),  # 2 s more than the pass, of which half a second is waited anyway
        (6.0, 3.0, 0.0),
    ],
)
def test_copies_of_a_pass_share_one_link(copied: float, waited: float, expected: float) -> None:
    assert waited_for_link_seconds(copied, beside_seconds=4.0, waited_seconds=waited) == expected


def test_a_second_copy_of_weights_on_the_host_is_refused() -> None:
    layout = replace(layout_with((32,), dp=8, zero_stage=3, secondary_shard=4), offload=BOTH)
    with pytest.raises(NotExpressibleError) as caught:
        emit_deepspeed(deepspeed_plan(LLAMA_8B, layout))
    assert caught.value.message == (
        "weights on the host with a second copy of them: DeepSpeed puts that on the host too, which plans do not price."
    )


@pytest.mark.parametrize(
    ("layout", "target", "messages"),
    [
        (LAYOUT, Target.DEEPSPEED, []),
        (
            replace(LAYOUT, secondary_shard=4),
            Target.DEEPSPEED,
            ["weights on the host with a second copy of them"],
        ),
        (
            replace(LAYOUT, offload=replace(BOTH, optimizer_fraction=0.5)),
            Target.DEEPSPEED,
            ["weights on the host without all optimizer states"],
        ),
        (replace(LAYOUT, zero_stage=1), Target.ANY, ["weights on the host with zero_stage 1"]),
    ],
)
def test_the_checker_refuses(fitted: Plan, layout: Layout, target: Target, messages: list[str]) -> None:
    found = violations(replace(fitted.best, layout=layout), LLAMA_8B, cluster_of(1, 8), asked(target=target))
    assert [violation.message for violation in found] == messages


def test_the_checker_holds_a_layout_against_the_target_and_what_is_asked(fitted: Plan) -> None:
    entry = replace(fitted.best, layout=LAYOUT)
    found = violations(entry, LLAMA_8B, cluster_of(1, 8), asked(target=Target.MEGATRON))
    assert "Megatron-LM (megatron-core 0.19.2) has no weights on the host" in [entry.message for entry in found]
    found = violations(entry, LLAMA_8B, cluster_of(1, 8), asked(weights=False))
    assert [violation.message for violation in found] == ["parameter_offload must be False"]
