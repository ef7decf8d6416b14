r"""Findings as JUnit XML: a suite a file, a case a rule that was checked.

A rule that finds something is a failed case, one that could not be decided a skipped one. What XML 1.0 has no
character for is written as `\x1b`.
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from cli.findings.places import relative
from planner.rules.registry import all_rules
from planner.rules.rule import Finding
from planner.validation.judge import Judged

NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(judged: Judged) -> str:
    """Return the report."""
    root = ET.Element("testsuites", name="shardwright")
    for file in dict.fromkeys((*judged.files, *(finding.found.place.file for finding in judged.findings))):
        root.append(_suite(judged, file))
    for number in ("tests", "failures", "errors", "skipped"):
        root.set(number, str(sum(int(suite.get(number, "0")) for suite in root)))
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(judged: Judged, file: str) -> ET.Element:
    rules = all_rules()
    open_rules = {one.rule_id: one.reason for one in judged.undecided if one.file == file}
    found: dict[str, list[Finding]] = {}
    for finding in judged.findings:
        if finding.found.place.file == file:
            found.setdefault(finding.rule_id, []).append(finding)
    name = _xml(relative(file))
    suite = ET.Element("testsuite", name=name)
    for rule_id in dict.fromkeys((*judged.checked.get(file, ()), *found)):
        case = ET.SubElement(
            suite, "testcase", classname=name, name=_xml(f"{rule_id} {rules[rule_id].name}"), file=name, time="0"
        )
        if rule_id in found:
            case.append(_failure(found[rule_id]))
        elif rule_id in open_rules:
            ET.SubElement(case, "skipped", message=_xml(f"Not decided: {open_rules[rule_id]}."))
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    suite.set("time", "0")
    return suite


def _failure(findings: Sequence[Finding]) -> ET.Element:
    """Return one failure that holds every finding of a rule."""
    first = findings[0]
    failure = ET.Element("failure", type=first.severity.value, message=_xml(first.found.message))
    lines: list[str] = []
    for finding in findings:
        lines += [f"{finding.found.place}: {finding.severity}: {finding.found.message}"]
        lines += [f"  {text}" for text in (finding.found.hint, f"Prevents: {finding.prevents}") if text]
    failure.text = _xml("\n".join(lines))
    return failure


def _xml(text: str) -> str:
    return NO_XML.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)
