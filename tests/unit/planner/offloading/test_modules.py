"""Modules on the host: what moves, what it takes, a plan that is faster with them, and each refusal."""

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
from planner.memory.host import host_memory
from planner.memory.saved import activation_peaks
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.offloading.module_timeline import GroupSeconds, LayerGroups, backward_seconds, forward_seconds
from planner.offloading.modules import NEAR_LAYERS, Group, clashes, copy_of, groups, leaving_bytes, module_choices
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Plan, Status
from planner.ranks.placement import place
from planner.readers.megatron import layout_of, read_megatron
from planner.requests.request import ANY_MODULES, Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Lora, Precision, TrainMethod, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.emitted.plans import LLAMA_8B, cluster_of, layout_of_degrees, plan_of
from tests.unequal_clusters import unequal_cluster
from tests.written_profiles import with_copies_beside

GIB = 1 << 30
WORKLOAD = TrainWorkload(seq_len=8192, global_batch_size=32, precision=Precision.BF16)
WAITS = "activations to the host and back"
NOTHING = Recompute(granularity=Granularity.NONE)
FULL = Recompute(granularity=Granularity.FULL)
ATTENTION = ("core_attn", "attn_proj")
ONE = {name: Bounds(allowed=(1,)) for name in ("tp", "pp", "cp", "micro_batch_size")}
ALL_DENSE = ("qkv_linear", *ATTENTION)
LAYOUT = layout_of_degrees(layers=(8, 8, 8, 8), pp=4, dp=2, num_microbatches=16)
HOSTED = replace(LAYOUT, offloaded_modules=ALL_DENSE)


def asked(
    modules: tuple[str, ...] | None = None,
    *,
    mesh: Mapping[str, Bounds] = MappingProxyType({}),
    workload: TrainWorkload = WORKLOAD,
    target: Target = Target.MEGATRON,
) -> PlanRequest:
    return PlanRequest(
        workload=workload,
        constraints=Constraints(degrees=dict(mesh), offloaded_modules=modules),
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )


def groups_of(
    model: ModelSpec, modules: tuple[str, ...], recompute: Recompute = NOTHING, layout: Layout = LAYOUT
) -> dict[str, Group]:
    """Return what the last kind of layer of a model copies for a micro-batch, by module."""
    graph = build_graph(model, WORKLOAD)
    *_, layer = place(model, graph, layout, WORKLOAD, MEGATRON).rank_model.layers
    return {group.module: group for group in groups(layer, recompute, modules)}


TOKENS, HIDDEN, KEYS, HEADS = 8192, 4096, 1024, 32


def test_each_module_copies_what_it_saves() -> None:
    found = groups_of(LLAMA_8B, ALL_DENSE)
    stream = 2 * TOKENS * HIDDEN
    assert found["qkv_linear"].tensor_bytes == (stream, stream)
    queries, keys, rows = 2 * TOKENS * HIDDEN, 2 * TOKENS * KEYS, 4 * TOKENS * HEADS
    assert found["core_attn"].tensor_bytes == (queries, keys, keys, rows, stream)
    assert found["core_attn"].leaving_bytes == queries + 2 * keys + rows, "the output stays for the projection"
    assert found["attn_proj"].tensor_bytes == (stream,)
    assert found["attn_proj"].leaving_bytes == stream
    link, memory = copy_of(found["core_attn"].num_bytes)
    assert link.num_bytes == found["core_attn"].num_bytes
    assert link.pinned
    assert memory.num_bytes == 2 * link.num_bytes


def test_experts_copy_their_rows_unless_they_are_run_again() -> None:
    mixtral = load_bundled("mixtral-8x7b")
    layout = layout_of_degrees(layers=(8, 8, 8, 8), pp=4, dp=2, num_microbatches=16, ep=2)
    modules = ("expert_fc1", "moe_act")
    found = groups_of(mixtral, modules, layout=layout)
    assert list(found) == list(modules)
    assert all(group.in_parts for group in found.values())
    width = found["moe_act"].tensor_bytes[0] / found["expert_fc1"].num_bytes
    assert width == 2 * 14336 / 4096, "two projections of each row beside the row"
    again = Recompute(granularity=Granularity.SELECTIVE, modules=("moe_act",))
    assert groups_of(mixtral, modules, again, layout).keys() == found.keys()
    whole = Recompute(granularity=Granularity.SELECTIVE, modules=("moe",))
    assert not groups_of(mixtral, modules, whole, layout)
    assert not groups_of(mixtral, modules, FULL, layout)


