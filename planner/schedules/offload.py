"""Activations that wait for their backward pass in host memory: copies beside the passes, and memory over time.

What a forward pass saves, or a share of it, is copied to the host as soon as that pass has ended, and back before the
backward pass (the gradient of the input, where passes are split) that needs it: PipeOffload (Wan et al., arXiv
2503.01328). Every rank has a stream to its host and one from it. Each makes one copy at a time: to the host in the
order of the forward passes, from the host in the order of the backward passes. A copy from the host begins when its
activations are on the host, the copy before it has ended, and its rank has run all blocks before the one that releases
it; a backward pass waits for its copy. A rank can be paced, so that what is on its way to the host does not pile up: a
forward pass whose activations move then waits until all copies to the host but a few have ended. Copies do not slow
passes or transfers down.

On the rank the bytes are gone when the copy to the host ends, and are there again when the copy from it begins; on the
host they are from when the first begins until the other ends. What the gradient of the weights keeps stays on the rank.

With copies that take no time a rank holds, beside what gradients of weights wait for, only what its running block
needs: no copies let any rank hold less under the same order (`least_peak_bytes_R`). With F, B and c the seconds of a
forward pass, a backward pass and a copy of all that a forward pass saves, uniform stages and free transfers:

    1F1B     Away from the last rank a forward pass ends at least F + B before its backward pass begins, and both come
             once in F + B: every copy is hidden if the round trip 2 c <= F + B, and on the rank before the last only
             then. If c <= F and c <= B too, a rank holds two micro-batches, however many are in flight: what runs, and
             what is on its way. On the last rank no copy has time.
    GPipe    One rank, c <= F and c <= B: every copy but that of the last micro-batch is hidden, and the rank holds two.

Arrays name their axes:

    R  ranks
    V  stages
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.schedules.passes import PassKind, PassOrder, PassTimeline, PassTimes, change_bytes, run


class Saved(NamedTuple):
    """What one forward pass saves, in the order of its rank.

    Args:
        stage: Its stage.
        microbatch: Its micro-batch.
        made: Place of the block with the forward pass.
        needed: Place of the block with the backward pass that needs it.
    """

    stage: int
    microbatch: int
    made: int
    needed: int


def saved(order: PassOrder, rank: int) -> tuple[Saved, ...]:
    """Return what the forward passes of a rank save, in their order."""
    needed = {
        (entry.stage, entry.microbatch): position
        for position, block in enumerate(order.blocks_R[rank])
        for entry in block
        if entry.kind in (PassKind.BACKWARD, PassKind.INPUT_GRADIENT)
    }
    return tuple(
        Saved(entry.stage, entry.microbatch, position, needed[entry.stage, entry.microbatch])
        for position, block in enumerate(order.blocks_R[rank])
        for entry in block
        if entry.kind is PassKind.FORWARD
    )


class Moved(NamedTuple):
    """Activations of one forward pass that wait on the host.

    Args:
        saved: What it saves.
        share: The part of its bytes that moves.
        released: The copy back begins when the blocks before this one have run.
    """

    saved: Saved
    share: float
    released: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What moves, and how long that takes.

    Args:
        moved_R: What moves on each rank, in the order of the forward passes.
        copy_seconds_V: A copy of all activations of one micro-batch, one way.
        most_under_way: Of paced ranks, how many copies to the host may be under way as a forward pass starts.
    """

    moved_R: tuple[tuple[Moved, ...], ...]
    copy_seconds_V: tuple[float, ...]
    most_under_way: Mapping[int, int] = field(default_factory=dict)


