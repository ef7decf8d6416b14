"""From a new spec to launch files, as a newcomer goes: real processes, a real search."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def shardwright(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return the ended process of one command."""
    return subprocess.run(
        [sys.executable, "-m", "cli.start", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a spec, the plan of it in `run` and what was printed in `screen.txt`."""
    root = tmp_path_factory.mktemp("newcomer")
    assert shardwright("init", root / "spec.yaml").returncode == 0
    result = shardwright("plan", root / "spec.yaml", "--out", root / "run")
    assert (result.returncode, result.stderr) == (0, "")
    (root / "screen.txt").write_text(result.stdout)
    return root


def test_the_plan_its_launch_files_and_short_runs_are_there(planned: Path) -> None:
    names = {path.name for path in (planned / "run").iterdir()}
    assert names == {"plan.json", "plan.lock.json", "launch.sh", "job.sbatch", "verify"}
    verify = {path.name.rpartition("-")[0] or path.name for path in (planned / "run" / "verify").iterdir()}
    assert verify == {"run.sh", "job.sbatch", "runs.csv", "layout-0", "layout-1", "layout-2"}


def test_runs_that_were_not_made_are_said_one_by_one(planned: Path) -> None:
    result = shardwright("collect", planned / "run")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {planned / 'run' / 'verify'}: No run has left a measurement.\nlayout-0-")
    assert result.stderr.count(": it was not made yet; run run.sh or job.sbatch beside its folder.\n") == 3


def test_the_screen_is_plain_when_piped(planned: Path) -> None:
    screen = (planned / "screen.txt").read_text()
    assert screen.startswith(
        "llama-3.1-8b, 8,030,261,248 parameters, on dgx-h100: 1 node of 8 x h100-sxm-80gb, 8 GPUs\n"
    )
    assert screen.isascii()
    assert "\x1b" not in screen
    assert len(screen.splitlines()) < 50


def test_equal_inputs_give_equal_bytes(planned: Path) -> None:
    result = shardwright("plan", planned / "spec.yaml", "--format", "json", PYTHONHASHSEED="1")
    assert result.stdout == (planned / "run" / "plan.json").read_text()


def test_the_best_plan_stays_inside_memory_and_the_fast_domain(planned: Path) -> None:
    document = json.loads((planned / "run" / "plan.json").read_text())
    best = document["plans"][0]
    assert best["layout"]["tp"] <= 8
    assert best["peak_memory_bytes"] <= best["memory_limit_bytes"]
    assert 0.3 <= best["mfu"] <= 0.6


def test_the_written_plan_can_be_explained_and_emitted_again(planned: Path) -> None:
    explained = shardwright("explain", planned / "run")
    assert (explained.returncode, explained.stderr) == (0, "")
    assert "\nWhere the time goes" in explained.stdout
    emitted = shardwright("emit", planned / "run", "--file", "launch.sh")
    assert (emitted.returncode, emitted.stderr) == (0, "")
    assert emitted.stdout == (planned / "run" / "launch.sh").read_text()


@pytest.mark.slow
def test_a_model_that_cannot_fit_ends_with_3_and_a_way_out(planned: Path) -> None:
    result = shardwright("plan", planned / "spec.yaml", "--set", "model=llama-3.1-405b", "--format", "json")
    assert result.returncode == 3
    document = json.loads(result.stdout)
    assert document["status"] == "infeasible"
    assert document["infeasible"]["shortfall_bytes"] > 0
    assert document["infeasible"]["relaxations"]
