"""Recompute that differs from layer to layer: in words, in a plan file, against the rules, planned from a request."""

import json
from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.evaluation.validate import violations
from planner.layout import Granularity, Layout, Recompute, stages_from_counts
from planner.plans.layout_words import layout_in_words, recompute_in_words, stage_recomputes_in_words
from planner.plans.plan import Plan, PlannedLayout
from planner.requests.request import Bounds, Constraints, PlanRequest, Target
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model, tiny_layout, tiny_plan, tiny_request, two_node_cluster

NONE = Recompute(granularity=Granularity.NONE)
FULL = Recompute(granularity=Granularity.FULL)
MLP = Recompute(granularity=Granularity.SELECTIVE, modules=("mlp",))


def by_layer(*layers: Recompute) -> Recompute:
    return Recompute(granularity=Granularity.PER_LAYER, layers=layers)


def planned_with(recompute: Recompute) -> Plan:
    """Return a plan whose best layout recomputes this; its figures are another layout's."""
    plan = tiny_plan()
    best = replace(plan.plans[0], layout=replace(plan.plans[0].layout, recompute=recompute))
    return replace(plan, plans=(best, *plan.plans[1:]))


def read_back(text: str) -> Plan:
    return plan_from_document(parse_document(text, file="plan.json"))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ((FULL,) * 12 + (MLP,) * 19 + (NONE,) * 20, "full for layers 0-11, selective (mlp) for layers 12-30, none for"),
        ((FULL, NONE, NONE), "full for layer 0, none for the rest"),
        ((FULL, NONE, FULL, NONE, NONE, FULL, NONE), "full for layers 0, 2 and 5, none for the rest"),
        ((MLP, MLP), "selective (mlp) for each layer"),
    ],
)
def test_layers_are_said_in_runs(layers: tuple[Recompute, ...], words: str) -> None:
    assert recompute_in_words(by_layer(*layers)).startswith(words)


def test_each_stage_says_what_is_recomputed_of_its_layers() -> None:
    layout = replace(two_stages(3, 2), recompute=by_layer(FULL, FULL, NONE, NONE, NONE))
    assert stage_recomputes_in_words(layout) == ("none for layer 2, full for the rest", "none for each layer")
    assert layout_in_words(layout).endswith("recompute full for layers 0-1, none for the rest")


def two_stages(*counts: int) -> Layout:
    return replace(tiny_layout(), pp=2, vpp=1, stages=stages_from_counts(counts))


def test_choices_of_layers_must_be_choices_of_one_layer() -> None:
    with pytest.raises(ValueError, match="layers are named one by one with per-layer recompute only"):
        Recompute(granularity=Granularity.FULL, layers=(FULL,))
    for wrong in (by_layer(FULL), Recompute(granularity=Granularity.FULL, num_layers=1)):
        with pytest.raises(ValueError, match="a layer is recomputed whole, in modules, or not at all"):
            by_layer(wrong)


def test_a_plan_file_holds_runs_of_layers_and_is_read_back() -> None:
    plan = planned_with(by_layer(FULL, MLP, MLP, NONE))
    text = plan_to_text(plan)
    assert json.loads(text)["plans"][0]["layout"]["recompute"] == {
        "granularity": "per-layer",
        "modules": [],
        "num_layers": None,
        "layers": [
            {"count": 1, "granularity": "full", "modules": []},
            {"count": 2, "granularity": "selective", "modules": ["mlp"]},
            {"count": 1, "granularity": "none", "modules": []},
        ],
    }
    assert read_back(text) == plan
    assert "layers" not in json.loads(plan_to_text(tiny_plan()))["plans"][0]["layout"]["recompute"]


@pytest.mark.parametrize("layers", [(), (FULL, NONE)])
def test_a_plan_file_that_does_not_name_every_layer_is_refused(layers: tuple[Recompute, ...]) -> None:
    with pytest.raises(InputError) as caught:
        read_back(plan_to_text(planned_with(by_layer(*layers))))
    assert f"`recompute` names {len(layers)} layers, and the stages hold 4." in str(caught.value)
    assert "Plan again; a plan file is not edited by hand." in str(caught.value)


