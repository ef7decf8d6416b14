"""States on drives: a model that trains only with them, what both ways take, the files, and each refusal."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.documents import parse_document
from planner.emit.deepspeed import CONFIG_FILE, LAUNCH_SCRIPT, emit_deepspeed
from planner.emit.megatron_offload import require_offload
from planner.errors import NotExpressibleError
from planner.evaluation.validate import violations
from planner.inputs.contradictions import contradictions
from planner.layout import Layout, Offload
from planner.models.bundled import load_bundled
from planner.offloading.drive_step import (
    DRIVE_SUB_GROUP_ELEMENTS,
    SubGroupSeconds,
    file_bytes,
    in_turn_seconds,
    pipelined_seconds,
    unwritten_elements,
)
from planner.offloading.states import driven_step, hosted_seconds, operations_of, sharded_step
from planner.plans.layout_words import offload_in_words
from planner.plans.plan import Plan, Status
from planner.readers.deepspeed import layout_of_files
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import DType, Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from planner.targets.launch import launch_files
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.ops import DriveCopy
from profiles.planned import cost_model_on
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of
from tests.small_runs import with_drives

GIB = 1 << 30
IN_TURN = Offload(optimizer_fraction=1.0, overlapped=False, drives=True)
PIPELINED = replace(IN_TURN, overlapped=True)
WAYS = {"in turn": IN_TURN, "pipelined": PIPELINED}
LAYOUT = layout_with((32,), dp=8, zero_stage=3, num_microbatches=8)
WORKLOAD = TrainWorkload(
    seq_len=2048,
    global_batch_size=32,
    precision=Precision.BF16,
    gradient_dtype=DType.BF16,
    method=TrainMethod.FULL_FINETUNE,
)


def asked(**constraints: bool | tuple[float, ...] | None) -> PlanRequest:
    return PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(**constraints),  # type: ignore[arg-type]
        memory_headroom=0.05,
        target=Target.DEEPSPEED,
        objective=Objective.STEP_TIME,
    )


def eight_gpus(host_gib: int) -> Cluster:
    """Return a node of 8 GPUs of 40 GB with four drives."""
    node = load_preset("dgx-a100-40").to_cluster().with_nodes(1)
    return replace(with_drives(node), host_memory_bytes=host_gib * GIB)


@pytest.fixture(scope="module")
def trained() -> Plan:
    """Return the plan of 70 billion parameters on 8 GPUs of 40 GB."""
    return search(load_bundled("llama-3.1-70b"), eight_gpus(1024), asked(), top=2)


def test_70b_trains_on_eight_small_gpus_with_drives_and_not_without(trained: Plan) -> None:
    assert trained.status is Status.OPTIMAL
    assert "drive_offload" in trained.search.dimensions
    assert sum(trained.search.pruned.values()) + trained.search.simulated == trained.search.considered
    for planned in trained.plans:
        assert planned.layout.offload is not None
        assert planned.layout.offload.drives
        assert not violations(planned, trained.model, trained.cluster, trained.request)
    best = trained.best
    assert (best.layout.dp, best.layout.zero_stage, best.layout.parameters_offloaded) == (8, 3, True)
    assert best.drive_memory is not None
    assert best.host_memory is not None
    assert best.host_memory.num_bytes <= best.host_memory.limit_bytes
    # 70.55 billion elements of 16 bytes, and a KiB for each of 4 files of 89 sub-groups of 8 ranks.
    share = -(-70_553_706_496 // 8)
    assert best.drive_memory.num_bytes == 8 * (16 * share + 4 * 1024 * 89)
    without = search(trained.model, trained.cluster, asked(drive_offload=False), top=1)
    assert without.status is Status.INFEASIBLE
    assert "drive_offload" not in without.search.dimensions


def test_what_is_missing_is_said_of_host_memory(trained: Plan) -> None:
    little = search(trained.model, eight_gpus(768), asked(parameter_drives=False)).infeasible
    assert little is not None
    said = "would fit with 100 % of optimizer states on drives and the weights on the host, where a node would need"
    assert said in little.binding
    assert little.binding.endswith(" GiB of its 768.00 GiB")
    assert any(change.path == "cluster.host_ram" for change in little.relaxations)


@pytest.mark.slow
def test_what_drives_lack_is_said(trained: Plan) -> None:
    full = search(trained.model, replace(trained.cluster, nvme_bytes=1 << 40), asked(parameter_drives=False)).infeasible
    assert full is not None
    assert full.binding.endswith(" on drives of its 1,024.00 GiB")


@pytest.mark.parametrize(("num_bytes", "rate"), [(None, 6e9), (1 << 43, None)])
def test_drives_of_which_nothing_is_known_are_not_considered(
    trained: Plan, num_bytes: int | None, rate: float | None
) -> None:
    cluster = replace(trained.cluster, nvme_bytes=num_bytes, nvme_bytes_per_second=rate)
    plan = search(trained.model, cluster, asked())
    assert plan.status is Status.INFEASIBLE
    assert "drive_offload" not in plan.search.dimensions


def test_drives_are_asked_for_by_name_where_all_fits_on_the_gpus() -> None:
    model, cluster = load_bundled("llama-3.1-8b"), with_drives(load_preset("dgx-h100").to_cluster().with_nodes(1))
    free, driven, hosted = (
        search(model, cluster, request, top=1).best
        for request in (asked(), asked(drive_offload=True), asked(optimizer_offload=(1.0,)))
    )
    assert free.layout.offload is None
    assert hosted.layout.drive_offload == 0
    assert driven.layout.offload == PIPELINED
    assert free.step_seconds < hosted.step_seconds < driven.step_seconds
    assert driven.step_seconds == pytest.approx(driven.reevaluated_step_seconds, rel=1e-9)


def test_the_plan_and_the_files_are_read_back(trained: Plan) -> None:
    assert layout_of_files(launch_files(trained), script=LAUNCH_SCRIPT) == trained.best.layout
    assert plan_from_document(parse_document(plan_to_text(trained), file="plan.json")) == trained


@pytest.mark.parametrize(("way", "buffers"), [("in turn", 4), ("pipelined", 12)])
def test_both_ways_are_written_and_read(way: str, buffers: int) -> None:
    layout = replace(LAYOUT, offload=WAYS[way])
    files = emit_deepspeed(deepspeed_plan(LLAMA_8B, layout))
    config = json.loads(files[CONFIG_FILE])
    assert config["zero_optimization"]["offload_optimizer"] == {
        "device": "nvme",
        "nvme_path": "/local_nvme",
        "pin_memory": True,
        "ratio": 1.0,
        "buffer_count": buffers,
        "pipeline_read": way == "pipelined",
        "pipeline_write": way == "pipelined",
    }
    assert config["zero_optimization"]["sub_group_size"] == DRIVE_SUB_GROUP_ELEMENTS
    assert config["aio"]["block_size"] == 1 << 20
    assert layout_of_files(files, script=LAUNCH_SCRIPT) == layout
    assert "# Optimizer on drives: nvme_path" in files[LAUNCH_SCRIPT]


def test_words() -> None:
    assert offload_in_words(PIPELINED) == (
        "100 % of optimizer states to the drives, read ahead and written behind updates"
    )
    assert offload_in_words(replace(IN_TURN, parameters=True)) == (
        "100 % of optimizer states to the drives and the weights to the host, read, updated and written in turn"
    )


def groups_of(*times: tuple[float, float, float]) -> list[SubGroupSeconds]:
    return [SubGroupSeconds(read=read, update=update, write=write) for read, update, write in times]


@pytest.mark.parametrize(
    ("times", "in_turn", "pipelined"),
    [
        ([], 0.0, 0.0),
        ([(3.0, 5.0, 2.0)], 10.0, 10.0),
        # Reads end at 3, 6 and 13 behind the first write; updates at 8, 13 and 18; writes at 10, 15 and 20.
        ([(3.0, 5.0, 2.0)] * 3, 30.0, 20.0),
        # The drives never rest.
        ([(6.0, 1.0, 4.0)] * 3, 33.0, 30.0),
        ([(1.0, 9.0, 1.0), (4.0, 2.0, 8.0)], 25.0, 20.0),
    ],
)
def test_sub_groups_by_hand(times: list[tuple[float, float, float]], in_turn: float, pipelined: float) -> None:
    assert in_turn_seconds(groups_of(*times)) == in_turn
    assert pipelined_seconds(groups_of(*times)) == pipelined


DURATIONS = st.tuples(*[st.integers(0, 9).map(float)] * 3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(times=st.lists(DURATIONS, min_size=1, max_size=8), more=DURATIONS)
def test_pipelined_sub_groups_are_no_slower_and_bound_by_drives_and_by_updates(
    times: list[tuple[float, float, float]], more: tuple[float, float, float]
) -> None:
    found = pipelined_seconds(groups_of(*times))
    reads, updates, writes = zip(*times, strict=True)
    assert found <= in_turn_seconds(groups_of(*times))
    assert found >= sum(reads) + sum(writes)
    assert found >= reads[0] + sum(updates) + writes[-1]
    assert pipelined_seconds(groups_of(*times, more)) >= found
    read, update, write = times[-1]
    assert pipelined_seconds(groups_of(*times[:-1], (read + 1.0, update + 1.0, write + 1.0))) >= found


@pytest.mark.parametrize(("drives", "way"), [(1, "in turn"), (2, "pipelined")])
def test_a_step_moves_every_byte_once(drives: int, way: str) -> None:
    updated = 2 * DRIVE_SUB_GROUP_ELEMENTS + 12_345
    price = cost_model_on(eight_gpus(1024)).compute
    step = driven_step(updated=updated, workload=WORKLOAD, drive_offload=drives)
    hosted = sharded_step(updated=updated, workload=WORKLOAD)
    gpu, waited = hosted_seconds(step, price)
    before, others = operations_of(step)
    assert gpu == sum(price(operation).seconds for operation in before)
    rates = {True: 2e9 / 8, False: 6e9 / 8}
    written, read = 4 * updated, 16 * updated
    io_seconds = (written + 12 * updated) / rates[True] + read / rates[False]
    assert waited >= io_seconds
    assert sum(isinstance(operation, DriveCopy) for operation in others) == 5
    in_turn = io_seconds + sum(
        price(operation).seconds
        for operation in (
            replace(hosted.gradients, pinned=False),
            hosted.update,
            hosted.parameters,
        )
    )
    if way == "in turn":
        assert waited == pytest.approx(in_turn, rel=1e-9)
    else:
        assert waited < in_turn
    assert hosted_seconds(hosted, price)[1] < waited


def test_gradients_that_are_too_small_or_uneven_stay() -> None:
    least = (1 << 20) // 4
    assert unwritten_elements(least - 256, least_part=0.5) == least - 256
    assert unwritten_elements(100 * least, least_part=0.1) == 0
    assert unwritten_elements(100 * least + 1, least_part=0.1) == 100 * least + 1
    assert unwritten_elements(9 * least, least_part=0.1) == pytest.approx(1.8 * least, abs=1)
    assert file_bytes(1) == 16 + 4 * 1024


@pytest.mark.parametrize(
    ("layout", "target", "messages"),
    [
        (LAYOUT, Target.DEEPSPEED, []),
        (
            replace(LAYOUT, zero_stage=1),
            Target.ANY,
            ["states on drives with zero_stage 1"],
        ),
        (
            layout_with((16, 16), dp=4, zero_stage=3, num_microbatches=16),
            Target.ANY,
            ["states on drives with a pipeline"],
        ),
    ],
)
def test_the_checker_refuses(trained: Plan, layout: Layout, target: Target, messages: list[str]) -> None:
    request = replace(asked(), target=target)
    entry = replace(trained.best, layout=replace(layout, offload=PIPELINED))
    found = violations(entry, LLAMA_8B, with_drives(cluster_of(1, 8)), request)
    assert [violation.message for violation in found if violation.rule == "offload"] == messages


def test_the_checker_holds_drives_against_their_ledger_the_target_and_what_is_asked(trained: Plan) -> None:
    def messages(request: PlanRequest = trained.request, **changes: object) -> list[str]:
        entry = replace(trained.best, **changes)  # type: ignore[arg-type]
        return [found.message for found in violations(entry, trained.model, trained.cluster, request)]

    ledger = trained.best.drive_memory
    assert ledger is not None
    assert messages(drive_memory=replace(ledger, limit_bytes=ledger.num_bytes)) == []
    over = replace(ledger, limit_bytes=ledger.num_bytes - 1)
    assert messages(drive_memory=over) == [
        f"{ledger.num_bytes} bytes needed on a node's drives, {ledger.num_bytes - 1} are there"
    ]
    assert messages(drive_memory=None) == ["the ledger of the drives and the layout's offload do not agree"]
    assert messages(asked(drive_offload=False)) == ["drive_offload must be False"]
    megatron = messages(replace(trained.request, target=Target.MEGATRON))
    assert "Megatron-LM (megatron-core 0.19.2) has no states on drives" in megatron


def test_megatron_has_no_word_for_it() -> None:
    layout = replace(LAYOUT, zero_stage=1, offload=replace(IN_TURN, optimizer_fraction=0.5))
    with pytest.raises(NotExpressibleError, match="optimizer states on drives"):
        require_offload(layout, WORKLOAD)


def test_drives_that_are_asked_for_must_be_known() -> None:
    document = parse_document("constraints: {drive_offload: true}\n", file="spec.yaml")

    def found(cluster: Cluster, **constraints: bool | tuple[float, ...]) -> list[str]:
        request = asked(**constraints)
        return [error.message for error in contradictions(LLAMA_8B, cluster, request, document)]

    unknown = load_preset("dgx-h100").to_cluster().with_nodes(1)
    assert found(with_drives(unknown), drive_offload=True) == []
    assert found(unknown, drive_offload=False) == []
    assert found(unknown, drive_offload=True) == [
        (
            "`drive_offload` asks for states on drives, and nothing says what the drives of a node hold, or how fast"
            " they are."
        )
    ]
    assert found(with_drives(unknown), drive_offload=True, optimizer_offload=(0.0, 0.5)) == [
        "`drive_offload` asks for states on drives, and `optimizer_offload` forbids all states there."
    ]
