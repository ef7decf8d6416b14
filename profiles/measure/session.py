"""One run: which points, in which order, for how long, and what is written of each.

All ranks measure every point together, because training does: the figure kept is the slowest rank's, with the fastest
beside it. The first rank chooses the next point (`profiles.measure.budget`), keeps the time and writes the journal; it
alone reads it. A point that a machine cannot measure is written with the reason and not tried again.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from profiles.measure.budget import Chooser
from profiles.measure.journal import Journal, JournalError, done_points
from profiles.measure.points import Point, Wanted

Result = Mapping[str, object]

CONDITIONS_SECONDS = 30.0
"""How often clocks and temperature are asked for."""


class Job(Protocol):
    """What a session asks of the processes that measure together."""

    @property
    def leads(self) -> bool:
        """Return whether this process decides and writes."""
        ...

    def choice(self, index: int | None) -> int | None:
        """Return the first rank's choice on every rank."""
        ...

    def measure(self, point: Point) -> Result | str:
        """Return what all ranks found together, or why the point cannot be measured."""
        ...

    def is_lost(self) -> bool:
        """Return whether nothing more can be measured in these processes; all of them ask together."""
        ...

    def provenance(self) -> Mapping[str, object]:
        """Return what the run says of itself."""
        ...

    def conditions(self) -> Mapping[str, object]:
        """Return clocks and temperature now."""
        ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Args:
        done: Points of the request that are measured, or cannot be.
        total: Points of the request.
        elapsed_seconds: Since the run began.
        left_seconds: Until it ends, as far as it can be told; None at its very start.
        key: The point in work; empty at the end.
    """

    done: int
    total: int
    elapsed_seconds: float
    left_seconds: float | None
    key: str


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Args:
        measured: Points that it measured.
        failed: Points that it could not.
        left: Points of the request that are not done.
        lost: The processes could measure nothing more.
    """

    measured: int
    failed: int
    left: int
    lost: bool = False


class Session:
    """One run; see the module's docstring.

    Args:
        wanted: The request.
        job: The processes that measure.
        budget_seconds: Points are begun for so long; None for all of them.
        told: Is called with the progress before each point and at the end.
        clock: Returns seconds.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        job: Job,
        *,
        budget_seconds: float | None = None,
        told: Callable[[Progress], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wanted = wanted
        self._job = job
        self._budget_seconds = budget_seconds
        self._told = told
        self._clock = clock
        self._is_followed = True

    def run(self, journal: Journal | None) -> Summary:
        """Measure until everything is done or the time is up; the first rank gives the journal.

        Raises:
            profiles.measure.journal.JournalError: The journal is another device's, or cannot be written. All ranks
                have been told to end.
        """
        if journal is None:
            return Summary(measured=0, failed=0, left=0, lost=self._follow())
        try:
            return self._lead(journal)
        except JournalError:
            if self._is_followed:
                self._job.choice(None)  # the other ranks wait for the next choice
            raise

    def _lead(self, journal: Journal) -> Summary:
        """Choose, measure and write."""
        chooser = Chooser(self._wanted)
        open_points = {entry.point for entry in self._wanted}
        for entry in journal.content.entries:
            _learn(chooser, entry.point, entry.result)
        provenance = self._job.provenance()
        for point in done_points(journal.content, provenance):
            chooser.close(point)
            open_points.discard(point)
        earlier = len(self._wanted) - len(open_points)
        journal.begin(provenance)
        begun = asked = self._clock()
        measured = failed = 0
        while True:
            elapsed = self._clock() - begun
            over = self._budget_seconds is not None and elapsed >= self._budget_seconds
            index = None if over else chooser.next()
            self._tell(index, earlier, measured + failed, elapsed, left=len(open_points))
            if self._job.choice(index) is None or index is None:
                self._is_followed = False
                break
            point = self._wanted[index].point
            found = self._job.measure(point)
            lost = self._job.is_lost()
            self._is_followed = not lost
            if isinstance(found, str):
                journal.failed(point, found)
                failed += 1
            else:
                journal.measured(point, found)
                _learn(chooser, point, found)
                measured += 1
            chooser.close(point)
            open_points.discard(point)
            if lost:
                return Summary(measured=measured, failed=failed, left=len(open_points), lost=True)
            if self._clock() - asked > CONDITIONS_SECONDS:
                asked = self._clock()
                journal.conditions(self._job.conditions())
        journal.conditions(self._job.conditions())
        return Summary(measured=measured, failed=failed, left=len(open_points))

    def _tell(self, index: int | None, earlier: int, done: int, elapsed: float, *, left: int) -> None:
        """Say where the run stands."""
        self._told(
            Progress(
                done=earlier + done,
                total=len(self._wanted),
                elapsed_seconds=elapsed,
                left_seconds=0.0 if index is None else self._left_seconds(elapsed, done, left),
                key="" if index is None else self._wanted[index].point.key,
            )
        )

    def _left_seconds(self, elapsed: float, done: int, left: int) -> float | None:
        """Return until when the run goes on: all points at the pace so far, or the budget if that ends earlier."""
        if done == 0:
            return self._budget_seconds
        at_this_pace = left * elapsed / done
        if self._budget_seconds is None:
            return at_this_pace
        return max(0.0, min(at_this_pace, self._budget_seconds - elapsed))

    def _follow(self) -> bool:
        """Measure what the first rank chooses; return whether that ended because nothing more can be measured."""
        while (index := self._job.choice(None)) is not None:
            self._job.measure(self._wanted[index].point)
            if self._job.is_lost():
                return True
        return False


def _learn(chooser: Chooser, point: Point, result: Result) -> None:
    seconds = result.get("seconds")
    if isinstance(seconds, int | float) and seconds > 0:
        chooser.learn(point, float(seconds))
