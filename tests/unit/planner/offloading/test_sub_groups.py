"""Parts of the states on the host with sharded weights: how sub-groups are dealt, what that takes, files and search."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.emit.deepspeed import CONFIG_FILE, LAUNCH_SCRIPT, emit_deepspeed
from planner.errors import InputError
from planner.evaluation.described import given_layout
from planner.evaluation.validate import violations
from planner.inputs.running import read_running
from planner.layout import Layout, Offload
from planner.memory.ledger import memory_limit_bytes
from planner.models.blocks import QueryKeyNorm
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.models.specs import BlockRun, ModelSpec
from planner.offloading.states import hosted_seconds, sharded_step
from planner.offloading.sub_groups import (
    LEAST_GROUPS,
    MOST_GROUPS,
    Dealing,
    dealing,
    largest_kept,
    most_beyond,
    planned_dealing,
    tensor_elements,
)
from planner.plans.plan import Plan, Status
from planner.readers.deepspeed import layout_of_files
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import DType, Precision, TrainMethod, TrainWorkload
from planner.search.search import search
from planner.targets.launch import launch_files
from profiles.catalogue import load_preset
from profiles.estimate import Estimate, Source
from profiles.hardware import Cluster
from profiles.ops import ComputeOp
from tests.emitted.deepspeed_plans import GPT, LATENT_DENSE, LATENT_EXPERTS, LLAMA, TIED, deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B
from tests.examples import examples
from tests.oracle.planned_modules import facts_of, planned_model
from tests.oracle.torch_kernels import torch

GIB = 1 << 30
WORKLOAD = TrainWorkload(seq_len=4096, global_batch_size=64, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE)
HALF = Offload(optimizer_fraction=0.5, overlapped=False)
LAYOUT = replace(layout_with((32,), dp=8, zero_stage=3, num_microbatches=8), offload=HALF)

WIDE_NORMS = replace(
    LLAMA,
    runs=tuple(
        BlockRun(block=replace(run.block, mixer=replace(run.block.mixer, qk_norm=QueryKeyNorm.WIDTH)), count=run.count)  # type: ignore[type-var]
        for run in LLAMA.runs
    ),
)


def asked(*, parts: tuple[float, ...] | None = None, weights: bool | None = False) -> PlanRequest:
    return PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(optimizer_offload=parts, parameter_offload=weights),
        memory_headroom=0.05,
        target=Target.DEEPSPEED,
        objective=Objective.STEP_TIME,
    )


@pytest.mark.parametrize("model", [LLAMA, TIED, GPT, LATENT_EXPERTS, LATENT_DENSE, WIDE_NORMS])
def test_tensors_are_those_that_the_program_hands_over(model: ModelSpec) -> None:
    program = planned_model()
    facts, context = facts_of(model), program.Context(attention="unfused")
    with torch.device("meta"):
        built = program.Decoder(facts, model.vocab_size, context, None, seed=1)
    assert tensor_elements(model) == tuple(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-13b", "gpt2-xl", "qwen3-30b-a3b"])
def test_tensors_are_all_of_a_model(name: str) -> None:
    model = load_bundled(name)
    assert sum(tensor_elements(model)) == graph_parameters(model, build_graph(model, WORKLOAD))


def as_deepspeed_deals(shares: list[int], size: int, ratio: float) -> tuple[int, int, int]:
    """Return (groups, groups that are kept, their elements), group by group as stage 3 goes about it."""
    groups: list[list[int]] = []
    if size >= sum(shares):
        groups = [shares]
    else:
        group: list[int] = []
        for index, share in enumerate(shares):
            group.append(share)
            if sum(group) >= size or index == len(shares) - 1:
                groups.append(group)
                group = []
    on_gpu = [group for index, group in enumerate(groups) if not index >= int((1 - ratio) * len(groups))]
    return len(groups), len(on_gpu), sum(map(sum, on_gpu))


TENSORS = st.lists(st.integers(1, 10_000), min_size=1, max_size=60).map(tuple)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tensors=TENSORS, ranks=st.integers(1, 8), size=st.integers(1, 60_000), ratio=st.floats(0.0, 1.0))
def test_sub_groups_are_dealt_as_deepspeed_deals_them(
    tensors: tuple[int, ...], ranks: int, size: int, ratio: float
) -> None:
    shares = [-(-tensor // ranks) for tensor in tensors]
    found = dealing(tensors, ranks=ranks, sub_group_size=size, ratio=ratio)
    assert (found.num_groups, found.num_kept, found.kept_elements) == as_deepspeed_deals(shares, size, ratio)
    assert found.elements == sum(shares)


@settings(max_examples=examples(few=50, many=100), deadline=None, derandomize=True)
@given(tensors=TENSORS, ranks=st.integers(1, 8), percent=st.integers(1, 99))
def test_no_size_that_is_tried_keeps_more_and_none_keeps_more_than_it_may(
    tensors: tuple[int, ...], ranks: int, percent: int
) -> None:
    fraction = percent / 100
    found = planned_dealing(tensors, ranks=ranks, fraction=fraction)
    shares = [-(-tensor // ranks) for tensor in tensors]
    room = int((1.0 - fraction) * -(-sum(tensors) // ranks))
    sizes = (sum(shares), *(-(-sum(shares) // count) for count in range(LEAST_GROUPS, MOST_GROUPS + 1)))
    kept = [as_deepspeed_deals(shares, size, fraction)[2] for size in sizes]
    assert found.kept_elements == max(elements for elements in kept if elements <= room)
    assert as_deepspeed_deals(shares, found.sub_group_size, fraction)[2] == found.kept_elements
    assert found.hosted_fraction <= fraction + most_beyond(tensors, ranks=ranks, fraction=fraction) + 1e-12
    if found.num_kept:
        assert found.sub_group_size + max(shares) <= largest_kept(tensors, ranks=ranks)


def test_the_default_size_leaves_everything_to_the_host() -> None:
    """A share of a billion is one sub-group, whatever the ratio."""
    tensors = tensor_elements(LLAMA_8B)
    for ratio in (0.1, 0.5, 0.9):
        found = dealing(tensors, ranks=8, sub_group_size=1_000_000_000, ratio=ratio)
        assert (found.num_groups, found.num_kept, found.hosted_fraction) == (1, 0, 1.0)
    planned = planned_dealing(tensors, ranks=8, fraction=0.5)
    assert planned.hosted_fraction == pytest.approx(0.5, abs=0.01)


def test_an_embedding_that_is_more_than_may_stay_leaves_everything_to_the_host() -> None:
    tensors = (100, *(1,) * 900)
    found = planned_dealing(tensors, ranks=1, fraction=0.95)
    assert found == Dealing(sub_group_size=1000, num_groups=1, num_kept=0, kept_elements=0, elements=1000)
    assert most_beyond(tensors, ranks=1, fraction=0.5) >= 0.05


def test_bytes_of_a_step_in_parts() -> None:
    step = sharded_step(updated=100, workload=replace(WORKLOAD, gradient_dtype=DType.BF16), fraction=0.75)
    assert step.before.num_bytes == 100 * (2 + 2 + 4)
    assert step.kept.num_bytes == 25 * (8 + 80 + 6)
    assert (step.gradients.num_bytes, step.gradients.pinned) == (300, True)
    assert step.update.num_bytes == 75 * (8 + 28 + 6)
    assert (step.parameters.num_bytes, step.parameters.pinned) == (150, False)
    run = sharded_step(updated=100, workload=WORKLOAD, fraction=0.75, least_fraction=0.25)
    assert (run.kept.num_bytes, run.update.num_bytes) == (25 * (8 + 80 + 6), 25 * (8 + 28 + 6))


def test_the_hosts_update_behind_the_gpu() -> None:
    step = sharded_step(updated=100, workload=WORKLOAD, fraction=0.5)
    parts = ((step.before, 1.0), (step.kept, 2.0), (step.gradients, 4.0), (step.update, 8.0), (step.parameters, 16.0))
    seconds = {id(part): value for part, value in parts}

    def price(operation: ComputeOp) -> Estimate:
        return Estimate(seconds=seconds[id(operation)], source=Source.ANALYTIC, note="")

    assert hosted_seconds(step, price) == (3.0, 28.0)


@pytest.fixture(scope="module")
def small_gpus() -> Cluster:
    """Return four GPUs of 22 GiB beside 1 TiB of host memory."""
    cluster = load_preset("l40s-pcie-4").to_cluster().with_nodes(1)
    return replace(cluster, device=replace(cluster.device, memory_bytes=22 * GIB), host_memory_bytes=1024 * GIB)


@pytest.fixture(scope="module")
def fitted(small_gpus: Cluster) -> Plan:
    return search(load_bundled("llama-2-7b"), small_gpus, asked())


def test_of_all_parts_that_fit_the_fastest_is_the_plan(fitted: Plan, small_gpus: Cluster) -> None:
    whole = search(fitted.model, small_gpus, asked(parts=(1.0,)), top=1)
    offload = fitted.best.layout.offload
    assert fitted.status is Status.OPTIMAL
    assert offload is not None
    assert 0.0 < offload.optimizer_fraction < 1.0
    assert fitted.best.step_seconds < whole.best.step_seconds
    assert sum(fitted.search.pruned.values()) + fitted.search.simulated == fitted.search.considered
    assert not violations(fitted.best, fitted.model, small_gpus, fitted.request)
    limit = memory_limit_bytes(small_gpus.device.memory_bytes, 0.05)
    seconds = {}
    for percent in range(1, 101):
        part = replace(fitted.best.layout, offload=replace(offload, optimizer_fraction=percent / 100))
        found = given_layout(part, fitted.model, small_gpus, fitted.request)
        if found.peak_memory_bytes <= limit:
            seconds[percent] = found.reevaluated_step_seconds
    assert min(seconds, key=lambda percent: seconds[percent]) == round(100 * offload.optimizer_fraction)
    assert fitted.best.step_seconds == pytest.approx(min(seconds.values()), rel=1e-9)


def test_the_ledgers_say_what_is_where(fitted: Plan) -> None:
    layout, hosted = fitted.best.layout, fitted.best.host_memory
    assert hosted is not None
    tensors = tensor_elements(fitted.model)
    share, fraction = -(-sum(tensors) // 4), layout.offloaded_fraction
    on_gpu = {line.term: line.num_bytes for line in fitted.best.memory}
    kept = on_gpu["fp32 gradients"]
    assert kept == pytest.approx(4 * share * (1.0 - fraction), abs=2)
    assert on_gpu["master weights"] == kept
    assert on_gpu["optimizer moments"] == pytest.approx(2 * kept, abs=2)
    held = {line.term: line.num_bytes for line in hosted.lines}
    dealt = planned_dealing(tensors, ranks=4, fraction=fraction)
    assert 4 * dealt.kept_elements <= kept
    away = held["offloaded master weights"] // 16
    assert held["offloaded moments"] == 32 * away
    assert dealt.elements - dealt.kept_elements <= away <= share
    assert held["page-locked gradients"] == 32 * min(share, away + 2 * largest_kept(tensors, ranks=4))


def test_files_say_a_part_and_are_read_back(fitted: Plan) -> None:
    files = launch_files(fitted)
    zero = json.loads(files[CONFIG_FILE])["zero_optimization"]
    fraction = fitted.best.layout.offloaded_fraction
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": True, "ratio": fraction}
    tensors = tensor_elements(fitted.model)
    assert zero["sub_group_size"] == planned_dealing(tensors, ranks=4, fraction=fraction).sub_group_size
    assert layout_of_files(files, script=LAUNCH_SCRIPT) == fitted.best.layout
    assert "no scheduler of learning rates is told of" in files[LAUNCH_SCRIPT]


def started(folder: Path, *, layout: Layout = LAYOUT, **changed: object) -> Layout:
    """Return the layout of emitted files, with keys of `zero_optimization` changed, for the model that they start."""
    files = dict(emit_deepspeed(deepspeed_plan(LLAMA_8B, layout)))
    config = json.loads(files[CONFIG_FILE])
    config["zero_optimization"].update(changed)
    files[CONFIG_FILE] = json.dumps(config)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return read_running(folder / LAUNCH_SCRIPT).laid_out(LLAMA_8B)


@pytest.mark.parametrize(("size", "fraction"), [(1_000_000_000, 1.0), (2_000_000_000, 1.0)])
def test_what_runs_is_priced_as_its_sub_groups_are_dealt(tmp_path: Path, size: int, fraction: float) -> None:
    assert started(tmp_path) == LAYOUT
    found = started(tmp_path, sub_group_size=size)
    assert found == replace(LAYOUT, offload=replace(HALF, optimizer_fraction=fraction))
    dealt = dealing(tensor_elements(LLAMA_8B), ranks=8, sub_group_size=30_000_000, ratio=0.5)
    assert started(tmp_path, sub_group_size=30_000_000).offloaded_fraction == dealt.hosted_fraction


def test_larger_sub_groups_on_the_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        started(tmp_path, sub_group_size=300_000_000)
    assert caught.value.message == (
        "sub_group_size is 300000000, with which ratio 0.5 keeps 2 of 4 sub-groups on the GPU; plans price smaller"
        " ones, and none of them on the GPU alone."
    )


def test_a_part_is_asked_for_by_name() -> None:
    cluster, model = load_preset("dgx-h100").to_cluster().with_nodes(1), load_bundled("llama-2-7b")
    half, both = (search(model, cluster, asked(parts=parts), top=1).best for parts in ((0.5,), (0.5, 1.0)))
    assert (half.layout.zero_stage, half.layout.offload) == (3, HALF)
    assert both.layout == half.layout
    weights = search(model, cluster, asked(parts=(0.5,), weights=True), top=1)
    assert weights.infeasible is not None
