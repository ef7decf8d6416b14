import json
from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.layout import ContextKind, Granularity, Layout, Overlap, Recompute, Schedule, stages_from_counts
from planner.models.specs import ModelSpec
from planner.plans.plan import OnNodes, Plan
from planner.requests.routing import Routing
from planner.requests.workload import DocumentLengths, Packing
from planner.schema.plan import plan_from_document, plan_to_json, plan_to_text
from tests.builders import tiny_infeasible_plan, tiny_plan, tiny_plan_with_choices, tiny_robust_plan
from tests.unequal_clusters import unequal_cluster
from tests.unit.planner.model_kinds import expert_model, hybrid_model, latent_model

PLAN_KEYS = (
    "schema_version target status objective bound gap search plans baseline infeasible certainty days_to_train "
    "cost_to_train joules_to_train inputs"
)
PLANNED_KEYS = (
    "layout step_seconds reevaluated_step_seconds lower_bound_seconds tokens_per_second_per_gpu mfu peak_memory_bytes "
    "memory_limit_bytes memory time sources assumptions band"
)
LAYOUT_KEYS = (
    "tp sequence_parallel pp vpp cp ulysses cp_kind state_exchange ep etp edp dp zero_stage state_replicas "
    "secondary_shard micro_batch_size num_microbatches schedule recompute offload overlap rank_order stages"
)


def read_back(text: str) -> Plan:
    return plan_from_document(parse_document(text, file="plan.json"))


def plan_on_unequal_nodes() -> Plan:
    """Return a plan whose nodes differ and stand in an order of their own."""
    plan = tiny_plan()
    ranks = len({line.rank for line in plan.best.memory})
    on_nodes = OnNodes(order=(1, 0), listed_step_seconds=0.5, memory_limit_bytes_R=(2**33,) * ranks)
    best = replace(plan.best, layout=replace(plan.best.layout, node_order=(1, 0)), on_nodes=on_nodes)
    cluster = unequal_cluster(2, older=[0], gpus_per_node=4)
    return replace(plan, cluster=cluster, plans=(best, *plan.plans[1:]))


def test_what_only_nodes_that_differ_have_is_said_of_no_others() -> None:
    text = plan_to_text(tiny_plan())
    assert not any(key in text for key in ("node_order", "on_nodes", "unequal"))
    data = json.loads(plan_to_text(plan_on_unequal_nodes()))
    assert data["plans"][0]["layout"]["node_order"] == data["plans"][0]["on_nodes"]["order"] == [1, 0]
    assert data["inputs"]["cluster"]["unequal"]["kind_of_node_N"] == [1, 0]


def test_limits_of_other_ranks_than_the_ledgers_are_refused() -> None:
    data = json.loads(plan_to_text(plan_on_unequal_nodes()))
    data["plans"][0]["on_nodes"]["memory_limit_bytes_R"] = [1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="`memory_limit_bytes_R` has 5 numbers, `memory` ") as caught:
        read_back(json.dumps(data))
    assert "plan.json" in str(caught.value.location)


@pytest.mark.parametrize(
    "plan", [tiny_plan(), tiny_infeasible_plan(), plan_on_unequal_nodes()], ids=["feasible", "infeasible", "unequal"]
)
def test_a_plan_to_json_and_back_is_the_same_plan(plan: Plan) -> None:
    text = plan_to_text(plan)
    assert read_back(text) == plan
    assert plan_to_text(read_back(text)) == text


