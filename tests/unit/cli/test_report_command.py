"""`shardwright report` prints or writes one page, and never over another file unasked."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.plans.choices import NodeChoice, NodeCount, NodeVerdict, Spare
from planner.plans.plan import OffloadedSchedule, OtherSchedules, PricedSchedule
from planner.schema.plan import plan_to_text
from tests.pages import read_page
from tests.unit.cli.samples import infeasible_plan, sample_plan

RUNNER = CliRunner()
TIMES = re.compile(r"\b\d{1,2}:\d\d\b|\b20\d\d-\d\d-\d\d\b")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(sample_plan()))
    return path


def test_the_page_is_printed_or_written_with_the_same_bytes(plan_file: Path, tmp_path: Path) -> None:
    printed = RUNNER.invoke(app, ["report", str(plan_file)])
    assert (printed.exit_code, printed.stderr) == (0, "")
    target = tmp_path / "report.html"
    # A directory with a plan.json in it is a plan too.
    written = RUNNER.invoke(app, ["report", str(tmp_path), "--out", str(target)])
    assert (written.exit_code, written.stdout, written.stderr) == (0, f"{target}\n", "Open it in a browser.\n")
    assert target.read_text(encoding="utf-8") == printed.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "report.html"]


def test_the_page_holds_no_time_of_day(plan_file: Path) -> None:
    page = read_page(RUNNER.invoke(app, ["report", str(plan_file)]).stdout)
    (body,) = page.all("body")
    assert not TIMES.search(body.text)


def test_a_file_that_is_there_is_kept_unless_forced(plan_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("mine")
    refused = RUNNER.invoke(app, ["report", str(plan_file), "--out", str(target)])
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: {target}: There is already such a file.\nName another file, or overwrite it with --force.\n"
    )
    assert target.read_text() == "mine"
    assert RUNNER.invoke(app, ["report", str(plan_file), "--out", str(target), "--force"]).exit_code == 0
    assert target.read_text().startswith("<!DOCTYPE html>\n")


def test_a_directory_is_no_file(plan_file: Path, tmp_path: Path) -> None:
    refused = RUNNER.invoke(app, ["report", str(plan_file), "--out", str(tmp_path), "--force"])
    assert refused.exit_code == 2
    assert refused.stderr == f"error: {tmp_path}: This is a directory.\nName a file.\n"


def test_nothing_is_left_behind_where_it_cannot_be_written(plan_file: Path, tmp_path: Path) -> None:
    refused = RUNNER.invoke(app, ["report", str(plan_file), "--out", str(tmp_path / "none" / "report.html")])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {tmp_path}/none/report.html: The file cannot be written: ")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_without_a_layout_has_a_page_too(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(infeasible_plan()))
    result = RUNNER.invoke(app, ["report", str(path)])
    assert result.exit_code == 0
    page = read_page(result.stdout)
    assert [line.text for line in page.with_class("bad")] == ["Infeasible: no layout fits."]


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("workload: {}\n")
    refused = RUNNER.invoke(app, ["report", str(path)])
    assert refused.exit_code == 2
    assert "This is a spec, not a plan." in refused.stderr


def test_the_number_of_nodes_and_lost_nodes_are_on_the_page(tmp_path: Path) -> None:
    model = sample_plan()
    counts = (
        NodeCount(num_nodes=1, verdict=NodeVerdict.BEST, step_seconds=0.2, bound_seconds=0.2),
        NodeCount(num_nodes=2, verdict=NodeVerdict.NO_LAYOUT),
    )
    choice = NodeChoice(num_offered=2, counts=counts, proven=True)
    spare = Spare(num_lost=1, replanned=None, reason="no node is left", proven=True, kept=())
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(replace(model, node_choice=choice, spare=spare)))
    (body,) = read_page(RUNNER.invoke(app, ["report", str(path)]).stdout).all("body")
    for words in ("Numbers of nodes", "1 node, proven:", "With 1 node lost", "no node is left"):
        assert words in body.text


def test_what_other_schedules_would_make_of_it_is_on_the_page(tmp_path: Path) -> None:
    host = OffloadedSchedule(
        step_seconds=0.21, peak_memory_bytes=2**29, host_memory_bytes=2**31, moved_fraction=0.5, fits=True
    )
    priced = PricedSchedule(
        schedule="ZB-V",
        index=0,
        layers_per_stage=(2, 2),
        step_seconds=0.2,
        peak_memory_bytes=2**30,
        fits=False,
        needs=("stages in a V",),
        offloaded=host,
    )
    path = tmp_path / "plan.json"
    schedules = OtherSchedules(priced=(priced,), left_out={"DualPipe": "layout 0: odd"})
    path.write_text(plan_to_text(replace(sample_plan(), schedules=schedules)))
    (body,) = read_page(RUNNER.invoke(app, ["report", str(path)]).stdout).all("body")
    for words in (
        "Other pipeline schedules",
        "DualPipe is not priced: layout 0: odd",
        "With activations in host memory",
        "210.0 ms",
    ):
        assert words in body.text


def test_numbers_of_nodes_that_differ_are_explained() -> None:
    examples = Path(__file__).parents[3] / "examples"
    words = "Nodes are numbered by their place in the node order of the layout, from 0 on."
    for case, told in (("llama-3.1-8b-4xdgx-h100-slow-link", True), ("llama-3.1-8b-1xdgx-h100", False)):
        page = RUNNER.invoke(app, ["report", str(examples / case / "expected")]).stdout
        assert (words in page) == told


def test_a_missed_deadline_is_not_called_missing_memory(tmp_path: Path) -> None:
    plan = infeasible_plan()
    assert plan.infeasible is not None
    assert plan.infeasible.nearest is not None
    fits = replace(plan.infeasible.nearest, memory_limit_bytes=plan.infeasible.nearest.peak_memory_bytes)
    late = replace(plan.infeasible, binding="the deadline: too slow", shortfall_bytes=0, nearest=fits)
    for infeasible, title in ((plan.infeasible, "Why nothing fits"), (late, "Why none meets the deadline")):
        path = tmp_path / "plan.json"
        path.write_text(plan_to_text(replace(plan, infeasible=infeasible)))
        (body,) = read_page(RUNNER.invoke(app, ["report", str(path)]).stdout).all("body")
        assert title in body.text
