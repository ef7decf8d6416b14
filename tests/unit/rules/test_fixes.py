"""The change that a rule proposes mends what it found, and breaks nothing else."""

import pytest

from planner.readers.flag_tables import versions
from planner.rules.registry import all_rules
from planner.rules.rule import Finding, Fix
from planner.validation.judge import judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.unit.rules import megatron_cases, vllm_cases

CASES = {**megatron_cases.CASES, **vllm_cases.CASES}


def findings(text: str, rule_id: str) -> tuple[Finding, ...]:
    """Return what is found in a text at the newest version that a rule holds for."""
    rule = all_rules()[rule_id]
    asked = {name: next(one for one in versions(name) if rule.holds_for(one)) for name in rule.frameworks}
    runs = read_source(text, file="train.sh", asked=Asked(versions=asked, gpus_per_node=8)).runs
    return judged_text(text, runs, file="train.sh").findings


def mended(text: str, fix: Fix) -> str:
    """Return a text after a change."""
    assert fix.location.line is not None
    assert fix.location.column is not None
    lines = text.split("\n")
    line, start = lines[fix.location.line - 1], fix.location.column - 1
    assert line[start:].startswith(fix.old)
    lines[fix.location.line - 1] = line[:start] + fix.new + line[start + len(fix.old) :]
    return "\n".join(lines)


PROPOSED = {
    f"{rule_id} {number}": (rule_id, finding)
    for rule_id, text in sorted(CASES.items())
    for number, finding in enumerate(findings(text, rule_id))
    if finding.found.fix is not None
}
"""Findings of the cases that carry a change."""


def test_many_rules_of_megatron_propose_a_change() -> None:
    assert len({rule_id for rule_id, _ in PROPOSED.values() if rule_id.startswith("MLM")}) >= 34


@pytest.mark.parametrize("name", PROPOSED)
def test_a_change_mends_what_was_found_and_breaks_nothing(name: str) -> None:
    rule_id, finding = PROPOSED[name]
    before = {(one.rule_id, one.found.message) for one in findings(CASES[rule_id], rule_id)}
    assert finding.found.fix is not None
    after = findings(mended(CASES[rule_id], finding.found.fix), rule_id)
    assert {(one.rule_id, one.found.message) for one in after} == before - {(rule_id, finding.found.message)}