def test_what_was_asked_beside_a_plan_is_kept_and_left_out_where_it_was_not() -> None:
    plan = tiny_plan_with_choices()
    text = plan_to_text(plan)
    assert read_back(text) == plan
    assert plan_to_text(read_back(text)) == text
    data = json.loads(text)
    assert [key for key in data if key not in PLAN_KEYS.split()] == ["node_choice", "pareto", "spare"]
    assert data["inputs"]["request"]["deadline_days"] == 30.0
    assert data["node_choice"]["counts"][1]["days_to_train"] == pytest.approx(plan.days_to_train)
    plain = json.loads(plan_to_text(tiny_plan()))["inputs"]["request"]
    assert not {"deadline_days", "node_counts"} & set(plain)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("node_choice", "counts", 1, "cost_to_train"),
            1.0,
            "`node_choice` holds a number that does not follow from the others.",
        ),
        (("pareto", "points", 0, "gap"), 0.25, "`pareto` holds a number that does not follow from the others."),
        (
            ("pareto", "points", 1, "step_seconds"),
            0.125,
            "`points` are no front: each has to need less memory than the last, and to take longer.",
        ),
        (("spare", "kept", 0, "degraded"), 3, "a mapping"),
    ],
)
def test_what_does_not_follow_beside_a_plan_is_an_error(
    path: tuple[str | int, ...], value: float, message: str
) -> None:
    data = json.loads(plan_to_text(tiny_plan_with_choices()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InputError) as caught:
        read_back(json.dumps(data))
    assert message in str(caught.value)


def test_how_robust_the_layouts_are_is_kept() -> None:
    plan = tiny_robust_plan()
    text = plan_to_text(plan)
    assert read_back(text) == plan
    assert plan_to_text(read_back(text)) == text
    robust = json.loads(text)["robust"]
    assert robust["worst_loss"] == pytest.approx(0.125)
    assert robust["cases"][1]["losses"] == pytest.approx([0.125, 0.375])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worst_loss": 0.5}, "`robust` holds a number that does not follow from the others."),
        ({"least_loss": 0.5}, "`least_loss` = 0.5 is more than the first layout loses in its worst case, 0.125."),
        ({"cases": []}, "`cases`"),
    ],
)
def test_an_edited_account_of_robustness_is_an_error(change: dict[str, object], message: str) -> None:
    data = json.loads(plan_to_text(tiny_robust_plan()))
    data["robust"].update(change)
    with pytest.raises(InputError) as caught:
        read_back(json.dumps(data))
    assert message in str(caught.value)


def test_cases_of_other_layouts_than_the_plans_are_refused() -> None:
    data = json.loads(plan_to_text(tiny_robust_plan()))
    data["robust"]["cases"][0]["step_seconds"].append(1.0)
    with pytest.raises(InputError, match="`robust` prices 3 layouts, but the file holds 2 plans"):
        read_back(json.dumps(data))


def test_files_of_versions_that_knew_no_energy_are_read() -> None:
    whole = plan_to_json(tiny_plan())
    assert whole.pop("joules_to_train") is not None
    assert read_back(json.dumps(whole)) == tiny_plan()


def test_the_keys_of_a_plan_file_are_stable_and_in_order() -> None:
    data = json.loads(plan_to_text(tiny_plan()))
    assert list(data) == PLAN_KEYS.split()
    assert list(data["search"]) == ["considered", "legal", "pruned", "simulated", "dimensions", "uneven_bound_seconds"]
    assert list(data["plans"][0]) == PLANNED_KEYS.split()
    assert list(data["plans"][0]["layout"]) == LAYOUT_KEYS.split()
    assert list(data["inputs"]) == ["model", "cluster", "request"]


def test_keys_of_later_versions_are_there_and_null() -> None:
    planned = json.loads(plan_to_text(tiny_plan()))["plans"][0]
    assert planned["layout"]["offload"] is None


def test_a_source_is_said_once_and_its_exceptions_where_they_are() -> None:
    planned = json.loads(plan_to_text(tiny_plan()))["plans"][0]
    assert planned["sources"] == {
        "memory.weights": "2 bytes a parameter",
        "memory.activations": "in flight on rank 0",
        "memory.4.initialisation.activations": "in flight on rank 4",
        "memory.4.forward-backward.activations": "in flight on rank 4",
        "time.gemm": "analytic: roofline",
        "time.pipeline bubble": "simulated",
    }


def test_equal_plans_give_equal_bytes_whatever_the_order_of_their_mappings() -> None:
    plan = tiny_plan()
    pruned = dict(reversed(list(plan.search.pruned.items())))
    assert plan_to_text(replace(plan, search=replace(plan.search, pruned=pruned))) == plan_to_text(plan)


def test_a_number_that_is_not_finite_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        plan_to_text(replace(tiny_plan(), bound=float("nan")))


