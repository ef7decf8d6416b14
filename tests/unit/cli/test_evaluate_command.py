"""`shardwright evaluate`: emitted scripts cost what their plans say, and broken ones are refused with a reason."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

RUNNER = CliRunner()
EXAMPLES = Path(__file__).parents[3] / "examples"
SCRIPT = EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "expected" / "launch.sh"


def evaluated(*arguments: str | Path) -> dict[str, object]:
    result = RUNNER.invoke(app, ["evaluate", *map(str, arguments), "--format", "json"])
    assert result.exit_code == 0, result.stderr
    document: dict[str, object] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize(
    ("example", "cluster"),
    [
        ("llama-3.1-8b-1xdgx-h100", "dgx-h100"),
        ("llama-3.1-70b-8xdgx-a100", "dgx-a100"),
        ("llama-3.1-70b-8xdgx-h100", "dgx-h100"),
        ("llama-3.1-405b-128xdgx-h100", "dgx-h100"),
        ("llama-3.1-8b-1m-tokens-8xdgx-h100", "dgx-h100"),
        ("mixtral-8x22b-8xdgx-h100", "dgx-h100"),
        ("nemotron-h-56b-32xdgx-h100", "dgx-h100"),
        ("qwen3-235b-a22b-32xdgx-h100", "dgx-h100"),
    ],
)
@pytest.mark.parametrize("script", ["launch.sh", "job.sbatch"])
def test_an_emitted_script_costs_what_its_plan_says(example: str, cluster: str, script: str) -> None:
    expected = EXAMPLES / example / "expected"
    best = json.loads((expected / "plan.json").read_text())["plans"][0]
    found = evaluated(expected / script, "--cluster", cluster)
    assert found["step_seconds"] == best["reevaluated_step_seconds"]
    assert found["peak_memory_bytes"] == best["peak_memory_bytes"]
    assert found["violations"] == []


def test_a_deepspeed_script_takes_its_model_from_its_facts_or_a_spec(tmp_path: Path) -> None:
    example = EXAMPLES / "llama-3.1-8b-deepspeed-1xdgx-h100"
    script = example / "expected" / "launch.sh"
    best = json.loads((example / "expected" / "plan.json").read_text())["plans"][0]
    for option, where in (("--spec", example / "spec.yaml"), ("--cluster", "dgx-h100")):
        assert evaluated(script, option, where)["step_seconds"] == best["reevaluated_step_seconds"]
    (tmp_path / "launch.sh").write_text(script.read_text().replace("--model-facts", "--model"))
    (tmp_path / "ds_config.json").write_text((script.parent / "ds_config.json").read_text())
    alone = RUNNER.invoke(app, ["evaluate", str(tmp_path / "launch.sh"), "--cluster", "dgx-h100"])
    assert alone.exit_code == 2
    assert "The script names no --model-facts, so it does not say which model it trains." in alone.stderr
    (tmp_path / "launch.sh").write_text(script.read_text())
    facts = (script.parent / "model.json").read_text()
    (tmp_path / "model.json").write_text(facts.replace('"hidden_size": 4096', '"hidden_size": "wide"', 1))
    damaged = RUNNER.invoke(app, ["evaluate", str(tmp_path / "launch.sh"), "--cluster", "dgx-h100"])
    assert damaged.exit_code == 2
    assert "model.json:2:" in damaged.stderr


def test_what_does_not_fit_is_found_and_the_best_layout_stands_beside_it(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    assert "--micro-batch-size 1" in text
    script = tmp_path / "launch.sh"
    script.write_text(text.replace("--micro-batch-size 1", "--micro-batch-size 32"))
    result = RUNNER.invoke(app, ["evaluate", str(script), "--cluster", "dgx-h100", "--best"])
    assert result.exit_code == 1
    wrong = result.stdout.partition("What is wrong with it\n")[2].partition("\n\n")[0]
    assert wrong.startswith("  - memory: ")
    assert "Where the time goes" in result.stdout
    against = result.stdout.partition("Against the best layout\n")[2]
    assert "micro_batch_size 1 [32]" in " ".join(against.split())


def test_the_best_layout_is_named_as_such() -> None:
    example = EXAMPLES / "llama-3.1-8b-1xdgx-h100"
    result = RUNNER.invoke(app, ["evaluate", str(SCRIPT), "--spec", str(example / "spec.yaml"), "--best"])
    assert result.exit_code == 0
    assert "Against the best layout\n  It is this layout." in result.stdout
    both = evaluated(SCRIPT, "--spec", example / "spec.yaml", "--best")
    assert isinstance(both["best"], dict)
    assert both["best"]["step_seconds"] == pytest.approx(both["step_seconds"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Where the script runs is not said."),
        (["--cluster", "dgx-h100", "--spec", "x"], "--cluster and --spec both name a cluster."),
        (["--cluster", "dgx-h101"], "--cluster dgx-h101: cluster preset 'dgx-h101' is not in the catalogue."),
    ],
)
def test_a_cluster_is_named_once(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["evaluate", str(SCRIPT), *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())


def test_a_script_fills_whole_nodes(tmp_path: Path) -> None:
    script = tmp_path / "launch.sh"
    script.write_text(SCRIPT.read_text().replace("--nproc-per-node 8", "--nproc-per-node 4"))
    result = RUNNER.invoke(app, ["evaluate", str(script), "--cluster", "dgx-h100"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "The script starts 4 GPUs, and a node of dgx-h100 has 8." in result.stderr


def test_a_spec_of_another_size_is_refused(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    shutil.copy(EXAMPLES / "llama-3.1-70b-8xdgx-h100" / "spec.yaml", spec)
    result = RUNNER.invoke(app, ["evaluate", str(SCRIPT), "--spec", str(spec)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "The layout is for 8 GPUs, dgx-h100 has 64." in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "The file cannot be read: No such file or directory."),
        (b"\xff\xfe\x00", "The file cannot be read: it is no text."),
        (b"echo nothing", "This starts no training program of Megatron-LM"),
        (b"torchrun --nnodes 1 --nproc-per-node 8 pretrain_gpt.py", "--num-layers is missing."),
    ],
)
def test_what_is_no_launch_script_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    script = tmp_path / "launch.sh"
    if content is not None:
        script.write_bytes(content)
    result = RUNNER.invoke(app, ["evaluate", str(script), "--cluster", "dgx-h100"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_directory_is_answered_with_the_script_in_it(tmp_path: Path) -> None:
    (tmp_path / "launch.sh").write_text("torchrun pretrain_gpt.py\n")
    result = RUNNER.invoke(app, ["evaluate", str(tmp_path), "--cluster", "dgx-h100"])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path}: This is a directory.\nName the script: {tmp_path / 'launch.sh'}\n"


def test_a_server_is_answered_with_the_commands_that_read_it(tmp_path: Path) -> None:
    path = tmp_path / "server.sh"
    path.write_text("#!/bin/bash\nexec vllm serve --config server.yaml\n")
    result = RUNNER.invoke(app, ["evaluate", str(path), "--cluster", "dgx-h100"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: This starts vLLM; training runs are priced here.\n")
    assert "`shardwright diff PLAN SCRIPT`" in result.stderr
