"""`shardwright diff` and `validate --baseline` of serving plans."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.schema.plan import plan_to_text
from tests.served import SMALL
from tests.unit.cli.samples import sample_plan

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two serving plans, `free` and `pinned`, and one of training."""
    folder = tmp_path_factory.mktemp("plans")
    spec = folder / "serve.yaml"
    spec.write_text(SMALL)
    for name, constraints in {"free": "{split: never}", "pinned": "{split: never, tp: 2, pp: 1}"}.items():
        words = ["plan", str(spec), "--set", f"constraints={constraints}", "--out", str(folder / name), "--quiet"]
        assert RUNNER.invoke(app, words).exit_code == 0
    (folder / "training").mkdir()
    (folder / "training" / "plan.json").write_text(plan_to_text(sample_plan()))
    return folder


def test_a_plan_its_folder_and_its_lock_say_the_same(runs: Path) -> None:
    free = runs / "free"
    for old in (free, free / "plan.json", free / "plan.lock.json"):
        result = RUNNER.invoke(app, ["diff", str(old), str(free / "plan.lock.json")])
        assert (result.exit_code, result.stdout) == (0, "Nothing changed.\n")


def test_two_plans_differ_in_what_was_pinned(runs: Path) -> None:
    words = ["diff", str(runs / "free"), str(runs / "pinned")]
    found = json.loads(RUNNER.invoke(app, [*words, "--format", "json"]).stdout)
    assert found["kind"] == "serve"
    assert found["settings"]["server tp"][1] == "2"
    assert found["requests_per_second"][0] > found["requests_per_second"][1]
    assert list(found["inputs"]) == ["wanted"]
    text = RUNNER.invoke(app, words).stdout
    assert "Times that the targets speak of" in text.splitlines()
    markdown = RUNNER.invoke(app, [*words, "--format", "markdown", "--fail"])
    assert markdown.stdout.startswith("### Serving plan\n")
    assert markdown.exit_code == 0  # another question was asked: nothing got worse beyond doubt


def test_plans_of_two_kinds_are_not_compared(runs: Path) -> None:
    for words, message in (
        (["free", "training"], "This is a training plan, and the other one a serving plan."),
        (["training", "free"], "This is a serving plan, and the other one a training plan."),
        (["free", "free/server.sh"], "A serving plan is compared with another one, not with a file of an engine."),
    ):
        result = RUNNER.invoke(app, ["diff", *(str(runs / word) for word in words)])
        assert result.exit_code == 2
        assert message in result.stderr


def ids(script: Path, lock: Path) -> list[str]:
    """Return the rules of locks that a script breaks."""
    result = RUNNER.invoke(
        app, ["validate", str(script), "--baseline", str(lock), "--gpus-per-node", "8", "--format", "json"]
    )
    assert result.exit_code in {0, 1}, result.stderr
    return sorted(set(re.findall(r"LCK\d+", json.dumps(json.loads(result.stdout)["findings"]))))


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("", "", []),
        ("enable-prefix-caching: false", "enable-prefix-caching: true", ["LCK008"]),
        ("max-num-seqs: ", "max-num-seqs: 4 # ", ["LCK006", "LCK008"]),
        ("gpu-memory-utilization: 0.92", "gpu-memory-utilization: 0.2", ["LCK007", "LCK008"]),
    ],
)
def test_an_engine_that_is_told_otherwise_is_held_against_the_lock(
    old: str, new: str, found: list[str], runs: Path, tmp_path: Path
) -> None:
    free = runs / "free"
    for file in free.iterdir():
        text = file.read_text()
        if file.name == "server.yaml":
            assert old in text
            text = text.replace(old, new, 1)
        (tmp_path / file.name).write_text(text)
    assert ids(tmp_path / "server.sh", free / "plan.lock.json") == found


def test_a_lock_of_the_other_kind_decides_nothing(runs: Path) -> None:
    assert ids(runs / "free" / "server.sh", runs / "training") == []
