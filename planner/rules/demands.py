"""Rules that are a line of a table: what a run with one thing needs, and what it excludes."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import Condition
from planner.rules.rule import Found, FoundAt, Rule, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """One line of a table.

    Args:
        id: The rule's id.
        name: Its name.
        when: What demands something.
        needs: What it needs, all of it.
        excludes: What it excludes, each of it.
        error: What the framework says, shortened.
        found_at: When it says so.
        source: Where that was read.
        why: Why, or what to know about it.
        severity: How bad it is to break it.
        mends: Giving what it needs is the sure way out: it changes neither the model nor what the run learns, and needs
            nothing else in turn.
        since: The first version that it holds for; None for all before.
        until: The first version that it no longer holds for; None for none.
    """

    id: str
    name: str
    when: Condition
    needs: tuple[Condition, ...] = ()
    excludes: tuple[Condition, ...] = ()
    error: str
    found_at: FoundAt
    source: str
    why: str
    severity: Severity = Severity.ERROR
    mends: bool = True
    since: str | None = None
    until: str | None = None

    def check(self, run: MegatronRun) -> Iterator[Found]:
        """Yield what is missing and what must not be there."""
        if not self.when.holds(run):
            return
        cause = self.when.said_of(run)
        for need in self.needs:
            if not need.holds(run):
                is_range = need.text.startswith(f"{cause} ")
                yield Found(
                    place=run.place(*self.when.dests, *need.dests),
                    message=f"{cause} is not {need.text[len(cause) + 1 :]}."
                    if is_range
                    else f"{cause} needs {need.text}.",
                    hint=f"Give {need.text}, or leave out {cause}.",
                    fix=need.fix(run, beside=self.when.dests) if self.mends else None,
                )
        for other in self.excludes:
            if other.holds(run):
                against = other.said_of(run)
                yield Found(
                    place=run.place(*self.when.dests, *other.dests),
                    message=f"{cause} and {against} exclude each other.",
                    hint=f"Leave out {against} or {cause}.",
                )

    @property
    def explanation(self) -> str:
        """Return what the rule asks, and why."""
        asked = [f"needs {need.text}" for need in self.needs] + [f"excludes {other.text}" for other in self.excludes]
        return f"{self.when.text}: {', '.join(asked)}.\n\n{self.why}"


def rules_of_demands(demands: tuple[Demand, ...]) -> tuple[Rule[MegatronRun], ...]:
    """Return the rule of each line."""
    return tuple(
        Rule(
            id=demand.id,
            name=demand.name,
            frameworks=(Framework.MEGATRON,),
            severity=demand.severity,
            prevents=demand.error,
            found_at=demand.found_at,
            source=demand.source,
            docstring=demand.explanation,
            check=demand.check,
            since=demand.since,
            until=demand.until,
        )
        for demand in demands
    )
