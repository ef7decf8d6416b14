"""`shardwright plan`: what it prints, writes and ends with, where the search finds a known plan."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cli.commands.plan
import planner.decisions.decide
from cli.exits import ExitCode
from cli.main import app
from planner.emit.megatron import emit_megatron
from planner.errors import InputError
from planner.models.specs import ModelSpec
from planner.plans.plan import Certainty, Plan
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.schema.plan import plan_to_text
from planner.schema.plan_lock import lock_to_text
from planner.validation.locked import lock_of
from planner.verification.kit import verification_kit
from profiles.hardware import Cluster
from tests.unit.cli.samples import infeasible_plan, sample_plan

RUNNER = CliRunner()

SPEC = """\
schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 8192, global_batch_size: 128, precision: bf16}
"""

SCREEN = """\
sample-4l, 9,941,504 parameters, on quad: 1 node of 4 x gpu-8gb, 4 GPUs
pretrain, sequences of 1,024 tokens, global batch 16 (16,384 tokens a step), bf16, adam, target megatron

Optimal by step-time: no layout searched is better.
12 layouts searched: 4 legal, 2 simulated.

Best layout
  tp 2 with sequence parallelism, pp 2, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none
  layers per stage  2 x 2
  overlapped        gradient reduction, parameter gather
  step time         200.0 ms (simulated independently: 200.0 ms)
  throughput        20,480.0 tokens/s/GPU, MFU 45.0 %
  peak memory       6.00 GiB on rank 0 in forward-backward, of 7.00 GiB usable
  whole run         1.0 days for 7,077,888,000 tokens, cost 240 at 2.50 per GPU hour, 28.8 kWh at 300 W per GPU

Runners-up and baseline
  index         step time  vs best  peak memory  what differs [best]
  1 = baseline   250.0 ms  +25.0 %     5.00 GiB  tp 4 [2]; pp 1 [2]; ...
  The best layout is 1.25 times as fast as the rule-of-thumb baseline.

Assumptions
  - GEMMs reach 80 % of the datasheet rate.
  - energy: every GPU draws its board power, 300 W, all the time; hosts, network and cooling come on top
"""

RUN_VERIFY = "run verify/, which --out writes."

NOTHING_FITS = """\

Infeasible: no layout fits.
12 layouts searched: 4 legal, 2 simulated.

Why nothing fits
  Memory: no layout keeps weights and activations below 5.00 GiB.
  1.00 GiB are missing on the heaviest rank.

Closest attempt
  tp 2 with sequence parallelism, pp 2, dp 1; zero_stage 1; 16 micro-batches of 1; 1f1b; recompute none
  layers per stage  2 x 2
  peak memory       6.00 GiB on rank 0 in forward-backward, of 5.00 GiB usable

Changes that fit, each by itself
  change                try
  2 nodes instead of 1  --set cluster.nodes=2
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], list[PlanRequest]]:
    """Return a function that makes every search find one plan, and returns what searches are asked for."""

    def arrange(plan: Plan) -> list[PlanRequest]:
        asked: list[PlanRequest] = []

        def decide(
            model: ModelSpec,
            cluster: Cluster,
            request: PlanRequest,
            *,
            top: int,
            front_steps: int | None,
            lost_nodes: int | None,
            watch: Callable[[str, int, int], None] | None = None,
        ) -> Plan:
            asked.append(request)
            return plan

        monkeypatch.setattr(planner.decisions.decide, "decide", decide)
        return asked

    return arrange


Finds = Callable[[Plan], Sequence[PlanRequest]]


