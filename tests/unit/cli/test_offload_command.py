"""`shardwright offload`: what it prints, writes and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.exits import ExitCode
from cli.main import app
from cli.render_offload import seconds
from planner.readers.vllm_run import read_vllm_config
from tests.offloaded import DENSE, LARGE, MIXTURE, SPEC

RUNNER = CliRunner()
FEW = ("--set", "workload.num_requests=32")


@pytest.fixture
def spec(tmp_path: Path) -> str:
    return written(tmp_path, DENSE)


def written(folder: Path, case: tuple[str, str, int]) -> str:
    model, gpu, host = case
    path = folder / f"{model}.yaml"
    path.write_text(SPEC.format(model=model, gpu=gpu, host=host))
    return str(path)


def document(*words: str) -> Any:
    """Return the JSON that the command prints."""
    result = RUNNER.invoke(app, ["offload", *words, "--format", "json"])
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return json.loads(result.stdout)


def refused(*words: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["offload", *words])
    return result.exit_code, result.stderr


def test_every_runtime_has_a_plan_and_the_widest_is_fastest(spec: str) -> None:
    found = document(spec, *FEW)
    assert list(found["plans"]) == ["any", "vllm", "deepspeed"]
    rates = [plan["tokens_per_second"] for plan in found["plans"].values()]
    assert rates[0] == max(rates)
    for plan in found["plans"].values():
        assert plan["batch_size"] * plan["num_batches"] <= 32
        assert plan["prompt_tokens_at_once"] >= 512
        assert plan["tokens_per_second"] <= plan["unpaused_tokens_per_second"] * (1 + 1e-9)
        assert plan["unpaused_tokens_per_second"] <= plan["most_tokens_per_second"]
        seconds = plan["prompt_seconds"] + 31 * plan["answer_seconds"]
        block = plan["batch_size"] * plan["num_batches"] * 32
        assert block / seconds == pytest.approx(plan["tokens_per_second"], rel=1e-6)
        assert all(room["bytes"] <= room["room_bytes"] * (1 + 1e-6) for room in plan["memory"])
    gains = {name: set(plan["tokens_per_second_of_one_gib_more"]) for name, plan in found["plans"].items()}
    assert gains == {"any": {"gpu", "host", "drive"}, "vllm": {"gpu", "host"}, "deepspeed": {"gpu", "host", "drive"}}
    assert found["lacks"]["any"] == []
    assert "the CPU computes nothing" in found["lacks"]["vllm"]


def test_the_same_question_gets_the_same_bytes(spec: str) -> None:
    first, second = (RUNNER.invoke(app, ["offload", spec, *FEW, "--format", "json"]).stdout for _ in range(2))
    assert first == second


def test_a_table_of_80_columns_is_printed(spec: str) -> None:
    result = RUNNER.invoke(app, ["offload", spec, *FEW, "--peers", "1"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "opt-30b: prompts of 512 and answers of 32 tokens on one l40s"
    for title in (
        "What lies where",
        "Memory",
        "What each runtime can be told",
        "What one GiB more gains, if parts never waited",
    ):
        assert title in lines
    tables = lines[lines.index("What lies where") : lines.index("What it lacks")]
    assert max(len(line) for line in tables) <= 80
    assert any(line.split()[:2] == ["peer", "GPUs"] for line in lines)


def test_more_room_for_the_cpu_shows(spec: str) -> None:
    slow = document(spec, *FEW, "--cpu-bandwidth", "2GB/s", "--cpu-flops", "0.05TFLOPS")
    fast = document(spec, *FEW, "--cpu-bandwidth", "400GB/s", "--cpu-flops", "20TFLOPS")
    assert slow["plans"]["any"]["tokens_per_second"] < fast["plans"]["any"]["tokens_per_second"]
    assert slow["plans"]["vllm"]["tokens_per_second"] == fast["plans"]["vllm"]["tokens_per_second"]
    assert "products on the CPUs: as given" in fast["assumptions"]


def test_experts_lie_by_their_popularity(tmp_path: Path) -> None:
    spec = written(tmp_path, MIXTURE)
    found = document(spec, "--set", "workload.num_requests=8", "--histogram", "zipf:1.5")
    groups = {placed["group"] for placed in found["plans"]["any"]["placed"] if placed["thing"] == "experts"}
    assert groups == set(range(8))
    assert found["streaming_bound"]["bound_by"] == "host memory"
    assert any(text.startswith("experts are chosen as in assumed: zipf 1.5") for text in found["assumptions"])


def test_files_are_written_and_read_back(tmp_path: Path, spec: str) -> None:
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["offload", spec, *FEW, "--target", "vllm", "--out", str(out)])
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["offload.sh", "offload.yaml"]
    text = (out / "offload.yaml").read_text()
    run = read_vllm_config(text, file="offload.yaml", version="0.32.0", num_gpus=1, gpus_per_node=1)
    assert run.arguments.value("offload_backend") == "prefetch"
    assert refused(spec, *FEW, "--target", "vllm", "--out", str(out))[0] == ExitCode.BAD_INPUT
    out = tmp_path / "deepspeed"
    assert RUNNER.invoke(app, ["offload", spec, *FEW, "--target", "deepspeed", "-o", str(out)]).exit_code == 0
    config = json.loads((out / "ds_config.json").read_text())
    assert config["zero_optimization"]["offload_param"]["device"] == "cpu"


def test_what_a_runtime_cannot_be_told_at_all_is_infeasible(tmp_path: Path) -> None:
    spec = written(tmp_path, LARGE)
    result = RUNNER.invoke(app, ["offload", spec, *FEW, "--target", "vllm"])
    assert result.exit_code == ExitCode.INFEASIBLE
    assert "Nothing fits that vLLM can be told: not even a batch of one sequence." in result.stdout
    huge = RUNNER.invoke(
        app, ["offload", spec, *FEW, "--set", "model=llama-3.1-405b", "--set", "cluster.nvme.capacity=1GB"]
    )
    assert huge.exit_code == ExitCode.INFEASIBLE
    assert "Nothing fits: the model and one sequence take 6" in huge.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "x"), "error: --out writes the files of one runtime.\nGive --target vllm or deepspeed."),
        (("--peers", "4"), "4 GPUs beside the one that computes, and a node of 1 x 4 l40s has 4."),
        (("--cpu-bandwidth", "12"), "--cpu-bandwidth: '12' is not a number with a unit: write for example"),
        (("--cpu-flops", "0TFLOPS"), "--cpu-flops: '0TFLOPS' is out of range: a rate lies between"),
        (("--histogram", "zipf:1.0"), "opt-30b has no routed experts."),
        (
            ("--set", "workload.kind=train"),
            "workload.kind: `kind` = train: this spec is of a training run, and servers are asked for.",
        ),
        (("--set", "workload.output=1"), "Answers of one token leave nothing to plan."),
    ],
)
def test_what_is_wrong_is_said(spec: str, words: tuple[str, ...], message: str) -> None:
    code, text = refused(spec, *words)
    assert code == ExitCode.BAD_INPUT
    assert message in text


def test_several_clusters_are_refused(tmp_path: Path, spec: str) -> None:
    text = Path(spec).read_text().replace("cluster:\n", "clusters:\n-", 1).replace("-  gpu", "- gpu")
    two = tmp_path / "two.yaml"
    two.write_text(text.replace("workload:", "- {preset: dgx-h100, nodes: 1}\nworkload:"))
    code, message = refused(str(two))
    assert code == ExitCode.BAD_INPUT
    assert "Offloading takes one kind of GPU, and the spec lists several clusters." in message


def test_a_spec_of_a_training_run_is_answered_once(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    assert RUNNER.invoke(app, ["init", str(path)]).exit_code == 0
    result = RUNNER.invoke(app, ["offload", str(path)])
    assert result.exit_code == 2
    assert "`kind` = train: this spec is of a training run, and servers are asked for." in result.stderr
    assert result.stderr.count("error: ") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (2031.2, "2,031 s"),
        (17.53, "17.5 s"),
        (0.1, "0.1 s"),
        (0.0339, "33.9 ms"),
        (9.69e-7, "0.97 us"),
        (4e-9, "0 s"),
    ],
)
def test_times_have_a_unit_that_fits_them(value: float, text: str) -> None:
    assert seconds(value) == text
