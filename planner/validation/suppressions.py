"""What a file says should not be reported, with its reason.

`# shardwright: ignore[MLM101] the scheduler adds the last node` on the line of a finding, or on a line of its own
above it, hides that rule there; `# shardwright: ignore-file[MEM001] ...` hides it in the whole file. Several rules are
separated by commas. The reason is not optional: one without is not followed, and is reported.

JSON has no comments. In a DeepSpeed configuration a key at the top that DeepSpeed does not look at says the same for
the whole file: `"_shardwright_ignore": {"DSP101": "the scheduler adds the last node"}`. DeepSpeed's own reader takes
comments all the same, and where a file has them, they count as in a script.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from planner.errors import Location
from planner.readers.deepspeed_run import parse_deepspeed
from planner.readers.key_tables import IGNORE_KEY
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
        what: What messages call it.
    """

    rules: tuple[str, ...]
    reason: str
    location: Location
    first_line: int | None
    last_line: int | None
    what: str = "comment"

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
    if file.lower().endswith(".json") and f'"{IGNORE_KEY}"' in text:
        found.extend(_entries(text, file=file))
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
            what="entry",
        )
    if node is not None and not entries:
        place = document.locate((IGNORE_KEY,), key=True)
        yield Suppression(rules=(), reason="none", location=place, first_line=None, last_line=None, what="entry")


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
            message, hint = (
                f"This {comment.what} hides nothing, because it gives no reason.",
                "Write why behind the bracket." if comment.what == "comment" else "Write why, as a text.",
            )
        elif unknown or not comment.rules:
            message = f"There is no rule {', '.join(unknown) or 'named here'}."
            hint = "`shardwright rule` lists them."
        elif len(used) < len(comment.rules):
            message = f"Nothing to hide: {', '.join(r for r in comment.rules if r not in used)} finds nothing here."
            hint = "Remove it."
        if message:
            yield replace(base, found=Found(place=comment.location, message=message, hint=hint))