def messages(recompute: Recompute, request: PlanRequest, *, vpp: int = 1) -> list[str]:
    """Return what is wrong with the recompute of a plan, on two interleaved pipeline ranks with vpp above 1."""
    planned = planned_with(recompute).plans[0]
    if vpp > 1:
        interleaved = replace(planned.layout, pp=2, vpp=vpp, stages=stages_from_counts((1,) * 2 * vpp))
        planned = replace(planned, layout=interleaved)
    found = violations(planned, tiny_dense_model(), two_node_cluster(), request)
    return [violation.message for violation in found if "recompute" in violation.message]


def test_rules_of_recompute_layer_by_layer() -> None:
    free = replace(tiny_request(), target=Target.ANY, constraints=Constraints())
    assert messages(by_layer(FULL, MLP, NONE, NONE), free) == []
    assert messages(by_layer(FULL, MLP), free) == ["per-layer recompute of 2 layers; the model has 4"]
    unknown = Recompute(granularity=Granularity.SELECTIVE, modules=("attention",))
    assert messages(by_layer(FULL, unknown, NONE, NONE), free) == [
        "recompute of attention; only core_attn, layernorm, mla_up_proj, mlp, moe, moe_act, shared_experts are priced"
    ]
    assert messages(by_layer(FULL, MLP, NONE, NONE), free, vpp=2) == [
        "per-layer recompute with vpp 2; only 1 is priced"
    ]
    assert messages(by_layer(FULL, MLP, NONE, NONE), replace(free, target=Target.MEGATRON)) == [
        "Megatron-LM (megatron-core 0.19.2) has no recompute that differs from layer to layer"
    ]
    pinned = replace(free, constraints=Constraints(recompute=("none", "full")))
    assert messages(by_layer(FULL, MLP, NONE, NONE), pinned) == [
        "recompute per-layer is not what the constraints allow"
    ]


def tight_cluster(memory_bytes: int) -> Cluster:
    cluster = two_node_cluster()
    return replace(cluster, device=replace(cluster.device, memory_bytes=memory_bytes))


def test_a_plan_mixes_choices_where_memory_is_tight_and_is_checked_independently() -> None:
    pins = {"tp": 1, "cp": 1, "pp": 2, "vpp": 1, "zero_stage": 1, "micro_batch_size": 1}
    degrees = {name: Bounds(allowed=(degree,)) for name, degree in pins.items()}
    model = tiny_dense_model(num_layers=8)

    def best_with(recompute: tuple[str, ...] | None, cluster: Cluster) -> PlannedLayout:
        constraints = Constraints(degrees=degrees, recompute=recompute)
        request = replace(
            tiny_request(),
            workload=replace(tiny_request().workload, seq_len=2048),
            target=Target.ANY,
            constraints=constraints,
            memory_headroom=0.0,
        )
        best = search(model, cluster, request, top=1).best
        assert best is not None
        return best

    cluster, mixed, faster = two_node_cluster(), 0, 0
    for _ in range(4):
        layered, alike = (best_with(which, cluster) for which in (("per-layer",), ("none", "selective", "full")))
        assert layered.layout.recompute.is_per_layer
        assert best_with(None, cluster).step_seconds == min(layered.step_seconds, alike.step_seconds)
        mixed += len(set(layered.layout.recompute.layers)) > 1
        faster += layered.step_seconds < alike.step_seconds
        cluster = tight_cluster(alike.peak_memory_bytes - 1)
    assert mixed
    assert faster


def test_the_target_that_has_one_choice_for_all_layers_plans_none_layer_by_layer() -> None:
    request = replace(tiny_request(), constraints=Constraints(recompute=("per-layer",)))
    plan = search(tiny_dense_model(), two_node_cluster(), request)
    assert plan.infeasible is not None
    assert plan.infeasible.binding.endswith("constraints: recompute")
