"""`shardwright trace`: the events of a step fit together, and the step ends when the plan says."""

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.layout import stages_from_counts
from planner.schema.plan import plan_to_text
from tests.unit.planner.schedule_views.test_other_schedules import LAYOUT
from tests.unit.planner.schedule_views.test_other_schedules import plan_of as plan_of_layouts

RUNNER = CliRunner()
EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = ["llama-3.1-8b-1xdgx-h100", "llama-3.1-70b-8xdgx-h100", "mixtral-8x22b-8xdgx-h100", "llama-2-7b-4xl40s"]

Event = dict[str, object]


@cache
def traced(example: str, *arguments: str) -> dict[str, list[Event]]:
    """Return what is printed: up to hundreds of thousands of events."""
    result = RUNNER.invoke(app, ["trace", str(EXAMPLES / example / "expected"), *arguments])
    assert result.exit_code == 0, result.stderr
    document: dict[str, list[Event]] = json.loads(result.stdout)
    return document


@pytest.fixture(scope="module", params=NAMES)
def first_trace(request: pytest.FixtureRequest) -> tuple[str, list[Event]]:
    """Return an example, and the events of its best layout."""
    return request.param, traced(request.param, "--index", "0")["traceEvents"]


def plan_of(example: str) -> dict[str, list[dict[str, object]]]:
    document: dict[str, list[dict[str, object]]] = json.loads((EXAMPLES / example / "expected/plan.json").read_text())
    return document


def end(event: Event) -> float:
    assert isinstance(event["ts"], float)
    assert isinstance(event["dur"], float)
    return event["ts"] + event["dur"]


@pytest.mark.parametrize("example", NAMES)
@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_step_ends_when_its_plan_says_and_no_rank_does_two_things_at_once(example: str, index: int) -> None:
    planned = plan_of(example)["plans"][index]
    events = traced(example, "--index", str(index))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert max(map(end, slices)) == pytest.approx(1e6 * float(str(planned["reevaluated_step_seconds"])), abs=0.01)
    by_rank: dict[object, list[Event]] = defaultdict(list)
    for event in slices:
        if event["tid"] == 1:
            by_rank[event["pid"]].append(event)
    layout = planned["layout"]
    assert isinstance(layout, dict)
    assert len(by_rank) == layout["pp"]
    for of_rank in by_rank.values():
        kinds = Counter(event["cat"] for event in of_rank)
        assert kinds["forward"] == kinds["backward"] == layout["num_microbatches"] * layout["vpp"]
        ordered = sorted(of_rank, key=lambda event: float(str(event["ts"])))
        for before, after in itertools.pairwise(ordered):
            assert end(before) <= float(str(after["ts"])) + 0.002


def test_flows_lead_from_a_pass_over_its_transfer_to_the_one_that_waits(first_trace: tuple[str, list[Event]]) -> None:
    example, events = first_trace
    starts = {event["id"]: event for event in events if event["ph"] == "s"}
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    layout = plan_of(example)["plans"][0]["layout"]
    assert isinstance(layout, dict)
    stages = layout["pp"] * layout["vpp"]
    crossing = 2 * layout["num_microbatches"] * (stages - 1) if layout["pp"] > 1 else 0
    assert len(starts) == len(ends) == crossing
    assert starts.keys() == ends.keys()
    passes = {(event["pid"], event["ts"]) for event in events if event["ph"] == "X" and event["tid"] == 1}
    for flow, event in starts.items():
        arrival = ends[flow]
        assert float(str(event["ts"])) <= float(str(arrival["ts"]))
        assert event["pid"] != arrival["pid"]
        assert (arrival["pid"], arrival["ts"]) in passes


def test_activations_rise_and_are_all_freed(first_trace: tuple[str, list[Event]]) -> None:
    counted: dict[object, list[tuple[float, int]]] = defaultdict(list)
    for event in first_trace[1]:
        if event["ph"] == "C":
            arguments = event["args"]
            assert isinstance(arguments, dict)
            counted[event["pid"]].append((float(str(event["ts"])), *arguments.values()))
    for values in counted.values():
        assert values == sorted(values, key=lambda entry: entry[0])
        assert values[-1][1] == 0
        assert max(number for _, number in values) >= 1


