"""What CI systems take from this repository does what it says: the pre-commit hook, the action, the example files."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from planner.documents import load_document
from tests.unit.rules.megatron_cases import script

ROOT = Path(__file__).parents[2]
SUFFIXES = {"shell": (".sh", ".bash"), "json": (".json",), "yaml": (".yaml", ".yml")}
"""Files of each type that a hook asks for."""

BROKEN = script(num_attention_heads="31", kv_channels="128")


def loaded(name: str) -> Any:
    """Return what a YAML file of the repository holds."""
    return load_document(ROOT / name).data


def entry_point(checkout: Path, command: str) -> list[str]:
    """Return what starts a command that an installation of a checkout would have."""
    scripts = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[command].partition(":")
    code = f"import sys; sys.argv[0] = {command!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code]


def run(command: list[str], *, checkout: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the code of a checkout, in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SHARDWRIGHT_", "GITHUB_"))}
    environment = {**kept, "PYTHONPATH": str(checkout), **variables}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clean checkout of this repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    folder = tmp_path_factory.mktemp("clone") / "shardwright"
    subprocess.run(["git", "clone", "-q", "--no-local", "--depth", "1", f"file://{ROOT}", str(folder)], check=True)
    return folder


def test_the_hook_runs_from_a_clean_checkout(clone: Path, tmp_path: Path) -> None:
    hooks: Any = load_document(clone / ".pre-commit-hooks.yaml").data
    (hook,) = hooks
    assert (hook["language"], hook["pass_filenames"]) == ("python", True)
    suffixes = tuple(suffix for name in hook["types_or"] for suffix in SUFFIXES[name])
    command, *words = shlex.split(hook["entry"])
    start = [*entry_point(clone, command), *words, *hook["args"]]

    # Of the files in a repository most have nothing to do with it.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=clone, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.split("\0") if name.endswith(suffixes) and not name.startswith("tests/data/")]
    assert len(files) > 50
    own = run([*start, *files], checkout=clone, folder=clone)
    assert (own.returncode, own.stderr) == (0, ""), own.stdout

    (tmp_path / "train.sh").write_text(BROKEN)
    (tmp_path / "other.yaml").write_text("a: 1\n")
    found = run([*start, "train.sh", "other.yaml"], checkout=clone, folder=tmp_path)
    assert (found.returncode, found.stderr) == (1, "")
    assert "MLM103" in found.stdout


def steps() -> dict[str, dict[str, Any]]:
    """Return the action's steps by their names."""
    return {step.get("name", step.get("uses")): step for step in loaded("action.yml")["runs"]["steps"]}


def run_step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action in bash as a runner does, with the inputs it reads."""
    step = steps()[name]
    shown = folder / "shardwright" / "bin" / "shardwright"
    shown.parent.mkdir(parents=True, exist_ok=True)
    words = " ".join(shlex.quote(word) for word in entry_point(ROOT, "shardwright"))
    shown.write_text(f'#!/usr/bin/env bash\nexec {words} "$@"\n')
    shown.chmod(shown.stat().st_mode | stat.S_IXUSR)
    values = {"args": "", "fail-on": "error", **inputs}
    variables = {
        variable: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
        for variable, text in step["env"].items()
    }
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return run(bash, checkout=ROOT, folder=folder, RUNNER_TEMP=str(folder), **variables)


def test_the_action_has_what_a_composite_action_needs() -> None:
    action = loaded("action.yml")
    assert {"name", "description", "inputs", "runs"} == set(action)
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert ("uses" in step) != ("run" in step)
        # Inputs are values of variables and never text of a script.
        assert "${{" not in step.get("run", "")
        assert "run" not in step or step["shell"] == "bash"
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])
    assert list(steps()) == [
        "actions/setup-python@v5",
        "Install shardwright",
        "Write SARIF",
        "Upload SARIF",
        "Annotate",
    ]


def test_the_action_annotates_and_fails(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.sh").write_text(BROKEN)
    found = run_step("Annotate", tmp_path, files="jobs\n")
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout.startswith("::error file=jobs/train.sh,line=")
    allowed = run_step("Annotate", tmp_path, files="jobs", **{"fail-on": "never"})
    assert (allowed.returncode, allowed.stdout) == (0, found.stdout)


def test_the_action_writes_sarif(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(BROKEN)
    written = run_step("Write SARIF", tmp_path, files="train.sh", sarif="found.sarif", args="--gpus 16")
    assert written.returncode == 0, written.stderr
    log = json.loads((tmp_path / "found.sarif").read_text())
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["MLM103"]


def test_inputs_of_the_action_are_no_commands(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text(BROKEN)
    for files in ("train.sh; touch made", "$(touch made)", "`touch made`", '"; touch made #', "--output made"):
        assert run_step("Annotate", tmp_path, files=files).returncode == 2
    assert not (tmp_path / "made").exists()


def test_the_examples_for_ci_fit_the_kit() -> None:
    workflow = loaded("examples/ci/validate.yml")
    used = next(step for step in workflow["jobs"]["validate"]["steps"] if "shardwright" in step.get("uses", ""))
    assert set(used["with"]) <= set(loaded("action.yml")["inputs"])
    (repository,) = loaded("examples/ci/pre-commit-config.yaml")["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in loaded(".pre-commit-hooks.yaml")]
    job = loaded("examples/ci/gitlab-ci.yml")["launch-files"]
    report = job["artifacts"]["reports"]["codequality"]
    assert any(f"--format gitlab --output {report}" in line for line in job["script"])
