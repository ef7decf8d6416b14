"""What rules say that DeepSpeed would do, it does: an engine of one process stops as they say, or goes on."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from planner.rules.registry import all_rules
from planner.rules.rule import FoundAt
from tests.frameworks.deepspeed_environment import run_beside_deepspeed
from tests.unit.rules.deepspeed_cases import CASES, case

pytestmark = pytest.mark.frameworks

STOPS = {FoundAt.PARSE: "build", FoundAt.START: "build", FoundAt.BUILD: "build", FoundAt.STEP: "step"}

REFUSED = (
    *("S033", "S034", "S037", "S040"),
    *("DSP301", "DSP307", "DSP504", "DSP506", "DSP510", "DSP511", "DSP512", "DSP513", "DSP514", "DSP515", "DSP516"),
    *("DSP710", "DSP701", "DSP704", "DSP705", "DSP706", "DSP707", "DSP708", "DSP709", "DSP711", "DSP712"),
    *("DSP801", "DSP802", "DSP803", "DSP805"),
    *("DSP810", "DSP811", "DSP812", "DSP813", "DSP814", "DSP815", "DSP817", "DSP820", "DSP821", "DSP822", "DSP823"),
    *("DSP824", "DSP534"),
)
"""Rules whose error one process can show."""

SILENT = (
    *("S031", "S032", "DSP104", "DSP107", "DSP203", "DSP205", "DSP207"),
    *(
        "DSP501",
        "DSP502",
        "DSP507",
        "DSP518",
        "DSP519",
        "DSP520",
        "DSP521",
        "DSP522",
        "DSP531",
        "DSP532",
        "DSP603",
        "DSP702",
        "DSP703",
        "DSP807",
    ),
)
"""Rules about what DeepSpeed takes without an error."""

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def of_one_process(rule_id: str) -> Mapping[str, Any]:
    """Return the configuration of a case, with the batch of one process unless the rule is about batches."""
    config = CASES[rule_id].config
    return config if rule_id in {"DSP801", "DSP802", "DSP803"} else config | dict(zip(BATCH, (2, 2, 1), strict=True))


@pytest.fixture(scope="module")
def answers() -> Mapping[str, Mapping[str, str]]:
    """Return what DeepSpeed does with the cases; one process imports it once."""
    names = ("sound", *REFUSED, *SILENT)
    configs = [case().config | dict(zip(BATCH, (2, 2, 1), strict=True))]
    configs.extend(dict(of_one_process(rule_id)) for rule_id in names[1:])
    found = run_beside_deepspeed("tests.frameworks.deepspeed_engine", configs, jobs=len(configs))
    return dict(zip(names, found, strict=True))


def test_the_sound_configuration_trains(answers: Mapping[str, Mapping[str, str]]) -> None:
    assert answers["sound"] == {"stopped": "", "error": ""}


@pytest.mark.parametrize("rule_id", REFUSED)
def test_deepspeed_stops_where_and_as_the_rule_says(rule_id: str, answers: Mapping[str, Mapping[str, str]]) -> None:
    rule, answer = all_rules()[rule_id], answers[rule_id]
    assert answer["stopped"] == STOPS[rule.found_at]
    alternatives = [one.strip() for one in rule.prevents.split(";")]
    assert any(re.search(pattern(one), answer["error"], re.DOTALL) for one in alternatives), answer["error"]


def pattern(words: str) -> str:
    """Return what finds the words of an error, whose left out parts are written as dots."""
    return ".*".join(re.escape(part.strip()) for part in words.split("..."))


@pytest.mark.parametrize("rule_id", SILENT)
def test_deepspeed_says_nothing_where_the_rule_says_so(rule_id: str, answers: Mapping[str, Mapping[str, str]]) -> None:
    assert all_rules()[rule_id].found_at in {FoundAt.NEVER, FoundAt.UNNOTICED}
    assert answers[rule_id] == {"stopped": "", "error": ""}
