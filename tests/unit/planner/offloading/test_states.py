"""Optimizer states on the host: a model that fits only with them, what is asked for by name, and each refusal."""

from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.emit.deepspeed import LAUNCH_SCRIPT as DEEPSPEED_SCRIPT
from planner.emit.deepspeed import emit_deepspeed
from planner.emit.megatron import LAUNCH_SCRIPT, emit_megatron
from planner.errors import InputError, NotExpressibleError
from planner.evaluation.validate import violations
from planner.layout import Layout, Offload
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.parameter_counts import graph_parameters
from planner.offloading.states import gradient_copies, hosted_seconds, hosted_step, sharded_step
from planner.plans.plan import Plan, Status
from planner.ranks.shard import Elements
from planner.readers.deepspeed import layout_of_files
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import DType, Lora, Optimizer, Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from planner.search.visit import BEYOND_HOST
from planner.targets.launch import launch_files
from profiles.catalogue import load_preset
from profiles.estimate import Estimate, Source
from profiles.hardware import Cluster
from profiles.ops import ComputeOp, HostCopy
from tests.builders import tiny_dense_model
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of
from tests.unequal_clusters import unequal_cluster

WORKLOAD = TrainWorkload(seq_len=4096, global_batch_size=64, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE)
HALF = Offload(optimizer_fraction=0.5)
WHOLE = Offload(optimizer_fraction=1.0, overlapped=False)
LAYOUT = replace(layout_of_degrees(layers=(32,), tp=2, dp=4, num_microbatches=16), offload=HALF)


def asked(
    *, parts: tuple[float, ...] | None = None, target: Target = Target.MEGATRON, weights: bool | None = None
) -> PlanRequest:
    return PlanRequest(
        workload=WORKLOAD,
        constraints=Constraints(optimizer_offload=parts, parameter_offload=weights),
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )


@pytest.fixture(scope="module")
def four_l40s() -> Cluster:
    return load_preset("l40s-pcie-4").to_cluster().with_nodes(1)


@pytest.fixture(scope="module")
def fitted(four_l40s: Cluster) -> Plan:
    """Return the plan of 13 billion parameters on four GPUs of 48 GB: 16 bytes each are 52 GB a GPU."""
    return search(load_bundled("llama-2-13b"), four_l40s, asked())


def test_a_model_fits_with_states_on_the_host_that_did_not_without(fitted: Plan, four_l40s: Cluster) -> None:
    without = search(fitted.model, four_l40s, asked(parts=(0.0,)), top=1)
    assert without.status is Status.INFEASIBLE
    assert fitted.status is Status.OPTIMAL
    assert "optimizer_offload" in fitted.search.dimensions
    assert "optimizer_offload" not in without.search.dimensions
    for planned in fitted.plans:
        assert planned.layout.offload is not None
        assert planned.host_memory is not None
        assert planned.host_memory.num_bytes <= four_l40s.host_memory_bytes
        assert not violations(planned, fitted.model, fitted.cluster, fitted.request)
    assert any(line.term == "optimizer states on the host" for line in fitted.best.time)
    assert any(text.startswith("host memory, processes: assumption: 8 GiB") for text in fitted.best.assumptions)


def test_the_files_and_the_plan_say_it_and_are_read_back(fitted: Plan) -> None:
    for text in launch_files(fitted).values():
        assert layout_of(read_megatron(text, file="launch.sh")) == fitted.best.layout
    assert plan_from_document(parse_document(plan_to_text(fitted), file="plan.json")) == fitted


def test_a_plan_is_not_read_with_a_ledger_that_its_layout_does_not_have(fitted: Plan) -> None:
    bare = replace(fitted.best, host_memory=None)
    found = violations(bare, fitted.model, fitted.cluster, fitted.request)
    assert [(entry.rule, entry.message) for entry in found] == [
        ("host-memory", "the ledger of the host and the layout's offload do not agree")
    ]


