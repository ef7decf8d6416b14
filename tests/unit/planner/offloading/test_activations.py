"""Activations on the host: what moves, what it takes, a run that fits only with them, and each refusal."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from planner.documents import parse_document
from planner.emit.deepspeed import emit_deepspeed
from planner.emit.megatron import LAUNCH_SCRIPT, emit_megatron
from planner.errors import InputError, NotExpressibleError
from planner.evaluation.described import given_layout
from planner.evaluation.validate import violations
from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Offload, Recompute
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.offloading.activations import copied_tensors, held_bytes, layer_copy
from planner.offloading.timeline import LayerSeconds, backward_seconds, forward_seconds
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Plan, Status
from planner.ranks.placement import place
from planner.ranks.shard import RankLayer
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import OFFLOADED_LAYERS, Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Lora, Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.bounds.copy_waits import backward_wait_seconds, forward_wait_seconds, hidden_copy_seconds
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from tests.builders import tiny_dense_model
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of
from tests.unequal_clusters import unequal_cluster
from tests.written_profiles import with_copies_beside

GIB = 1 << 30
WORKLOAD = TrainWorkload(seq_len=8192, global_batch_size=16, precision=Precision.BF16)
WAITS = "activations to the host and back"
FULL = Recompute(granularity=Granularity.FULL)
LAYOUT = layout_of_degrees(layers=(32,), dp=8, num_microbatches=2)
HOSTED = replace(LAYOUT, offloaded_layers=12)


def asked(
    counts: Bounds | None = None,
    *,
    mesh: Mapping[str, Bounds] = MappingProxyType({}),
    workload: TrainWorkload = WORKLOAD,
    parts: tuple[float, ...] | None = None,
    target: Target = Target.MEGATRON,
) -> PlanRequest:
    return PlanRequest(
        workload=workload,
        constraints=Constraints(
            degrees={**mesh, **({} if counts is None else {OFFLOADED_LAYERS: counts})}, optimizer_offload=parts
        ),
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )


def layer_of(workload: TrainWorkload) -> RankLayer:
    """Return a layer of Llama 8B on one rank of its own."""
    graph = build_graph(LLAMA_8B, workload)
    (layer,) = place(LLAMA_8B, graph, LAYOUT, workload, MEGATRON).rank_model.layers
    return layer


def test_large_tensors_move_and_values_take_the_product_that_they_look_into_with_them() -> None:
    layer = layer_of(WORKLOAD)
    tokens, hidden, grouped, wide = 8192, 4096, 1024, 14336
    of_attention = [hidden, hidden, hidden, grouped, grouped + hidden + grouped, hidden]
    of_feed_forward = [hidden, hidden, 2 * wide, wide]
    expected = [2 * tokens * width for width in (*of_attention, *of_feed_forward)]
    expected.insert(6, 4 * tokens * 32)  # log-sum-exp: 256 Ki of them
    assert sorted(copied_tensors(layer)) == sorted(expected)
    assert layer_copy(layer).num_bytes == sum(expected)
    assert layer_copy(layer).pinned


def test_tensors_below_256_ki_elements_stay() -> None:
    layer = layer_of(replace(WORKLOAD, seq_len=4096))
    staying = 4 * 4096 * 32  # log-sum-exp
    again = 2 * 4096 * (4096 + 1024)  # queries and keys, beside the values
    assert sum(copied_tensors(layer)) == layer.all_saved_bytes - staying + again
    assert held_bytes([layer] * 5, 3) == 5 * staying + 2 * (layer.all_saved_bytes - staying)


@pytest.mark.parametrize(
    ("copy", "offloaded", "forward", "backward"),
    [
        (1.0, 2, 0.0, 0.0),  # each copy beside the next layer's pass
        (1.0, 3, 3.0, 3.0),  # nothing beside any copy
        # Copies begin at 1 and end at 4 and 7: layer 2 waits from 2 to 4, layer 3 from 5 to 7. The other way they begin
        # at 2 and end at 5 and 8: layer 1 waits from 4 to 5, layer 0 from 7 to 8.
        (3.0, 2, 4.0, 2.0),
        (3.0, 1, 1.0, 0.0),
    ],
)
def test_waits_of_four_layers(copy: float, offloaded: int, forward: float, backward: float) -> None:
    there, back = [1.0] * 4, [2.0] * 4
    assert forward_wait_seconds(there, [copy] * 4, offloaded=offloaded) == forward
    assert backward_wait_seconds(back, [copy] * 4, offloaded=offloaded) == backward
    layers = [LayerSeconds(forward=1.0, backward=2.0, copy=copy)] * 4
    assert forward_seconds(layers, offloaded=offloaded) == 4.0 + forward
    assert backward_seconds(layers, offloaded=offloaded) == 8.0 + backward


ADAPTED = TrainWorkload(
    seq_len=65536,
    global_batch_size=8,
    precision=Precision.BF16,
    method=TrainMethod.LORA,
    lora=Lora(rank=16, alpha=32.0, target_modules=("qkv", "proj", "fc1", "fc2")),
)


@pytest.fixture(scope="module")
def small_gpus() -> Cluster:
    """Return eight GPUs of 44 GiB beside 2 TiB of host memory."""
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    return replace(cluster, device=replace(cluster.device, memory_bytes=44 * GIB))


@pytest.fixture(scope="module")
def fitted(small_gpus: Cluster) -> Plan:
    """Return the plan of adapters of 70 billion parameters: their states are small, sequences are long."""
    return search(load_bundled("llama-3.1-70b"), small_gpus, asked(workload=ADAPTED), top=2)


def test_layers_lose_what_a_profile_says_to_the_copies_beside_them(tmp_path: Path, fitted: Plan) -> None:
    """Search and checker add the same; what is waited for is not lost as well, and without a profile nothing is."""
    layout = fitted.best.layout
    assert layout.offloaded_layers
    lost = {}
    for name, beside in (("none", None), ("to_host", 1.2), ("both", 1.4)):
        cluster = with_copies_beside(fitted.cluster, tmp_path / name, beside)
        request = asked(workload=ADAPTED)
        found = given_layout(layout, fitted.model, cluster, request)
        seconds = sum(line.seconds for line in found.time if line.term == WAITS)
        lost[name] = (seconds, found.reevaluated_step_seconds)
        ground = cost_model_on(cluster).copy_slowdown
        assert ground == (None if beside is None else pytest.approx(beside - 1.0))
    (none, step), (some, longer), (more, longest) = lost.values()
    assert some > none
    assert more - none == pytest.approx(2 * (some - none), rel=1e-9)
    assert longest - step == pytest.approx(2 * (longer - step), rel=1e-6)
    best = search(fitted.model, cluster, request, top=1).best
    assert best.layout.offloaded_layers
    assert best.step_seconds == pytest.approx(best.reevaluated_step_seconds, rel=1e-9)


def test_what_is_hidden_of_copies_is_no_more_than_the_pass() -> None:
    assert hidden_copy_seconds([1.0] * 4, [0.5] * 4, offloaded=2, waited_seconds=0.25) == 0.75
    assert hidden_copy_seconds([1.0] * 4, [9.0] * 4, offloaded=3, waited_seconds=2.0) == 4.0
    assert hidden_copy_seconds([1.0] * 4, [1.0] * 4, offloaded=1, waited_seconds=1.0 + 1e-12) == 0.0


def test_a_run_fits_with_activations_on_the_host_that_did_not_without(fitted: Plan, small_gpus: Cluster) -> None:
    without = search(fitted.model, small_gpus, asked(Bounds(allowed=(0,)), workload=ADAPTED), top=1)
    assert without.status is Status.INFEASIBLE
    assert OFFLOADED_LAYERS not in without.search.dimensions
    assert fitted.status is Status.OPTIMAL
    assert OFFLOADED_LAYERS in fitted.search.dimensions
    assert sum(fitted.search.pruned.values()) + fitted.search.simulated == fitted.search.considered
    for planned in fitted.plans:
        assert not violations(planned, fitted.model, fitted.cluster, fitted.request)
    layers = fitted.best.layout.offloaded_layers
    assert layers > 1
    names = ("tp", "cp", "zero_stage", "micro_batch_size")
    mesh = {name: Bounds(allowed=(getattr(fitted.best.layout, name),)) for name in names}
    fewer = asked(Bounds(minimum=1, maximum=layers - 1), mesh=mesh, workload=ADAPTED)
    assert search(fitted.model, small_gpus, fewer, top=1).status is Status.INFEASIBLE


def test_ledgers_and_time_say_where_activations_are(fitted: Plan) -> None:
    hosted, layers = fitted.best.host_memory, fitted.best.layout.offloaded_layers
    assert hosted is not None
    line = next(line for line in hosted.lines if line.term == "page-locked activations")
    assert line.source == (
        f"saved tensors of {layers} layers of a micro-batch, 8 ranks; a page-locked buffer each, rounded up to a power"
        " of two"
    )
    activations = next(line for line in fitted.best.memory if line.term == "activations")
    assert activations.source == (f"saved tensors of the micro-batches in flight, of all layers in a row but {layers}")
    assert WAITS not in [line.term for line in fitted.best.time], "long sequences hide the copies"
    assert any(text.startswith(f"{WAITS}: ") for text in fitted.best.assumptions)


def test_the_files_and_the_plan_say_it_and_are_read_back(fitted: Plan) -> None:
    script = emit_megatron(fitted)[LAUNCH_SCRIPT]
    layers = fitted.best.layout.offloaded_layers
    assert f"--cpu-offloading-num-layers {layers}" in script
    assert "unset NVTE_CPU_OFFLOAD_V1" in script
    assert "# Activations on the host: as planned with Transformer Engine 2.12 and later." in script
    assert plan_from_document(parse_document(plan_to_text(fitted), file="plan.json")) == fitted
    assert layout_in_words(fitted.best.layout).endswith(
        f"; recompute none; activations of the first {layers} layers to the host"
    )


def test_a_launch_line_is_read() -> None:
    script = emit_megatron(plan_of(LLAMA_8B, WORKLOAD, HOSTED, cluster_of(1, 8)))[LAUNCH_SCRIPT]
    assert read_megatron_layout(script) == HOSTED
    with pytest.raises(InputError, match="takes a whole number, 'some' is given"):
        read_megatron_layout(script.replace("--cpu-offloading-num-layers 12", "--cpu-offloading-num-layers some"))


def read_megatron_layout(script: str) -> Layout:
    return layout_of(read_megatron(script, file=LAUNCH_SCRIPT))


def test_what_is_asked_for_by_name_is_searched_where_all_fits_on_the_gpus() -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    free, hosted = (search(LLAMA_8B, cluster, asked(counts), top=1) for counts in (None, Bounds(minimum=3)))
    assert free.best.layout.offloaded_layers == 0
    assert OFFLOADED_LAYERS not in free.search.dimensions
    assert hosted.best.layout.offloaded_layers >= 3
    most = search(LLAMA_8B, cluster, asked(Bounds(minimum=31)), top=1)
    assert most.best.layout.offloaded_layers == 31
    assert WAITS in [line.term for line in most.best.time]
    assert hosted.best.step_seconds > free.best.step_seconds
    both = search(LLAMA_8B, cluster, asked(Bounds(allowed=(0, 7))), top=1)
    assert both.best.step_seconds == free.best.step_seconds
    states = search(LLAMA_8B, cluster, asked(Bounds(minimum=1), parts=(0.5,)), top=1)
    assert states.infeasible is not None
    assert states.infeasible.binding.endswith("activations and optimizer states do not go to the host together")


def test_nodes_with_too_little_memory_are_named_and_enough_is_offered(fitted: Plan, small_gpus: Cluster) -> None:
    little = replace(small_gpus, host_memory_bytes=512 * GIB)
    found = search(fitted.model, little, asked(workload=ADAPTED), top=1).infeasible
    assert found is not None
    assert " layers on the host, where a node would need " in found.binding
    assert found.binding.endswith(" GiB of its 512.00 GiB")
    enough = next(change for change in found.relaxations if change.path == "cluster.host_ram")
    more = replace(little, host_memory_bytes=int(enough.value.removesuffix("GiB")) * GIB)
    assert search(fitted.model, more, asked(workload=ADAPTED), top=1).best.layout.offloaded_layers


@pytest.mark.parametrize(
    ("target", "model", "binding"),
    [
        (Target.DEEPSPEED, "llama-2-7b", "DeepSpeed 0.19.8: plans put no activations on the host"),
        (Target.MEGATRON, "nemotron-h-56b", "activations of layers with a state stay on the GPU"),
    ],
)
def test_what_cannot_be_is_named(target: Target, model: str, binding: str) -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    plan = search(load_bundled(model), cluster, asked(Bounds(minimum=1), target=target))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith(binding)


def test_nodes_that_differ_have_no_such_layout() -> None:
    cluster, model = unequal_cluster(2, older=(1,)), tiny_dense_model()
    plan = search(model, cluster, asked(Bounds(minimum=1), target=Target.ANY))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("no framework in particular: plans put no activations on the host")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            replace(layout_of_degrees(layers=(16, 16), pp=2, dp=4, num_microbatches=2), offloaded_layers=1),
            "activations on the host with pp = 2: --cpu-offloading-num-layers has no pipelines.",
        ),
        (
            replace(HOSTED, recompute=FULL),
            "activations on the host with recompute full: --cpu-offloading-num-layers goes without.",
        ),
        (
            replace(HOSTED, zero_stage=2),
            "activations on the host with zero_stage 2: nobody tried Megatron-FSDP beside --cpu-offloading-num-layers.",
        ),
        (replace(HOSTED, offloaded_layers=32), "activations of 32 layers on the host, of 32."),
    ],
)
def test_megatron_is_not_told_what_it_cannot(layout: Layout, message: str) -> None:
    with pytest.raises(NotExpressibleError) as caught:
        emit_megatron(plan_of(LLAMA_8B, WORKLOAD, layout, cluster_of(1, 8)))
    assert caught.value.message == message


def test_deepspeed_is_not_told() -> None:
    with pytest.raises(NotExpressibleError) as caught:
        emit_deepspeed(deepspeed_plan(LLAMA_8B, replace(layout_with((32,), dp=8), offloaded_layers=2)))
    assert caught.value.message == (
        "activations on the host: `cpu_checkpointing` moves the inputs of layers that are recomputed, which plans do"
        " not price."
    )


@pytest.mark.parametrize(
    ("layout", "messages"),
    [
        (HOSTED, []),
        (replace(HOSTED, offloaded_layers=31), []),
        (replace(HOSTED, offloaded_layers=32), ["activations on the host of the last layer"]),
        (replace(HOSTED, recompute=FULL), ["activations on the host with recompute full"]),
        (replace(HOSTED, zero_stage=2), ["activations on the host with zero_stage 2"]),
        (
            replace(HOSTED, offload=Offload(optimizer_fraction=0.5)),
            ["activations on the host with optimizer states there"],
        ),
        (
            replace(layout_of_degrees(layers=(16, 16), pp=2, dp=4, num_microbatches=4), offloaded_layers=1),
            ["activations on the host with a pipeline"],
        ),
    ],
)
def test_the_checker_refuses(fitted: Plan, layout: Layout, messages: list[str]) -> None:
    found = violations(replace(fitted.best, layout=layout), LLAMA_8B, cluster_of(1, 8), asked())
    assert [violation.message for violation in found] == messages


def test_the_checker_holds_a_layout_against_the_target_what_is_asked_and_its_ledger(fitted: Plan) -> None:
    entry = replace(fitted.best, layout=HOSTED)

    def said(request: PlanRequest) -> list[str]:
        return [violation.message for violation in violations(entry, LLAMA_8B, cluster_of(1, 8), request)]

    assert "DeepSpeed 0.19.8 has no activations on the host" in said(asked(target=Target.DEEPSPEED))
    assert said(asked(Bounds(allowed=(0, 4)))) == ["offloaded_layers 12 is not what the constraints allow"]
    entry = replace(entry, host_memory=None)
    assert said(asked()) == ["the ledger of the host and the layout's offload do not agree"]


def test_a_layout_has_no_fewer_than_no_offloaded_layers() -> None:
    with pytest.raises(ValueError, match="offloaded_layers = -1 is below 0"):
        replace(LAYOUT, offloaded_layers=-1)
