"""Weights on drives: models that train only with them, their buffers and files, what passes take, files read back."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.emit.deepspeed import CONFIG_FILE, LAUNCH_SCRIPT, emit_deepspeed
from planner.errors import InputError, NotExpressibleError
from planner.evaluation.validate import violations
from planner.frameworks.capabilities import DEEPSPEED
from planner.inputs.contradictions import contradictions
from planner.inputs.running import inputs_of, read_running
from planner.layout import DRIVE_WEIGHTS, HOST_WEIGHTS, Layout, Offload
from planner.memory.host import drive_memory, host_memory
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.offloading.drive_step import DRIVE_SUB_GROUP_ELEMENTS, SubGroupSeconds, in_turn_seconds, pipelined_seconds
from planner.offloading.drive_weights import DriveWeights, drive_weights
from planner.offloading.states import driven_step, hosted_seconds, operations_of, parameter_copies, sharded_step
from planner.plans.layout_words import offload_in_words
from planner.plans.plan import Plan, Status
from planner.ranks.placement import PlacedModel, place
from planner.ranks.shard import Elements
from planner.readers.deepspeed import layout_of_files
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import DType, Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from planner.targets.launch import launch_files
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.ops import DriveCopy, HostCopy
from profiles.planned import cost_model_on
from tests.emitted.deepspeed_plans import FULL_RECOMPUTE, deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of
from tests.small_runs import with_drives

GIB = 1 << 30
WEIGHTS = Offload(optimizer_fraction=1.0, overlapped=False, parameters=True, parameter_drives=True)
"""Weights on drives, states on the hosts."""

BOTH = replace(WEIGHTS, drives=True)
LAYOUT = replace(layout_with((32,), dp=8, zero_stage=3, num_microbatches=8), offload=WEIGHTS)
WORKLOAD = TrainWorkload(
    seq_len=2048,
    global_batch_size=32,
    precision=Precision.BF16,
    gradient_dtype=DType.BF16,
    method=TrainMethod.FULL_FINETUNE,
)


def asked(target: Target = Target.DEEPSPEED, /, **constraints: bool | tuple[float, ...] | None) -> PlanRequest:
    return PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(**constraints),  # type: ignore[arg-type]
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )


def eight_gpus(host_gib: int) -> Cluster:
    """Return a node of 8 GPUs of 40 GB with four drives."""
    node = load_preset("dgx-a100-40").to_cluster().with_nodes(1)
    return replace(with_drives(node), host_memory_bytes=host_gib * GIB)


def placed(layout: Layout, model: ModelSpec = LLAMA_8B) -> PlacedModel:
    return place(model, build_graph(model, WORKLOAD, eager=DEEPSPEED.eager), layout, WORKLOAD, DEEPSPEED)


@pytest.fixture(scope="module")
def trained() -> Plan:
    """Return the plan of 70 billion parameters on 8 GPUs of 40 GB beside 512 GiB."""
    return search(load_bundled("llama-3.1-70b"), eight_gpus(512), asked(), top=2)


def test_70b_trains_beside_512_gib_with_weights_on_drives_and_not_without(trained: Plan) -> None:
    assert trained.status is Status.OPTIMAL
    assert "parameter_drives" in trained.search.dimensions
    assert sum(trained.search.pruned.values()) + trained.search.simulated == trained.search.considered
    assert [(planned.layout.dp, planned.layout.cp) for planned in trained.plans] == [(8, 1), (4, 2)]
    for planned in trained.plans:
        assert (planned.layout.offload, planned.layout.zero_stage) == (BOTH, 3)
        assert planned.step_seconds == pytest.approx(planned.reevaluated_step_seconds, rel=1e-9)
        assert not violations(planned, trained.model, trained.cluster, trained.request)
    without = search(trained.model, trained.cluster, asked(parameter_drives=False), top=1)
    assert without.status is Status.INFEASIBLE
    assert "parameter_drives" not in without.search.dimensions


def test_the_ledgers_by_hand(trained: Plan) -> None:
    best = trained.best
    assert best.host_memory is not None
    assert best.drive_memory is not None
    share = 70_553_706_496 // 8
    # Two norms, four products and five tensors more of each layer (two for queries, keys and values, one for the gate
    # are joined in planned ones), embedding, norm and head.
    tensors = 80 * (2 + 7) + 3
    on_drives = {line.term: line.num_bytes for line in best.drive_memory.lines}
    assert on_drives["weights on drives"] == 8 * (2 * share + 1024 * tensors)
    assert on_drives["states and gradients on drives"] == 8 * (16 * share + 4 * 1024 * 89)
    # Seven tensors of a layer, the head and two read ahead, each as large as an eighth of the embedding; and
    # the weights of a sub-group that a tensor overshoots.
    largest = 128_256 * 8_192 // 8
    held = {line.term: line.num_bytes for line in best.host_memory.lines}
    written = DRIVE_SUB_GROUP_ELEMENTS - 1 + largest
    assert held["buffers of weights on drives"] == 8 * (2 * (10 * largest + written) + 1024 * tensors)
    # An eighth of 161 norms; every other share is a MiB at least.
    assert held["weights below a block"] == 8 * 2 * 2 * 161 * 8_192 // 8
    assert not {"page-locked weights", "weights as they were built"} & set(held)
    terms = {line.term: line for line in best.memory}
    assert (terms["weights"].num_bytes, terms["weights"].source) == (0, "on drives")


def test_a_model_whose_weights_the_host_holds_keeps_them_there() -> None:
    model, cluster = load_bundled("llama-3.1-70b"), eight_gpus(1024)
    free, pinned = (search(model, cluster, asked(parameter_drives=kept), top=1) for kept in (None, False))
    assert free.best.layout.parameter_offload == HOST_WEIGHTS
    assert free.best == pinned.best


def test_weights_on_drives_are_asked_for_by_name() -> None:
    model, cluster = load_bundled("llama-3.1-8b"), with_drives(load_preset("dgx-h100").to_cluster().with_nodes(1))
    free, hosted, driven, both = (
        search(model, cluster, request, top=1).best
        for request in (
            asked(),
            asked(parameter_offload=True),
            asked(parameter_drives=True),
            asked(parameter_drives=True, drive_offload=True),
        )
    )
    assert free.layout.offload is None
    assert hosted.layout.parameter_offload == HOST_WEIGHTS
    assert driven.layout.offload == WEIGHTS
    assert both.layout.offload == replace(BOTH, overlapped=True)
    assert free.step_seconds < hosted.step_seconds < driven.step_seconds < both.step_seconds
    assert driven.drive_memory is not None
    assert [line.term for line in driven.drive_memory.lines] == ["weights on drives"]


def test_what_is_missing_is_said_of_host_memory(trained: Plan) -> None:
    little = search(trained.model, eight_gpus(384), asked()).infeasible
    assert little is not None
    said = "would fit with 100 % of optimizer states and the weights on drives, where a node would need 422.83 GiB of"
    assert said in little.binding
    assert little.binding.endswith(" its 384.00 GiB")


@pytest.mark.slow
def test_what_drives_lack_is_said_and_what_would_be_enough_is_offered(trained: Plan) -> None:
    full = search(trained.model, replace(trained.cluster, nvme_bytes=1 << 40), asked(parameter_drives=True)).infeasible
    assert full is not None
    assert full.binding.endswith("a node would need 1,182.76 GiB on drives of its 1,024.00 GiB")
    kept = search(trained.model, trained.cluster, asked(parameter_drives=False)).infeasible
    assert kept is not None
    assert "constraints.parameter_drives" in [change.path for change in kept.relaxations]


def test_the_plan_and_the_files_are_read_back(trained: Plan) -> None:
    assert layout_of_files(launch_files(trained), script=LAUNCH_SCRIPT) == trained.best.layout
    assert plan_from_document(parse_document(plan_to_text(trained), file="plan.json")) == trained


@pytest.mark.parametrize(
    ("offload", "note"),
    [(WEIGHTS, "# Weights on drives: nvme_path"), (BOTH, "# Optimizer and weights on drives: nvme_path")],
)
def test_the_keys(offload: Offload, note: str) -> None:
    layout = replace(LAYOUT, offload=offload)
    files = emit_deepspeed(deepspeed_plan(LLAMA_8B, layout))
    zero = json.loads(files[CONFIG_FILE])["zero_optimization"]
    assert zero["offload_param"] == {
        "device": "nvme",
        "nvme_path": "/local_nvme",
        "pin_memory": True,
        "buffer_count": 10,
        "buffer_size": 128_256 * 4_096 // 8,
        "max_in_cpu": 0,
    }
    layer = 2 * 4_096 + 4_096 * (6_144 + 4_096) + 3 * 4_096 * 14_336
    assert zero["stage3_max_reuse_distance"] == 2 * layer
    assert zero["sub_group_size"] == DRIVE_SUB_GROUP_ELEMENTS
    assert json.loads(files[CONFIG_FILE])["aio"]["block_size"] == 1 << 20
    assert layout_of_files(files, script=LAUNCH_SCRIPT) == layout
    assert note in files[LAUNCH_SCRIPT]


def test_shares_that_are_too_small_stay_in_memory() -> None:
    """Of 512 ranks none has a MiB but of embedding and head; of 64 those of queries, keys, values and outputs are less.

    Which part of a planned tensor is a tensor of the program is not known: what may stay is counted.
    """
    found: Mapping[int, DriveWeights] = {
        dp: drive_weights(placed(replace(LAYOUT, dp=dp, num_microbatches=1))) for dp in (8, 64, 512)
    }
    norms = 65 * 4_096
    assert [weights.num_buffers for weights in found.values()] == [10, 8, 6]
    keys, rest = 2 * 32 * 4_096 * 1_024, 32 * (2 * 4_096**2 + 3 * 4_096 * 14_336)
    assert found[8].kept_bytes >= 2 * norms // 8
    assert found[64].kept_bytes >= 2 * (norms + keys + 32 * 2 * 4_096**2) // 64
    assert found[512].kept_bytes == 2 * (norms + keys + rest) // 512


def test_a_tied_head_needs_a_buffer_and_no_file() -> None:
    model = load_bundled("llama-3.2-1b")
    assert model.tie_word_embeddings
    tied, apart = (
        drive_weights(placed(replace(layout_with((16,), dp=2, zero_stage=3), offload=WEIGHTS), one))
        for one in (model, replace(model, tie_word_embeddings=False))
    )
    assert tied.num_buffers == apart.num_buffers
    assert apart.file_bytes - tied.file_bytes == 2 * 128_256 * 2_048 // 2 + 1024


def test_passes_read_and_copy_one_after_the_other() -> None:
    everything = Elements(dense=799)
    assert parameter_copies(everything, LAYOUT, WORKLOAD) == (
        DriveCopy(num_bytes=200, written=False),
        HostCopy(num_bytes=200, pinned=False),
    )


@pytest.mark.parametrize("drives", [0, 1, 2])
def test_a_step_writes_the_weights_beside_the_states(drives: int) -> None:
    updated = 2 * DRIVE_SUB_GROUP_ELEMENTS + 12_345
    price = cost_model_on(eight_gpus(1024)).compute
    hosted, driven = (
        driven_step(updated=updated, workload=WORKLOAD, drive_offload=drives, parameters=place)
        for place in (HOST_WEIGHTS, DRIVE_WEIGHTS)
    )
    (gpu, before), (same, after) = hosted_seconds(hosted, price), hosted_seconds(driven, price)
    assert gpu == same
    # 2 GB a second are shared by 8 ranks; nothing hides what the process waits for.
    written = 2 * updated / (2e9 / 8)
    assert after >= before
    if drives < 2:
        assert after == pytest.approx(before + written, rel=1e-9)
    else:
        assert after == pytest.approx(before + written, rel=0.2)
    _, moved = operations_of(sharded_step(updated=updated, workload=WORKLOAD, parameters=DRIVE_WEIGHTS))
    assert DriveCopy(num_bytes=2 * updated, written=True) in moved


@pytest.mark.parametrize(
    ("times", "in_turn", "pipelined"),
    [
        ([(3.0, 5.0, 2.0, 1.0)], 11.0, 11.0),
        # Reads end at 3 and 6, updates at 8; weights at 9; the write at 11; updates at 14, weights at 15, the write 17.
        ([(3.0, 5.0, 2.0, 1.0)] * 2, 22.0, 17.0),
        # The first weights wait for the second read, until 14; the second ones for the first write, until 20.
        ([(6.0, 1.0, 4.0, 2.0)] * 2, 26.0, 24.0),
    ],
)
def test_weights_of_sub_groups_by_hand(
    times: list[tuple[float, float, float, float]], in_turn: float, pipelined: float
) -> None:
    groups = [
        SubGroupSeconds(read=read, update=update, write=write, weights=weights)
        for read, update, write, weights in times
    ]
    assert in_turn_seconds(groups) == in_turn
    assert pipelined_seconds(groups) == pipelined


def test_words() -> None:
    assert offload_in_words(WEIGHTS) == (
        "100 % of optimizer states to the host and the weights to the drives, copied and updated in turn"
    )
    assert offload_in_words(BOTH) == (
        "100 % of optimizer states and the weights to the drives, read, updated and written in turn"
    )


def test_weights_on_drives_are_not_on_the_gpus() -> None:
    with pytest.raises(ValueError, match="parameter_drives without parameters"):
        Offload(optimizer_fraction=1.0, parameter_drives=True)


def test_a_second_copy_is_refused() -> None:
    layout = replace(layout_with((32,), dp=8, zero_stage=3, secondary_shard=4), offload=WEIGHTS)
    with pytest.raises(NotExpressibleError, match="weights on drives with a second copy"):
        emit_deepspeed(deepspeed_plan(LLAMA_8B, layout))


@pytest.mark.parametrize(
    ("layout", "messages"),
    [
        (LAYOUT, []),
        (replace(LAYOUT, zero_stage=1), ["weights on drives with zero_stage 1"]),
        (
            replace(layout_with((16, 16), dp=4, zero_stage=3, num_microbatches=16), offload=WEIGHTS),
            ["weights on drives with a pipeline"],
        ),
        (replace(LAYOUT, secondary_shard=4), ["weights on drives with a second copy of them"]),
    ],
)
def test_the_checker_refuses(trained: Plan, layout: Layout, messages: list[str]) -> None:
    entry = replace(trained.best, layout=layout)
    found = violations(entry, LLAMA_8B, with_drives(cluster_of(1, 8)), asked(Target.ANY))
    assert [violation.message for violation in found if violation.rule == "offload"] == messages


def test_the_checker_holds_weights_against_their_ledger_the_target_and_what_is_asked(trained: Plan) -> None:
    def messages(request: PlanRequest = trained.request, **changes: object) -> list[str]:
        entry = replace(trained.best, **changes)  # type: ignore[arg-type]
        return [found.message for found in violations(entry, trained.model, trained.cluster, request)]

    assert messages() == []
    assert messages(drive_memory=None) == ["the ledger of the drives and the layout's offload do not agree"]
    assert messages(asked(parameter_drives=False)) == ["parameter_drives must be False"]
    assert messages(asked(parameter_offload=True)) == ["parameter_offload must be True"]
    assert messages(asked(parameter_offload=False)) == ["parameter_offload must be False"]
    megatron = messages(replace(trained.request, target=Target.MEGATRON))
    assert "Megatron-LM (megatron-core 0.19.2) has no weights on drives" in megatron


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, None),
        ({"buffer_count": 5}, "buffer_count is 5 where plans price 10."),
        ({"buffer_count": None}, "buffer_count is 5 where plans price 10."),
        ({"buffer_size": 1000}, "buffer_size is 1000 where plans price 65667072."),
        ({"stage3_max_reuse_distance": 0}, "stage3_max_reuse_distance is 0 where plans price 436224000."),
    ],
)
def test_other_buffers_are_refused_where_the_model_is_known(
    tmp_path: Path, keys: Mapping[str, int | None], message: str | None
) -> None:
    files = dict(emit_deepspeed(deepspeed_plan(LLAMA_8B, LAYOUT)))
    config = json.loads(files[CONFIG_FILE])
    zero = config["zero_optimization"]
    for name, value in keys.items():
        section = zero if name.startswith("stage3") else zero["offload_param"]
        if value is None:
            del section[name]
        else:
            section[name] = value
    files[CONFIG_FILE] = json.dumps(config)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    script = tmp_path / LAUNCH_SCRIPT
    running = read_running(script)
    assert running.layout == LAYOUT
    if message is None:
        assert inputs_of(running, script=script, cluster="dgx-h100", spec=None).model.runs == LLAMA_8B.runs
        return
    with pytest.raises(InputError) as caught:
        inputs_of(running, script=script, cluster="dgx-h100", spec=None)
    assert caught.value.message == message


def test_what_is_asked_for_must_be_known_and_in_one_place() -> None:
    document = parse_document("constraints: {parameter_drives: true}\n", file="spec.yaml")

    def found(cluster: Cluster, **constraints: bool | tuple[float, ...]) -> list[str]:
        return [
            error.message
            for error in contradictions(LLAMA_8B, cluster, asked(Target.DEEPSPEED, **constraints), document)
        ]

    unknown = load_preset("dgx-h100").to_cluster().with_nodes(1)
    assert found(with_drives(unknown), parameter_drives=True) == []
    assert found(unknown, parameter_drives=True) == [
        (
            "`parameter_drives` asks for weights on drives, and nothing says what the drives of a node hold, or how"
            " fast they are."
        )
    ]
    assert found(with_drives(unknown), parameter_drives=True, parameter_offload=False) == [
        "`parameter_drives` asks for weights on drives, and `parameter_offload` wants them on the GPUs."
    ]
    assert found(with_drives(unknown), parameter_drives=True, optimizer_offload=(0.5,)) == [
        "`parameter_drives` asks for weights on drives, and `optimizer_offload` forbids all states there."
    ]


def test_ledgers_of_a_node_are_its_ranks() -> None:
    model, cluster = placed(LAYOUT), with_drives(cluster_of(1, 8))
    of_rank = drive_weights(model)
    drives, host = drive_memory(model, cluster), host_memory(model, cluster)
    assert drives is not None
    assert host is not None
    assert drives.num_bytes == 8 * of_rank.file_bytes
    assert {line.term: line.num_bytes for line in host.lines}[
        "buffers of weights on drives"
    ] == 8 * of_rank.buffer_bytes
    recomputed = drive_weights(placed(replace(LAYOUT, recompute=FULL_RECOMPUTE)))
    assert recomputed == of_rank