def test_nodes_with_too_little_memory_are_named(four_l40s: Cluster) -> None:
    small = replace(four_l40s, host_memory_bytes=128 << 30)
    model = load_bundled("llama-2-13b")
    plan = search(model, small, asked())
    assert plan.status is Status.INFEASIBLE
    assert plan.infeasible is not None
    assert "% of optimizer states on the host, where a node would need " in plan.infeasible.binding
    assert plan.infeasible.binding.endswith(" GiB of its 128.00 GiB")
    assert plan.search.pruned[BEYOND_HOST] > 0
    large = search(model, four_l40s, asked(), top=1).best
    hosted = large.host_memory
    assert hosted is not None
    full = replace(large, host_memory=replace(hosted, limit_bytes=hosted.num_bytes))
    over = replace(large, host_memory=replace(hosted, limit_bytes=hosted.num_bytes - 1))
    assert not violations(full, model, four_l40s, asked())
    assert [entry.message for entry in violations(over, model, four_l40s, asked())] == [
        f"{hosted.num_bytes} bytes needed on a node, {hosted.num_bytes - 1} are there"
    ]


@pytest.mark.parametrize(
    ("gpu_bytes", "host_bytes", "binding"),
    [
        (
            48 << 30,
            64 << 30,
            "host memory: tp 4, pp 1, dp 1 would fit with 100 % of optimizer states on the host, where",
        ),
        (8 << 30, 512 << 30, "GPU memory: the layout that needs least, "),
        (8 << 30, 64 << 30, "GPU memory: the layout that needs least, "),
    ],
)
def test_states_that_are_pinned_to_the_hosts_name_what_is_too_small(
    four_l40s: Cluster, gpu_bytes: int, host_bytes: int, binding: str
) -> None:
    device = replace(four_l40s.device, memory_bytes=gpu_bytes)
    small = replace(four_l40s, device=device, host_memory_bytes=host_bytes)
    plan = search(load_bundled("llama-2-13b"), small, asked(parts=(1.0,)))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.startswith(binding)
    assert plan.infeasible.shortfall_bytes > 0


def test_what_is_asked_for_by_name_is_searched_beside_the_rest() -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    model = load_bundled("llama-2-7b")
    free, joint = (search(model, cluster, asked(parts=parts)) for parts in (None, (0.0, 0.5)))
    pinned = search(model, cluster, asked(parts=(0.5,)))
    assert free.best.layout == joint.best.layout
    assert free.best.layout.offload is None
    assert pinned.best.layout.offload == HALF
    assert pinned.best.step_seconds > free.best.step_seconds
    for plan in (free, joint, pinned):
        counted = sum(plan.search.pruned.values()) + plan.search.simulated
        assert counted == plan.search.considered


def test_nodes_that_differ_have_no_such_layout() -> None:
    plan = search(tiny_dense_model(), unequal_cluster(2, older=(1,)), asked(parts=(1.0,)))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("(megatron-core 0.19.2): plans put no optimizer states on the host")
    assert search(tiny_dense_model(), unequal_cluster(2, older=(1,)), asked(parts=(0.0,))).plans


