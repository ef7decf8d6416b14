"""`shardwright emit` writes the launch files of any layout of a plan."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.emit.megatron import emit_megatron
from planner.requests.request import Target
from planner.schema.plan import plan_to_text
from tests.unit.cli.samples import infeasible_plan, sample_plan

RUNNER = CliRunner()


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(sample_plan()))
    return path


def test_files_are_listed_and_nothing_is_written(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file)])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["file", "launch.sh", "job.sbatch"]
    assert result.stderr == "Nothing was written: --out DIR writes these files, --file NAME prints one.\n"
    assert list(plan_file.parent.iterdir()) == [plan_file]


def test_one_file_is_printed_as_it_would_be_written(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--file", "launch.sh"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == emit_megatron(sample_plan())["launch.sh"]


def test_files_are_written_and_scripts_can_be_run(plan_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--out", str(out)])
    assert result.exit_code == 0
    assert result.stdout == f"{out}/launch.sh\n{out}/job.sbatch\n"
    assert {path.name: path.read_text() for path in out.iterdir()} == dict(emit_megatron(sample_plan()))
    assert os.access(out / "launch.sh", os.X_OK)


def test_the_directory_of_a_plan_stands_for_it(plan_file: Path) -> None:
    assert RUNNER.invoke(app, ["emit", str(plan_file.parent), "--file", "launch.sh"]).exit_code == 0


def test_runners_up_are_written_by_their_index(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--index", "1", "--format", "json"])
    assert json.loads(result.stdout) == {
        "target": "megatron",
        "index": 1,
        "written": [],
        "files": dict(emit_megatron(sample_plan(), index=1)),
    }


def test_files_may_be_asked_for_another_framework(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--target", "deepspeed"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: DeepSpeed 0.19.8 cannot say: sequence_parallel: ")
    assert f"`shardwright emit {plan_file} --target all`" in result.stderr


def test_a_plan_for_any_target_is_written_for_megatron(plan_file: Path) -> None:
    plan = sample_plan()
    request = replace(plan.request, target=Target.ANY)
    plan_file.write_text(plan_to_text(replace(plan, target=Target.ANY, request=request)))
    document = json.loads(RUNNER.invoke(app, ["emit", str(plan_file), "--format", "json"]).stdout)
    assert document["target"] == "megatron"
    assert list(document["files"]) == ["launch.sh", "job.sbatch"]


def test_an_index_that_is_not_there_is_refused(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--index", "2"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {plan_file}: --index 2 is none of its 2 layouts.\nGive an index from 0 (the best) to 1.\n"
    )


def test_a_file_that_is_not_there_is_refused(plan_file: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(plan_file), "--file", "x.sh"])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {plan_file}: --file x.sh is none of its launch files.\nThey are launch.sh, job.sbatch.\n"
    )


def test_a_plan_without_layouts_cannot_be_emitted(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(infeasible_plan()))
    result = RUNNER.invoke(app, ["emit", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {path}: This plan holds no layout, because none fits.\n"
        f"`shardwright explain {path}` says why and which changes would fit.\n"
    )


def test_a_missing_plan_is_a_message(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["emit", str(tmp_path / "none.json")])
    assert result.exit_code == 2
    assert result.stderr == f"error: {tmp_path / 'none.json'}: There is no such file.\nCheck the path.\n"


def test_a_spec_is_not_taken_for_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("schema: 1\nmodel: llama-3.1-8b\ncluster: dgx-h100\nworkload: {}\n")
    result = RUNNER.invoke(app, ["emit", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {path}: This is a spec, not a plan.\nPlan it first: shardwright plan {path} --out DIR\n"
    )
