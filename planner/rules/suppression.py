"""All files: comments that hide findings, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.errors import Location
from planner.readers.flag_tables import Framework
from planner.rules.rule import Finding, Found, FoundAt, Rule, Severity, rule

EVERY_FILE = tuple(Framework)
OWN = "the comments that this program follows; no framework looks at them"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Comments:
    """The comments of a file and what came of them.

    Args:
        comments: Every comment.
        hidden: The findings that they hide.
        known: The ids of all rules.
        decided: The ids of the rules that were checked in this file, without those that could not be decided.
    """

    comments: tuple[Suppression, ...]
    hidden: tuple[Finding, ...]
    known: frozenset[str]
    decided: frozenset[str]


@rule(
    id="SUP001",
    name="suppression-without-reason",
    framework=EVERY_FILE,
    severity=Severity.WARNING,
    prevents="a finding that nobody sees any more, and nobody knows why",
    found_at=FoundAt.NEVER,
    source=OWN,
)
def suppression_without_reason(comments: Comments) -> Iterator[Found]:
    """A comment that hides a rule says why.

    Without a reason behind the bracket the comment is not followed: the finding that it would hide is still shown.
    """
    for comment in comments.comments:
        if not comment.reason:
            yield Found(
                place=comment.location,
                message="This comment hides nothing, because it gives no reason.",
                hint="Write why behind the bracket.",
            )


@rule(
    id="SUP002",
    name="suppression-of-no-rule",
    framework=EVERY_FILE,
    severity=Severity.WARNING,
    prevents="a finding that is still shown although a comment should hide it",
    found_at=FoundAt.NEVER,
    source=OWN,
)
def suppression_of_no_rule(comments: Comments) -> Iterator[Found]:
    """A comment that hides rules names rules that there are, by their ids."""
    for comment in comments.comments:
        unknown = [rule_id for rule_id in comment.rules if rule_id not in comments.known]
        if unknown or not comment.rules:
            yield Found(
                place=comment.location,
                message=f"There is no rule {', '.join(unknown)}." if unknown else "The bracket names no rule.",
                hint="`shardwright rule` lists them.",
            )


@rule(
    id="SUP003",
    name="unused-suppression",
    framework=EVERY_FILE,
    severity=Severity.WARNING,
    prevents="a later finding that nobody sees",
    found_at=FoundAt.NEVER,
    source=OWN,
)
def unused_suppression(comments: Comments) -> Iterator[Found]:
    """A comment that hides a rule is removed once the rule finds nothing there.

    A rule that could not be decided, or does not hold for the version at hand, may still need its comment.
    """
    for comment in comments.comments:
        if not comment.reason:
            continue
        used = {finding.rule_id for finding in comments.hidden if comment.hides(finding)}
        unused = [rule_id for rule_id in comment.rules if rule_id in comments.decided and rule_id not in used]
        if unused:
            verb = "finds" if len(unused) == 1 else "find"
            yield Found(
                place=comment.location,
                message=f"Nothing to hide: {', '.join(unused)} {verb} nothing here.",
                hint="Remove it.",
            )


RULES: tuple[Rule[Comments], ...] = (suppression_without_reason, suppression_of_no_rule, unused_suppression)