def test_the_answer_is_one_screen(spec: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == SCREEN


def test_verbose_adds_what_was_pruned(spec: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--verbose"])
    assert result.stdout.startswith(SCREEN)
    assert "  tp does not divide the heads        8\n" in result.stdout


def test_json_is_the_plan_and_nothing_else(spec: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--format", "json"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == plan_to_text(sample_plan())
    assert json.loads(result.stdout)["status"] == "optimal"


def test_the_format_can_be_set_in_the_environment(spec: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec)], env={"SHARDWRIGHT_FORMAT": "json"})
    assert result.stdout == plan_to_text(sample_plan())


def test_out_holds_the_plan_and_its_launch_files(spec: Path, finds: Finds, tmp_path: Path) -> None:
    finds(sample_plan())
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(out)])
    assert result.exit_code == 0
    launch = emit_megatron(sample_plan())
    lock = lock_to_text(lock_of(sample_plan(), files=launch))
    files = {"plan.json": plan_to_text(sample_plan()), "plan.lock.json": lock, **launch}
    kit = verification_kit(sample_plan(), target=Target.MEGATRON)
    assert kit is not None
    written = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert written == {**files, **kit.files}
    assert os.access(out / "verify" / "run.sh", os.X_OK)
    assert result.stdout == (
        SCREEN
        + "\nFiles\n"
        + "".join(f"  - {out / name}\n" for name in files)
        + f"  - {out}/verify: 10 steps of the best 2 layouts, 0.075 minutes by prediction and their starts; "
        f"bash {out}/verify/run.sh, then shardwright collect {out}/verify\n"
    )


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        ((0.2,), None),
        ((0.2, 0.25), "The best layout survives: no runner-up is within 8 % of it."),
        ((0.2, 0.21, 0.25), f"Runner-up 1 is within 8 % of the best: the two could swap; {RUN_VERIFY}"),
        (
            (0.2, 0.201, 0.21, 0.215, 0.217),
            f"Runners-up 1, 2 and 3 are within 8 % of the best: any could swap with it; {RUN_VERIFY}",
        ),
    ],
)
def test_the_screen_says_whether_the_best_survives_its_band(
    spec: Path, finds: Finds, seconds: Sequence[float], line: str | None
) -> None:
    plan = sample_plan()
    certainty = Certainty(half_width=0.25, source="runs", ratio_half_width=0.08, ratio_source="choices")
    plans = tuple(replace(plan.best, step_seconds=value) for value in seconds)
    finds(replace(plan, plans=plans, baseline=None, certainty=certainty))
    result = RUNNER.invoke(app, ["plan", str(spec)])
    assert result.exit_code == 0
    assert "  its band          160.0 ms to 250.0 ms, as wide as holds four of five published runs\n" in result.stdout
    said = [text for text in result.stdout.splitlines() if "swap" in text or "survives" in text]
    assert said == ([f"  {line}"] if line is not None else [])
    assert result.stdout.endswith(
        "hosts, network and cooling come on top\n  - band of a step time: runs\n"
        "  - band of the ratio of two layouts: choices\n"
    )


def test_an_earlier_plan_is_not_overwritten_and_nothing_is_searched(spec: Path, finds: Finds, tmp_path: Path) -> None:
    asked = finds(sample_plan())
    out = tmp_path / "run"
    out.mkdir()
    (out / "plan.json").write_text("old")
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(out)])
    assert result.exit_code == 2
    assert asked == []
    assert (out / "plan.json").read_text() == "old"
    assert RUNNER.invoke(app, ["plan", str(spec), "--out", str(out), "--force"]).exit_code == 0
    assert (out / "plan.json").read_text() == plan_to_text(sample_plan())


@pytest.mark.parametrize("name", ["plan.json", "launch.sh", "job.sbatch", "verify/run.sh", "verify/runs.csv"])
def test_every_file_that_may_be_written_is_checked_before_the_search(
    spec: Path, finds: Finds, tmp_path: Path, name: str
) -> None:
    asked = finds(sample_plan())
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("old")
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(out)])
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert f"There is already {name}." in result.stderr
    assert [path.relative_to(out) for path in out.rglob("*") if path.is_file()] == [Path(name)]


