"""The forms of findings that other programs read: escaped, within their limits, and saying what was left out."""

import json
import re
from typing import Any
from xml.etree import ElementTree as ET

from cli.findings import concise, document, github, gitlab, junit
from planner.rules.rule import Severity
from planner.validation.judge import Undecided
from tests.unit.cli.findings.samples import HOSTILE, ONE_LINE, finding, judged, made
from tests.unit.rules.megatron_cases import script


def test_junit_has_a_suite_a_file_and_a_case_a_rule() -> None:
    undecided = Undecided(file="b.sh", rule_id="MLM102", what="the number of GPUs")
    found = made(
        finding(file="a.sh", line=1),
        finding(file="a.sh", line=2, message="It is wrong again."),
        finding(file="b.sh", rule_id="S001", severity=Severity.WARNING),
        undecided=[undecided],
    )
    root = ET.fromstring(junit.render(found))
    assert root.attrib == {"name": "shardwright", "tests": "6", "failures": "2", "errors": "0", "skipped": "1"}
    first, second = root
    assert [case.get("name") for case in first] == [
        "MLM101 world-divisible",
        "MLM102 expert-mesh-divisible",
        "S001 unknown-flag",
    ]
    assert [suite.get("name") for suite in root] == ["a.sh", "b.sh"]
    (failure,) = first.findall("testcase/failure")
    assert failure.get("type") == "error"
    assert "a.sh:1:1: error: It is wrong." in str(failure.text)
    assert "a.sh:2:1: error: It is wrong again." in str(failure.text)
    (skipped,) = second.findall("testcase/skipped")
    assert skipped.get("message") == "Not decided: it does not say the number of GPUs."
    assert [failure.get("type") for failure in second.findall("testcase/failure")] == ["warning"]


def test_junit_cases_are_the_rules_that_were_checked() -> None:
    found = judged(script())
    root = ET.fromstring(junit.render(found))
    names = [str(case.get("name")).split()[0] for case in root.iter("testcase")]
    assert names == list(found.checked["train.sh"])
    assert root.get("failures") == "0"


def test_junit_is_xml_whatever_stands_in_a_file() -> None:
    root = ET.fromstring(junit.render(made(finding(file=HOSTILE, message=HOSTILE))))
    (failure,) = root.iter("failure")
    shown = str(failure.get("message"))
    assert r"a\x1b[2J" in shown
    assert "]]>&" in shown
    assert r"\x00" in shown
    assert r"\ufffe" in shown
    assert "\U0001f600" in shown


def commands(text: str) -> list[str]:
    """Return the lines that GitHub takes for commands."""
    return [line for line in text.split("\n") if line.startswith("::")]


def test_github_annotations_name_the_place() -> None:
    (line,) = commands(github.render(made(finding(file="a,b:c.sh", line=3, column=7, message="50% of 2\n"))))
    assert line == ("::error file=a%2Cb%3Ac.sh,line=3,col=7,title=MLM101 world-divisible::50%25 of 2%0A Mend it.")


def test_github_commands_are_never_of_the_files_making() -> None:
    text = github.render(made(finding(file=HOSTILE, message=HOSTILE, hint=HOSTILE)))
    assert text.count("\n") == 1
    (line,) = commands(text)
    assert line.isprintable()
    properties, _, data = line[2:].partition("::")
    assert properties.count(",") == 3
    assert re.findall(r"%(?!25|0A|0D|2C|3A)", line) == []
    assert data.count("%25") == 2


def test_github_keeps_ten_of_each_the_worst_first_and_says_the_rest() -> None:
    notes = [finding(severity=Severity.NOTE, line=number) for number in range(1, 4)]
    warnings = [finding(severity=Severity.WARNING, line=number) for number in range(1, 14)]
    errors = [finding(line=number) for number in range(20, 32)]
    text = github.render(made(*notes, *warnings, *errors))
    kinds = [line.split()[0] for line in commands(text)]
    assert kinds == ["::error"] * 10 + ["::warning"] * 10 + ["::notice"] * 3
    assert text.splitlines()[-1] == "Not annotated, because a step shows 10 of each: 2 errors, 3 warnings."


def test_a_summary_is_one_table_whatever_stands_in_a_file() -> None:
    summary = github.summary(made(finding(file=HOSTILE, message=HOSTILE), finding(severity=Severity.NOTE)))
    lines = summary.splitlines()
    assert lines[0] == "### shardwright validate"
    assert lines[2] == "2 files: 1 error, 1 note."
    rows = [line for line in lines if line.startswith("| ")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [5, 5, 5]
    assert "<b>" not in summary
    assert not re.search(r"(?<!\\)[`\[]", summary)
    assert rows[1].startswith("| error |")


def test_a_long_summary_is_cut_and_says_so() -> None:
    summary = github.summary(made(*(finding(line=number) for number in range(1, github.MAX_ROWS + 3))))
    assert summary.count("| error |") == github.MAX_ROWS
    assert summary.endswith("\n\n2 findings more.\n")
    assert len(summary.encode()) < 1 << 20


def test_gitlab_has_what_its_report_needs() -> None:
    found = judged(ONE_LINE)
    report: list[dict[str, Any]] = json.loads(gitlab.render(found))
    assert [set(issue) for issue in report] == [
        {"description", "check_name", "fingerprint", "severity", "location"}
    ] * len(found.findings)
    issue = next(issue for issue in report if issue["check_name"] == "S001")
    (line,) = (number for number, text in enumerate(ONE_LINE.split("\n"), 1) if "sequnce" in text)
    assert issue["location"] == {"path": "train.sh", "lines": {"begin": line}}
    assert issue["severity"] == "major"
    assert len({issue["fingerprint"] for issue in report}) == len(report)


def test_gitlab_knows_every_severity() -> None:
    report = json.loads(gitlab.render(made(*(finding(severity=severity) for severity in Severity))))
    assert {issue["severity"] for issue in report} == {"major", "minor", "info"}


def test_concise_is_a_line_a_finding() -> None:
    text = concise.render(made(finding(message=HOSTILE), finding(line=2)))
    first, second = text.splitlines()
    assert first.startswith(r"train.sh:1:1: MLM101 error: a\x1b[2J\n::error::x%")
    assert second == "train.sh:2:1: MLM101 error: It is wrong."
    assert first.isprintable()


def test_json_says_what_was_checked_found_and_left_open() -> None:
    undecided = Undecided(file="train.sh", rule_id="MLM102", what="the number of GPUs")
    report = json.loads(document.render(made(finding(fix=("a", "b")), undecided=[undecided])))
    assert report["files"] == ["train.sh"]
    assert report["checked"] == {"train.sh": ["MLM101", "MLM102", "S001"]}
    (found,) = report["findings"]
    assert (found["rule"], found["line"], found["column"]) == ("MLM101", 1, 1)
    assert found["fix"] == {"file": "train.sh", "line": 1, "column": 1, "path": None, "old": "a", "new": "b"}
    assert report["undecided"] == [{"file": "train.sh", "rule": "MLM102", "missing": "the number of GPUs"}]
