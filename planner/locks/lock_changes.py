"""What changed between two plans, as their locks tell: inputs, settings, time, memory, and what that risks.

A change of the step time is said to be real only where it is larger than the band around ratios of step times, because
most errors of the model are common to both sides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from planner.locks.plan_lock import PlanLock
from planner.units import GIB

SHOWN_DIGITS = 12
"""Of a SHA-256, where words name inputs by it."""

TIGHT_FRACTION = 0.03
"""Less memory left than this share of the limit: the next small change may not fit."""


class Level(StrEnum):
    """How much a change matters."""

    BAD = "bad"
    WORTH_A_LOOK = "worth-a-look"
    GOOD = "good"
    NEUTRAL = "neutral"


class About(StrEnum):
    """What a remark is about."""

    OTHER_RUN = "other-run"
    SLOWER = "slower"
    SLOWER_WITHIN_BAND = "slower-within-band"
    FASTER = "faster"
    DEARER = "dearer"
    OTHER_WORKLOAD = "other-workload"
    NO_ROOM = "no-room"
    LITTLE_ROOM = "little-room"
    PROVEN_LESS = "proven-less"
    OTHER_PLANNER = "other-planner"


LEVELS = {
    About.OTHER_RUN: Level.BAD,
    About.NO_ROOM: Level.BAD,
    About.SLOWER: Level.BAD,
    About.DEARER: Level.BAD,
    About.SLOWER_WITHIN_BAND: Level.WORTH_A_LOOK,
    About.LITTLE_ROOM: Level.WORTH_A_LOOK,
    About.PROVEN_LESS: Level.WORTH_A_LOOK,
    About.FASTER: Level.GOOD,
    About.OTHER_WORKLOAD: Level.NEUTRAL,
    About.OTHER_PLANNER: Level.NEUTRAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One sentence about a change.

    Args:
        about: What it is about.
        text: The sentence.
    """

    about: About
    text: str

    @property
    def level(self) -> Level:
        """Return how much it matters."""
        return LEVELS[self.about]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockChanges:
    """What changed.

    Args:
        old: The plan before.
        new: The plan after.
        inputs: Parts of the input that changed, with their names before and after.
        settings: Settings of the layout that changed, before and after.
        terms: Terms of the step time, before and after, largest change first.
        files: Files whose text changed, came or went.
        remarks: What it means, the worst first.
    """

    old: PlanLock
    new: PlanLock
    inputs: Mapping[str, tuple[str, str]]
    settings: Mapping[str, tuple[str, str]]
    terms: Mapping[str, tuple[float, float]]
    files: tuple[str, ...]
    remarks: tuple[Remark, ...]

    @property
    def step_fraction(self) -> float:
        """Return how much longer the step takes, as a share of the step before; negative where it is shorter."""
        return self.new.step_seconds / self.old.step_seconds - 1.0

    @property
    def peak_change_bytes(self) -> int:
        """Return how much more memory the tightest rank needs."""
        return self.new.tightest.peak_bytes - self.old.tightest.peak_bytes

    @property
    def is_bad(self) -> bool:
        """Return whether a remark says that something got worse."""
        return any(remark.level is Level.BAD for remark in self.remarks)


def changes(old: PlanLock, new: PlanLock, *, faults: Sequence[str] = ()) -> LockChanges:
    """Return what changed from one plan to another.

    Args:
        old: The plan before.
        new: The plan after.
        faults: Why the one after is no run of the inputs that it is priced with, a sentence each: of a script that
            has other layers or another batch than the plan.
    """
    terms = {
        term: (old.seconds_by_term.get(term, 0.0), new.seconds_by_term.get(term, 0.0))
        for term in {**old.seconds_by_term, **new.seconds_by_term}
    }
    moved = {term: pair for term, pair in terms.items() if pair[0] != pair[1]}
    order = list(LEVELS)
    found = (
        *(Remark(about=About.OTHER_RUN, text=fault) for fault in faults),
        *_remarks(old, new, other_run=bool(faults)),
    )
    remarks = sorted(found, key=lambda remark: order.index(remark.about))
    return LockChanges(
        old=old,
        new=new,
        inputs={
            part: _told_apart(old, new, part)
            for part in {**old.inputs, **new.inputs}
            if old.inputs.get(part) != new.inputs.get(part)
        },
        settings={
            name: (old.settings.get(name, ""), new.settings.get(name, ""))
            for name in {**old.settings, **new.settings}
            if old.settings.get(name) != new.settings.get(name)
        },
        terms=dict(sorted(moved.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0]))),
        files=tuple(sorted(name for name in {**old.files, **new.files} if old.files.get(name) != new.files.get(name))),
        remarks=tuple(remarks),
    )


