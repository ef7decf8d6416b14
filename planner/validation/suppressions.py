"""What a file says should not be reported, with its reason.

`# shardwright: ignore[MLM101] the scheduler adds the last node` on the line of a finding, or on a line of its own
above it, hides that rule there; `# shardwright: ignore-file[MEM001] ...` hides it in the whole file. Above a command
that goes on behind a backslash it speaks of the whole command, because no comment fits inside. Several rules are
separated by commas. The reason is not optional: one without is not followed, and is reported.

JSON has no comments; there a text that holds one does, such as `"_comment": "# shardwright: ignore-file[DSP101] ..."`.
"""

import re
from collections.abc import Sequence

from planner.errors import Location
from planner.rules.rule import Finding
from planner.rules.suppression import Suppression

MARK = "shardwright:"
COMMENT = re.compile(r"(?:#|//)\s*shardwright:\s*(?P<kind>ignore-file|ignore)\[(?P<rules>[^\]]*)\][ \t]*(?P<reason>.*)")


def suppressions(text: str, *, file: str) -> tuple[Suppression, ...]:
    """Return every comment of a file that hides findings."""
    if MARK not in text:
        return ()
    found: list[Suppression] = []
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


def _end_of_command(lines: Sequence[str], number: int) -> int:
    """Return the last line of what starts in a line and goes on behind backslashes."""
    while number < len(lines) and lines[number - 1].endswith("\\"):
        number += 1
    return number


def without_suppressed(
    findings: Sequence[Finding], comments: Sequence[Suppression]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings that are left and those that a comment hides."""
    left: list[Finding] = []
    hidden: list[Finding] = []
    for finding in findings:
        (hidden if any(comment.hides(finding) for comment in comments) else left).append(finding)
    return tuple(left), tuple(hidden)