def test_latent_attention_keeps_the_products_in_front_of_it() -> None:
    deepseek = load_bundled("deepseek-v3")
    graph = build_graph(deepseek, WORKLOAD)
    experts = ("expert_fc1", "moe_act")
    assert module_choices(graph, WORKLOAD) == (ATTENTION, experts, (*ATTENTION, *experts))
    assert module_choices(build_graph(LLAMA_8B, WORKLOAD), WORKLOAD) == (("qkv_linear",), ATTENTION, ALL_DENSE)
    latents = Recompute(granularity=Granularity.SELECTIVE, modules=("mla_up_proj",))
    assert clashes(latents, ATTENTION)
    assert not clashes(latents, experts)


def test_a_pipeline_rank_holds_four_layers_and_what_never_moves() -> None:
    graph = build_graph(LLAMA_8B, WORKLOAD)
    near, away = (place(LLAMA_8B, graph, layout, WORKLOAD, MEGATRON) for layout in (LAYOUT, HOSTED))
    layer = near.rank_model.layers[0]
    leaving, stream = leaving_bytes(layer, NOTHING, ALL_DENSE), 2 * TOKENS * HIDDEN
    for rank, (before, after) in enumerate(zip(activation_peaks(near), activation_peaks(away), strict=True)):
        in_flight = 4 - rank
        held = in_flight * stream if rank else 0  # the first layer's input, which the schedule keeps
        gone = in_flight * 8 * leaving - held
        assert before - after == gone - min(gone, NEAR_LAYERS * leaving)
    hosted = host_memory(away, cluster_of(1, 8))
    assert hosted is not None
    (line,) = (line for line in hosted.lines if line.term == "page-locked activations")
    copied = groups(layer, NOTHING, ALL_DENSE)
    rounded = sum(1 << (size - 1).bit_length() for group in copied for size in group.tensor_bytes)
    assert line.num_bytes == 2 * (4 + 3 + 2 + 1) * 8 * rounded


def test_stages_of_single_layers_save_nothing() -> None:
    graph = build_graph(LLAMA_8B, WORKLOAD)
    layout = layout_of_degrees(layers=(1,) * 32, pp=8, dp=1, num_microbatches=32)
    peaks = [
        activation_peaks(place(LLAMA_8B, graph, entry, WORKLOAD, MEGATRON))
        for entry in (layout, replace(layout, offloaded_modules=ALL_DENSE))
    ]
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    ("copy", "forward", "first", "again"),
    [
        (1.0, 0.0, 0.0, 0.0),  # each copy beside a layer
        (3.0, 0.0, 0.0, 0.0),  # a layer's forward pass, and what lies between two groups of a backward pass
        # There copies end at 6, 11 and 16: behind the group of layer 1 the GPU waits from 4 to 6, of layer 2 from 9 to
        # 11. Back each copy takes 2 longer than what lies between two groups.
        (5.0, 4.0, 4.0, 6.0),
    ],
)
def test_waits_of_three_layers(copy: float, forward: float, first: float, again: float) -> None:
    group = GroupSeconds(module="core_attn", forward=1.0, backward=2.0, copy=copy)
    layers = [LayerGroups(first=(group,), forward=2.0, backward=3.0, last=())] * 3
    assert forward_seconds(layers) == 9.0 + forward
    assert backward_seconds(layers, in_pipeline=False) == 15.0 + first
    assert backward_seconds(layers, in_pipeline=True) == 15.0 + again


@pytest.fixture(scope="module")
def small_gpus() -> Cluster:
    """Return eight GPUs of 26 GiB beside 2 TiB of host memory."""
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    return replace(cluster, device=replace(cluster.device, memory_bytes=26 * GIB))


@pytest.fixture(scope="module")
def faster(small_gpus: Cluster) -> Plan:
    """Return the plan where any modules may wait on the hosts."""
    return search(LLAMA_8B, small_gpus, asked(ANY_MODULES), top=2)


def test_a_plan_that_recomputes_less_is_faster(faster: Plan, small_gpus: Cluster) -> None:
    without = search(LLAMA_8B, small_gpus, asked(), top=1)
    assert without.best.layout.recompute.granularity is Granularity.FULL
    assert "offloaded_modules" not in without.search.dimensions
    assert faster.status is Status.OPTIMAL
    assert "offloaded_modules" in faster.search.dimensions
    assert faster.best.layout.offloaded_modules
    assert faster.best.layout.pp > 1, "pipelines go with it"
    assert faster.best.step_seconds < 0.97 * without.best.step_seconds
    assert sum(faster.search.pruned.values()) + faster.search.simulated == faster.search.considered
    for planned in faster.plans:
        assert not violations(planned, faster.model, faster.cluster, faster.request)
        assert planned.reevaluated_step_seconds == pytest.approx(planned.step_seconds, rel=1e-9)
    none = search(LLAMA_8B, small_gpus, asked(()), top=1)
    assert none.best.layout == without.best.layout


