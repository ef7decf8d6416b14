"""SARIF: valid by the public schema, whatever was found, and within what code scanning takes."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator

from cli.findings.sarif import FINGERPRINT, MAX_RESULTS, MAX_TAGS, render
from planner.rules.registry import all_rules
from planner.rules.rule import Severity
from planner.validation.judge import Judged, Undecided
from tests.unit.cli.findings.samples import HOSTILE, ONE_LINE, finding, judged, made
from tests.unit.rules.megatron_cases import script

SCHEMA = json.loads((Path(__file__).parents[3] / "data" / "sarif" / "sarif-schema-2.1.0.json").read_text())


def run(found: Judged) -> Any:
    """Return the one run of a valid log."""
    log = json.loads(render(found))
    Draft4Validator(SCHEMA).validate(log)
    return log["runs"][0]


def test_the_schema_can_refuse() -> None:
    log = json.loads(render(judged(script())))
    log["runs"][0]["results"] = [{"message": "no object"}]
    assert not Draft4Validator(SCHEMA).is_valid(log)


def test_a_result_says_where_and_which_rule() -> None:
    found = run(judged(ONE_LINE))
    result = next(one for one in found["results"] if one["ruleId"] == "S001")
    assert found["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "S001"
    assert result["level"] == "error"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "train.sh", "uriBaseId": "%SRCROOT%"}
    region = place["region"]
    line = ONE_LINE.split("\n")[region["startLine"] - 1]
    assert line[region["startColumn"] - 1 : region["endColumn"] - 1] == "--sequnce-parallel"


def test_a_fix_names_what_it_replaces() -> None:
    text = script("--sequence-parallel", sequnce_parallel=None)
    (result,) = run(judged(text))["results"]
    (change,) = result["fixes"][0]["artifactChanges"]
    (replacement,) = change["replacements"]
    region = replacement["deletedRegion"]
    lines = text.split("\n")
    line = lines[region["startLine"] - 1]
    mended = (
        line[: region["startColumn"] - 1] + replacement["insertedContent"]["text"] + line[region["endColumn"] - 1 :]
    )
    lines[region["startLine"] - 1] = mended
    assert judged("\n".join(lines)).findings == ()


def test_every_checked_rule_is_described() -> None:
    found = run(judged(script()))
    rules = found["tool"]["driver"]["rules"]
    assert found["results"] == []
    assert {rule["id"] for rule in rules} == set(judged(script()).checked["train.sh"])
    for rule in rules:
        assert rule["fullDescription"]["text"] == all_rules()[rule["id"]].explanation
        assert all_rules()[rule["id"]].prevents in rule["help"]["text"]
        assert 0 < len(rule["properties"]["tags"]) <= MAX_TAGS


def test_fingerprints_outlive_lines_that_are_added_elsewhere() -> None:
    def prints(text: str) -> list[str]:
        return [result["partialFingerprints"][FINGERPRINT] for result in run(judged(text))["results"]]

    shifted = ONE_LINE.replace("ARGS=(", "# more\n\nexport MORE=1\nARGS=(")
    assert prints(shifted) == prints(ONE_LINE)
    assert len(set(prints(ONE_LINE))) == len(prints(ONE_LINE)) == 6
    other = ONE_LINE.replace("--sequnce-parallel", "--sequence-paralel")
    assert prints(other) != prints(ONE_LINE)


def test_equal_lines_have_fingerprints_of_their_own() -> None:
    twice = made(finding(line=1), finding(line=2), texts={"train.sh": "torchrun x.py\ntorchrun x.py\n"})
    first, second = (result["partialFingerprints"][FINGERPRINT] for result in run(twice)["results"])
    assert first != second


def test_hostile_names_and_values_stay_text() -> None:
    found = run(made(finding(file=f"jobs/{HOSTILE.replace('/', '')}", message=HOSTILE, hint=HOSTILE)))
    (result,) = found["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri.isascii()
    assert not set(uri) & set(' \n<>"`[]|')
    assert "](" not in result["message"]["text"]


def test_a_file_elsewhere_has_a_whole_uri() -> None:
    (result,) = run(made(finding(file="/elsewhere/a b.sh")))["results"]
    location = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert location == {"uri": "file:///elsewhere/a%20b.sh"}


def test_a_file_below_the_working_directory_is_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (result,) = run(made(finding(file=str(tmp_path / "jobs" / "train.sh"))))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "jobs/train.sh"


def test_the_worst_findings_have_room() -> None:
    notes = [finding(line=number, severity=Severity.NOTE) for number in range(1, MAX_RESULTS + 2)]
    last = finding(line=MAX_RESULTS + 10)
    log = json.loads(render(made(*notes, last)))["runs"][0]
    assert len(log["results"]) == MAX_RESULTS
    assert [result["level"] for result in log["results"]].count("error") == 1
    (said,) = log["invocations"][0]["toolExecutionNotifications"]
    assert said["message"]["text"] == "2 findings of the least severity are left out: a run takes 25,000."


def test_what_is_not_decided_is_said() -> None:
    undecided = Undecided(file="train.sh", rule_id="MLM101", what="the number of GPUs")
    found = run(made(undecided=[undecided], texts={"train.sh": ""}))
    (said,) = found["invocations"][0]["toolExecutionNotifications"]
    expected = "MLM101 is not decided in train.sh, because it does not say the number of GPUs."
    assert said == {"level": "note", "message": {"text": expected}}