def test_deepspeed_fits_a_model_with_all_states_on_the_host_and_reads_its_files_back(four_l40s: Cluster) -> None:
    model = load_bundled("llama-2-13b")
    without = search(model, four_l40s, asked(parts=(0.0,), target=Target.DEEPSPEED), top=1)
    assert without.status is Status.INFEASIBLE
    plan = search(model, four_l40s, asked(parts=(1.0,), target=Target.DEEPSPEED, weights=False), top=1)
    assert plan.status is Status.OPTIMAL
    free = search(model, four_l40s, asked(target=Target.DEEPSPEED, weights=False), top=1).best
    assert free.layout.offloaded_fraction < 1.0
    assert free.step_seconds < plan.best.step_seconds
    layout = plan.best.layout
    assert (layout.zero_stage, layout.offload) == (3, WHOLE)
    assert sum(plan.search.pruned.values()) + plan.search.simulated == plan.search.considered
    files = launch_files(plan)
    assert layout_of_files(files, script=DEEPSPEED_SCRIPT) == layout
    assert 'export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc --all) / 4))}"' in files[DEEPSPEED_SCRIPT]
    hosted = plan.best.host_memory
    assert hosted is not None
    share = -(-graph_parameters(model, build_graph(model, WORKLOAD, eager=True)) // 4)
    held = {line.term: line.num_bytes for line in hosted.lines}
    # fp32 weights, two moments, gradients in page-locked memory twice, and once more in one buffer of a power of two.
    assert held["offloaded master weights"] == 4 * 4 * share
    assert held["offloaded moments"] == 4 * 8 * share
    assert held["page-locked gradients"] == 4 * 2 * 4 * share
    assert held["accumulated gradients"] == 4 * (1 << (4 * share - 1).bit_length())
    assert not any(line.num_bytes for line in plan.best.memory if line.term in {"gradients", "master weights"})


def test_bytes_of_a_step_with_sharded_weights() -> None:
    step = sharded_step(updated=100, workload=replace(WORKLOAD, gradient_dtype=DType.BF16))
    assert step.before.num_bytes == 100 * (2 + 2 + 4)
    assert (step.gradients.num_bytes, step.gradients.pinned) == (400, True)
    assert step.update.num_bytes == 100 * (8 + 28 + 6)
    assert (step.parameters.num_bytes, step.parameters.pinned) == (200, False)
    trainable = Elements(dense=799)
    layout = replace(layout_of_degrees(layers=(32,), dp=8, num_microbatches=8, zero_stage=3), offload=WHOLE)
    assert gradient_copies(trainable, layout, WORKLOAD) == (HostCopy(num_bytes=2 * 100 * 4, pinned=True),)
    assert gradient_copies(trainable, LAYOUT, WORKLOAD) == ()
    assert gradient_copies(trainable, replace(layout, offload=None), WORKLOAD) == ()


@pytest.mark.parametrize(
    ("zero_stage", "offload", "message"),
    [
        (
            2,
            Offload(optimizer_fraction=1.0, overlapped=False),
            (
                "optimizer states on the host with zero_stage 2, where gradients stay on the GPU until the last"
                " micro-batch; plans do not price it."
            ),
        ),
        (
            3,
            Offload(optimizer_fraction=0.25, overlapped=False, parameters=True),
            (
                "0.25 of the optimizer states away from the GPU, with the weights away too or states on drives, which"
                " plans do not price."
            ),
        ),
        (
            3,
            Offload(optimizer_fraction=1.0),
            "optimizer states on the host with copies beside updates, which DeepSpeed does one after the other.",
        ),
    ],
)
def test_what_plans_for_deepspeed_do_not_put_on_the_host(zero_stage: int, offload: Offload, message: str) -> None:
    layout = replace(layout_with((32,), dp=8, zero_stage=zero_stage), offload=offload)
    with pytest.raises(NotExpressibleError) as caught:
        emit_deepspeed(deepspeed_plan(LLAMA_8B, layout))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("overlapped", "gradient_dtype", "expected"),
    [
        # On the GPU 1 s of norm and 2 s of update. Beside them 4 s down, or 8 s of update and 16 s up.
        (True, DType.FP32, (3.0, 22.0)),
        (False, DType.FP32, (3.0, 26.0)),
        # Cast on the host (8 s), which nothing runs beside.
        (True, DType.BF16, (3.0, 34.0)),
    ],
)
def test_what_waits_for_the_host(*, overlapped: bool, gradient_dtype: DType, expected: tuple[float, float]) -> None:
    workload = replace(WORKLOAD, gradient_dtype=gradient_dtype)
    offload = Offload(optimizer_fraction=0.5, overlapped=overlapped)
    step = hosted_step(updated=100, whole=200, offload=offload, workload=workload)
    seconds = {
        id(part): value
        for part, value in (
            (step.before, 1.0),
            (step.kept, 2.0),
            (step.gradients, 4.0),
            (step.cast, 8.0),
            (step.update, 8.0),
            (step.parameters, 16.0),
        )
    }

    def price(operation: ComputeOp) -> Estimate:
        return Estimate(seconds=seconds[id(operation)], source=Source.ANALYTIC, note="")

    assert hosted_seconds(step, price) == expected


def test_bytes_of_a_step() -> None:
    step = hosted_step(updated=100, whole=200, offload=HALF, workload=WORKLOAD)
    assert step.gradients.num_bytes == 50 * 4
    assert step.gradients.pinned
    assert step.cast is None
    assert step.update.num_bytes == 50 * (28 + 6)
    assert step.parameters.num_bytes == 50 * 2
    assert not step.parameters.pinned
    assert step.kept.num_bytes == 50 * (4 + 24 + 2)
    assert step.before.num_bytes == 300 * 4


def text_of(layout: Layout, workload: TrainWorkload = WORKLOAD) -> str:
    return emit_megatron(plan_of(LLAMA_8B, workload, layout, cluster_of(1, 8)))[LAUNCH_SCRIPT]


@pytest.mark.parametrize("offload", [None, HALF, Offload(optimizer_fraction=1.0, overlapped=False)])
def test_the_flags_are_read_back(offload: Offload | None) -> None:
    text = text_of(replace(LAYOUT, offload=offload))
    assert layout_of(read_megatron(text, file="launch.sh")).offload == offload
    assert ("--use-precision-aware-optimizer" in text) == (offload is not None)
    assert ('export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc --all) / 8))}"' in text) == (offload is not None)


