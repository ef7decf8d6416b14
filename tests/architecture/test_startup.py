"""What may not be loaded before it is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.findings.forms import FindingsFormat

HEAVY = ("numpy", "ortools", "pulp", "torch", "pydantic", "scipy", "ruamel", "networkx", "rich")
SCRIPT = """\
torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 32 --num-attention-heads 31 --tensor-model-parallel-size 2 \\
    --sequnce-parallel  # shardwright: ignore[MLM999] a rule that is not there
"""
COMMANDS = (
    "plan",
    "emit",
    "experts",
    "explain",
    "mem",
    "init",
    "models",
    "clusters",
    "collect",
    "report",
    "rule",
    "schema",
)


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `statement`."""
    code = (
        "import contextlib, io, json, sys\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    {statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def run(*arguments: str) -> str:
    """Return the statement that runs the command line."""
    return f"import cli.start; sys.argv = ['shardwright', *{arguments!r}]; cli.start.run()"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(option: str) -> None:
    loaded = loaded_by(run(option))
    assert "typer" in loaded
    assert sorted(loaded.intersection(HEAVY)) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    loaded = loaded_by(run(command, "--help"))
    # Typer checks the values of its own completion options with pydantic as soon as a command is named.
    assert sorted(loaded.intersection(HEAVY) - {"pydantic"}) == []


@pytest.mark.parametrize("form", FindingsFormat)
def test_validating_a_script_loads_nothing_heavy(tmp_path: Path, form: FindingsFormat) -> None:
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT)
    words = ("validate", str(script), "--format", form.value)
    loaded = loaded_by(f"import cli.start; sys.argv = ['shardwright', *{words!r}]; cli.start.run()")
    assert "planner" in loaded
    assert sorted(loaded.intersection({*HEAVY, "typer"})) == []


def test_planning_loads_no_torch() -> None:
    loaded = loaded_by("import planner.search.search, planner.inputs.load, planner.emit.megatron, planner.schema.plan")
    assert "numpy" in loaded
    assert "torch" not in loaded


def test_a_plan_loads_no_scipy(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "schema: 1\nmodel: llama-3.1-8b\ncluster: {preset: dgx-h100, nodes: 1}\n"
        "workload: {kind: train, seq_len: 8192, global_batch_size: 128}\nconstraints: {tp: 8, pp: 1, cp: 1}\n"
    )
    loaded = loaded_by(run("plan", str(spec)))
    assert {"numpy", "profiles"} <= loaded
    assert "scipy" not in loaded
