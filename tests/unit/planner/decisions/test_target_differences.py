"""Each framework beside a layout: it refuses what its emitter refuses, and its best plan is the search's own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.render import as_text
from cli.render_targets import target_blocks, target_document
from planner.decisions.target_differences import TargetDifference, target_differences
from planner.errors import NotExpressibleError
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.search.search import search
from planner.targets.launch import launch_files
from solvers.errors import SolverError
from tests.builders import tiny_dense_model, tiny_request, two_node_cluster

RUNNER = CliRunner()
EXAMPLES = Path(__file__).parents[4] / "examples"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return search(
        replace(tiny_dense_model(), rope_scaling={}),
        two_node_cluster(),
        replace(tiny_request(), target=Target.MEGATRON),
        top=3,
    )


@pytest.fixture(scope="module")
def found(plan: Plan) -> tuple[TargetDifference, ...]:
    return target_differences(plan)


def test_every_framework_is_there_once(found: tuple[TargetDifference, ...]) -> None:
    assert [entry.target for entry in found] == [Target.MEGATRON, Target.DEEPSPEED]


def test_a_plans_own_framework_can_say_it_and_costs_nothing(plan: Plan, found: tuple[TargetDifference, ...]) -> None:
    own = found[0]
    assert own.refusal is None
    assert own.nearest is not None
    assert own.nearest.layout == plan.best.layout
    assert own.cost_fraction(plan.best.step_seconds) == 0


def test_a_refusal_is_the_emitters_and_the_nearest_plan_is_searched(
    plan: Plan, found: tuple[TargetDifference, ...]
) -> None:
    other = found[1]
    own_plan = search(plan.model, plan.cluster, replace(plan.request, target=Target.DEEPSPEED), top=1)
    assert other.nearest is not None
    assert other.nearest.layout == own_plan.best.layout
    if other.refusal is None:
        assert launch_files(plan, target=Target.DEEPSPEED)
    else:
        with pytest.raises(NotExpressibleError) as caught:
            launch_files(plan, target=Target.DEEPSPEED)
        assert caught.value.message == other.refusal


def test_a_framework_whose_search_found_nothing_is_open(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> Plan:
        raise SolverError(solver="layout search", status="nothing proved", limit="3 layouts")

    monkeypatch.setattr("planner.decisions.target_differences.search", stopped)
    found = target_differences(plan)
    why = "layout search stopped with status nothing proved under 3 layouts and found no solution"
    assert [(entry.nearest, entry.is_open, entry.why_none) for entry in found] == [(None, True, why)] * len(found)
    text = as_text(target_blocks(plan, found, index=0))
    assert text.count(f"None found: {why}") == len(found)
    assert "No plan" not in text
    document = target_document(plan, found, index=0)["targets"]
    assert isinstance(document, list)
    assert all(entry["is_open"] for entry in document)


def test_emit_compares_the_frameworks_of_an_example() -> None:
    folder = EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "expected"
    result = RUNNER.invoke(app, ["emit", str(folder), "--target", "all", "--format", "json"])
    assert result.exit_code == 0, result.stderr
    megatron, deepspeed = json.loads(result.stdout)["targets"]
    assert megatron["refusal"] is None
    assert megatron["cost_fraction"] == 0
    assert deepspeed["refusal"] == "context parallelism of kind ring: DeepSpeed exchanges heads for tokens only."
    assert deepspeed["cost_fraction"] > 0
    text = RUNNER.invoke(app, ["emit", str(folder), "--target", "all"])
    assert "It cannot say: context parallelism of kind ring" in text.stdout


def test_kinds_of_plans_are_not_mixed() -> None:
    serving = EXAMPLES / "llama-3.1-70b-vllm-split" / "serving.yaml"
    for target, said in (("all", "Only vLLM serves."), ("megatron", "This is a serving plan")):
        result = RUNNER.invoke(app, ["emit", str(serving), "--target", target])
        assert result.exit_code == 2
        assert said in result.stderr
    training = EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "expected"
    result = RUNNER.invoke(app, ["emit", str(training), "--target", "vllm"])
    assert result.exit_code == 2
    assert "This is a training plan" in result.stderr
