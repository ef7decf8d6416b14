"""Rules of `validate`, for people and for machines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cli.render import Blank, Block, Facts, Line, Style, Table, columns, hanging
from planner.readers.flag_tables import TITLES
from planner.rules.rule import Rule


def rule_tables(subjects: Mapping[str, Sequence[Rule[Any]]]) -> Iterator[Block]:
    """Yield every rule, a row each, under its subject."""
    for index, (subject, rules) in enumerate(subjects.items()):
        if index:
            yield Blank()
        yield Line(hanging(subject, width=80), Style.HEADING)
        yield Table(
            columns=columns("id", "name", "severity", whole=("name",)),
            rows=tuple((rule.id, rule.name, rule.severity.value) for rule in rules),
        )


def rule_blocks(rule: Rule[Any]) -> Iterator[Block]:
    """Yield one rule in full."""
    yield Line(f"{rule.id} {rule.name}", Style.HEADING)
    yield Blank()
    for paragraph in rule.explanation.split("\n\n"):
        yield Line(hanging(paragraph, width=80))
    yield Blank()
    yield Facts(
        pairs=(
            ("Severity", rule.severity.value),
            ("For", _frameworks(rule)),
            ("Prevents", rule.prevents),
            ("Found by it", rule.found_at.value),
            ("Read in", rule.source),
        )
    )


def _frameworks(rule: Rule[Any]) -> str:
    names = ", ".join(TITLES[framework] for framework in rule.frameworks)
    since = f" from {rule.since} on" if rule.since else ""
    until = f" before {rule.until}" if rule.until else ""
    return f"{names}{since}{until}"


def rule_document(rule: Rule[Any]) -> dict[str, object]:
    """Return one rule as JSON."""
    return {
        "id": rule.id,
        "name": rule.name,
        "severity": rule.severity.value,
        "frameworks": [framework.value for framework in rule.frameworks],
        "since": rule.since,
        "until": rule.until,
        "explanation": rule.explanation,
        "prevents": rule.prevents,
        "found_at": rule.found_at.value,
        "source": rule.source,
    }
