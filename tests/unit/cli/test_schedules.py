"""`plan --schedules`: what the target costs, in text, in the plan file and in `explain`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.render_schedules import schedule_blocks, schedules_document, verdict_in_words
from planner.documents import parse_document
from planner.errors import InputError
from planner.plans.plan import OffloadedSchedule, OtherSchedules, Plan, PricedSchedule
from planner.requests.request import Target
from planner.schema.plan import plan_from_document, plan_to_text
from tests.builders import tiny_infeasible_plan, tiny_plan

RUNNER = CliRunner()

SPEC = """\
schema: 1
model: llama-3.1-8b
cluster: {preset: dgx-h100, nodes: 1}
workload: {kind: train, seq_len: 4096, global_batch_size: 32, precision: bf16}
constraints: {pp: 4, tp: 1}
"""


def offloaded(step_seconds: float, *, fits: bool = True) -> OffloadedSchedule:
    return OffloadedSchedule(
        step_seconds=step_seconds,
        peak_memory_bytes=2**29,
        host_memory_bytes=2**31,
        moved_fraction=0.5,
        fits=fits,
    )


def entry(
    schedule: str, step_seconds: float, *, fits: bool = True, index: int = 0, host: OffloadedSchedule | None = None
) -> PricedSchedule:
    return PricedSchedule(
        schedule=schedule,
        index=index,
        layers_per_stage=(2, 2),
        step_seconds=step_seconds,
        peak_memory_bytes=2**30,
        fits=fits,
        needs=("stages in a V",),
        offloaded=host,
    )


def plan_with(*priced: PricedSchedule, left_out: dict[str, str] | None = None) -> Plan:
    return replace(tiny_plan(), schedules=OtherSchedules(priced=priced, left_out=left_out or {}))


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_a_plan_says_what_its_target_costs_and_explain_says_it_again(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = RUNNER.invoke(app, ["plan", str(spec), "--schedules", "--out", str(out)])
    assert result.exit_code == 0
    section = result.stdout.partition("Other pipeline schedules\n")[2].partition("\n\n")[0].splitlines()
    assert section[0].split() == ["schedule", "layout", "step", "time", "vs", "best", "peak", "memory", "fits"]
    assert 2 <= len([line for line in section if line.endswith(("yes", "no"))]) <= 5
    assert any(line.startswith("  Target megatron costs ") for line in section)
    explained = RUNNER.invoke(app, ["explain", str(out), "--format", "json"])
    document = json.loads(explained.stdout)["schedules"]
    stored = json.loads((out / "plan.json").read_text())["schedules"]
    assert [part["schedule"] for part in document["priced"]] == [part["schedule"] for part in stored["priced"]]
    assert document["left_out"] == stored["left_out"]
    text = RUNNER.invoke(app, ["explain", str(out)]).stdout.partition("Other pipeline schedules\n")[2]
    assert "zero-bubble within memory" in text.partition("\n\n")[0]


def test_without_the_option_a_plan_holds_none(spec: Path) -> None:
    result = RUNNER.invoke(app, ["plan", str(spec), "--format", "json"])
    assert "schedules" not in json.loads(result.stdout)


def test_a_plan_with_schedules_to_json_and_back_is_the_same_plan() -> None:
    plan = plan_with(
        entry("ZB-V", 0.2), entry("ZB-H2", 0.3, fits=False, host=offloaded(0.4)), left_out={"DualPipe": "odd"}
    )
    text = plan_to_text(plan)
    assert plan_from_document(parse_document(text, file="plan.json")) == plan
    data = json.loads(text)
    data["schedules"]["priced"][0]["index"] = 7
    with pytest.raises(InputError, match="`schedules` prices layout 7, but the file holds 2 plans"):
        plan_from_document(parse_document(json.dumps(data), file="plan.json"))


@pytest.mark.parametrize(
    ("priced", "words"),
    [
        (
            (entry("ZB-V", 0.2), entry("GPipe", 0.1, fits=False)),
            "Target megatron costs 20.0 %: with ZB-V layout 0 would take 200.0 ms.",
        ),
        ((entry("ZB-V", 0.3),), "Target megatron costs nothing: no other schedule that fits is faster."),
        ((entry("ZB-V", 0.1, fits=False),), "Target megatron costs nothing: no other schedule fits."),
        (
            (entry("ZB-V", 0.1, fits=False, host=offloaded(0.2)), entry("GPipe", 0.3)),
            "Target megatron costs 20.0 %: with ZB-V layout 0, with activations in host memory, would take 200.0 ms.",
        ),
    ],
)
def test_what_the_target_costs_in_words(priced: tuple[PricedSchedule, ...], words: str) -> None:
    assert verdict_in_words(plan_with(*priced)) == words


def test_without_a_target_it_is_the_search_that_does_without() -> None:
    plan = replace(plan_with(entry("ZB-V", 0.2)), target=Target.ANY)
    assert verdict_in_words(plan).startswith("The search's own schedules cost 20.0 %: ")


def test_the_best_that_fits_is_shown_however_slow() -> None:
    names = ("one", "two", "three", "four", "five")
    slow = entry("slow", 0.9)
    plan = plan_with(*(entry(name, 0.1, fits=False) for name in names), slow, left_out={"odd": "reason"})
    shown = repr(schedule_blocks(plan))
    assert "'four'" in shown
    assert "'five'" not in shown
    assert "'slow'" in shown
    everything = repr(schedule_blocks(plan, every=True))
    assert "'five'" in everything
    assert "odd is not priced: reason" in everything


def test_nothing_is_shown_where_nobody_asked_and_no_pipeline_is_said() -> None:
    assert schedule_blocks(tiny_plan()) == ()
    assert schedule_blocks(tiny_infeasible_plan()) == ()
    assert "No layout of this plan has a pipeline" in repr(schedule_blocks(plan_with()))


def test_what_activations_on_the_host_would_make_of_the_schedules_is_a_table_of_its_own() -> None:
    plan = plan_with(entry("ZB-V", 0.2, fits=False, host=offloaded(0.21)), entry("GPipe", 0.3))
    shown = repr(schedule_blocks(plan))
    assert "With activations in host memory" in shown
    assert "('ZB-V', '0', '210.0 ms', '0.50 GiB', '2.00 GiB', 'yes')" in shown
    assert "activations copied to host memory and back beside the passes" in shown
    document = schedules_document(plan)
    assert document is not None
    parts = document["priced"]
    assert isinstance(parts, list)
    assert [part["offloaded"] for part in parts] == [
        {
            "step_seconds": 0.21,
            "peak_memory_bytes": 2**29,
            "host_memory_bytes": 2**31,
            "moved_fraction": 0.5,
            "fits": True,
        },
        None,
    ]
    without = repr(schedule_blocks(plan_with(entry("ZB-V", 0.2))))
    assert "host memory" not in without
