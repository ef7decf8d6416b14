"""Findings as one JSON document."""

import json

from planner.errors import Location
from planner.rules.rule import Finding
from planner.validation.judge import Judged


def render(judged: Judged) -> str:
    """Return the document."""
    document = {
        "schema": 1,
        "files": list(judged.files),
        "skipped": list(judged.skipped),
        "unread": [{**_place(unread.place), "message": unread.error.message} for unread in judged.unread],
        "checked": {file: list(rules) for file, rules in judged.checked.items()},
        "findings": [_finding(finding) for finding in judged.findings],
        "hidden": [_finding(finding) for finding in judged.hidden],
        "undecided": [
            {"file": undecided.file, "rule": undecided.rule_id, "missing": undecided.what}
            for undecided in judged.undecided
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _finding(finding: Finding) -> dict[str, object]:
    found = finding.found
    fix = None
    if found.fix is not None:
        fix = {**_place(found.fix.location), "old": found.fix.old, "new": found.fix.new}
    return {
        "rule": finding.rule_id,
        "name": finding.rule_name,
        "severity": finding.severity.value,
        **_place(found.place),
        "message": found.message,
        "hint": found.hint,
        "prevents": finding.prevents,
        "found_at": finding.found_at.value,
        "fix": fix,
    }


def _place(location: Location) -> dict[str, object]:
    return {"file": location.file, "line": location.line, "column": location.column, "path": location.path or None}