def test_ledgers_and_words_say_where_they_are(faster: Plan) -> None:
    named = ", ".join(faster.best.layout.offloaded_modules)
    activations = next(line for line in faster.best.memory if line.term == "activations")
    assert activations.source.endswith(f", of {named} those of 4 layers at most")
    hosted = faster.best.host_memory
    assert hosted is not None
    assert hosted.lines[0].source.startswith(f"{named} of the micro-batches in flight, 8 ranks; a page-locked buffer")
    assert layout_in_words(faster.best.layout).endswith(f"activations of {named} to the host")
    assert any(text.startswith(f"{WAITS}: ") for text in faster.best.assumptions)
    assert plan_from_document(parse_document(plan_to_text(faster), file="plan.json")) == faster


def test_layers_lose_what_a_profile_says_to_the_copies_beside_them(tmp_path: Path, faster: Plan) -> None:
    """Search and checker add the same, and twice as much where copies slow products down twice as much."""
    layout = faster.best.layout
    steps = []
    for name, beside in (("none", None), ("some", 1.2), ("more", 1.4)):
        cluster = with_copies_beside(faster.cluster, tmp_path / name, beside)
        found = given_layout(layout, LLAMA_8B, cluster, asked(layout.offloaded_modules))
        assert found.reevaluated_step_seconds == pytest.approx(found.step_seconds, rel=1e-9)
        steps.append(found.step_seconds)
    none, some, more = steps
    assert some > none
    assert more - none == pytest.approx(2 * (some - none), rel=0.05), "the more a stage takes, the less another waits"


def test_they_are_found_where_nothing_fits_without() -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    cluster = replace(cluster, device=replace(cluster.device, memory_bytes=30 * GIB))
    request = asked(mesh={"tp": Bounds(allowed=(4,)), "offloaded_layers": Bounds(allowed=(0,))})
    pinned = replace(request.constraints, recompute=("none",), optimizer_offload=(0.0,))
    plan = search(LLAMA_8B, cluster, replace(request, constraints=pinned), top=1)
    assert plan.best.layout.offloaded_modules, "which are looked at only where nothing else was found"


def test_what_is_pinned_is_planned_with_a_pipeline_and_emitted() -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    mesh = {"pp": Bounds(allowed=(4,)), "vpp": Bounds(minimum=2)}
    plan = search(LLAMA_8B, cluster, asked(ALL_DENSE, mesh=mesh), top=1)
    layout = plan.best.layout
    assert (layout.offloaded_modules, layout.pp) == (ALL_DENSE, 4)
    assert not violations(plan.best, LLAMA_8B, cluster, plan.request)
    script = emit_megatron(plan)[LAUNCH_SCRIPT]
    assert "--fine-grained-activation-offloading\n" in script
    assert "--offload-modules qkv_linear core_attn attn_proj\n" in script
    assert "--min-offloaded-tensor-size 1\n" in script
    assert "--fine-grained-offloading-max-inflight-offloads 1\n" in script
    assert "export NVTE_CPU_OFFLOAD_V1=1" in script
    assert read_layout(script) == layout


def read_layout(script: str) -> Layout:
    return layout_of(read_megatron(script, file=LAUNCH_SCRIPT))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--offload-modules qkv_linear attn_norm", "names 'attn_norm'"),
        ("--activation-offload-fraction 0.5 --offload-modules qkv_linear", "is '0.5'"),
        ("--delta-offload-bytes-across-pp-ranks 4096 --offload-modules qkv_linear", "is '4096'"),
    ],
)
def test_what_plans_do_not_price_is_not_read_as_something_else(changed: str, message: str) -> None:
    script = emit_megatron(plan_of(LLAMA_8B, WORKLOAD, HOSTED, cluster_of(1, 8)))[LAUNCH_SCRIPT]
    assert read_layout(script) == HOSTED
    with pytest.raises(InputError, match=message):
        read_layout(script.replace("--offload-modules qkv_linear core_attn attn_proj", changed))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (replace(HOSTED, offloaded_modules=("attn_proj",)), "attn_proj on the host without core_attn, whose backward"),
        (replace(HOSTED, recompute=FULL), "on the host with recompute full of whole layers, which keeps nothing"),
        (replace(LAYOUT, offloaded_modules=ATTENTION, zero_stage=2), "zero_stage 2"),
        (
            replace(
                layout_of_degrees(layers=(32,), dp=8, num_microbatches=4),
                offloaded_layers=3,
                offloaded_modules=ATTENTION,
            ),
            "modules and whole layers on the host",
        ),
    ],
)
def test_megatron_is_not_told_what_it_cannot(layout: Layout, message: str) -> None:
    with pytest.raises(NotExpressibleError) as caught:
        emit_megatron(plan_of(LLAMA_8B, WORKLOAD, layout, cluster_of(1, 8)))
    assert message in caught.value.message


