"""What a file says should not be reported, with its reason.

`# shardwright: ignore[MLM101] the scheduler adds the last node` on the line of a finding, or on a line of its own
above it, hides that rule there; `# shardwright: ignore-file[MEM001] ...` hides it in the whole file. Several rules are
separated by commas. The reason is not optional: one without is not followed, and is reported.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.errors import Location
from planner.rules.rule import Finding, Found, FoundAt, Severity

COMMENT = re.compile(
    r"(?P<before>.*?)(?:#|//)\s*shardwright:\s*(?P<kind>ignore-file|ignore)\[(?P<rules>[^\]]*)\][ \t]*(?P<reason>.*)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """One comment that hides findings.

    Args:
        rules: The ids that it names.
        reason: Why.
        location: Where it stands.
        first_line: The first line that it speaks of; None for the whole file.
        last_line: The last; None likewise.
    """

    rules: tuple[str, ...]
    reason: str
    location: Location
    first_line: int | None
    last_line: int | None

    def hides(self, finding: Finding) -> bool:
        """Return whether a finding is one that it names."""
        line = finding.found.place.line or 1
        here = self.first_line is None or self.last_line is None or self.first_line <= line <= self.last_line
        return here and bool(self.reason) and finding.rule_id in self.rules


def suppressions(text: str, *, file: str) -> tuple[Suppression, ...]:
    """Return every comment of a file that hides findings."""
    found: list[Suppression] = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = COMMENT.fullmatch(line)
        if match is None:
            continue
        alone = not match["before"].strip()
        whole = match["kind"] == "ignore-file"
        found.append(
            Suppression(
                rules=tuple(part.strip().upper() for part in match["rules"].split(",") if part.strip()),
                reason=match["reason"].strip(),
                location=Location(file=file, line=number, column=len(match["before"]) + 1),
                first_line=None if whole else number,
                last_line=None if whole else number + alone,
            )
        )
    return tuple(found)


def without_suppressed(
    findings: Sequence[Finding], comments: Sequence[Suppression], *, known: frozenset[str]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return the findings that are left, those on the comments themselves among them, and the hidden ones."""
    hidden = tuple(finding for finding in findings if any(comment.hides(finding) for comment in comments))
    left = [finding for finding in findings if finding not in hidden]
    return (*left, *_about_comments(comments, hidden, known)), hidden


def _about_comments(
    comments: Sequence[Suppression], hidden: Sequence[Finding], known: frozenset[str]
) -> Iterator[Finding]:
    """Yield comments that hide nothing: no reason, no such rule, nothing to hide."""
    base = Finding(
        rule_id="SUP001",
        rule_name="suppression",
        severity=Severity.WARNING,
        found=Found(place=Location(file=""), message="", hint=""),
        prevents="a finding that nobody sees any more",
        found_at=FoundAt.NEVER,
    )
    for comment in comments:
        unknown = [rule for rule in comment.rules if rule not in known]
        used = [rule for rule in comment.rules if any(f.rule_id == rule and comment.hides(f) for f in hidden)]
        message, hint = "", ""
        if not comment.reason:
            message, hint = "This comment hides nothing, because it gives no reason.", "Write why behind the bracket."
        elif unknown or not comment.rules:
            message = f"There is no rule {', '.join(unknown) or 'named here'}."
            hint = "`shardwright rule` lists them."
        elif len(used) < len(comment.rules):
            message = f"Nothing to hide: {', '.join(r for r in comment.rules if r not in used)} finds nothing here."
            hint = "Remove it."
        if message:
            yield replace(base, found=Found(place=comment.location, message=message, hint=hint))
