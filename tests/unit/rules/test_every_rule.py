"""Every rule has an input that breaks it and nothing else, and the sound inputs break none."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from planner.readers.flag_tables import Framework, versions
from planner.rules.registry import all_rules
from planner.validation.judge import judged_text
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.unit.rules import deepspeed_cases, megatron_cases, suppression_cases, vllm_cases

CASES: Mapping[str, str] = {**megatron_cases.CASES, **suppression_cases.CASES, **vllm_cases.CASES}
"""Input by rule id; spelling rules need one framework only."""

SOUND: Mapping[str, str] = {Framework.MEGATRON: megatron_cases.script(), **vllm_cases.SOUND}

PRICED = {
    "tests/unit/planner/validation/test_advice.py": ("MEM001", "MEM002", "MEM003", "MEM004", "ADV001", "ADV002"),
    "tests/unit/planner/validation/test_serving.py": ("MEM101", "MEM102", "MEM103"),
    "tests/unit/rules/test_own_files.py": ("SW001", "SW002", "SW101", "SW102", "SW201", "SW202"),
    "tests/unit/planner/validation/test_unread.py": ("FIL001",),
    "tests/unit/rules/test_lock_rules.py": ("LCK001", "LCK002", "LCK003", "LCK004", "LCK005", "LCK009"),
    "tests/unit/cli/test_serving_diff.py": ("LCK006", "LCK007", "LCK008"),
}
"""Rules that look at a price, at files of our own or at unread ones, and the files whose tests break each."""

NUMBER = re.compile(r"--?[a-z][a-z0-9_.-]*[ =](-?[0-9]+)\b")
"""A flag and its number."""


def broken(text: str, *, file: str = "train.sh", rule_id: str | None = None) -> set[str]:
    """Return the ids of the rules that a text breaks, at the newest version that a rule holds for."""
    rule = all_rules()[rule_id] if rule_id else None
    asked = {
        framework: next(version for version in versions(framework) if rule is None or rule.holds_for(version))
        for framework in (rule.frameworks if rule else ())
    }
    source = read_source(text, file=file, asked=Asked(versions=asked, gpus_per_node=8))
    assert source.runs, "the case starts nothing that is known"
    return {finding.rule_id for finding in judged_text(text, source.runs, file=file).findings}


@pytest.mark.parametrize("rule_id", sorted(CASES))
def test_the_case_of_a_rule_breaks_only_it(rule_id: str) -> None:
    deprecated = {"S009"} if rule_id in megatron_cases.DEPRECATED else set()
    assert broken(CASES[rule_id], rule_id=rule_id) == {rule_id} | deprecated


@pytest.mark.parametrize("name", sorted(SOUND))
def test_a_sound_input_breaks_nothing(name: str) -> None:
    assert broken(SOUND[name]) == set()


@pytest.mark.parametrize("number", ["-5", "0"])
def test_no_number_below_one_stops_a_rule(number: str) -> None:
    tried = 0
    for rule_id, text in CASES.items():
        for found in NUMBER.finditer(text):
            if found.group() not in megatron_cases.script():
                broken(f"{text[: found.start(1)]}{number}{text[found.end(1) :]}", rule_id=rule_id)
                tried += 1
    assert tried > 200


def test_every_rule_has_a_case() -> None:
    priced = {rule_id for ids in PRICED.values() for rule_id in ids}
    assert set(all_rules()) == set(CASES) | set(deepspeed_cases.CASES) | priced


@pytest.mark.parametrize("file", PRICED)
def test_rules_that_look_at_a_price_are_broken_where_it_is_said(file: str) -> None:
    text = (Path(__file__).parents[3] / file).read_text(encoding="utf-8")
    assert [rule_id for rule_id in PRICED[file] if f'"{rule_id}"' not in text] == []


def test_ids_belong_to_one_rule_and_texts_are_whole() -> None:
    for rule_id, rule in all_rules().items():
        assert rule.id == rule_id
        assert rule.explanation.rstrip().endswith((".", "`")), rule_id
        assert rule.prevents
        assert rule.source
