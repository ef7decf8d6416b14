"""What another layout would cost: a layout beside the best plan, setting by setting and term by term."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.plans.layout_words import layout_settings
from planner.plans.plan import Plan, PlannedLayout, TimeLine

WORTH_SAYING = 0.02
"""Smallest gain, as a share of the step, that is worth a sentence.

A choice, to keep reports short; the band around the ratio of two predictions is wider (`planner.plans.certainty`).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One setting in which a layout differs from the reference layout.

    Args:
        setting: Its name, as in `layout_settings`.
        value: The layout's own.
        reference: The reference layout's.
    """

    setting: str
    value: str
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TermChange:
    """How one term of the step time changes against the reference layout.

    Args:
        term: The term.
        seconds: In the layout.
        reference_seconds: In the reference layout.
    """

    term: str
    seconds: float
    reference_seconds: float

    @property
    def change_seconds(self) -> float:
        """Return how much longer the layout spends on the term."""
        return self.seconds - self.reference_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One layout beside the reference layout, which is the best plan.

    Args:
        index: Its place among the plans, 0 being the best; None when it is not among them.
        is_baseline: It is the rule-of-thumb layout.
        planned: The layout that is compared.
        differences: Settings that differ.
        terms: Terms of the step time that differ, largest change first.
        change_seconds: How much longer its step takes.
        change_fraction: The same as a fraction of the reference step.
        peak_change_bytes: How much more memory its heaviest rank needs.
    """

    index: int | None
    is_baseline: bool
    planned: PlannedLayout
    differences: tuple[Difference, ...]
    terms: tuple[TermChange, ...]
    change_seconds: float
    change_fraction: float
    peak_change_bytes: int


def compare(planned: PlannedLayout, reference: PlannedLayout, *, index: int | None, is_baseline: bool) -> Comparison:
    """Return `planned` beside `reference`: which settings differ, and which terms of the step time change."""
    own, other = layout_settings(planned.layout), layout_settings(reference.layout)
    own_seconds, other_seconds = seconds_by_term(planned.time), seconds_by_term(reference.time)
    changes = [
        TermChange(term=term, seconds=own_seconds.get(term, 0.0), reference_seconds=other_seconds.get(term, 0.0))
        for term in {**other_seconds, **own_seconds}
    ]
    change_seconds = planned.step_seconds - reference.step_seconds
    return Comparison(
        index=index,
        is_baseline=is_baseline,
        planned=planned,
        differences=tuple(
            Difference(setting=name, value=own[name], reference=other[name]) for name in own if own[name] != other[name]
        ),
        terms=tuple(
            sorted(
                (change for change in changes if change.change_seconds),
                key=lambda change: (-abs(change.change_seconds), change.term),
            )
        ),
        change_seconds=change_seconds,
        change_fraction=change_seconds / reference.step_seconds,
        peak_change_bytes=planned.peak_memory_bytes - reference.peak_memory_bytes,
    )


def compare_all(plan: Plan, *, index: int = 0) -> tuple[Comparison, ...]:
    """Return every other plan beside the plan at `index`, and the baseline where it is none of them."""
    reference = plan.plans[index]
    baseline_layout = plan.baseline.layout if plan.baseline is not None else None
    others = [
        compare(planned, reference, index=position, is_baseline=planned.layout == baseline_layout)
        for position, planned in enumerate(plan.plans)
        if position != index
    ]
    if plan.baseline is not None and all(planned.layout != baseline_layout for planned in plan.plans):
        others.append(compare(plan.baseline, reference, index=None, is_baseline=True))
    return tuple(others)


def time_terms(planned: PlannedLayout) -> tuple[TimeLine, ...]:
    """Return the terms of the step time, largest first."""
    return tuple(sorted(planned.time, key=lambda line: (-line.seconds, line.term)))


def seconds_by_term(lines: Iterable[TimeLine]) -> dict[str, float]:
    """Return the seconds of each term, lines of one term added up."""
    seconds: dict[str, float] = {}
    for line in lines:
        seconds[line.term] = seconds.get(line.term, 0.0) + line.seconds
    return seconds
