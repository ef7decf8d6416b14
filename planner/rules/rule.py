"""What a rule is, and what it finds.

A rule looks at one configuration and yields what breaks it. It says which framework and versions it holds for, what
the framework itself would say and when, and where that was read. Its function's docstring is what `shardwright rule ID`
prints, so it speaks to the user.

Ids are stable: a letter group and a number, never given to another rule.

- S: spelling and kinds of flags, keys and values, all frameworks.
- MLM, DSP, VLL: what one framework demands.
- MEM: memory; ADV: advice on speed; LCK: what a lock says; SW: our own specs and plans; SUP: suppressions; FIL: files
  that cannot be read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import isqrt
from typing import Generic, TypeVar

from planner.errors import Location
from planner.readers.flag_tables import Framework, version_key

Config = TypeVar("Config")

MOST_TRIED = 10**5
"""Divisors that are tried for a proposal; no size of a model or a cluster needs more."""


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def rank(self) -> int:
        """Return 0 for the worst."""
        return list(Severity).index(self)


class FoundAt(StrEnum):
    """When the framework itself would find it."""

    PARSE = "its parser, when the program starts"
    START = "its checks of the arguments, when the program starts"
    BUILD = "when groups or the model are built, after the start of all processes"
    STEP = "the first step"
    LATER = "a later step"
    NEVER = "never: it runs, and does something else than what is written"
    UNNOTICED = "never: it runs, slower than it could"


class NoPriceError(Exception):
    """A rule cannot be decided, because a search that it needs found nothing and proved nothing.

    Args:
        why: What was searched, and why it ended.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """One change of the text that would mend it.

    Args:
        location: Where the old text starts.
        old: What stands there.
        new: What to write instead.
    """

    location: Location
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rule found.

    Args:
        place: Where.
        message: What is wrong, with the numbers, one sentence.
        hint: What to do, with the nearest legal values.
        fix: A change that mends it, where one is certain.
    """

    place: Location
    message: str
    hint: str
    fix: Fix | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(Generic[Config]):
    """One rule.

    Args:
        id: Its stable id.
        name: A few words with dashes.
        frameworks: Whom it holds for.
        severity: How bad it is to break it.
        prevents: What the framework would say, shortened; or what would happen.
        found_at: When the framework would say it.
        source: The file and function of the framework that was read.
        docstring: What the rule asks, why, and what to do, as it stands in the source.
        check: Yields what breaks it.
        since: The first version that it holds for; None for all before.
        until: The first version that it no longer holds for; None for none.
    """

    id: str
    name: str
    frameworks: tuple[Framework, ...]
    severity: Severity
    prevents: str
    found_at: FoundAt
    source: str
    docstring: str
    check: Callable[[Config], Iterator[Found]]
    since: str | None = None
    until: str | None = None

    @property
    def explanation(self) -> str:
        """Return what the rule asks, why, and what to do, every paragraph on one line."""
        paragraphs = self.docstring.strip().split("\n\n")
        return "\n\n".join(" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs)

    def holds_for(self, version: str) -> bool:
        """Return whether the rule holds for a version of its framework."""
        key = version_key(version)
        return (self.since is None or key >= version_key(self.since)) and (
            self.until is None or key < version_key(self.until)
        )

    def broken_by(self, config: Config) -> "Iterator[Finding]":
        """Yield what breaks the rule in a configuration."""
        for found in self.check(config):
            yield Finding(
                rule_id=self.id,
                rule_name=self.name,
                severity=self.severity,
                found=found,
                prevents=self.prevents,
                found_at=self.found_at,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A broken rule in a file.

    Args:
        rule_id: The rule's id.
        rule_name: Its name.
        severity: How bad it is.
        found: What was found and where.
        prevents: What the framework would say.
        found_at: When.
    """

    rule_id: str
    rule_name: str
    severity: Severity
    found: Found
    prevents: str
    found_at: FoundAt

    @property
    def order(self) -> tuple[str, int, int, str, str]:
        """Return what findings are sorted by: their place, then their rule."""
        place = self.found.place
        return place.file, place.line or 0, place.column or 0, self.rule_id, self.found.message


def rule(  # noqa: PLR0913 - each is one fact about the rule
    *,
    id: str,  # noqa: A002 - the word that users know it by
    name: str,
    framework: Framework | tuple[Framework, ...],
    prevents: str,
    found_at: FoundAt,
    source: str,
    severity: Severity = Severity.ERROR,
    since: str | None = None,
    until: str | None = None,
) -> Callable[[Callable[[Config], Iterator[Found]]], Rule[Config]]:
    """Return a decorator that makes a rule of a function; its docstring is the explanation."""

    def made(check: Callable[[Config], Iterator[Found]]) -> Rule[Config]:
        return Rule(
            id=id,
            name=name,
            frameworks=framework if isinstance(framework, tuple) else (framework,),
            severity=severity,
            prevents=prevents,
            found_at=found_at,
            source=source,
            docstring=check.__doc__ or "",
            check=check,
            since=since,
            until=until,
        )

    return made


def nearest_divisors(number: int, wanted: int, *, most: int = 3) -> tuple[int, ...]:
    """Return the divisors of a number that are nearest to what was wanted, the nearest first; none of one below 1.

    Of a number above 10^10 some may be missed.
    """
    if number < 1:
        return ()
    smalls = range(1, min(isqrt(number), MOST_TRIED) + 1)
    divisors = {divisor for small in smalls if number % small == 0 for divisor in (small, number // small)}
    return tuple(sorted(sorted(divisors), key=lambda divisor: (abs(divisor - wanted), divisor))[:most])


def nearest_multiples(base: int, wanted: int) -> tuple[int, ...]:
    """Return the positive multiples of a number on both sides of what was wanted, the nearer first."""
    below = wanted // base * base
    sides = [number for number in (below, below + base) if number > 0] or [base]
    return tuple(sorted(sides, key=lambda number: (abs(number - wanted), number)))


def listed(numbers: tuple[int, ...]) -> str:
    """Return numbers as "4, 8 or 2", and that there is none as "no number"."""
    texts = [str(number) for number in numbers] or ["no number"]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def fast_links(domain_gpus: int | None, gpus_per_node: int) -> tuple[int, str]:
    """Return how many GPUs fast links join, and in words what they are: a cluster's domain, or a node."""
    if domain_gpus is None:
        return gpus_per_node, f"nodes of {gpus_per_node} GPUs"
    return domain_gpus, f"the {domain_gpus} GPUs that fast links join"
