"""The examples are what users read: each spec's plan and launch files stand beside it, and are what a run gives today.

`pytest --update-golden` rewrites them; the difference is reviewed.
"""

import json
from pathlib import Path

import pytest

from planner.inputs.load import load_inputs
from planner.schema.plan import plan_to_text
from planner.search.search import search
from planner.targets.launch import launch_files
from planner.verification.kit import KIT_FILES, verification_kit

EXAMPLES = Path(__file__).parents[2] / "examples"
CASES = sorted(path.parent.name for path in EXAMPLES.glob("*/spec.yaml"))
PLAN_FILE = "plan.json"
SHIPPED = frozenset({"train_deepspeed.py", "planned_model.py"})
"""Programs that are the same in every plan's folder; they stand in `planner/data/deepspeed`."""

VERIFIED = frozenset({"llama-3.1-8b-1xdgx-h100", "llama-3.1-8b-deepspeed-1xdgx-h100", "mixtral-8x22b-8xdgx-h100"})
"""Examples whose short runs are shown: the scripts and the list of runs. The runs' folders hold what emitters write."""

FLOAT_TOLERANCE = 1e-9
"""Other processors add in another order; nothing else may differ."""


def files_of(case: str) -> dict[str, str]:
    inputs = load_inputs(EXAMPLES / case / "spec.yaml")
    plan = search(inputs.model, inputs.cluster, inputs.request, top=3)
    files = {name: text for name, text in launch_files(plan).items() if name not in SHIPPED}
    if case in VERIFIED:
        kit = verification_kit(plan, target=plan.target)
        assert kit is not None
        files |= {name: kit.files[name] for name in KIT_FILES}
    return {PLAN_FILE: plan_to_text(plan), **files}


def differences(expected: object, actual: object, path: str = "plan") -> list[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        if list(expected) != list(actual):
            return [f"{path}: keys {list(expected)} became {list(actual)}"]
        return [line for key in expected for line in differences(expected[key], actual[key], f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{path}: {len(expected)} entries became {len(actual)}"]
        pairs = enumerate(zip(expected, actual, strict=True))
        return [line for index, (old, new) in pairs for line in differences(old, new, f"{path}[{index}]")]
    if isinstance(expected, float) and isinstance(actual, float):
        same = actual == pytest.approx(expected, rel=FLOAT_TOLERANCE, abs=FLOAT_TOLERANCE)
    else:
        same = type(expected) is type(actual) and expected == actual
    return [] if same else [f"{path}: {expected!r} became {actual!r}"]


def test_there_are_examples() -> None:
    assert len(CASES) >= 6


@pytest.mark.parametrize("case", CASES)
def test_an_example_gives_the_files_beside_it(case: str, pytestconfig: pytest.Config) -> None:
    folder = EXAMPLES / case / "expected"
    actual = files_of(case)
    if pytestconfig.getoption("--update-golden"):
        for name, text in actual.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    there = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert there == sorted(actual)
    for name, text in actual.items():
        expected = (folder / name).read_text(encoding="utf-8")
        if name == PLAN_FILE:
            assert differences(json.loads(expected), json.loads(text)) == []
        else:
            assert expected == text
