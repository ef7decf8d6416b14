"""Launch files are checked before they are written down and parsed back after."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from planner.emit import megatron
from planner.emit.megatron import emit_megatron
from planner.errors import BrokenPromiseError, InputError
from planner.plans.plan import Plan
from planner.requests.workload import Lora, TrainMethod
from planner.targets.launch import launch_file_names, launch_files
from tests.builders import tiny_layout, tiny_plan


def plan_with(**changes: object) -> Plan:
    plan = tiny_plan()
    layout = replace(tiny_layout(), **changes)  # type: ignore[arg-type]
    return replace(plan, plans=(replace(plan.best, layout=layout), *plan.plans[1:]))


def test_a_sound_plan_gives_both_scripts() -> None:
    assert sorted(launch_files(tiny_plan())) == ["job.sbatch", "launch.sh"]


def test_the_names_are_known_before_there_is_a_plan() -> None:
    plan = tiny_plan()
    assert set(launch_file_names(plan.request.workload, plan.cluster)) == set(launch_files(plan))
    adapters = replace(
        plan.request.workload, method=TrainMethod.LORA, lora=Lora(rank=4, alpha=8.0, target_modules=("qkv",))
    )
    trained = replace(plan, request=replace(plan.request, workload=adapters))
    names = {"job.sbatch", "launch.sh", "lora_gpt.py"}
    assert set(launch_file_names(adapters, plan.cluster)) == set(launch_files(trained)) == names


def test_a_plan_that_was_edited_into_nonsense_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        launch_files(plan_with(num_microbatches=4))
    assert str(caught.value) == (
        "layout 0 of this plan breaks its own rules: micro-batch 1 x 4 x dp 2 = 8 sequences, not 16.\n"
        "Plan again from the spec instead of editing the plan."
    )


def test_a_script_that_says_another_layout_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def emit_the_wrong_one(plan: Plan, index: int = 0) -> Mapping[str, str]:
        return emit_megatron(plan_with(sequence_parallel=False), index=index)

    monkeypatch.setattr(megatron, "emit_megatron", emit_the_wrong_one)
    with pytest.raises(BrokenPromiseError, match=r"launch\.sh says"):
        launch_files(tiny_plan())
