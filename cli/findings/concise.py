"""Findings a line each, for editors and grep: `file:line:column: ID severity: message`."""

from cli.findings.plain import plain
from planner.validation.judge import Judged


def render(judged: Judged) -> str:
    """Return a line a finding; nothing where nothing was found."""
    return "".join(
        f"{plain(str(finding.found.place))}: {finding.rule_id} {finding.severity}: {plain(finding.found.message)}\n"
        for finding in judged.findings
    )
