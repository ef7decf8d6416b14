"""Findings a line each, for editors and grep: `file:line:column: ID message`."""

from planner.validation.judge import Judged


def render(judged: Judged) -> str:
    """Return a line a finding; nothing where nothing was found."""
    return "".join(
        f"{finding.found.place}: {finding.rule_id} {finding.severity}: {finding.found.message}\n"
        for finding in judged.findings
    )
