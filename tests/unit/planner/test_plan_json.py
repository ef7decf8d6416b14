import json
from dataclasses import replace

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.plan import Plan
from planner.schema.plan import plan_from_document, plan_to_json, plan_to_text
from tests.builders import tiny_infeasible_plan, tiny_plan

PLAN_KEYS = (
    "schema_version target status objective bound gap search plans baseline infeasible days_to_train cost_to_train "
    "inputs"
)
PLANNED_KEYS = (
    "layout step_seconds reevaluated_step_seconds lower_bound_seconds tokens_per_second_per_gpu mfu peak_memory_bytes "
    "memory_limit_bytes memory time sources assumptions band"
)
LAYOUT_KEYS = (
    "tp sequence_parallel pp vpp cp cp_kind ep etp dp zero_stage micro_batch_size num_microbatches schedule recompute "
    "offload overlap rank_order stages"
)


def read_back(text: str) -> Plan:
    return plan_from_document(parse_document(text, file="plan.json"))


@pytest.mark.parametrize("plan", [tiny_plan(), tiny_infeasible_plan()], ids=["feasible", "infeasible"])
def test_a_plan_to_json_and_back_is_the_same_plan(plan: Plan) -> None:
    text = plan_to_text(plan)
    assert read_back(text) == plan
    assert plan_to_text(read_back(text)) == text


def test_the_keys_of_a_plan_file_are_stable_and_in_order() -> None:
    data = json.loads(plan_to_text(tiny_plan()))
    assert list(data) == PLAN_KEYS.split()
    assert list(data["search"]) == ["considered", "legal", "pruned", "simulated", "dimensions"]
    assert list(data["plans"][0]) == PLANNED_KEYS.split()
    assert list(data["plans"][0]["layout"]) == LAYOUT_KEYS.split()
    assert list(data["inputs"]) == ["model", "cluster", "request"]


def test_keys_of_later_versions_are_there_and_null() -> None:
    planned = json.loads(plan_to_text(tiny_plan()))["plans"][0]
    assert planned["band"] is None
    assert planned["layout"]["offload"] is None
    assert planned["layout"]["cp_kind"] is None


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
            'plan.json:23:15: plans[0].layout.tp: `tp` = "2" is not a whole number.\nGive a whole number.',
        ),
        (
            '"tp": 2',
            '"tp": 2.0',
            "plan.json:23:15: plans[0].layout.tp: `tp` = 2.0 is not a whole number.\nGive a whole number.",
        ),
        ('"tp": 2', '"tp": 0', "plan.json:22:17: plans[0].layout: `layout`: every degree of a layout is at least 1."),
        ('"pp": 2', '"pp": 3', "plan.json:22:17: plans[0].layout: `layout`: 2 stages given for pp * vpp = 3."),
        (
            '"zero_stage": 1',
            '"zero_stage": 7',
            "plan.json:22:17: plans[0].layout: `layout`: zero_stage = 7 is none of 0, 1, 2, 3.",
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
                "plan.json:292:17: infeasible: `status` = feasible, but `infeasible` says otherwise.\n"
                "The reasons are given exactly when nothing fits."
            ),
        ),
        ('"band": null', '"band": [1, 2]', "plan.json:109:15: plans[0].band: `band` is not null.\nGive null."),
        (
            '"offload": null',
            '"offload": "cpu"',
            'plan.json:43:20: plans[0].layout.offload: `offload` = "cpu" is not null.\nGive null.',
        ),
        (
            '"time.gemm":',
            '"time.gmm":',
            "plan.json:98:18: plans[0].sources: `time.gemm` has no source.\nAdd `time.gemm` to sources.",
        ),
        (
            '"forward-backward": {',
            '"lunch": {',
            'plan.json:78:20: plans[0].memory.0.lunch: `lunch` = "lunch" is not a known value.\nAllowed: init',
        ),
        (
            '"hidden_size": 64',
            '"hidden_size": 0',
            f"plan.json:299:22: inputs.model.hidden_size: `hidden_size` = 0 cannot be.\n{NOT_EDITED}",
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
        ('"assumptions": [', '"assumptions": {', "plan.json:108:7: This is not JSON: expected `:`, found `]`."),
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
    for key in whole:
        cut = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(InputError, match=f"`{key}` is missing"):
            read_back(json.dumps(cut))
    with pytest.raises(InputError, match="`mood` is not a known key"):
        read_back(json.dumps({**whole, "mood": "good"}))
