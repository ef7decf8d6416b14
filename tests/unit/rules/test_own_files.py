"""Specs and plans of our own: each rule has a file that breaks it, and the examples break none."""

import json
from pathlib import Path

import pytest

from planner.rules.rule import Finding
from planner.validation.deepspeed_files import MAX_CHARACTERS
from planner.validation.judge import judge
from planner.validation.source import Asked

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = EXAMPLES / "llama-3.1-8b-1xdgx-h100"
SPEC = """schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 8192, global_batch_size: 128, precision: bf16}
"""
NOBODY = Asked(versions={})


def findings(path: Path, text: str) -> tuple[Finding, ...]:
    """Return what is wrong with a file of a text."""
    path.write_text(text, encoding="utf-8")
    return judge([str(path)], NOBODY).findings


def test_a_sound_spec_and_its_plan_break_nothing() -> None:
    result = judge([str(EXAMPLE / "spec.yaml"), str(EXAMPLE / "expected" / "plan.json")], NOBODY)
    assert (result.findings, len(result.files)) == ((), 2)


def test_a_plan_longer_than_any_configuration_is_judged(tmp_path: Path) -> None:
    text = (EXAMPLES / "llama-3.1-405b-128xdgx-h100" / "expected" / "plan.json").read_text(encoding="utf-8")
    assert len(text) > MAX_CHARACTERS
    assert [one.rule_id for one in findings(tmp_path / "plan.json", text.replace('"optimal"', '"best"'))] == ["SW101"]


def test_a_serving_plan_longer_than_any_configuration_is_judged(tmp_path: Path) -> None:
    text = (EXAMPLES / "llama-3.1-70b-serving-1xdgx-h100" / "expected" / "plan.json").read_text(encoding="utf-8")
    document = json.loads(text)
    document["colour"] = "x" * MAX_CHARACTERS
    assert {one.rule_id for one in findings(tmp_path / "plan.json", json.dumps(document))} == {"SW101"}


def test_every_field_of_a_spec_is_reported_where_it_stands(tmp_path: Path) -> None:
    found = findings(tmp_path / "spec.yaml", SPEC.replace("bf16}", "bf61, colour: 1}"))
    assert [finding.rule_id for finding in found] == ["SW001", "SW001"]
    places = [(one.found.place.line, one.found.place.column, one.found.place.path) for one in found]
    assert places == [(4, 75, "workload.precision"), (4, 81, "workload.colour")]
    assert found[0].found.message == '`precision` = "bf61" is not a known value.'


def test_a_spec_that_contradicts_itself(tmp_path: Path) -> None:
    (found,) = findings(tmp_path / "spec.yaml", f"{SPEC}constraints: {{tp: 16}}\n")
    assert (found.rule_id, found.found.place.path) == ("SW002", "constraints.tp")
    assert found.found.message == "tp 16 does not divide the number of GPUs = 8."


def test_a_comment_hides_what_a_spec_does_on_purpose(tmp_path: Path) -> None:
    text = f"{SPEC}constraints: {{tp: 16}}  # shardwright: ignore[SW002] nodes are added later\n"
    assert findings(tmp_path / "spec.yaml", text) == ()


def test_a_damaged_plan(tmp_path: Path) -> None:
    text = (EXAMPLE / "expected" / "plan.json").read_text(encoding="utf-8")
    found = findings(tmp_path / "plan.json", text.replace('"status": "optimal"', '"status": "best"'))
    assert [finding.rule_id for finding in found] == ["SW101"]
    assert found[0].found.place.line == 4


def test_a_plan_whose_layout_cannot_be(tmp_path: Path) -> None:
    document = json.loads((EXAMPLE / "expected" / "plan.json").read_text(encoding="utf-8"))
    document["plans"][1]["layout"]["num_microbatches"] *= 2
    found = findings(tmp_path / "plan.json", json.dumps(document))
    assert {finding.rule_id for finding in found} == {"SW102"}
    assert found[0].found.message.startswith("This layout cannot be: ")
    assert found[0].found.place.path == "plans[1]"


def test_a_spec_without_its_workload(tmp_path: Path) -> None:
    (found,) = findings(tmp_path / "spec.yaml", "\n".join(SPEC.splitlines()[:3]))
    assert (found.rule_id, found.found.message) == ("SW001", "`workload` is missing.")


def test_a_serving_plan_without_its_kind_is_judged_as_one(tmp_path: Path) -> None:
    text = (EXAMPLES / "llama-3.1-70b-serving-1xdgx-h100" / "expected" / "plan.json").read_text(encoding="utf-8")
    (found,) = findings(tmp_path / "plan.json", text.replace('  "kind": "serve",\n', ""))
    assert (found.rule_id, found.found.message, found.found.hint) == ("SW101", "`kind` is missing.", "Add it.")
    found_all = findings(tmp_path / "plan.json", text.replace('"kind": "serve"', '"kind": "train"', 1))
    assert [(one.rule_id, one.found.place.path) for one in found_all] == [("SW101", "kind")]


LAYOUTS = ("llama-3.1-70b-vllm-split", "deepseek-v3-vllm-4xdgx-h200")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_serving_layout_breaks_nothing(name: str) -> None:
    result = judge([str(EXAMPLES / name / "serving.yaml")], NOBODY)
    assert (result.findings, len(result.files)) == ((), 1)


def test_a_damaged_serving_layout(tmp_path: Path) -> None:
    text = (EXAMPLES / LAYOUTS[0] / "serving.yaml").read_text(encoding="utf-8")
    (found,) = findings(tmp_path / "serving.yaml", text.replace("shape: {tp: 4}", "shape: {tp: 4, pq: 2}"))
    assert (found.rule_id, found.found.place.path) == ("SW201", "pools[0].shape.pq")
    (found,) = findings(tmp_path / "serving.yaml", text.replace("connector: NixlConnector\n", ""))
    assert (found.rule_id, found.found.message) == ("SW201", "The layout has no connector.")


def test_a_serving_layout_that_vllm_refuses(tmp_path: Path) -> None:
    text = (EXAMPLES / LAYOUTS[0] / "serving.yaml").read_text(encoding="utf-8")
    short = text.replace(
        "max_num_seqs: 192, max_num_batched_tokens: 2048", "max_num_seqs: 192, max_num_batched_tokens: 64"
    )
    (found,) = findings(tmp_path / "serving.yaml", short)
    assert (found.rule_id, found.found.place.path, found.found.place.line) == ("SW202", "pools[1]", 14)
    assert found.found.message == "Pool decode: VLL810 A budget of 64 tokens a step for 192 sequences."