NOT_EDITED = "Plan again; a plan file is not edited by hand."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"tp": 2',
            '"tp": "2"',
            (
                'plan.json:24:15: plans[0].layout.tp: `tp` = "2" is not a whole number.\n'
                "Give a whole number, without quotes."
            ),
        ),
        (
            '"tp": 2',
            '"tp": 2.0',
            "plan.json:24:15: plans[0].layout.tp: `tp` = 2.0 is not a whole number.\nGive a whole number.",
        ),
        ('"tp": 2', '"tp": 0', "plan.json:23:17: plans[0].layout: `layout`: every degree of a layout is at least 1."),
        ('"pp": 2', '"pp": 3', "plan.json:23:17: plans[0].layout: `layout`: 2 stages given for pp * vpp = 3."),
        (
            '"zero_stage": 1',
            '"zero_stage": 7',
            "plan.json:23:17: plans[0].layout: `layout`: zero_stage = 7 is none of 0, 1, 2, 3.",
        ),
        (
            '"schema_version": 1',
            '"schema_version": 2',
            (
                "plan.json:2:21: schema_version: `schema_version` = 2 is not known.\n"
                "This version reads plan files of schema_version 1; plan again."
            ),
        ),
        (
            '"status": "feasible"',
            '"status": "great"',
            'plan.json:4:13: status: `status` = "great" is not a known value.\nAllowed: optimal, feasible, infeasible.',
        ),
        (
            '"status": "feasible"',
            '"status": "infeasible"',
            (
                "plan.json:4:13: status: `status` = infeasible, but the file holds 2 plans.\n"
                "An infeasible result holds none, every other at least one."
            ),
        ),
        (
            '"infeasible": null',
            '"infeasible": {"binding": "x", "shortfall_bytes": 0, "nearest": null, "relaxations": []}',
            (
                "plan.json:317:17: infeasible: `status` = feasible, but `infeasible` says otherwise.\n"
                "The reasons are given exactly when nothing fits."
            ),
        ),
        ('"low_seconds": 0.2', '"low_seconds": 0.3', "certainty: `band` = [0.3, 0.3125] does not follow from the step"),
        ('"half_width": 0.25', '"half_width": 0.5', "certainty: `band` = [0.2, 0.3125] does not follow from the step"),
        ('"could_swap": []', '"could_swap": [7]', "`could_swap` = [7] does not follow from the step times, which give"),
        (
            '"offload": null',
            '"offload": "cpu"',
            'plan.json:49:20: plans[0].layout.offload: `offload` = "cpu"',
        ),
        (
            '"time.gemm":',
            '"time.gmm":',
            "plan.json:104:18: plans[0].sources: `time.gemm` has no source.\nAdd `time.gemm` to sources.",
        ),
        (
            '"forward-backward": {',
            '"lunch": {',
            'plan.json:84:20: plans[0].memory.0.lunch: `lunch` = "lunch" is not a known value.\nAllowed: init',
        ),
        (
            '"hidden_size": 64',
            '"hidden_size": 0',
            f"plan.json:332:22: inputs.model.hidden_size: `hidden_size` = 0 cannot be.\n{NOT_EDITED}",
        ),
        (
            '"tdp_watts": 500.0',
            '"tdp_watts": -1.0',
            f": inputs.cluster.device.tdp_watts: `tdp_watts` = -1.0 cannot be.\n{NOT_EDITED}",
        ),
        (
            '"num_key_value_heads": 4',
            '"num_key_value_heads": 5',
            (
                ": inputs.model.runs[0].block.mixer: `mixer`: num_attention_heads = 8 is not a multiple of "
                "num_key_value_heads = 5."
            ),
        ),
        ('"days_to_train": ', '"days_to_train": 9', f"which gives 0.0014128508391203704.\n{NOT_EDITED}"),
        ('"cost_to_train": ', '"cost_to_train": 9', f"which gives 0.5425347222222222.\n{NOT_EDITED}"),
        ('"mfu":', '"mfv":', "`mfv` is not a known key.\nDid you mean `mfu`? Known keys: layout, step_seconds, "),
        ('"assumptions": [', '"assumptions": {', "plan.json:114:7: This is not JSON: expected `:`, found `]`."),
    ],
)
def test_a_damaged_plan_file_is_an_error_with_its_place(old: str, new: str, message: str) -> None:
    text = plan_to_text(tiny_plan())
    assert old in text
    with pytest.raises(InputError) as caught:
        read_back(text.replace(old, new, 1))
    assert message in str(caught.value)


def test_a_plan_file_that_was_cut_off_is_an_error() -> None:
    text = plan_to_text(tiny_plan())
    for length in range(0, len(text) - 1, 311):
        with pytest.raises(InputError, match=r"^plan\.json:\d+:\d+: This is not JSON: "):
            read_back(text[:length])