def test_the_files_of_the_target_that_is_asked_for_are_checked(spec: Path, finds: Finds, tmp_path: Path) -> None:
    asked = finds(sample_plan())
    out = tmp_path / "run"
    out.mkdir()
    (out / "ds_config.json").write_text("old")
    result = RUNNER.invoke(app, ["plan", str(spec), "--target", "deepspeed", "--out", str(out)])
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert "There is already ds_config.json." in result.stderr
    assert RUNNER.invoke(app, ["plan", str(spec), "--target", "deepspeed"]).exit_code == 0
    assert asked[0].target is Target.DEEPSPEED


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_plan_that_cannot_be_saved_is_still_printed(
    spec: Path, finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    def disk_full(directory: Path, files: Mapping[str, str], *, force: bool) -> tuple[Path, ...]:
        raise InputError("The files cannot be written: No space left on device.")

    finds(sample_plan())
    monkeypatch.setattr(cli.commands.plan, "write_files", disk_full)
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(tmp_path / "run"), "--format", format_])
    assert result.exit_code == 2
    assert result.stdout == (SCREEN if format_ == "text" else plan_to_text(sample_plan()))
    assert result.stderr == "error: The files cannot be written: No space left on device.\n"


def test_a_plan_that_cannot_be_printed_is_still_saved(
    spec: Path, finds: Finds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(text: str) -> None:
        raise typer.Exit(ExitCode.BROKEN_PIPE)

    finds(sample_plan())
    monkeypatch.setattr(cli.commands.plan, "print_text", closed)
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(tmp_path / "run"), "--format", "json"])
    assert result.exit_code == ExitCode.BROKEN_PIPE
    assert (tmp_path / "run" / "plan.json").read_text() == plan_to_text(sample_plan())


def test_when_nothing_fits_it_says_why_and_ends_with_3(spec: Path, finds: Finds, tmp_path: Path) -> None:
    finds(infeasible_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(tmp_path / "run")])
    assert result.exit_code == 3
    assert result.stdout.endswith(NOTHING_FITS)
    assert result.stderr == f"{tmp_path / 'run'}: nothing was written, because no layout fits.\n"
    assert not (tmp_path / "run").exists()


def test_when_nothing_fits_the_json_says_so_too(spec: Path, finds: Finds) -> None:
    finds(infeasible_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--format", "json"])
    assert (result.exit_code, result.stderr) == (3, "")
    assert json.loads(result.stdout)["status"] == "infeasible"


def test_timings_go_to_standard_error(spec: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--timings"])
    assert result.stdout == SCREEN
    assert [line.rsplit(maxsplit=2)[0].strip() for line in result.stderr.splitlines()] == [
        "read inputs",
        "search",
        "print",
        "write",
        "total",
    ]


def test_options_replace_fields_of_the_spec(spec: Path, finds: Finds) -> None:
    asked = finds(sample_plan())
    arguments = ["plan", str(spec), "--set", "workload.seq_len=4096", "--target", "megatron", "--set", "objective=cost"]
    result = RUNNER.invoke(app, [*arguments, "--objective", "step-time"])
    assert result.exit_code == 0
    assert asked[0].workload.seq_len == 4096
    assert asked[0].target is Target.MEGATRON
    assert asked[0].objective is Objective.STEP_TIME


def test_what_an_option_asks_for_is_blamed_on_the_option(spec: Path, finds: Finds) -> None:
    asked = finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--objective", "cost"])
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert result.stderr == (
        "error: --objective cost: objective: `objective` = cost needs the price of a GPU, "
        "which the cluster does not give.\nAdd price_per_gpu_hour to the cluster.\n"
        "error: --objective cost: objective: `objective` = cost speaks of a whole run, and the workload has no token "
        "budget.\nAdd tokens_to_train to the workload, such as 15T.\n"
    )


def test_only_targets_that_can_be_planned_are_offered(spec: Path, finds: Finds) -> None:
    asked = finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), "--target", "tensorrt"])
    assert (result.exit_code, asked) == (2, [])
    assert "'tensorrt' is not one of 'megatron', 'deepspeed', 'vllm', 'any'." in result.stderr
    serving = RUNNER.invoke(app, ["plan", str(spec), "--target", "vllm"])
    assert (serving.exit_code, asked) == (2, [])
    assert "`target` = vllm cannot run this workload: vLLM serves models and trains none." in serving.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top", "x"], "Invalid value for '--top': It must be a whole number."),
        (["--top", "0"], "Invalid value for '--top': It must be at least 1."),
        (["--out", ""], "Invalid value for '--out' / '-o': The name is empty; write . for the current directory."),
    ],
)
def test_a_value_that_an_option_cannot_take_is_refused_in_plain_words(
    spec: Path, finds: Finds, arguments: list[str], message: str
) -> None:
    asked = finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(spec), *arguments])
    assert (result.exit_code, asked) == (2, [])
    assert message in result.stderr


