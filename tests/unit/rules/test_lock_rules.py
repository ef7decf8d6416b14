"""Each rule on locks finds its own kind of change and no other."""

from dataclasses import replace

import pytest

from planner.errors import Location
from planner.locks.lock_changes import changes
from planner.locks.plan_lock import PlanLock, RankBytes
from planner.rules.held_against_lock import RULES, HeldRun
from planner.validation.locked import lock_of
from tests.builders import tiny_plan

BASE = replace(
    lock_of(tiny_plan(), files={}),
    ratio_fraction=0.1,
    step_seconds=1.0,
    ranks=(RankBytes(rank=0, phase_bytes={"a": 500}, limit_bytes=1000),),
)

CASES = {
    "LCK001": replace(BASE, step_seconds=1.2),
    "LCK002": replace(BASE, step_seconds=1.05),
    "LCK003": replace(BASE, ranks=(RankBytes(rank=0, phase_bytes={"a": 1001}, limit_bytes=1000),)),
    "LCK004": replace(BASE, ranks=(RankBytes(rank=0, phase_bytes={"a": 999}, limit_bytes=1000),)),
    "LCK005": replace(BASE, settings={**BASE.settings, "tp": "64"}),
}


def broken(new: PlanLock, *, faults: tuple[str, ...] = ()) -> list[str]:
    run = HeldRun(place=Location(file="train.sh"), changes=changes(BASE, new, faults=faults))
    return [rule.id for rule in RULES for _ in rule.check(run)]


@pytest.mark.parametrize("rule_id", CASES)
def test_a_change_breaks_its_rule_only(rule_id: str) -> None:
    assert broken(CASES[rule_id]) == [rule_id]


def test_no_change_breaks_nothing() -> None:
    assert broken(BASE) == []


def test_a_run_that_is_not_the_plans_is_said_to_be_another_and_is_not_called_slower() -> None:
    faults = ("The script's sequences have 4,096 tokens, the plan's 8,192.", "It has 36 of 37 layers.")
    assert broken(BASE, faults=faults) == ["LCK009", "LCK009"]
    assert broken(CASES["LCK001"], faults=faults[:1]) == ["LCK009"]
