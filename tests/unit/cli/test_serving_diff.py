"""`shardwright diff` and `validate --baseline` of serving plans."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

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
    (folder / "other.sh").write_text("echo nothing\n")
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
        (["free", "other.sh"], "The script starts no servers, and one is compared."),
    ):
        result = RUNNER.invoke(app, ["diff", *(str(runs / word) for word in words)])
        assert result.exit_code == 2
        assert message in result.stderr


def compared(plan: Path, folder: Path, name: str, *changes: tuple[str, str], form: str = "json") -> Result:
    """Return what `diff` says of a plan and of the script of a pool, whose configuration is changed."""
    for file in plan.iterdir():
        text = file.read_text()
        if file.name == f"{name}.yaml":
            for old, new in changes:
                assert old in text
                text = text.replace(old, new, 1)
        (folder / file.name).write_text(text)
    return RUNNER.invoke(app, ["diff", str(plan), str(folder / f"{name}.sh"), "--format", form])


def test_a_script_that_says_the_plan_changes_nothing(runs: Path, tmp_path: Path) -> None:
    result = compared(runs / "free", tmp_path, "server", form="text")
    assert (result.exit_code, result.stdout) == (0, "Nothing changed.\n")


def test_a_script_with_fewer_seats_bears_less(runs: Path, tmp_path: Path) -> None:
    result = compared(runs / "free", tmp_path, "server", ("max-num-seqs: ", "max-num-seqs: 4 # "))
    found = json.loads(result.stdout)
    assert found["settings"]["server max_num_seqs"][1] == "4"
    assert list(found["settings"]) == ["server max_num_seqs"]
    before, after = found["requests_per_second"]
    assert 0 < after < 0.9 * before
    remarks = {remark["about"]: remark["text"] for remark in found["remarks"]}
    assert remarks["slower"] == f"It bears {1 - after / before:.1%} fewer requests."
    assert not found["inputs"]


def test_a_script_of_larger_engines_takes_the_pools_gpus(runs: Path, tmp_path: Path) -> None:
    result = compared(runs / "free", tmp_path, "server", ("tensor-parallel-size: 1", "tensor-parallel-size: 2"))
    found = json.loads(result.stdout)
    assert found["settings"]["server tp"] == ["1", "2"]
    assert found["settings"]["server replicas"] == ["8", "4"]
    assert found["num_gpus"] == [8, 8]
    too_many = compared(runs / "free", tmp_path, "server", ("tensor-parallel-size: 1", "tensor-parallel-size: 16"))
    assert too_many.exit_code == 2
    assert "An engine of pool server takes 16 GPUs, and the pool has 8." in too_many.stderr


def test_an_engine_that_does_not_fit_is_not_compared(runs: Path, tmp_path: Path) -> None:
    narrow = ("gpu-memory-utilization: 0.92", "gpu-memory-utilization: 0.2")
    result = compared(runs / "free", tmp_path, "server", narrow)
    assert result.exit_code == 2
    assert re.search(r"A GPU of pool server lacks \d+\.\d\d GiB", result.stderr)
    silent = compared(runs / "free", tmp_path, "server", ("max-num-seqs: ", "# "))
    assert silent.exit_code == 2
    assert "The script does not say max_num_seqs." in silent.stderr


def test_half_of_a_split_plan_is_compared_with_the_other_as_it_was(runs: Path, tmp_path: Path) -> None:
    spec = runs / "serve.yaml"
    split = tmp_path / "split"
    words = ["plan", str(spec), "--set", "constraints={split: only, tp: [1, 8]}", "--out", str(split), "--quiet"]
    assert RUNNER.invoke(app, words).exit_code == 0
    fewer = compared(split, tmp_path, "decode", ("max-num-seqs: ", "max-num-seqs: 8 # "))
    found = json.loads(fewer.stdout)
    assert list(found["settings"]) == ["decode max_num_seqs"]
    assert found["requests_per_second"][1] < found["requests_per_second"][0]
    staged = compared(split, tmp_path, "decode", ("max-num-seqs", "pipeline-parallel-size: 2\nmax-num-seqs"))
    assert staged.exit_code == 2


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