def test_a_trace_is_written_beside_the_plan_and_never_over_another(tmp_path: Path) -> None:
    plan = str(EXAMPLES / NAMES[0] / "expected")
    first = RUNNER.invoke(app, ["trace", plan, "--out", str(tmp_path / "out")])
    assert first.stdout == f"{tmp_path / 'out' / 'trace.json'}\n"
    assert "https://ui.perfetto.dev" in first.stderr
    text = (tmp_path / "out" / "trace.json").read_text()
    assert text == RUNNER.invoke(app, ["trace", plan]).stdout
    again = RUNNER.invoke(app, ["trace", plan, "--out", str(tmp_path / "out")])
    assert again.exit_code == 2
    assert RUNNER.invoke(app, ["trace", plan, "--out", str(tmp_path / "out"), "--force"]).exit_code == 0
    missing = RUNNER.invoke(app, ["trace", plan, "--index", "9"])
    assert missing.exit_code == 2
    assert "--index 9 is none of its" in missing.stderr


@pytest.mark.parametrize("schedule", ["ZB-V", "bidirectional interleaved"])
def test_copies_to_and_from_the_host_have_streams_of_their_own(schedule: str) -> None:
    events = traced(NAMES[0], "--schedule", schedule, "--offload")["traceEvents"]
    threads = {(event["tid"], str(event["args"])) for event in events if event["name"] == "thread_name"}
    assert threads == {
        (1, "{'name': 'passes'}"),
        (3, "{'name': 'copies to the host'}"),
        (4, "{'name': 'copies from the host'}"),
    }
    streams: dict[tuple[object, object], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            streams[event["pid"], event["tid"]].append(event)
    assert {thread for _, thread in streams} == {1, 3, 4}
    for stream in streams.values():
        for before, after in itertools.pairwise(stream):
            assert end(before) <= float(str(after["ts"])) + 0.002
    flows = Counter((event["ph"], event["id"]) for event in events if event["ph"] in {"s", "f"})
    assert set(flows.values()) == {1}
    assert {flow for phase, flow in flows if phase == "s"} == {flow for phase, flow in flows if phase == "f"}
    counted: dict[tuple[object, object], list[int]] = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            arguments = event["args"]
            assert isinstance(arguments, dict)
            counted[event["pid"], event["name"]].append(*arguments.values())
    assert {name for _, name in counted} == {"activations", "activations on the host"}
    for values in counted.values():
        assert min(values) == values[-1] == 0
        assert max(values) > 2**30


def test_a_schedule_is_shown_without_copies_too() -> None:
    events = traced(NAMES[0], "--schedule", "DualPipe")["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {1}
    assert {event["cat"] for event in events if event["ph"] == "X"} == {
        "forward",
        "backward",
        "input gradient",
        "weight gradient",
        "interwoven",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--offload"],
            "error: --offload shows a schedule that `plan --schedules` prices.\nAdd --schedule NAME.\n",
        ),
        (
            ["--schedule", "1F1B"],
            "error: Layout 0 does not run under 1F1B: the search chooses among it and interleaving.\n",
        ),
    ],
)
def test_what_cannot_be_shown_says_why(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["trace", str(EXAMPLES / NAMES[0] / "expected"), *arguments])
    assert result.exit_code == 2
    assert result.stderr == message


def test_a_schedule_that_nothing_can_leave_is_not_shown_with_copies(tmp_path: Path) -> None:
    # Of two micro-batches in flight one runs, and the other is on its way.
    layout = replace(LAYOUT, pp=2, dp=4, num_microbatches=8, stages=stages_from_counts((17, 15)))
    path = tmp_path / "plan.json"
    path.write_text(plan_to_text(replace(plan_of_layouts(layout), baseline=None)))
    result = RUNNER.invoke(app, ["trace", str(path), "--schedule", "1F1B", "--offload"])
    assert result.exit_code == 2
    assert result.stderr == "error: Under 1F1B no activations of layout 0 can wait in host memory.\n"
    assert RUNNER.invoke(app, ["trace", str(path), "--schedule", "1F1B"]).exit_code == 0
