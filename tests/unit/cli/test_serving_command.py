"""`shardwright plan` of a serving spec, and what emit and explain make of its plan."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from typer.testing import CliRunner

from cli.main import app
from cli.render import sources_in_words
from planner.documents import load_document
from planner.schema.json_schemas import json_schema
from planner.schema.kinds import Draft, Kind
from profiles.catalogue import load_preset
from profiles.measure.grid import default_points
from profiles.measure.points import Point
from profiles.recorded import read_recording
from tests.served import SMALL
from tests.written_profiles import write_profile

RUNNER = CliRunner()
IMPOSSIBLE = SMALL.replace("ttft_ms: 500", "ttft_ms: 5")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(SMALL)
    return path


def test_a_plan_is_printed_written_and_read_again(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(out), "--timings", "-v"])
    assert result.exit_code == 0, result.stderr
    for heading in (
        "Engines",
        "Requests, by simulation",
        "Where the time of a token goes, or of a prompt",
        "Memory of a GPU",
        "Ways to compose",
        "Engines that do everything, each at its most",
        "Speed against throughput, in closed form",
        "Assumptions",
        "Search",
    ):
        assert heading in result.stdout.splitlines()
    assert "search" in result.stderr
    written = {path.name: path.read_text() for path in out.iterdir()}
    assert {"plan.json", "start.sh", "bench.sh"} <= written.keys()
    emitted = RUNNER.invoke(app, ["emit", str(out), "--format", "json"])
    assert emitted.exit_code == 0
    document = json.loads(emitted.stdout)
    assert document["target"] == "vllm"
    ours = {"plan.json", "plan.lock.json"}
    assert document["files"] == {name: text for name, text in written.items() if name not in ours}
    reported = RUNNER.invoke(app, ["report", str(out)])
    assert reported.exit_code == 0
    assert reported.stdout.startswith("<!DOCTYPE html>")
    explained = RUNNER.invoke(app, ["explain", str(out)])
    assert explained.exit_code == 0
    assert explained.stdout.splitlines()[:4] == result.stdout.splitlines()[:4]
    again = RUNNER.invoke(app, ["explain", str(out), "--format", "json"])
    assert json.loads(again.stdout) == json.loads(written["plan.json"])
    # The schemas take the spec and the plan, in both drafts.
    for kind, data in ((Kind.SPEC, load_document(spec).data), (Kind.PLAN, json.loads(written["plan.json"]))):
        Draft7Validator(json_schema(kind, Draft.DRAFT_07)).validate(data)
        Draft202012Validator(json_schema(kind, Draft.DRAFT_2020_12)).validate(data)


def test_json_is_one_document(spec: Path) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), "--format", "json", "--set", "constraints={split: never, tp: 1}"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["kind"] == "serve"
    assert document["metrics"]["tpot"] == "(E2E - TTFT) / (output tokens - 1) of one request, in seconds."
    assert document["deployments"][0]["pools"][0]["pool"]["shape"]["tp"] == 1


def test_an_offline_batch_says_how_long_it_takes(spec: Path, tmp_path: Path) -> None:
    text = SMALL.replace("  slo: {ttft_ms: 500, tpot_ms: 25}", "  arrivals: offline\n  num_requests: 100")
    spec.write_text(text)
    words = ["plan", str(spec), "--set", "constraints={split: never, tp: 8}", "--out", str(tmp_path / "run")]
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0, result.stderr
    document = json.loads((tmp_path / "run" / "plan.json").read_text())
    minutes = 100 / document["requests_per_second"] / 60
    ends = document["deployments"][0]["served"][0]["e2e"]["mean"] * 1e3
    assert f"  100 requests take {minutes:.2g} minutes at that rate, and the last ones' end {ends:,.1f} ms more." in (
        result.stdout.splitlines()
    )
    assert "--num-prompts 100)" in (tmp_path / "run" / "bench.sh").read_text()


def test_nothing_is_said_of_targets_where_there_are_none(spec: Path) -> None:
    spec.write_text(SMALL.replace("  slo: {ttft_ms: 500, tpot_ms: 25}\n", ""))
    found = RUNNER.invoke(app, ["plan", str(spec), "--set", "constraints={split: never, tp: 8}"])
    assert found.exit_code == 0, found.stderr
    assert "target" not in found.stdout.replace("targets    none", "")
    too_large = RUNNER.invoke(app, ["plan", str(spec), "--set", "model=llama-3.1-405b"])
    assert too_large.exit_code == 3
    assert "No plan serves the requests.\nBinding: memory: " in too_large.stdout
    assert " GiB are missing on a GPU.\n" in too_large.stdout


def test_requests_that_no_engine_has_a_place_for_are_said(spec: Path) -> None:
    words = ["--set", "workload.arrivals=closed-loop", "--set", "constraints={tp: 8, split: never, max_num_seqs: 61}"]
    exact = RUNNER.invoke(app, ["plan", str(spec), *words, "--set", "workload.concurrency=61"])
    assert exact.exit_code == 0, exact.stderr
    assert "are under way" not in exact.stdout
    # Eight data-parallel ranks share evenly: five requests of 61 find no place.
    moe = ["--set", "model=qwen3-30b-a3b", "--set", "constraints={tp: 1, dp: 8, expert_parallel: true, split: never}"]
    odd = RUNNER.invoke(app, ["plan", str(spec), *words, *moe, "--set", "workload.concurrency=61"])
    assert odd.exit_code == 0, odd.stderr
    assert "  Of the 61 requests 56 are under way; the wait of others is left out." in odd.stdout.splitlines()


def test_a_rate_of_next_to_nothing_is_planned_and_shown(spec: Path) -> None:
    words = ["--set", "workload.requests_per_second=0.0002", "--set", "objective=fewest-gpus"]
    result = RUNNER.invoke(app, ["plan", str(spec), *words])
    assert result.exit_code == 0, result.stderr
    assert "\n1 GPU; no composition of these engines does better.\n" in result.stdout
    assert " 0.0002 " in result.stdout.split("Engines\n")[1].split("Requests, by simulation")[0]


def test_nothing_is_written_where_no_plan_keeps_the_targets(spec: Path, tmp_path: Path) -> None:
    spec.write_text(IMPOSSIBLE)
    result = RUNNER.invoke(app, ["plan", str(spec), "--out", str(tmp_path / "run")])
    assert result.exit_code == 3
    assert "No plan keeps the targets." in result.stdout
    assert "Binding: ttft: no engine comes below " in result.stdout
    assert "How far each target must move" in result.stdout
    assert not (tmp_path / "run").exists()
    assert "nothing was written, because no plan keeps the targets." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--why-not", "tp=8"], "--why-not asks of training plans, and this spec is of servers."),
        (["--calibration", "found.json"], "--calibration asks of training plans, and this spec is of servers."),
        (["--schedules"], "--schedules asks of training plans, and this spec is of servers."),
        (["--token-swaps"], "--token-swaps asks of training plans, and this spec is of servers."),
        (["--objective", "step-time"], '`objective` = "step-time" is not a known value.'),
        (["--target", "megatron"], '`target` = "megatron" is not a known value.'),
    ],
)
def test_what_only_training_plans_have_is_refused(arguments: list[str], message: str, spec: Path) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_profile_prices_servers_and_the_plan_says_how_much(spec: Path, tmp_path: Path) -> None:
    """Text, JSON, report and lock name what was measured; a stale profile is refused with --strict-data."""
    cluster = load_preset("dgx-h100").to_cluster()
    points = [entry for entry in default_points(SUITES, dtypes=("bf16",), world_size=8, per_node=8) if is_small(entry)]
    directory, out = write_profile(tmp_path / "measured", points, cluster), tmp_path / "run"
    words = ["plan", str(spec), "--set", "constraints={split: never, tp: {max: 2}}", "--profile", str(directory)]
    result = RUNNER.invoke(app, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    plan = json.loads((out / "plan.json").read_text())
    (pool,) = plan["deployments"][0]["pools"]
    assert set(pool["source_fractions"]) == {"prompt", "step"}
    for name, told in (("step", "a step of running answers"), ("prompt", "a step with a prompt")):
        of_step = pool["source_fractions"][name]
        assert sum(of_step.values()) == pytest.approx(1.0)
        assert 0 < of_step["interpolated"] < 1
        assert 0 < of_step["analytic"] < 1
        line = f"  {pool['pool']['name']}, {told}: {sources_in_words(of_step)}."
        assert line in result.stdout.splitlines()
        report = RUNNER.invoke(app, ["report", str(out)])
        assert line.strip() in report.stdout
    sha256 = read_recording(directory).sha256
    assert plan["inputs"]["clusters"][0]["profile"] == {"directory": str(directory), "sha256": sha256}
    assert f'"dgx-h100, 8 GPUs, profile {sha256[:12]}"' in (out / "plan.lock.json").read_text()
    explained = RUNNER.invoke(app, ["explain", str(out), "--format", "json"])
    assert json.loads(explained.stdout) == plan
    assert RUNNER.invoke(app, [*words, "--strict-data"]).exit_code == 0
    write_profile(directory, points[:1], cluster, software={"torch": "2.14.0"})
    refused = RUNNER.invoke(app, [*words, "--strict-data"])
    assert refused.exit_code == 2
    assert "The profile is refused by --strict-data: stale: run 1 differs from the newest" in refused.stderr
    alone = RUNNER.invoke(app, ["plan", str(spec), "--strict-data"])
    assert "--strict-data is about the data of --profile, which is missing." in alone.stderr


SUITES = ("gemm", "attention")


def is_small(entry: Point) -> bool:
    """Return whether a point is forward, and of few shapes, so that a profile is small."""
    return entry.word("phase" if entry.suite == "attention" else "part") in ("forward", "decode")


def test_a_serving_plan_is_written_for_vllm_alone(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["plan", str(spec), "--out", str(out), "--set", "constraints={split: never, tp: 1}"]
    assert RUNNER.invoke(app, arguments).exit_code == 0
    for words, message in (
        (["--target", "megatron"], "This is a serving plan, and no files of it can be written for megatron."),
        (["--target", "all"], "Only vLLM serves."),
        (["--index", "1"], "--index 1: a serving plan holds one answer."),
    ):
        result = RUNNER.invoke(app, ["emit", str(out), *words])
        assert result.exit_code == 2
        assert message in result.stderr
    result = RUNNER.invoke(app, ["trace", str(out)])
    assert result.exit_code == 2
    assert "This is a serving plan; the command reads training plans." in result.stderr


def test_a_damaged_serving_plan_is_named(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["plan", str(spec), "--out", str(out), "--set", "constraints={split: never, tp: 1}"]
    assert RUNNER.invoke(app, arguments).exit_code == 0
    file = out / "plan.json"
    document = json.loads(file.read_text())
    document["status"] = "infeasible"
    file.write_text(json.dumps(document))
    result = RUNNER.invoke(app, ["emit", str(out)])
    assert result.exit_code == 2
    assert "`status` = infeasible, but the file holds 1 deployments." in result.stderr
    document["status"] = "optimal"
    document["metrics"]["tpot"] = "E2E / output tokens of one request, in seconds."
    file.write_text(json.dumps(document))
    result = RUNNER.invoke(app, ["emit", str(out)])
    assert result.exit_code == 2
    assert "metrics: `metrics` mean something else than here." in result.stderr


def test_init_writes_a_serving_spec_that_its_schema_takes(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    result = RUNNER.invoke(app, ["init", str(path), "--serve", "--model", "qwen3-30b-a3b", "--cluster", "dgx-h200"])
    assert result.exit_code == 0
    data = load_document(path).data
    Draft7Validator(json_schema(Kind.SPEC, Draft.DRAFT_07)).validate(data)
    assert isinstance(data, dict)
    assert data["model"] == "qwen3-30b-a3b"


def test_validate_judges_serving_specs_and_plans(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["plan", str(spec), "--out", str(out), "--set", "constraints={split: never, tp: 1}"]
    assert RUNNER.invoke(app, arguments).exit_code == 0
    fine = RUNNER.invoke(app, ["validate", "--gpus-per-node", "8", str(spec), str(out)])
    assert fine.exit_code == 0, fine.stdout
    spec.write_text(SMALL.replace("output: 200", "output: 200000"))
    contradicting = RUNNER.invoke(app, ["validate", str(spec)])
    assert contradicting.exit_code == 1
    assert "SW002 spec-that-contradicts-itself" in contradicting.stdout
    spec.write_text(SMALL.replace("output: 200", "outputs: 200"))
    assert "SW001 spec-that-cannot-be-read" in RUNNER.invoke(app, ["validate", str(spec)]).stdout
    file = out / "plan.json"
    document = json.loads(file.read_text())
    document["deployments"][0]["pools"][0]["pool"]["replicas"] = 99
    file.write_text(json.dumps(document))
    impossible = RUNNER.invoke(app, ["validate", str(file)])
    assert "SW102 plan-with-a-layout-that-cannot-be" in impossible.stdout
    document["deployments"][0]["pools"][0]["pool"]["replicas"] = "many"
    file.write_text(json.dumps(document))
    assert "SW101 plan-that-cannot-be-read" in RUNNER.invoke(app, ["validate", str(file)]).stdout
