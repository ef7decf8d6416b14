"""What a file says should not be reported, with its reason.

`# shardwright: ignore[MLM101] the scheduler adds the last node` on the line of a finding, or on a line of its own
above it, hides that rule there; `# shardwright: ignore-file[MEM001] ...` hides it in the whole file. Above a command
that goes on behind a backslash it speaks of the whole command, because no comment fits inside. Several rules are
separated by commas. The reason is not optional: one without is not followed, and is reported.

JSON has no comments; there a text that holds one does, such as `"_comment": "# shardwright: ignore-file[DSP101] ..."`.
In a DeepSpeed configuration a key at the top that DeepSpeed does not look at says the same for the whole file:
`"_shardwright_ignore": {"DSP101": "the scheduler adds the last node"}`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.errors import Location
from planner.readers.deepspeed_run import parse_deepspeed
from planner.readers.key_tables import IGNORE_KEY
from planner.rules.registry import all_rules
from planner.rules.rule import Finding
from planner.rules.suppression import RULES, Comments, Suppression

MARK = "shardwright:"
COMMENT = re.compile(r"(?:#|//)\s*shardwright:\s*(?P<kind>ignore-file|ignore)\[(?P<rules>[^\]]*)\][ \t]*(?P<reason>.*)")


def suppressions(text: str, *, file: str) -> tuple[Suppression, ...]:
    """Return every comment of a file that hides findings."""
    found: list[Suppression] = []
    if file.lower().endswith(".json") and f'"{IGNORE_KEY}"' in text:
        found.extend(_entries(text, file=file))
    if MARK not in text:
        return tuple(found)
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        match = COMMENT.search(line) if MARK in line else None
        if match is None:
            continue
        alone = not line[: match.start()].strip()
        whole = match["kind"] == "ignore-file"
        found.append(
            Suppression(
                rules=tuple(dict.fromkeys(part.strip().upper() for part in match["rules"].split(",") if part.strip())),
                # Inside a JSON text the rest of the line closes it.
                reason=match["reason"].strip(' \t",'),
                location=Location(file=file, line=number, column=match.start() + 1),
                first_line=None if whole else number,
                last_line=None if whole else _end_of_command(lines, number + 1) if alone else number,
            )
        )
    return tuple(found)


def _entries(text: str, *, file: str) -> Iterator[Suppression]:
    """Yield what the key of a configuration hides."""
    document = parse_deepspeed(text, file=file)
    node = document.node((IGNORE_KEY,))
    entries = node.content if node is not None and isinstance(node.content, dict) else {}
    for rule, reason in entries.items():
        yield Suppression(
            rules=(rule.strip().upper(),),
            reason=reason.content.strip() if isinstance(reason.content, str) else "",
            location=document.locate((IGNORE_KEY, rule), key=True),
            first_line=None,
            last_line=None,
        )
    if node is not None and not entries:
        place = document.locate((IGNORE_KEY,), key=True)
        yield Suppression(rules=(), reason="none", location=place, first_line=None, last_line=None)


def _end_of_command(lines: Sequence[str], number: int) -> int:
    """Return the last line of what starts in a line and goes on behind backslashes."""
    while number < len(lines) and lines[number - 1].endswith("\\"):
        number += 1
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedComments:
    """What the comments of a file do.

    Args:
        left: Findings that no comment hides, and what is wrong with the comments.
        hidden: Findings that one hides.
        checked: The ids of the rules that the comments were put before.
    """

    left: tuple[Finding, ...]
    hidden: tuple[Finding, ...]
    checked: tuple[str, ...]


def judged_comments(text: str, findings: Sequence[Finding], *, file: str, decided: frozenset[str]) -> JudgedComments:
    """Return what the comments of a file hide, and what is wrong with them.

    Args:
        text: The file.
        findings: What was found in it.
        file: What messages call it.
        decided: The ids of the rules that were checked in it, without those that could not be decided.
    """
    comments = suppressions(text, file=file)
    if not comments:
        return JudgedComments(left=tuple(findings), hidden=(), checked=())
    left: list[Finding] = []
    hidden: list[Finding] = []
    for finding in findings:
        (hidden if any(comment.hides(finding) for comment in comments) else left).append(finding)
    said = Comments(comments=comments, hidden=tuple(hidden), known=frozenset(all_rules()), decided=decided)
    left.extend(finding for rule in RULES for finding in rule.broken_by(said))
    return JudgedComments(left=tuple(left), hidden=tuple(hidden), checked=tuple(rule.id for rule in RULES))
