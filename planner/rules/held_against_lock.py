"""All training frameworks: a run held against the lock of the plan that it was written from."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.errors import Location
from planner.locks.lock_changes import About, LockChanges
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule

TRAINING = (Framework.MEGATRON, Framework.DEEPSPEED)
SOURCE = "planner/locks/lock_changes.py, on the lock that `plan --out` wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRun:
    """A run and what changed since its plan was locked.

    Args:
        place: Where the run is started.
        changes: What changed.
    """

    place: Location
    changes: LockChanges

    def about(self, kind: About, *, hint: str) -> Iterator[Found]:
        """Yield what is said of one kind of change."""
        for remark in self.changes.remarks:
            if remark.about is kind:
                yield Found(place=self.place, message=remark.text, hint=hint)


@rule(
    id="LCK001",
    name="slower-than-locked",
    framework=TRAINING,
    prevents="a run that is slower than the plan said, beyond doubt",
    found_at=FoundAt.UNNOTICED,
    source=SOURCE,
)
def slower_than_locked(run: HeldRun) -> Iterator[Found]:
    """The predicted step is not longer than the locked one by more than ratios of predictions may be off."""
    yield from run.about(About.SLOWER, hint="Take the change back, or plan again and commit the new lock.")


@rule(
    id="LCK002",
    name="somewhat-slower-than-locked",
    framework=TRAINING,
    severity=Severity.WARNING,
    prevents="a run that is somewhat slower than the plan said",
    found_at=FoundAt.UNNOTICED,
    source=SOURCE,
)
def somewhat_slower_than_locked(run: HeldRun) -> Iterator[Found]:
    """The predicted step is not longer than the locked one at all."""
    yield from run.about(About.SLOWER_WITHIN_BAND, hint="Measure both, or plan again and commit the new lock.")


@rule(
    id="LCK003",
    name="no-room-left",
    framework=TRAINING,
    prevents="torch.OutOfMemoryError: CUDA out of memory",
    found_at=FoundAt.STEP,
    source=SOURCE,
)
def no_room_left(run: HeldRun) -> Iterator[Found]:
    """The predicted peak is below the limit that was locked."""
    yield from run.about(About.NO_ROOM, hint="Take the change back, or plan again.")


@rule(
    id="LCK004",
    name="less-room-left",
    framework=TRAINING,
    severity=Severity.WARNING,
    prevents="torch.OutOfMemoryError after the next small change",
    found_at=FoundAt.LATER,
    source=SOURCE,
)
def less_room_left(run: HeldRun) -> Iterator[Found]:
    """A run that needs more than the locked one leaves at least 3 % of the limit."""
    yield from run.about(About.LITTLE_ROOM, hint="See `shardwright diff` for what grew.")


@rule(
    id="LCK005",
    name="other-layout",
    framework=TRAINING,
    severity=Severity.NOTE,
    prevents="a layout that nobody planned",
    found_at=FoundAt.UNNOTICED,
    source=SOURCE,
)
def other_layout(run: HeldRun) -> Iterator[Found]:
    """The layout is the one that was locked."""
    settings = run.changes.settings
    if settings:
        words = ", ".join(f"{name} {new} (locked: {old})" for name, (old, new) in settings.items())
        yield Found(
            place=run.place, message=f"The layout is not the locked one: {words}.", hint="Plan again, or keep it."
        )


@rule(
    id="LCK009",
    name="another-run",
    framework=TRAINING,
    prevents="a plan that speaks of another run than the script starts",
    found_at=FoundAt.UNNOTICED,
    source="planner/validation/pricing.py: lock_of_launched",
)
def another_run(run: HeldRun) -> Iterator[Found]:
    """The script starts the run that the plan is for: its layers, batch, sequences and precision."""
    yield from run.about(About.OTHER_RUN, hint="Change the script, or plan what it runs and commit the new lock.")


RULES: tuple[Rule[HeldRun], ...] = (
    slower_than_locked,
    somewhat_slower_than_locked,
    no_room_left,
    less_room_left,
    other_layout,
    another_run,
)
