"""The examples of planned serving: each spec's plan and files stand beside it, and break no rule.

`pytest --update-golden` rewrites them; the difference is reviewed.
"""

import json
from pathlib import Path

import pytest

from planner.rules.rule import Severity
from planner.schema.serve_plan_file import serve_plan_to_text
from planner.serving_search.inputs import load_serve_inputs
from planner.serving_search.launch import serve_files
from planner.serving_search.search import plan_serving
from planner.validation.judge import judge
from planner.validation.source import Asked
from tests.golden.test_examples import differences

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEC_FILE = "serve.yaml"
PLAN_FILE = "plan.json"
CASES = sorted(path.parent.name for path in EXAMPLES.glob(f"*/{SPEC_FILE}"))


def test_there_are_examples() -> None:
    assert len(CASES) >= 2


@pytest.mark.parametrize("case", CASES)
def test_an_example_gives_the_files_beside_it(case: str, pytestconfig: pytest.Config) -> None:
    inputs = load_serve_inputs(EXAMPLES / case / SPEC_FILE)
    plan = plan_serving(inputs.model, inputs.clusters, inputs.request)
    actual = {PLAN_FILE: serve_plan_to_text(plan), **serve_files(plan)}
    folder = EXAMPLES / case / "expected"
    if pytestconfig.getoption("--update-golden"):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, text in actual.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == sorted(actual)
    for name, text in actual.items():
        expected = (folder / name).read_text(encoding="utf-8")
        if name == PLAN_FILE:
            assert differences(json.loads(expected), json.loads(text)) == []
        else:
            assert text == expected


@pytest.mark.parametrize("case", CASES)
def test_no_rule_finds_fault_with_an_example(case: str) -> None:
    judged = judge([str(EXAMPLES / case / "expected")], Asked(versions={}, gpus_per_node=8))
    assert judged.files
    assert [found for found in judged.findings if found.severity is Severity.ERROR] == []
