"""`shardwright diff` and `validate --baseline`: what changed since a plan was locked."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

RUNNER = CliRunner()
EXAMPLE = Path(__file__).parents[3] / "examples" / "llama-3.1-8b-1xdgx-h100"
SPEC = str(EXAMPLE / "spec.yaml")
FULL = "--bf16 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
PINNED = ("--set", "constraints.pp=2", "--set", "constraints.cp=2", "--set", "constraints.tp=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two plans, `wide` and `plain`."""
    folder = tmp_path_factory.mktemp("plans")
    for name, more in {"wide": (), "plain": ("--set", "constraints.vpp=1")}.items():
        result = RUNNER.invoke(app, ["plan", SPEC, *PINNED, *more, "--out", str(folder / name), "--quiet"])
        assert result.exit_code == 0, result.stderr
    return folder


def diffed(*arguments: str | Path) -> dict[str, object]:
    result = RUNNER.invoke(app, ["diff", *map(str, arguments), "--format", "json"])
    assert result.exit_code == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


def test_a_plan_its_folder_and_its_lock_say_the_same(run: Path) -> None:
    wide = run / "wide"
    ways = (wide, wide / "plan.json", wide / "plan.lock.json")
    assert all(diffed(old, new)["remarks"] == [] for old in ways for new in ways)
    assert all(diffed(wide / "plan.lock.json", new)["files"] == [] for new in ways)
    text = RUNNER.invoke(app, ["diff", str(wide), str(wide / "plan.lock.json")])
    assert text.stdout == "Nothing changed.\n"


def test_two_plans_differ_in_what_was_pinned(run: Path) -> None:
    found = diffed(run / "wide", run / "plain")
    assert found["settings"]["vpp"] == ["4", "1"]  # type: ignore[index]
    seconds = found["step_seconds"]
    assert isinstance(seconds, list)
    assert seconds[0] < seconds[1]
    assert list(found["inputs"]) == ["wanted"]  # type: ignore[call-overload]
    assert set(found["files"]) == {"launch.sh", "job.sbatch"}  # type: ignore[call-overload]


def test_a_script_is_priced_with_the_plans_inputs(run: Path) -> None:
    plan = json.loads((run / "plain" / "plan.json").read_text())["plans"][0]
    found = diffed(run / "wide" / "plan.lock.json", run / "plain" / "launch.sh")
    assert found["step_seconds"][1] == plan["reevaluated_step_seconds"]  # type: ignore[index]
    assert found["inputs"] == {}


def test_markdown_is_a_comment_and_fail_ends_with_1(run: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.sh"
    text = (run / "wide" / "launch.sh").read_text()
    assert "--bf16" in text
    slow.write_text(text.replace("--bf16", FULL))
    result = RUNNER.invoke(app, ["diff", str(run / "wide"), str(slow), "--format", "markdown", "--fail"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "### Layout plan"
    assert any(line.startswith("- **worse**: The step is ") for line in lines)
    assert "| recompute | none | full |  |" in lines
    kept = RUNNER.invoke(app, ["diff", str(run / "wide"), str(run / "plain"), "--fail"])
    assert kept.exit_code == 0


def test_validate_holds_a_script_against_its_lock(run: Path, tmp_path: Path) -> None:
    lock = run / "wide" / "plan.lock.json"

    def ids(script: Path) -> list[str]:
        result = RUNNER.invoke(app, ["validate", str(script), "--baseline", str(lock), "--format", "json"])
        assert result.exit_code in {0, 1}, result.stderr
        return [finding["rule"] for finding in json.loads(result.stdout)["findings"]]

    assert ids(run / "wide" / "launch.sh") == []
    assert ids(run / "plain" / "launch.sh") == ["LCK002", "LCK005"]
    full = tmp_path / "full.sh"
    full.write_text((run / "wide" / "launch.sh").read_text().replace("--bf16", FULL))
    assert ids(full) == ["LCK001", "LCK005"]
    large = tmp_path / "large.sh"
    large.write_text((run / "wide" / "launch.sh").read_text().replace("--micro-batch-size 1", "--micro-batch-size 2"))
    assert "LCK003" in ids(large)


def test_a_script_of_another_run_is_named_first_and_is_a_finding(run: Path, tmp_path: Path) -> None:
    text = (run / "wide" / "launch.sh").read_text()
    changes = {
        "--global-batch-size 128": ("--global-batch-size 64", "= 64 sequences, not 128."),
        "--seq-length 8192": ("--seq-length 4096", "The script's sequences have 4,096 tokens, the plan's 8,192."),
        "--bf16": ("--fp16", "The script runs in fp16, the plan in bf16."),
    }
    for old, (new, words) in changes.items():
        assert old in text
        script = tmp_path / "train.sh"
        script.write_text(text.replace(old, new))
        first = diffed(run / "wide", script)["remarks"][0]  # type: ignore[index]
        assert (first["level"], first["about"]) == ("bad", "other-run")
        assert first["text"].endswith(words)
        failed = RUNNER.invoke(app, ["diff", str(run / "wide"), str(script), "--fail"])
        assert failed.exit_code == 1
        assert "within the" not in failed.stdout
        judged = RUNNER.invoke(
            app, ["validate", str(script), "--baseline", str(run / "wide" / "plan.lock.json"), "--format", "json"]
        )
        assert "LCK009" in [finding["rule"] for finding in json.loads(judged.stdout)["findings"]]


def test_inputs_of_the_same_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    lock = json.loads((run / "wide" / "plan.lock.json").read_text())
    lock["inputs"]["model"]["sha256"] = "0123456789abcdef" * 4
    other = tmp_path / "plan.lock.json"
    other.write_text(json.dumps(lock))
    before, after = diffed(run / "wide", other)["inputs"]["model"]  # type: ignore[index]
    assert after == "llama-3.1-8b (0123456789ab)"
    assert before.startswith("llama-3.1-8b (")
    assert before != after


def test_what_cannot_be_compared_is_said(run: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "plan.lock.json"
    lonely.write_text((run / "wide" / "plan.lock.json").read_text())
    result = RUNNER.invoke(app, ["diff", str(lonely), str(run / "plain" / "launch.sh")])
    assert result.exit_code == 2
    assert "there is no plan.json here" in result.stderr
    missing = RUNNER.invoke(app, ["diff", str(tmp_path / "nothing"), str(lonely)])
    assert missing.exit_code == 2
    assert "There is no such file." in missing.stderr