def test_every_removed_or_unknown_key_is_an_error() -> None:
    whole = plan_to_json(tiny_plan())
    for key in whole.keys() - {"certainty", "joules_to_train"}:
        cut = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(InputError, match=f"`{key}` is missing"):
            read_back(json.dumps(cut))
    with pytest.raises(InputError, match="`mood` is not a known key"):
        read_back(json.dumps({**whole, "mood": "good"}))


def test_files_of_versions_that_knew_no_bands_are_read() -> None:
    plan = replace(tiny_plan(), certainty=None)
    whole = plan_to_json(plan)
    assert whole.pop("certainty") is None
    assert read_back(json.dumps(whole)) == plan
    assert read_back(plan_to_text(plan)) == plan


def test_bands_without_what_they_follow_from_are_an_error() -> None:
    whole = plan_to_json(tiny_plan())
    del whole["certainty"]
    with pytest.raises(InputError, match=r"`band` = \[0\.2, 0\.3125\] does not follow"):
        read_back(json.dumps(whole))


def test_who_may_swap_with_the_best_stands_in_the_file() -> None:
    plan = tiny_plan()
    near = replace(plan.best, step_seconds=plan.best.step_seconds * 1.05)
    data = json.loads(plan_to_text(replace(plan, plans=(*plan.plans, near))))
    assert data["certainty"]["could_swap"] == [2]
    assert data["plans"][0]["band"] == {"low_seconds": 0.2, "high_seconds": 0.3125}


def spread_layout() -> Layout:
    """Return a layout with every degree above 1."""
    return Layout(
        tp=2,
        sequence_parallel=True,
        pp=2,
        vpp=2,
        cp=4,
        ulysses=2,
        state_exchange=True,
        ep=4,
        etp=2,
        dp=4,
        zero_stage=3,
        state_replicas=2,
        secondary_shard=2,
        micro_batch_size=1,
        num_microbatches=4,
        schedule=Schedule.INTERLEAVED,
        recompute=Recompute(granularity=Granularity.FULL, num_layers=1),
        overlap=Overlap(grad_reduce=True, param_gather=False, p2p=True),
        stages=stages_from_counts((1, 1, 1, 1)),
    )


def plan_of(model: ModelSpec) -> Plan:
    """Return a plan of a model, with documents and constraints in its inputs and a layout that uses every dimension."""
    plan = tiny_plan()
    workload = replace(
        plan.request.workload,
        documents=DocumentLengths(lengths=(16, 128), weights=(0.25, 0.75), packing=Packing.PADDED),
        routing_skew=1.5,
        routing=Routing(source="made up", layers=(1,), counts=("1,2,3,4,5,6,7,8",), capacity_factor=2.0),
    )
    constraints = replace(plan.request.constraints, cp_kind=("ring", "ulysses"))
    planned = replace(plan.best, layout=spread_layout())
    return replace(
        plan,
        model=model,
        request=replace(plan.request, workload=workload, constraints=constraints),
        plans=(planned,),
    )


MODELS = [expert_model(), latent_model(), hybrid_model()]


@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_a_plan_of_any_kind_of_model_to_json_and_back_is_the_same_plan(model: ModelSpec) -> None:
    text = plan_to_text(plan_of(model))
    assert read_back(text) == plan_of(model)
    assert plan_to_text(read_back(text)) == text


