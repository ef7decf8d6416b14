"""The serving examples: each layout's files stand beside it, are what `emit` gives today, and break no rule."""

from pathlib import Path

import pytest

from planner.documents import load_document
from planner.rules.rule import Severity
from planner.schema.serving_layout import is_serving_layout, serving_layout_from_document
from planner.serving.files import serving_files
from planner.serving_plans.layout import ServingLayout
from planner.validation.judge import judge
from planner.validation.source import Asked

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYOUT_FILE = "serving.yaml"
CASES = sorted(path.parent.name for path in EXAMPLES.glob(f"*/{LAYOUT_FILE}"))


def layout_of(case: str) -> ServingLayout:
    document = load_document(EXAMPLES / case / LAYOUT_FILE)
    assert is_serving_layout(document)
    return serving_layout_from_document(document)


def test_there_are_serving_examples() -> None:
    assert len(CASES) >= 2


@pytest.mark.parametrize("case", CASES)
def test_an_example_gives_the_files_beside_it(case: str, pytestconfig: pytest.Config) -> None:
    layout = layout_of(case)
    folder = EXAMPLES / case / "expected"
    actual = serving_files(layout)
    if pytestconfig.getoption("--update-golden"):
        folder.mkdir(exist_ok=True)
        for name, text in actual.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == sorted(actual)
    for name, text in actual.items():
        assert (folder / name).read_text(encoding="utf-8") == text


@pytest.mark.parametrize("case", CASES)
def test_no_rule_finds_fault_with_an_example(case: str) -> None:
    (per_node,) = {pool.gpus_per_node for pool in layout_of(case).pools}
    judged = judge([str(EXAMPLES / case / "expected")], Asked(versions={}, gpus_per_node=per_node))
    assert judged.files
    assert [found.rule_id for found in judged.findings if found.severity is Severity.ERROR] == []
