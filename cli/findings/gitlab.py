"""Findings as GitLab's code-quality report."""

import json
from collections.abc import Mapping

from cli.findings.places import fingerprints, relative
from planner.rules.rule import Severity
from planner.validation.judge import Judged

SEVERITIES: Mapping[Severity, str] = {Severity.ERROR: "major", Severity.WARNING: "minor", Severity.NOTE: "info"}


def render(judged: Judged) -> str:
    """Return the report."""
    report = [
        {
            "description": f"{finding.rule_id} {finding.rule_name}: {finding.found.message}",
            "check_name": finding.rule_id,
            "fingerprint": fingerprint,
            "severity": SEVERITIES[finding.severity],
            "location": {
                "path": relative(finding.found.place.file),
                "lines": {"begin": finding.found.place.line or 1},
            },
        }
        for finding, fingerprint in zip(judged.findings, fingerprints(judged), strict=True)
    ]
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"
