"""`shardwright collect` where the folder, the list of runs or a log is not what it should be."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.output import write_files
from planner.requests.request import Target
from planner.verification.kit import verification_kit
from tests.unit.planner.verification import printed
from tests.unit.planner.verification.plans import one_node_plan

RUNNER = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the verify folder of a plan, no run of it made."""
    kit = verification_kit(one_node_plan(), target=Target.MEGATRON)
    assert kit is not None
    write_files(tmp_path / "run", kit.files, force=False)
    return tmp_path / "run" / "verify"


def layout(folder: Path, index: int) -> Path:
    (found,) = folder.glob(f"layout-{index}-*")
    return found


def write_log(folder: Path, index: int, text: str, *, code: str = "0", node: int = 0) -> None:
    (layout(folder, index) / f"node-{node}.log").write_text(text)
    (layout(folder, index) / f"node-{node}.exit").write_text(f"{code}\n")


def problems(folder: Path) -> list[str | None]:
    result = RUNNER.invoke(app, ["collect", str(folder), "--format", "json"])
    assert (result.exit_code, result.stderr) == (1, "")
    return [run["problem"] for run in json.loads(result.stdout)["runs"]]


def test_a_directory_without_a_kit_is_an_error(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["collect", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {tmp_path}: There is no runs.csv here, which names the runs.\n"
        "Give the verify directory that `shardwright plan SPEC --out DIR` writes.\n"
    )


def test_logs_without_a_step_say_what_they_end_with(folder: Path) -> None:
    write_log(folder, 0, "Traceback (most recent call last):\nModuleNotFoundError: No module named 'apex'\n", code="1")
    write_log(folder, 1, "")
    (layout(folder, 2) / "node-0.log").write_text(printed.megatron_log(200.0, steps=5))
    result = RUNNER.invoke(app, ["collect", str(folder)])
    assert (result.exit_code, result.stdout) == (2, "")
    names = [layout(folder, index).name for index in range(3)]
    last = printed.megatron_step(5, 202.0).strip()[:160]
    assert result.stderr == (
        f"error: {folder}: No run has left a measurement.\n"
        f"{names[0]}: its log holds no step; it failed with exit code 1; last line: "
        "ModuleNotFoundError: No module named 'apex'\n"
        f"{names[1]}: its log holds no step\n"
        f"{names[2]}: its log holds 5 steps, 6 are needed; it has not ended; last line: {last}...\n"
    )
    assert not (folder / "measurements.csv").exists()


def test_a_run_without_a_measurement_is_a_finding_beside_those_with_one(folder: Path) -> None:
    write_log(folder, 0, printed.megatron_log(200.0))
    write_log(folder, 1, printed.megatron_step(1, 5.0, skipped=1))
    result = RUNNER.invoke(app, ["collect", str(folder)])
    assert result.exit_code == 1
    assert "\nOnly layout-0-" in result.stdout
    assert "\nNot measured\n  - layout-1-" in result.stdout
    first, second, third = problems(folder)
    assert first is None
    assert second is not None
    assert second.startswith("its log holds no step beside 1 that the loss scaler skipped; append --initial-loss-scale")
    assert third == "it was not made yet; run run.sh or job.sbatch beside its folder."
    assert len((folder / "measurements.csv").read_text().splitlines()) == 2


def test_steps_before_a_crash_count_and_memory_that_ran_out_counts_more(folder: Path) -> None:
    write_log(folder, 0, printed.megatron_log(200.0, steps=7) + "NCCL error\n", code="1")
    write_log(folder, 1, printed.megatron_log(100.0, steps=9) + printed.OUT_OF_MEMORY, code="1")
    write_log(folder, 2, printed.megatron_log(300.0))
    result = RUNNER.invoke(app, ["collect", str(folder), "--format", "json"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert [run["status"] for run in document["runs"]] == ["ok", "oom", "ok"]
    assert [run["num_steps"] for run in document["runs"]] == [4, 6, 7]
    assert document["runs"][1]["measured_step_seconds"] is None
    assert document["best"] == layout(folder, 0).name


def test_the_parts_of_several_nodes_are_one_run(folder: Path) -> None:
    memory = printed.megatron_memory(2, rank=0, peak_mib=74000)
    for index in range(3):
        write_log(folder, index, memory)
        write_log(folder, index, printed.megatron_log(200.0 + index), node=1)
    result = RUNNER.invoke(app, ["collect", str(folder), "--format", "json"])
    assert result.exit_code == 0
    assert {run["measured_peak_bytes"] for run in json.loads(result.stdout)["runs"]} == {74000 << 20}


def test_the_best_three_can_all_run_out_of_memory(folder: Path) -> None:
    for index in range(3):
        write_log(folder, index, printed.OUT_OF_MEMORY, code="1")
    result = RUNNER.invoke(app, ["collect", str(folder)])
    assert result.exit_code == 0
    assert "\nNo run has a step time: nothing tells which is best.\n" in result.stdout


def test_accuracy_reads_what_was_collected_and_names_the_best(folder: Path) -> None:
    table = folder / "runs.csv"
    table.write_text(table.read_text().replace("sample-4l", "llama-3.1-8b").replace("gpu-8gb", "dgx-h100"))
    write_log(folder, 0, printed.megatron_log(200.0))
    write_log(folder, 1, printed.megatron_log(190.0))
    write_log(folder, 2, printed.OUT_OF_MEMORY, code="1")
    assert RUNNER.invoke(app, ["collect", str(folder)]).exit_code == 0
    result = RUNNER.invoke(app, ["accuracy", str(folder / "measurements.csv")])
    assert (result.exit_code, result.stderr) == (0, "")
    first, second = (layout(folder, index).name for index in range(2))
    assert "\nEach run\n  id                 predicted  by its plan       measured" in result.stdout
    assert f"  Best measured: {second}. Best predicted: {first}.\n" in result.stdout


def test_accuracy_says_where_a_prediction_of_a_plan_is_no_number(folder: Path) -> None:
    write_log(folder, 0, printed.megatron_log(200.0))
    assert RUNNER.invoke(app, ["collect", str(folder)]).exit_code == 1
    table = folder / "measurements.csv"
    table.write_text(table.read_text().replace(",0.2,", ",soon,"))
    result = RUNNER.invoke(app, ["accuracy", str(table)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: The row of {layout(folder, 0).name} in line 2 is damaged: "
        "predicted_step_time_s = 'soon' is no number.\n"
        "Collect the runs again, or leave the cell empty.\n"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("predicted_step_time_s", "predicted", "This is not the list of runs that a plan wrote."),
        (",0.2,", ",,", "is damaged: its prediction or the name of its folder is missing."),
        (",0.2,", ",soon,", "is damaged: predicted_step_time_s = 'soon' is no number."),
        ("layout-0-", "", "is damaged: its prediction or the name of its folder is missing."),
        ("seq_len", "length", "The columns are those of no kind of measurement."),
    ],
)
def test_a_list_of_runs_that_was_edited_is_an_error(folder: Path, old: str, new: str, message: str) -> None:
    table = folder / "runs.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))
    result = RUNNER.invoke(app, ["collect", str(folder)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