class Copy(NamedTuple):
    """One copy to the host, or from it."""

    moved: Moved
    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The copies of one rank.

    Args:
        to_host: To its host, in order.
        from_host: From its host, in order.
    """

    to_host: tuple[Copy, ...]
    from_host: tuple[Copy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadTimeline:
    """When every block and every copy of a step ran.

    Args:
        passes: The blocks.
        copies_R: The copies.
    """

    passes: PassTimeline
    copies_R: tuple[Copies, ...]


def run_offloaded(order: PassOrder, times: PassTimes, offload: Offload) -> OffloadTimeline:
    """Return when every block and every copy runs: as early as all that they wait for allows.

    Raises:
        ValueError: As for `planner.schedules.passes.run`.
    """
    streams = _Streams(offload)
    passes = run(order, times, streams)
    return OffloadTimeline(passes=passes, copies_R=tuple(rank.copies for rank in streams.ranks))


class _Streams:
    """The copies of all ranks, as `planner.schedules.passes.run` asks for them.

    Args:
        offload: What moves.
    """

    def __init__(self, offload: Offload) -> None:
        self.ranks = [
            _RankStreams(moved, offload.copy_seconds_V, most_under_way=offload.most_under_way.get(rank))
            for rank, moved in enumerate(offload.moved_R)
        ]

    def start_seconds(self, rank: int, position: int, *, earliest_seconds: float, lasting_seconds: float) -> float:
        """Return when a block starts, with all that it needs back; begin the copies of what it saves behind it."""
        streams = self.ranks[rank]
        start = max(earliest_seconds, streams.back_seconds(position), streams.paced_seconds(position))
        streams.ended(position, start + lasting_seconds)
        return start


class _RankStreams:
    """Makes the copies of one rank.

    Args:
        moved: What moves.
        copy_seconds_V: A copy of all activations of one micro-batch.
        most_under_way: Copies to the host that may be under way as a forward pass starts; None for any number.
    """

    def __init__(self, moved: Sequence[Moved], copy_seconds_V: Sequence[float], *, most_under_way: int | None) -> None:
        self._seconds_V = copy_seconds_V
        self._most_under_way = most_under_way
        self._made: dict[int, list[Moved]] = {}
        for entry in moved:
            self._made.setdefault(entry.saved.made, []).append(entry)
        self._wanted = sorted(moved, key=lambda entry: (entry.saved.needed, entry.saved.made))
        self._to_host: list[Copy] = []
        self._from_host: list[Copy] = []
        self._on_host: dict[Saved, float] = {}
        self._back_at: dict[int, float] = {}
        self._ends = [0.0]

    @property
    def copies(self) -> Copies:
        """Return the copies so far."""
        return Copies(to_host=tuple(self._to_host), from_host=tuple(self._from_host))

    def ended(self, position: int, end_seconds: float) -> None:
        """Begin the copies of what a block has saved."""
        self._ends.append(end_seconds)
        for moved in self._made.get(position, ()):
            self._append(self._to_host, moved, end_seconds)
            self._on_host[moved.saved] = self._to_host[-1].end_seconds

    def back_seconds(self, position: int) -> float:
        """Begin the copies that the blocks before one release; return when what it needs is back."""
        back, wanted = self._from_host, self._wanted
        while len(back) < len(wanted) and wanted[len(back)].released <= position:
            moved = wanted[len(back)]
            self._append(back, moved, max(self._ends[moved.released], self._on_host[moved.saved]))
            # Copies for one block end in turn, so that the last of them counts.
            self._back_at[moved.saved.needed] = back[-1].end_seconds
        return self._back_at.get(position, 0.0)

    def paced_seconds(self, position: int) -> float:
        """Return when a block may start for the copies to the host before it."""
        away, most = self._to_host, self._most_under_way
        if most is None or len(away) <= most or position not in self._made:
            return 0.0
        return away[-1 - most].end_seconds

    def _append(self, stream: list[Copy], moved: Moved, earliest_seconds: float) -> None:
        start = max(earliest_seconds, stream[-1].end_seconds if stream else 0.0)
        stream.append(Copy(moved, start, start + moved.share * self._seconds_V[moved.saved.stage]))


def device_bytes(
    timeline: PassTimeline,
    rank: int,
    copies: Copies,
    *,
    activation_bytes_V: Sequence[int],
    weight_gradient_bytes_V: Sequence[int],
) -> tuple[tuple[float, int], ...]:
    """Return the activations that a rank holds: seconds, and bytes from then on.

    What happens at the same moment happens in the order in which it could: a block ends, copies to the host end, copies
    from it begin, the next block begins.

    Args:
        timeline: When blocks ran.
        rank: The rank.
        copies: Its copies.
        activation_bytes_V: Activations of one micro-batch.
        weight_gradient_bytes_V: What of them the gradient of the weights needs.
    """
    events = pass_events(
        timeline, rank, activation_bytes_V=activation_bytes_V, weight_gradient_bytes_V=weight_gradient_bytes_V
    )
    for moved, _, end in copies.to_host:
        events.append((end, away_place(moved.saved.made), -moved_bytes(moved, activation_bytes_V)))
    for moved, start, _ in copies.from_host:
        events.append((start, back_place(moved.released), moved_bytes(moved, activation_bytes_V)))
    return _running(events)


Event = tuple[float, int, int]
"""Seconds, place among what happens at the same moment, bytes added."""

Place = TypeVar("Place", int, NDArray[np.int64])


def pass_events(
    timeline: PassTimeline, rank: int, *, activation_bytes_V: Sequence[int], weight_gradient_bytes_V: Sequence[int]
) -> list[Event]:
    """Return what the passes of a rank add to the activations that it holds, and free of them."""
    blocks = zip(
        timeline.order.blocks_R[rank], timeline.start_seconds_R[rank], timeline.end_seconds_R[rank], strict=True
    )
    events: list[Event] = []
    for position, (block, start, end) in enumerate(blocks):
        for entry in block:
            change = change_bytes(entry, activation_bytes_V, weight_gradient_bytes_V)
            if entry.kind is PassKind.FORWARD:
                events.append((start, _PLACES * position + _BEGINS, change))
            else:
                events.append((end, _PLACES * position + _ENDS, change))
    return events


def away_place(made: Place) -> Place:
    """Return the place of the end of a copy to the host, of what a block has saved."""
    return _PLACES * made + _AWAY


def back_place(released: Place) -> Place:
    """Return the place of the start of a copy from the host that is released before a block."""
    return _PLACES * released + _BACK


_PLACES = 4
_BACK, _BEGINS, _ENDS, _AWAY = range(_PLACES)
"""What comes first of a block and its copies, where the clock does not tell."""


def host_bytes(copies: Copies, *, activation_bytes_V: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """Return the activations of a rank that its host holds: seconds, and bytes from then on."""
    events = [(start, 0, moved_bytes(moved, activation_bytes_V)) for moved, start, _ in copies.to_host]
    events += [(end, 1, -moved_bytes(moved, activation_bytes_V)) for moved, _, end in copies.from_host]
    return _running(events)


def most_bytes(held: Sequence[tuple[float, int]]) -> int:
    """Return the most bytes that were ever held."""
    return max((number for _, number in held), default=0)


def moved_bytes(moved: Moved, activation_bytes_V: Sequence[int]) -> int:
    """Return the bytes that move."""
    return int(moved.share * activation_bytes_V[moved.saved.stage])


def _running(events: list[Event]) -> tuple[tuple[float, int], ...]:
    """Return the bytes after every event."""
    events.sort(key=lambda event: event[:2])
    held = accumulate(change for _, _, change in events)
    return tuple((seconds, number) for (seconds, _, _), number in zip(events, held, strict=True))


def least_peak_bytes_R(
    order: PassOrder, *, activation_bytes_V: Sequence[int], weight_gradient_bytes_V: Sequence[int]
) -> tuple[int, ...]:
    """Return the most that each rank holds if it holds only what its running block and gradients of weights need."""
    peaks: list[int] = []
    for rank in range(order.pp):
        left = peak = 0
        for block in order.blocks_R[rank]:
            needed = sum(
                activation_bytes_V[entry.stage] for entry in block if entry.kind is not PassKind.WEIGHT_GRADIENT
            )
            peak = max(peak, left + needed)
            for entry in block:
                kept = weight_gradient_bytes_V[entry.stage]
                left += {PassKind.INPUT_GRADIENT: kept, PassKind.WEIGHT_GRADIENT: -kept}.get(entry.kind, 0)
                peak = max(peak, left)
        peaks.append(peak)
    return tuple(peaks)