def test_what_follows_from_a_layout_is_in_its_file() -> None:
    layout = json.loads(plan_to_text(plan_of(expert_model())))["plans"][0]["layout"]
    assert layout["cp_kind"] == ContextKind.ULYSSES_RING.value
    assert layout["edp"] == 4


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        (
            expert_model(),
            '"cp_kind": "ulysses-ring"',
            '"cp_kind": "ring"',
            (
                'plan.json:30:20: plans[0].layout.cp_kind: `cp_kind` = "ring" does not follow from cp 4, ulysses 2, '
                f'which give "ulysses-ring".\n{NOT_EDITED}'
            ),
        ),
        (
            expert_model(),
            '"edp": 4',
            '"edp": 2',
            (
                "plan.json:34:16: plans[0].layout.edp: `edp` = 2 does not follow from tp 2, cp 4, dp 4, ep 4, etp 2, "
                f"which give 4.\n{NOT_EDITED}"
            ),
        ),
        (
            expert_model(),
            '"ulysses": 2',
            '"ulysses": 3',
            "plan.json:23:17: plans[0].layout: `layout`: ulysses = 3 does not divide cp = 4.",
        ),
        (
            expert_model(),
            '"ep": 4',
            '"ep": 5',
            "plan.json:23:17: plans[0].layout: `layout`: etp * ep = 10 does not divide tp * cp * dp = 32.",
        ),
        (
            expert_model(),
            '"kind": "experts"',
            '"kind": "expert"',
            (
                ': inputs.model.runs[1].block.feed_forward.kind: `kind` = "expert" is not a known value.\n'
                "Did you mean `experts`? Allowed: dense, experts."
            ),
        ),
        (
            latent_model(),
            '"kv_lora_rank": 16',
            '"kv_lora_rank": null',
            (
                ": inputs.model.runs[0].block.mixer.kv_lora_rank: `kv_lora_rank` = null is not a whole number.\n"
                "Give a whole number."
            ),
        ),
        (
            latent_model(),
            '"kv_lora_rank": 16',
            '"kv_rank": 16',
            (
                ": inputs.model.runs[0].block.mixer.kv_rank: `kv_rank` is not a known key.\n"
                "Did you mean `kv_lora_rank`? Known keys: num_attention_heads, q_lora_rank, "
            ),
        ),
        (
            latent_model(),
            '"v_head_dim": 8',
            '"v_head_dim": 0',
            f": inputs.model.runs[0].block.mixer.v_head_dim: `v_head_dim` = 0 cannot be.\n{NOT_EDITED}",
        ),
        (
            latent_model(),
            '"num_modules": 1',
            '"num_modules": 0',
            f": inputs.model.mtp.num_modules: `num_modules` = 0 cannot be.\n{NOT_EDITED}",
        ),
        (
            hybrid_model(),
            '"conv_kernel": 4',
            '"conv_kernel": -4',
            f": inputs.model.runs[0].block.mixer.conv_kernel: `conv_kernel` = -4 cannot be.\n{NOT_EDITED}",
        ),
        (
            hybrid_model(),
            '"kind": "state-space"',
            '"is": "state-space"',
            (
                ": inputs.model.runs[0].block.mixer: `kind` is missing in `inputs.model.runs[0].block.mixer`.\n"
                f"{NOT_EDITED}"
            ),
        ),
        (
            hybrid_model(),
            '"rule": "lightning"',
            '"rule": "thunder"',
            (
                ': inputs.model.runs[3].block.mixer.rule: `rule` = "thunder" is not a known value.\n'
                "Allowed: gated-delta, kimi-delta, lightning."
            ),
        ),
        (
            hybrid_model(),
            '"routing_skew": 1.5',
            '"routing_skew": 0.5',
            ": inputs.request.workload: `workload`: the busiest rank has at least the mean load: ",
        ),
        (
            hybrid_model(),
            '"1,2,3,4,5,6,7,8"',
            '"1,2,3,4,5,6,7,x"',
            ": inputs.request.workload.routing: `routing`: invalid literal for int",
        ),
        (
            hybrid_model(),
            '"capacity_factor": 2.0',
            '"capacity_factor": 0.5',
            ": plans: `expert_loads` does not follow from the routing and ep.",
        ),
        (
            hybrid_model(),
            "16,\n            128",
            "256,\n            128",
            ": inputs.request.workload.documents: `documents`: lengths are positive and ascend.",
        ),
        (
            hybrid_model(),
            '"tp": {\n            "allowed"',
            '"tpp": {\n            "allowed"',
            (
                ': inputs.request: `constraints` bounds "tpp", which is no dimension of a layout.\n'
                "Known: tp, cp, pp, vpp, dp, ep, etp, zero_stage, micro_batch_size, num_microbatches, offloaded_layers."
            ),
        ),
    ],
)
def test_an_edited_plan_of_any_kind_of_model_is_an_error_with_its_place(
    model: ModelSpec, old: str, new: str, message: str
) -> None:
    text = plan_to_text(plan_of(model))
    assert old in text
    with pytest.raises(InputError) as caught:
        read_back(text.replace(old, new, 1))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_what_may_be_zero_is_taken() -> None:
    text = plan_to_text(plan_of(hybrid_model()))
    for key in ("conv_kernel", "num_norms", "num_post_norms"):
        assert f'"{key}": 0' in text