def test_a_fraction_is_a_number_from_0_to_1() -> None:
    text = text_of(LAYOUT)
    whole = text.replace("    --optimizer-offload-fraction 0.5\n", "")
    assert layout_of(read_megatron(whole, file="launch.sh")).offload == replace(HALF, optimizer_fraction=1.0)
    nothing = text.replace("fraction 0.5", "fraction 0.0")
    assert layout_of(read_megatron(nothing, file="launch.sh")).offload is None
    for wrong in ("1.5", "half"):
        with pytest.raises(InputError) as caught:
            layout_of(read_megatron(text.replace("fraction 0.5", f"fraction {wrong}"), file="launch.sh"))
        assert caught.value.message == f"--optimizer-offload-fraction is '{wrong}'."
        assert caught.value.hint == "Write a number from 0 to 1."


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (
            replace(layout_of_degrees(layers=(32,), dp=8, num_microbatches=8, zero_stage=3), offload=HALF),
            {},
            (
                "optimizer states on the host with zero_stage 3: --optimizer-cpu-offload takes the path of the"
                " distributed optimizer, and Megatron-FSDP has its own."
            ),
        ),
        (
            LAYOUT,
            {"moment_dtype": DType.BF16},
            "master_dtype fp32 and moment_dtype bf16 on the host, where `HybridDeviceOptimizer` keeps both in fp32.",
        ),
        (
            LAYOUT,
            {"method": TrainMethod.LORA, "lora": Lora(rank=8, alpha=8.0, target_modules=("qkv",))},
            "optimizer states of adapters on the host.",
        ),
    ],
)
def test_what_megatron_does_not_put_on_the_host(layout: Layout, changes: dict[str, object], message: str) -> None:
    with pytest.raises(NotExpressibleError) as caught:
        text_of(layout, replace(WORKLOAD, **changes))  # type: ignore[arg-type]
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("layout", "changes", "messages"),
    [
        (
            replace(LAYOUT, zero_stage=0, overlap=replace(LAYOUT.overlap, param_gather=False)),
            {},
            [
                "optimizer states on the host with zero_stage 0, which shards none",
                "Megatron-LM (megatron-core 0.19.2) has no optimizer states on the host with zero_stage 0",
            ],
        ),
        (
            replace(layout_of_degrees(layers=(16, 16), pp=2, dp=4, num_microbatches=16, zero_stage=3), offload=HALF),
            {},
            [
                "a part of the optimizer states on the host with zero_stage 3 and a pipeline",
                "Megatron-LM (megatron-core 0.19.2) has no optimizer states on the host with zero_stage 3",
                "Megatron-LM (megatron-core 0.19.2) has no zero_stage 3 with pp 2",
            ],
        ),
        (LAYOUT, {"moment_dtype": DType.BF16}, ["moment_dtype bf16 on the host, where states are kept in fp32"]),
        (
            replace(LAYOUT, zero_stage=1),
            {"optimizer": Optimizer.SGD},
            [
                "states of sgd on the host; only Adam's are priced",
                "Megatron-LM (megatron-core 0.19.2) has no zero_stage 1 with sgd",
            ],
        ),
        (
            LAYOUT,
            {"method": TrainMethod.LORA, "lora": Lora(rank=8, alpha=8.0, target_modules=("qkv",))},
            ["states of adapters on the host; only those of all weights are priced"],
        ),
    ],
)
def test_the_checker_refuses(fitted: Plan, layout: Layout, changes: dict[str, object], messages: list[str]) -> None:
    entry = replace(fitted.best, layout=layout)
    workload = replace(WORKLOAD, **changes)  # type: ignore[arg-type]
    found = violations(entry, LLAMA_8B, cluster_of(1, 8), replace(asked(), workload=workload))
    assert [violation.message for violation in found] == messages


def test_the_checker_holds_a_layout_against_what_is_asked(fitted: Plan) -> None:
    entry = replace(fitted.best, layout=LAYOUT)
    found = violations(entry, LLAMA_8B, cluster_of(1, 8), asked(parts=(0.0, 1.0)))
    assert [violation.message for violation in found] == ["optimizer_offload 0.5 is not what the constraints allow"]
    assert not violations(entry, LLAMA_8B, cluster_of(1, 8), asked(parts=(0.0, 0.5)))
