"""Every rule has an input that breaks it and nothing else, and the sound inputs break none."""

from collections.abc import Mapping

import pytest

from planner.readers.flag_tables import Framework
from planner.rules.registry import all_rules
from planner.validation.judge import judged_text
from planner.validation.sources import Asked, read_source
from tests.unit.rules import megatron_cases, suppression_cases

CASES: Mapping[str, str] = {**megatron_cases.CASES, **suppression_cases.CASES}
"""Input by rule id; spelling rules need one framework only."""

SOUND: Mapping[Framework, str] = {Framework.MEGATRON: megatron_cases.script()}

WITHOUT_CASES = {"S002", "S003", "S009", "S010"}
"""Spelling rules that no flag of the frameworks below can break."""


def broken(text: str, *, file: str = "train.sh") -> set[str]:
    """Return the ids of the rules that a text breaks."""
    source = read_source(text, file=file, asked=Asked(versions={}))
    assert source.runs, "the case starts nothing that is known"
    return {finding.rule_id for finding in judged_text(text, source.runs, file=file).findings}


@pytest.mark.parametrize("rule_id", sorted(CASES))
def test_the_case_of_a_rule_breaks_only_it(rule_id: str) -> None:
    assert broken(CASES[rule_id]) == {rule_id}


@pytest.mark.parametrize("framework", sorted(SOUND))
def test_the_sound_input_breaks_nothing(framework: Framework) -> None:
    assert broken(SOUND[framework]) == set()


def test_every_rule_has_a_case() -> None:
    assert set(all_rules()) == set(CASES) | WITHOUT_CASES


def test_ids_belong_to_one_rule_and_texts_are_whole() -> None:
    for rule_id, rule in all_rules().items():
        assert rule.id == rule_id
        assert rule.explanation.rstrip().endswith((".", "`")), rule_id
        assert rule.prevents
        assert rule.source