def _told_apart(old: PlanLock, new: PlanLock, part: str) -> tuple[str, str]:
    """Return the words for a part of the input before and after; equal words get what tells them apart."""
    sides = [lock.inputs.get(part, ("", "")) for lock in (old, new)]
    words = [said for said, _ in sides]
    if words[0] != words[1]:
        return words[0], words[1]
    if old.target != new.target:
        return f"{words[0]}, for {old.target}", f"{words[1]}, for {new.target}"
    before, after = (f"{said} ({digest[:SHOWN_DIGITS]})" for said, digest in sides)
    return before, after


def _remarks(old: PlanLock, new: PlanLock, *, other_run: bool) -> Iterator[Remark]:
    yield from _time(old, new, other_run=other_run)
    yield from _memory(old, new)
    yield from _proof(old, new)
    if old.planner != new.planner:
        text = f"Planned by {new.planner}, before by {old.planner}: its prices may differ."
        yield Remark(about=About.OTHER_PLANNER, text=text)


def _time(old: PlanLock, new: PlanLock, *, other_run: bool) -> Iterator[Remark]:
    ratio = new.step_seconds / old.step_seconds
    if ratio == 1.0:
        return
    figure = f"The step is {abs(ratio - 1):.1%} {'slower' if ratio > 1 else 'faster'}"
    widths = [lock.ratio_fraction for lock in (old, new) if lock.ratio_fraction is not None]
    doubt = max(ratio, 1 / ratio) <= 1 + max(widths, default=0.0)
    if other_run:
        yield Remark(about=About.OTHER_WORKLOAD, text=f"{figure}, of another run.")
    elif others := [part for part in ("model", "workload") if old.inputs.get(part) != new.inputs.get(part)]:
        yield Remark(about=About.OTHER_WORKLOAD, text=f"{figure}, of another {' and '.join(others)}.")
    elif ratio < 1:
        yield Remark(about=About.FASTER, text=f"{figure}.")
    elif doubt:
        text = f"{figure}, within the {max(widths):.0%} that ratios may be off."
        yield Remark(about=About.SLOWER_WITHIN_BAND, text=text)
    else:
        yield Remark(about=About.SLOWER, text=f"{figure}.")


def _memory(old: PlanLock, new: PlanLock) -> Iterator[Remark]:
    tightest, before = new.tightest, old.tightest.left_bytes
    left = tightest.left_bytes
    if left < 0:
        text = f"Rank {tightest.rank} lacks {-left / GIB:.2f} GiB of memory: it does not fit."
        yield Remark(about=About.NO_ROOM, text=text)
    elif left < TIGHT_FRACTION * tightest.limit_bytes and left < before:
        text = f"Rank {tightest.rank} has {left / GIB:.2f} GiB left below its limit, before {before / GIB:.2f}."
        yield Remark(about=About.LITTLE_ROOM, text=text)


def _proof(old: PlanLock, new: PlanLock) -> Iterator[Remark]:
    if old.gap is None:
        return
    if new.gap is None:
        text = "Nothing says how good it is: it was given, not searched."
        yield Remark(about=About.PROVEN_LESS, text=text)
    elif new.gap > old.gap:
        text = f"Up to {new.gap:.1%} could still be saved, before {old.gap:.1%}."
        yield Remark(about=About.PROVEN_LESS, text=text)