def test_the_baseline_is_said_to_ignore_constraints(spec: Path, finds: Finds) -> None:
    plan = sample_plan()
    constrained = replace(plan.request, constraints=Constraints(sequence_parallel=True))
    finds(replace(plan, request=constrained))
    assert (
        "  The best layout is 1.25 times as fast as the rule-of-thumb baseline. "
        "The baseline ignores your constraints.\n"
    ) in RUNNER.invoke(app, ["plan", str(spec)]).stdout
    slow, fast = plan.plans
    finds(replace(plan, request=constrained, plans=(fast,), baseline=slow))
    screen = RUNNER.invoke(app, ["plan", str(spec)]).stdout
    assert "  baseline   200.0 ms  -20.0 %     6.00 GiB  " in screen
    assert (
        "  The best layout takes 1.25 times as long as the rule-of-thumb baseline. "
        "The baseline ignores your constraints.\n"
    ) in screen


def test_every_mistake_in_a_spec_is_printed_and_nothing_is_searched(tmp_path: Path, finds: Finds) -> None:
    asked = finds(sample_plan())
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("seq_len: 8192", "seq_len: many").replace("precision", "precison"))
    result = RUNNER.invoke(app, ["plan", str(path), "--out", str(tmp_path / "run")])
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert result.stderr.count("error: ") >= 2
    assert f"error: {path}:4:" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_spec_is_a_message(tmp_path: Path, finds: Finds) -> None:
    finds(sample_plan())
    result = RUNNER.invoke(app, ["plan", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'none.yaml'}: There is no such file.\nCheck the path.\n"


@pytest.mark.parametrize(
    ("name", "text", "message", "hint"),
    [
        (
            "config.json",
            '{"architectures": ["X"], "hidden_size": 8}',
            "a model's config.json",
            "init spec.yaml --model ",
        ),
        ("model.yaml", "hidden_size: 8\nnum_hidden_layers: 2\n", "a model", "init spec.yaml --model "),
        ("cluster.yaml", "gpu: l40s\nnodes: 2\n", "a cluster", "Name it in a spec: cluster: "),
        ("plan.json", '{"plans": [], "search": {}}', "a plan", "`shardwright explain` and `shardwright emit` read it"),
    ],
)
def test_another_kind_of_file_is_called_by_its_name(
    tmp_path: Path, name: str, text: str, message: str, hint: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    result = RUNNER.invoke(app, ["plan", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    first, second = result.stderr.splitlines()
    assert first == f"error: {path}:1:1: This is {message}, not a spec."
    assert hint in second
    if name in ("config.json", "plan.json"):
        folder = RUNNER.invoke(app, ["plan", str(tmp_path)]).stderr
        assert folder.startswith(f"error: {tmp_path}: This is the directory of a ")
        assert hint in folder


def test_a_launch_script_is_no_spec(tmp_path: Path) -> None:
    path = tmp_path / "launch.sh"
    path.write_text("#!/bin/bash\necho: [\n")
    result = RUNNER.invoke(app, ["plan", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: This is a script; YAML or JSON is wanted here.\n")


def test_a_spec_is_no_calibration(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    assert RUNNER.invoke(app, ["init", str(path)]).exit_code == 0
    result = RUNNER.invoke(app, ["plan", str(path), "--calibration", str(path)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[0].endswith("This is a spec, not a calibration.")
    assert result.stderr.count("error: ") == 1
