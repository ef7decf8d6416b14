"""The JSON Schemas are valid, take every file that is shipped, and refuse broken ones."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from cli.render_models import model_yaml
from planner.documents import load_document, parse_document
from planner.models.bundled import bundled_models
from planner.schema.json_schemas import json_schema
from planner.schema.kinds import Draft, Kind
from profiles.catalogue import preset_names

EXAMPLES = Path(__file__).parents[3] / "examples"
SPECS = sorted(EXAMPLES.glob("*/spec.yaml"))
PLANS = sorted(EXAMPLES.glob("*/expected/plan.json"))
VALIDATORS: Mapping[Draft, Any] = {Draft.DRAFT_07: Draft7Validator, Draft.DRAFT_2020_12: Draft202012Validator}
ONLY_LATER = {"$defs", "prefixItems", "unevaluatedProperties", "unevaluatedItems", "dependentSchemas", "minContains"}
"""Keywords that draft-07 does not have."""


@cache
def validator(kind: Kind, draft: Draft) -> Any:
    """Return what checks files of a kind."""
    return VALIDATORS[draft](json_schema(kind, draft))


def wrong(kind: Kind, data: object) -> list[str]:
    """Return where the drafts find something wrong with a file; they must agree."""
    found = [sorted(error.json_path for error in validator(kind, draft).iter_errors(data)) for draft in Draft]
    assert found[0] == found[1]
    return found[0]


def keywords(schema: object) -> set[str]:
    """Return every key that stands anywhere in a schema."""
    if isinstance(schema, dict):
        return set(schema).union(*(keywords(value) for value in schema.values()))
    return set().union(*(keywords(item) for item in schema)) if isinstance(schema, list) else set()


@pytest.mark.parametrize("draft", Draft)
@pytest.mark.parametrize("kind", Kind)
def test_schemas_are_valid_of_their_draft(kind: Kind, draft: Draft) -> None:
    schema = json_schema(kind, draft)
    VALIDATORS[draft].check_schema(schema)
    assert json.dumps(schema) == json.dumps(json_schema(kind, draft))
    assert "discriminator" not in keywords(schema)


@pytest.mark.parametrize("kind", Kind)
def test_the_older_draft_uses_only_what_it_has(kind: Kind) -> None:
    schema = json_schema(kind, Draft.DRAFT_07)
    assert not keywords(schema) & ONLY_LATER
    assert "#/$defs/" not in json.dumps(schema)

    def check(part: object) -> None:
        if isinstance(part, dict):
            # Whatever stands beside a reference does not count there.
            assert not isinstance(part.get("$ref"), str) or len(part) == 1, part
            for value in part.values():
                check(value)
        elif isinstance(part, list):
            for value in part:
                check(value)

    check(schema)


def test_there_are_examples() -> None:
    assert len(SPECS) >= 10
    assert len(PLANS) >= 10


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.parent.name)
def test_every_spec_is_taken(path: Path) -> None:
    assert wrong(Kind.SPEC, load_document(path).data) == []


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.parent.name)
def test_every_plan_is_taken(path: Path) -> None:
    assert wrong(Kind.PLAN, json.loads(path.read_text())) == []


def test_every_bundled_model_is_taken() -> None:
    for bundled in bundled_models():
        assert wrong(Kind.MODEL, parse_document(model_yaml(bundled), file="model.yaml").data) == []


def test_every_preset_is_taken() -> None:
    for name in preset_names():
        assert wrong(Kind.CLUSTER, {"schema": 1, "preset": name, "nodes": 2}) == []


SPEC: Mapping[str, Any] = {
    "schema": 1,
    "model": "llama-3.1-8b",
    "cluster": {"preset": "dgx-h100", "nodes": 8},
    "workload": {"kind": "train", "seq_len": 8192, "global_batch_size": 512, "precision": "bf16"},
}
GROUPS = {"groups": [{"preset": "dgx-h100", "nodes": 1}, {"preset": "dgx-a100", "nodes": 1}], "name": "lab"}
CONSTRAINTS = {
    "tp": 8,
    "pp": [1, 2],
    "cp": {"max": 4},
    "zero_stage": 1,
    "recompute": ["none", "full"],
    "cp_kind": "ring",
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": "models/config.json", "cluster": "dgx-h100", "workload": "run.yaml", "constraints": "pins.yaml"},
        {"model": {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}},
        {"cluster": GROUPS},
        {"constraints": CONSTRAINTS},
        {"workload": {**SPEC["workload"], "tokens_to_train": "1.5T", "documents": {"histogram": {"512": 1.0}}}},
        {"node_counts": {"min": 2}, "objective": "cost", "deadline_days": 30},
    ],
)
def test_what_the_reader_takes_is_taken(change: Mapping[str, Any]) -> None:
    assert wrong(Kind.SPEC, {**SPEC, **change}) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"modle": "x"}, "$"),
        ({"schema": 2}, "$.schema"),
        ({"model": 3}, "$.model"),
        ({"model": {"hidden_size": 64}}, "$.model"),
        ({"cluster": {"nodes": 8}}, "$.cluster"),
        ({"cluster": {"preset": "dgx-h100", "nodes": 0}}, "$.cluster"),
        ({"cluster": {"groups": []}}, "$.cluster"),
        ({"workload": {**SPEC["workload"], "precision": "fp8"}}, "$.workload"),
        ({"workload": {**SPEC["workload"], "seq_len": "8k"}}, "$.workload"),
        ({"workload": {"kind": "train"}}, "$.workload"),
        ({"constraints": {"tp": 0}}, "$.constraints"),
        ({"constraints": {"tp": []}}, "$.constraints"),
        ({"constraints": {"tp": {"maximum": 8}}}, "$.constraints"),
        ({"constraints": {"recompute": "some"}}, "$.constraints"),
        ({"memory_headroom": 1.5}, "$.memory_headroom"),
        ({"target": "jax"}, "$.target"),
    ],
)
def test_a_broken_spec_is_refused_where_it_is_broken(change: Mapping[str, Any], place: str) -> None:
    assert place in wrong(Kind.SPEC, {**SPEC, **change})


def test_a_broken_plan_is_refused() -> None:
    plan = json.loads(PLANS[0].read_text())
    changes: tuple[dict[str, Any], ...] = ({"status": "fine"}, {"plans": [{}]}, {"extra": 1}, {"inputs": None})
    for change in changes:
        assert wrong(Kind.PLAN, {**plan, **change}) != []
    del plan["search"]
    assert wrong(Kind.PLAN, plan) == ["$"]
