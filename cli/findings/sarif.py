"""Findings as SARIF 2.1.0, which code scanning services and editors read.

Kept within what GitHub's code scanning takes: at most 25,000 results a run, the worst first, and 20 tags a rule.
Findings that a comment hides are left out, because it would show them as open.
"""

import json
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from cli.findings.places import fingerprints, length_at, line_of, relative, worst_first
from planner.errors import Location
from planner.readers.flag_tables import TITLES
from planner.rules.registry import all_rules
from planner.rules.rule import Finding, Fix, Rule
from planner.validation.judge import Judged

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_RESULTS = 25_000
MAX_TAGS = 20
FINGERPRINT = "shardwrightLine/v1"

Json = dict[str, object]


def render(judged: Judged) -> str:
    """Return the log."""
    rules = _rules_checked(judged)
    numbers = {rule.id: number for number, rule in enumerate(rules)}
    order = worst_first(judged)
    prints = fingerprints(judged)
    shown = sorted(order[:MAX_RESULTS])
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "shardwright", **_version(), "rules": [_rule(rule) for rule in rules]}},
                "columnKind": "unicodeCodePoints",
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "toolExecutionNotifications": _notifications(judged, num_left_out=len(order) - len(shown)),
                    }
                ],
                "results": [
                    _result(judged, judged.findings[index], prints[index], rule_numbers=numbers) for index in shown
                ],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _version() -> Json:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {"semanticVersion": version("shardwright")}
    except PackageNotFoundError:  # run from its source tree
        return {}


def _rules_checked(judged: Judged) -> Sequence[Rule[object]]:
    used = {rule_id for rules in judged.checked.values() for rule_id in rules}
    return [rule for rule_id, rule in all_rules().items() if rule_id in used]


def _rule(rule: Rule[object]) -> Json:
    summary = rule.explanation.split("\n\n")[0]
    prevents = f"Prevents: {rule.prevents}\nFound without this check: {rule.found_at}.\nRead in: {rule.source}."
    tags = [*rule.frameworks, "configuration"]
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": summary},
        "fullDescription": {"text": rule.explanation},
        "help": {
            "text": f"{rule.explanation}\n\n{prevents}",
            "markdown": f"{rule.explanation}\n\n- For: {', '.join(TITLES[name] for name in rule.frameworks)}\n"
            f"- Prevents: `{rule.prevents}`\n- Found without this check: {rule.found_at}.\n"
            f"- Read in: {rule.source}",
        },
        "defaultConfiguration": {"level": rule.severity.value},
        "properties": {"tags": tags[:MAX_TAGS], "problem.severity": _problem_severity(rule)},
    }


def _problem_severity(rule: Rule[object]) -> str:
    """Return GitHub's word for a severity."""
    return {"note": "recommendation"}.get(rule.severity.value, rule.severity.value)


def _result(judged: Judged, finding: Finding, fingerprint: str, *, rule_numbers: Mapping[str, int]) -> Json:
    found = finding.found
    line = line_of(judged, found.place)
    result: Json = {
        "ruleId": finding.rule_id,
        "ruleIndex": rule_numbers[finding.rule_id],
        "level": finding.severity.value,
        "message": {"text": _no_links(f"{found.message} {found.hint}".strip())},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": _artifact(found.place.file),
                    "region": _region(found.place, length_at(finding, line)),
                }
            }
        ],
        "partialFingerprints": {FINGERPRINT: fingerprint},
    }
    if found.fix is not None:
        result["fixes"] = [_fix(found.fix, found.hint or found.message)]
    return result


def _no_links(text: str) -> str:
    """Return text in which nothing is taken for a link, `[text](target)`."""
    return text.replace("](", "] (")


def _artifact(file: str) -> Json:
    path = relative(file)
    if path.startswith("/"):
        return {"uri": f"file://{quote(path)}"}
    return {"uri": quote(path), "uriBaseId": "%SRCROOT%"}


def _region(place: Location, length: int) -> Json:
    region: Json = {"startLine": place.line or 1}
    if place.column is not None:
        region |= {"startColumn": place.column, "endColumn": place.column + length}
    return region


def _fix(fix: Fix, description: str) -> Json:
    return {
        "description": {"text": _no_links(description)},
        "artifactChanges": [
            {
                "artifactLocation": _artifact(fix.location.file),
                "replacements": [
                    {"deletedRegion": _region(fix.location, len(fix.old)), "insertedContent": {"text": fix.new}}
                ],
            }
        ],
    }


def _notifications(judged: Judged, *, num_left_out: int) -> list[Json]:
    """Return what was not decided, what could not be read, and what had no room."""
    texts = [f"{one.rule_id} is not decided in {relative(one.file)}, because {one.reason}." for one in judged.undecided]
    texts += [f"{relative(one.place.file)} is not read: {one.error.message}" for one in judged.unread]
    if num_left_out:
        texts.append(f"{num_left_out:,} findings of the least severity are left out: a run takes {MAX_RESULTS:,}.")
    return [{"level": "note", "message": {"text": _no_links(text)}} for text in texts]
