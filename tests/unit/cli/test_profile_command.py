"""`shardwright profile` on profiles that are there, and `plan --profile`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli import measuring
from cli.main import app
from cli.measuring import time_left
from planner.inputs.load import load_inputs
from planner.profiling.wanted_serving import wanted_serving_points
from planner.serving_search.inputs import load_serve_inputs
from profiles.catalogue import load_preset
from profiles.measure.__main__ import LOST
from profiles.measure.grid import default_points
from profiles.measure.journal import FILE, Journal
from profiles.measure.points import Point, Wanted, read_request
from tests.served import SMALL
from tests.unit.profiles.test_profiled import SPEC
from tests.written_profiles import points_for, result_of, run_line, write_profile

RUNNER = CliRunner()
CLUSTER = load_preset("dgx-h100").to_cluster()
GRID = default_points(["gemm"], dtypes=["bf16"], world_size=1, per_node=1)
ODD = GRID[60]


def odd(measured: Point) -> float:
    return 1000.0 if measured == ODD else 1.0


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """Return a profile with one row that is a thousand times too slow."""
    return write_profile(tmp_path / "measured", GRID, CLUSTER, factor=odd)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Return a small spec."""
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_show_says_what_there_is_and_that_a_row_is_left_out(profile: Path) -> None:
    result = RUNNER.invoke(app, ["profile", "show", str(profile)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"{profile}: {len(GRID)} points of h100-sxm-80gb"
    assert "  software  torch 2.13.0, driver 570.1, cuda 12.8, nccl 2.27.3" in lines
    assert "  - 1 swapped unit; `shardwright profile check` lists them" in lines
    (row,) = (line for line in lines if line.startswith("  gemm   bf16 forward"))
    assert row.split()[3] == str(len(GRID) // 3)


def test_show_as_json_holds_every_run_and_row(profile: Path) -> None:
    result = RUNNER.invoke(app, ["profile", "show", str(profile), "--format", "json"])
    document = json.loads(result.stdout)
    assert document["runs"]["1"]["world_size"] == 8
    assert sum(row["points"] for row in document["summary"]) == len(GRID)
    (excluded,) = document["excluded"]
    assert (excluded["point"], excluded["fault"]) == (ODD.key, "swapped unit")


def test_show_names_kernels_that_refused_and_clocks_that_nobody_read(tmp_path: Path) -> None:
    refused = {"flash": "wider values than keys", "cudnn": "no plan"}
    with Journal(tmp_path, resume=False) as journal:
        journal.begin(run_line(CLUSTER, conditions={"at": "now", "unread": "nvidia-smi is missing"}))
        for entry in GRID[:2]:
            journal.measured(entry, {**result_of(1e-3), "kernel": "efficient", "refused": refused})
        journal.conditions({"at": "later", "unread": "nvidia-smi is missing"})
    result = RUNNER.invoke(app, ["profile", "show", str(tmp_path), "--verbose"])
    lines = result.stdout.splitlines()
    assert "  clocks unread  nvidia-smi is missing, 2 times" in lines
    assert "Kernels that refused" in lines
    assert "  - 2 points of gemm: flash: wider values than keys; measured: efficient" in lines
    document = json.loads(RUNNER.invoke(app, ["profile", "show", str(tmp_path), "--format", "json"]).stdout)
    assert document["refused"] == [
        {"suite": "gemm", "kernel": kernel, "reason": reason, "measured": "efficient", "points": 2}
        for kernel, reason in refused.items()
    ]


def test_show_plots_what_is_achieved(profile: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = RUNNER.invoke(app, ["profile", "show", str(profile), "--plot", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("<circle") == len(GRID) + 3  # the legend names three parts
    assert f"{ODD.key}: " in text
    assert text.count("left out</td>") == 1
    assert "http" not in text.replace("http-equiv", "")


def test_check_ends_with_findings_and_names_them(profile: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["profile", "check", str(profile)])
    assert result.exit_code == 1
    assert f"{len(GRID) - 1} points kept, 1 left out; held against the datasheet of h100-sxm-80gb." in result.stdout
    assert f"  - line 62, {ODD.key}: swapped unit: " in result.stdout
    sound = write_profile(tmp_path / "sound", GRID, CLUSTER)
    assert RUNNER.invoke(app, ["profile", "check", str(sound)]).exit_code == 0


def test_points_left_out_one_by_one_are_predicted_within_their_noise(tmp_path: Path) -> None:
    sound = write_profile(tmp_path / "sound", GRID, CLUSTER)
    result = RUNNER.invoke(app, ["profile", "check", str(sound), "--left-out", "--format", "json"])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)["left_out"].values()
    assert 0 < found["points"] <= len(GRID)
    # Each figure is off by 3 % at most, and the residual is otherwise nil.
    assert 0.005 < found["median"] < 0.03
    assert found["median"] < found["p90"] < 0.065
    bent = write_profile(tmp_path / "bent", GRID, CLUSTER, factor=lambda entry: 1.5 if entry.size("n") == 4096 else 1.0)
    text = RUNNER.invoke(app, ["profile", "check", str(bent), "--left-out"]).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("  matrix products"))
    assert float(line.split()[3]) > 100 * found["median"]


def test_merged_profiles_hold_both_and_the_later_counts(profile: Path, tmp_path: Path) -> None:
    again = write_profile(tmp_path / "again", [ODD], CLUSTER)
    out = tmp_path / "both"
    result = RUNNER.invoke(app, ["profile", "merge", str(profile), str(again), "--out", str(out)])
    assert result.exit_code == 0, result.output
    checked = RUNNER.invoke(app, ["profile", "check", str(out), "--format", "json"])
    (excluded,) = json.loads(checked.stdout)["excluded"]
    assert (excluded["line"], excluded["fault"]) == (62, "duplicate")


def test_profiles_of_two_devices_cannot_be_merged(profile: Path, tmp_path: Path) -> None:
    other = write_profile(tmp_path / "other", GRID[:3], load_preset("dgx-a100").to_cluster())
    result = RUNNER.invoke(app, ["profile", "merge", str(profile), str(other), "--out", str(tmp_path / "both")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {other / FILE}: profiles of several devices cannot be one: a100-sxm-80gb, h100-sxm-80gb\n"
        "Merge those of one device.\n"
    )


def test_a_spec_of_servers_asks_for_what_prices_them(tmp_path: Path) -> None:
    spec, out = tmp_path / "serve.yaml", tmp_path / "out"
    spec.write_text(SMALL)
    words = ["profile", "run", str(spec), "--emit", "torchrun", "--processes", "8", "--no-grid", "--suite", "attention"]
    result = RUNNER.invoke(app, [*words, "--suite", "gemm", "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    asked = [entry.point for entry in read_request((out / "request.jsonl").read_text())]
    wanted = [entry.point for entry in wanted_serving_points(load_serve_inputs(spec))]
    assert asked == [entry for entry in wanted if entry.suite in ("attention", "gemm")]
    assert {entry.word("phase") for entry in asked if entry.suite == "attention"} == {"forward", "decode"}


def test_resuming_asks_also_for_what_the_measured_prices_lead_to(spec: Path, tmp_path: Path) -> None:
    def asked(*more: str) -> list[Point]:
        words = ["profile", "run", str(spec), "--emit", "torchrun", "--processes", "2", "--no-grid", "--force"]
        suites = [word for name in ("gemm", "collectives") for word in ("--suite", name)]
        result = RUNNER.invoke(app, [*words, *suites, "--out", str(tmp_path / "out"), *more])
        assert result.exit_code == 0, result.stderr
        return [entry.point for entry in read_request((tmp_path / "out" / "request.jsonl").read_text())]

    first = asked()
    assert asked("--resume") == first, "nothing is measured yet"
    inputs = load_inputs(spec)
    slow = {"gemm": 1.0, "collectives": 3000.0}
    measured = [entry for entry in points_for(inputs) if entry.suite in slow]
    write_profile(tmp_path / "out", measured, inputs.cluster, factor=lambda entry: slow[entry.suite])
    again = asked("--resume")
    assert again[: len(first)] == first
    assert len(again) > len(first), "slower collectives lead to layouts of other shapes"
    assert asked() == first, "without the word the directory says nothing"


def test_export_writes_a_line_a_point(profile: Path) -> None:
    result = RUNNER.invoke(app, ["profile", "export", str(profile)])
    lines = result.stdout.splitlines()
    assert lines[0] == "suite,point,seconds,p10,p90,bytes,samples,kernel,run,left_out"
    assert len(lines) == len(GRID) + 1
    assert [line for line in lines if line.endswith(",swapped unit")] == [lines[61]]


@pytest.mark.parametrize("command", ["show", "check", "export"])
def test_a_directory_without_measurements_is_named(command: str, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["profile", command, str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {tmp_path / FILE}: there is no such file\n"
        "Give a directory that `shardwright profile run --out DIR` has written.\n"
    )


@pytest.mark.parametrize(
    ("launcher", "nodes", "script"),
    [("torchrun", 1, "profile.sh"), ("torchrun", 4, "profile.sh"), ("slurm", 4, "profile.sbatch")],
)
def test_a_launcher_brings_all_that_a_bare_image_lacks(
    launcher: str, nodes: int, script: str, spec: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["profile", "run", str(spec), "--emit", launcher, "--nodes", str(nodes), "--processes", "8"]
    result = RUNNER.invoke(app, [*words, "--budget", "8m", "--out", str(out)])
    assert result.exit_code == 0, result.output
    wanted = read_request((out / "request.jsonl").read_text())
    assert {entry.point for entry in wanted} >= {
        entry for entry in points_for(load_inputs(spec)) if entry.suite != "collectives"
    }
    subprocess.run(["bash", "-n", str(out / script)], check=True)
    text = (out / script).read_text()
    assert "--nproc-per-node=8" in text
    assert ("--nnodes=4" in text) is (nodes == 4)
    assert ("#SBATCH --nodes=4" in text) is (launcher == "slurm")
    assert "--resume --seconds 0.25 --budget 8m)" in text
    # The collector stands alone there: nothing of the project is on the path but the folder.
    code = "import profiles.measure.session, profiles.measure.journal; print(profiles.measure.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(out / "collector")}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, cwd=out, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "error: --budget soon is no time.\nWrite seconds, or 8m or 1h.\n"),
        (
            ["--nodes", "2"],
            "error: --nodes 2 needs a launcher that reaches all of them.\nWrite one with --emit slurm or torchrun.\n",
        ),
        (
            ["--suite", "gemm", "--no-grid"],
            "error: There is nothing to measure.\nName a spec or a model, or leave out --no-grid.\n",
        ),
        (
            ["--python", "/there/is/none"],
            "error: /there/is/none cannot be started: No such file or directory.\nName an interpreter with --python.\n",
        ),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(words: list[str], message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = RUNNER.invoke(app, ["profile", "run", "--out", str(out), *words])
    assert (result.exit_code, result.stderr) == (2, message)
    assert not out.exists()


def test_a_model_by_name_is_measured_by_its_shapes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["profile", "run", "--model", "llama-3.1-8b", "--no-grid", "--suite", "gemm", "--emit", "torchrun"]
    result = RUNNER.invoke(app, [*words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    wanted = read_request((out / "request.jsonl").read_text())
    # The down projection of llama-3.1-8b, whole and in halves.
    assert {entry.point.size("k") for entry in wanted} >= {14336, 7168}


def test_a_plan_says_how_much_of_it_is_measured(spec: Path, tmp_path: Path) -> None:
    inputs = load_inputs(spec)
    measured = write_profile(tmp_path / "measured", points_for(inputs), inputs.cluster)
    result = RUNNER.invoke(app, ["plan", str(spec), "--profile", str(measured), "--strict-data"])
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("  its sources"))
    assert line.endswith(", of the busiest rank's own time")
    assert " % measured, " in line
    document = json.loads(
        RUNNER.invoke(app, ["plan", str(spec), "--profile", str(measured), "--format", "json"]).stdout
    )
    assert document["inputs"]["cluster"]["profile"]["directory"] == str(measured)
    assert sum(document["plans"][0]["source_fractions"].values()) == pytest.approx(1)


def test_strict_data_refuses_what_is_foreign_stale_or_left_out(profile: Path, spec: Path) -> None:
    write_profile(profile, GRID[:1], CLUSTER, software={"torch": "2.14.0"})
    result = RUNNER.invoke(app, ["plan", str(spec), "--profile", str(profile), "--strict-data"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {profile}: --profile: The profile is refused by --strict-data: ")
    for part in ("stale: run 1 differs from the newest", "line 62: swapped unit: ", "line 2: duplicate: "):
        assert part in result.stderr
    allowed = RUNNER.invoke(app, ["plan", str(spec), "--profile", str(profile)])
    assert allowed.exit_code == 0
    assert "  - profile: stale: run 1 differs from the newest" in allowed.stdout


def test_strict_data_is_about_a_profile(spec: Path) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), "--strict-data"])
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --strict-data is about the data of --profile, which is missing.\nGive --profile DIR.\n",
    )


def test_the_time_left_is_in_words() -> None:
    assert (time_left(40), time_left(200)) == ("40 s left", "3 min left")


def end_at(directory: Path, lost: Point, *measured: Point) -> None:
    """Write what a process leaves that measures some points and is lost at another."""
    with Journal(directory, resume=True) as journal:
        journal.begin(run_line(CLUSTER))
        for entry in measured:
            journal.measured(entry, result_of(1e-3))
        journal.failed(lost, "CUDA error: an illegal memory access was encountered")


def test_points_that_a_budget_left_out_are_counted(tmp_path: Path) -> None:
    end_at(tmp_path, GRID[0], GRID[1], GRID[2])
    wanted = [Wanted(point=point) for point in GRID[:10]]
    assert measuring.left_open(tmp_path, wanted) == 7, "one failed and two were measured"
    assert measuring.left_open(tmp_path, wanted[:3]) == 0


def test_a_kernel_that_ends_its_process_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    codes = [LOST, LOST, 0]

    def ended(launch: measuring.Launch, *, quiet: bool) -> int:
        del quiet
        end_at(tmp_path, GRID[len(started)], GRID[10 + len(started)])
        started.append(launch.words)
        return codes[len(started) - 1]

    monkeypatch.setattr(measuring, "collect", ended)
    launch = measuring.Launch(python="python", processes=1, words=("--out", "x"))
    assert measuring.collect_on(launch, tmp_path, budget_seconds=None, resume=False, quiet=True) == 0
    assert started == [("--out", "x"), ("--out", "x", "--resume"), ("--out", "x", "--resume")]
    started.clear()
    assert measuring.collect_on(launch, tmp_path, budget_seconds=4.0, resume=True, quiet=True) == 0
    assert started == [("--out", "x", "--budget", "4.0", "--resume")], "too little time is left for another"


def test_processes_that_measure_nothing_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []

    def ended(launch: measuring.Launch, *, quiet: bool) -> int:
        del quiet
        end_at(tmp_path, GRID[len(started)])
        started.append(launch.words)
        return LOST

    monkeypatch.setattr(measuring, "collect", ended)
    launch = measuring.Launch(python="python", processes=1, words=())
    assert measuring.collect_on(launch, tmp_path, budget_seconds=None, resume=False, quiet=True) == LOST
    assert len(started) == measuring.MOST_FRUITLESS
