"""Which form findings are printed in."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from importlib import import_module

from planner.validation.judge import Judged


class FindingsFormat(StrEnum):
    """Forms of what `validate` prints."""

    TEXT = "text"
    CONCISE = "concise"
    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"
    GITHUB = "github"
    GITLAB = "gitlab"


MODULES: Mapping[FindingsFormat, str] = {
    FindingsFormat.TEXT: "cli.findings.text",
    FindingsFormat.CONCISE: "cli.findings.concise",
    FindingsFormat.JSON: "cli.findings.document",
    FindingsFormat.SARIF: "cli.findings.sarif",
    FindingsFormat.JUNIT: "cli.findings.junit",
    FindingsFormat.GITHUB: "cli.findings.github",
    FindingsFormat.GITLAB: "cli.findings.gitlab",
}


def rendered(judged: Judged, form: FindingsFormat) -> str:
    """Return what was found, in a form."""
    render: Callable[[Judged], str] = import_module(MODULES[form]).render
    return render(judged)