def test_deepspeed_is_not_told() -> None:
    with pytest.raises(NotExpressibleError) as caught:
        emit_deepspeed(deepspeed_plan(LLAMA_8B, replace(layout_with((32,), dp=8), offloaded_modules=ATTENTION)))
    assert caught.value.message == "modules of layers on the host: DeepSpeed has no such offload."


@pytest.mark.parametrize(
    ("layout", "messages"),
    [
        (HOSTED, []),
        (replace(HOSTED, recompute=FULL), ["modules on the host with recompute full of whole layers"]),
        (replace(HOSTED, offload=Offload(optimizer_fraction=0.5)), ["modules on the host with optimizer states there"]),
        (replace(HOSTED, offloaded_modules=("attn_proj",)), ["modules on the host of attn_proj without core_attn"]),
        (
            replace(HOSTED, offloaded_modules=("expert_fc1",)),
            ["modules on the host of which no layer has expert_fc1"],
        ),
    ],
)
def test_the_checker_refuses(faster: Plan, layout: Layout, messages: list[str]) -> None:
    found = violations(replace(faster.best, layout=layout), LLAMA_8B, cluster_of(1, 8), asked())
    assert [violation.message for violation in found] == messages


def test_the_checker_holds_a_layout_against_what_is_asked(faster: Plan) -> None:
    entry = replace(faster.best, layout=HOSTED)

    def said(request: PlanRequest) -> list[str]:
        return [violation.message for violation in violations(entry, LLAMA_8B, cluster_of(1, 8), request)]

    assert said(asked(ALL_DENSE)) == said(asked(ANY_MODULES)) == []
    assert said(asked(ATTENTION)) == [
        "modules on the host are qkv_linear, core_attn, attn_proj, not what is asked for",
    ]
    assert "DeepSpeed 0.19.8 has no modules on the host" in said(asked(target=Target.DEEPSPEED))


ADAPTED = replace(WORKLOAD, method=TrainMethod.LORA, lora=Lora(rank=16, alpha=32.0, target_modules=("qkv", "proj")))


@pytest.mark.parametrize(
    ("model", "modules", "workload", "target", "binding"),
    [
        ("llama-2-7b", ATTENTION, WORKLOAD, Target.DEEPSPEED, "DeepSpeed 0.19.8: plans put no modules on the host"),
        ("nemotron-h-56b", ATTENTION, WORKLOAD, Target.MEGATRON, "modules of layers with a state stay on the GPU"),
        ("llama-2-7b", ATTENTION, ADAPTED, Target.MEGATRON, "modules with adapters stay on the GPU"),
        (
            "llama-2-7b",
            ATTENTION,
            replace(WORKLOAD, precision=Precision.FP8_DELAYED),
            Target.MEGATRON,
            "modules under fp8-delayed stay on the GPU: what they keep in fp8 is not planned",
        ),
        (
            "llama-2-7b",
            ("expert_fc1",),
            WORKLOAD,
            Target.MEGATRON,
            "no layer of the model has expert_fc1 with tensors that can be offloaded",
        ),
    ],
)
def test_what_cannot_be_is_named(
    model: str, modules: tuple[str, ...], workload: TrainWorkload, target: Target, binding: str
) -> None:
    cluster = load_preset("dgx-h100").to_cluster().with_nodes(1)
    plan = search(load_bundled(model), cluster, asked(modules, mesh=ONE, workload=workload, target=target))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith(binding)


def test_nodes_that_differ_have_no_such_layout() -> None:
    plan = search(tiny_dense_model(), unequal_cluster(2, older=(1,)), asked(ATTENTION, target=Target.ANY))
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("no framework in particular: plans put no modules on the host")
