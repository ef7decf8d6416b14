"""Which activations wait on the host: those that wait longest first, as long as no pass waits for a copy.

A set of a rank's activations moves unnoticed if every copy is back when its backward pass starts anyway. Copies to the
host end, in the order of the forward passes, as early as those before them let; copies from it begin, in the order of
the backward passes, as late as those behind them let:

    away_i = max over j <= i of (made_j + sum of c from j to i)          made_j: end of the forward pass of j
    back_i = min over j >= i of (needed_j - sum of c from i to j)        needed_j: start of the backward pass of j

so that the set moves unnoticed if and only if away_i <= back_i for each of it. That depends on its own rank alone, as
no other rank's passes move. A copy back is released by the last block boundary that is no later than back_i.

PipeOffload (Wan et al., arXiv 2503.01328) takes what waits longest first. So does this: activations are added to the
set in the order of their waits, as many at once as leave it unnoticed. That is done for each share in `SHARES` of the
bytes, of the activations of all stages of a rank and of those stages alone that wait longest; what leaves the least
peak is kept. A heuristic: the tests compare it with every set of small orders.

Arrays name their axes:

    K  blocks of a rank
    N  what its forward passes save, in their order
    E  what its passes add to its memory, and free of it
    R  ranks
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite

import numpy as np

from planner.arrays import BoolArray, FloatArray, IntArray
from planner.schedules.bounds import ROUNDING
from planner.schedules.offload import Moved, Offload, Saved, away_place, back_place, pass_events, saved
from planner.schedules.passes import PassTimeline

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Parts of a micro-batch's activations that may move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What passes keep and what copying it takes.

    Args:
        activation_bytes_V: From the forward pass to the backward pass, of one micro-batch.
        weight_gradient_bytes_V: What of them the gradient of the weights needs.
        copy_seconds_V: A copy of the activations, one way; infinite where there is no way to a host.
    """

    activation_bytes_V: tuple[int, ...]
    weight_gradient_bytes_V: tuple[int, ...]
    copy_seconds_V: tuple[float, ...]


def unnoticed(timeline: PassTimeline, sizes: Sizes) -> Offload:
    """Return what moves without keeping any pass waiting.

    Args:
        timeline: The passes without any copies.
        sizes: What they keep.
    """
    return Offload(
        moved_R=tuple(_best_of_rank(timeline, rank, sizes) for rank in range(timeline.order.pp)),
        copy_seconds_V=sizes.copy_seconds_V,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How much a rank moves that has no room, and how little it holds meanwhile.

    Args:
        share: The part of the activations that moves.
        under_way: Copies to the host that may be under way as a forward pass starts. With any, a copy back is released
            with the backward pass before the one that needs it, without behind it.
    """

    share: float
    under_way: int


PRESSURES = tuple(Pressure(share=share, under_way=under_way) for share in SHARES for under_way in (1, 0))


def pressed(
    timeline: PassTimeline, sizes: Sizes, gentle: Offload, *, ranks: Sequence[int], pressure: Pressure
) -> Offload:
    """Return what moves if some ranks move part of all that waits for a block, whatever waits for the copies.

    Args:
        timeline: The passes without any copies.
        sizes: What they keep.
        gentle: What the other ranks move.
        ranks: The ranks that move so much.
        pressure: How much.
    """
    moved_R = list(gentle.moved_R)
    for rank in ranks:
        waiting = [entry for entry in _movable(timeline, rank, sizes) if entry.needed - entry.made > 1]
        by_need = sorted(waiting, key=lambda entry: (entry.needed, entry.made))
        release = {entry: entry.needed - 1 for entry in by_need[:1]}
        release |= {entry: previous.needed + (not pressure.under_way) for previous, entry in pairwise(by_need)}
        moved_R[rank] = tuple(
            Moved(entry, pressure.share, min(max(entry.made + 1, release[entry]), entry.needed)) for entry in waiting
        )
    return replace(gentle, moved_R=tuple(moved_R), most_under_way=dict.fromkeys(ranks, pressure.under_way))


def _movable(timeline: PassTimeline, rank: int, sizes: Sizes) -> tuple[Saved, ...]:
    """Return what the forward passes of a rank save that there is a way to a host for."""
    return tuple(
        entry
        for entry in saved(timeline.order, rank)
        if sizes.activation_bytes_V[entry.stage] and isfinite(sizes.copy_seconds_V[entry.stage])
    )


def _best_of_rank(timeline: PassTimeline, rank: int, sizes: Sizes) -> tuple[Moved, ...]:
    """Return what a rank moves: of the sets with the least peak the first; nothing, then from all that waits on."""
    waits = _Waits(timeline, rank, sizes)
    nothing_N: BoolArray = np.zeros(len(waits.saved_N), dtype=np.bool_)
    best = waits.peak_bytes(nothing_N, 1.0), nothing_N, 1.0
    for num_stages in range(waits.num_stages, 0, -1):
        for share in SHARES:
            chosen_N = waits.longest_first(share, num_stages=num_stages)
            peak = waits.peak_bytes(chosen_N, share)
            if peak < best[0]:
                best = peak, chosen_N, share
    return waits.moved(*best[1:])


class _Waits:
    """What one rank has saved, from when to when.

    Args:
        timeline: The passes without any copies.
        rank: The rank.
        sizes: What passes keep.
    """

    def __init__(self, timeline: PassTimeline, rank: int, sizes: Sizes) -> None:
        self.saved_N = _movable(timeline, rank, sizes)
        self._end_K = np.array(timeline.end_seconds_R[rank])
        self._made_place_N: IntArray = np.array([entry.made for entry in self.saved_N], dtype=np.int64)
        self._needed_place_N: IntArray = np.array([entry.needed for entry in self.saved_N], dtype=np.int64)
        self._made_N: FloatArray = self._end_K[self._made_place_N]
        self._needed_N: FloatArray = np.array(timeline.start_seconds_R[rank])[self._needed_place_N]
        self._bytes_N = np.array([sizes.activation_bytes_V[entry.stage] for entry in self.saved_N], dtype=np.int64)
        self._wait_N = self._needed_N - self._made_N
        stages = sorted({entry.stage for entry in self.saved_N})
        of_stage = {stage: np.array([entry.stage == stage for entry in self.saved_N]) for stage in stages}
        self._stages = sorted(stages, key=lambda stage: -float(self._wait_N[of_stage[stage]].sum()))
        self._copy_N: FloatArray = np.array([sizes.copy_seconds_V[entry.stage] for entry in self.saved_N])
        self._rounding = ROUNDING * timeline.end_seconds
        # The order in which they are needed; of equals the one that is made first.
        self._by_need_N: IntArray = np.lexsort((self._made_place_N, self._needed_place_N))
        seconds, places, changes = zip(
            *pass_events(
                timeline,
                rank,
                activation_bytes_V=sizes.activation_bytes_V,
                weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
            ),
            strict=True,
        )
        self._pass_events = (np.array(seconds), np.array(places), np.array(changes))

    @property
    def num_stages(self) -> int:
        """Return how many stages have saved anything."""
        return len(self._stages)

    def longest_first(self, share: float, *, num_stages: int) -> BoolArray:
        """Return what moves unnoticed, what waits longest before what waits less; of equals the one made first.

        Args:
            share: The part of each that moves.
            num_stages: Of how many stages, those first whose activations wait longest.
        """
        chosen_N: BoolArray = np.zeros(len(self.saved_N), dtype=np.bool_)
        among = self._stages[:num_stages]
        longest_first = [
            index for index in np.argsort(-self._wait_N, kind="stable") if self.saved_N[index].stage in among
        ]

        def add(group: IntArray) -> None:
            """Add to the set one after the other; a set that moves unnoticed does so without some of it, too."""
            tried_N = chosen_N.copy()
            tried_N[group] = True
            if (self._away(tried_N, share) <= self._back(tried_N, share) + self._rounding).all():
                chosen_N[group] = True
            elif len(group) > 1:
                middle = len(group) // 2
                add(group[:middle])
                add(group[middle:])

        add(np.array(longest_first, dtype=np.int64))
        return chosen_N

    def moved(self, chosen_N: BoolArray, share: float) -> tuple[Moved, ...]:
        """Return a set with the blocks that release its copies back."""
        entries = [self.saved_N[index] for index in np.flatnonzero(chosen_N)]
        released = self._released(chosen_N, share).tolist()
        return tuple(Moved(entry, share, position) for entry, position in zip(entries, released, strict=True))

    def peak_bytes(self, chosen_N: BoolArray, share: float) -> int:
        """Return the most that the rank holds while a set moves unnoticed.

        The same as `planner.schedules.offload.run_offloaded` and `device_bytes` find, all copies at once.
        """
        released_N = np.zeros(len(self.saved_N), dtype=np.int64)
        released_N[chosen_N] = self._released(chosen_N, share)
        away_N = np.zeros(len(self.saved_N))
        away_N[chosen_N] = self._away(chosen_N, share)
        by_need = self._by_need_N[chosen_N[self._by_need_N]]
        before = np.cumsum(share * self._copy_N[by_need]) - share * self._copy_N[by_need]
        ready = np.maximum(self._end_K[released_N[by_need] - 1], away_N[by_need])
        back = np.maximum.accumulate(ready - before) + before
        moved_bytes_N = (share * self._bytes_N).astype(np.int64)
        seconds_E, places_E, changes_E = self._pass_events
        seconds = np.concatenate((seconds_E, away_N[chosen_N], back))
        places = np.concatenate((places_E, away_place(self._made_place_N[chosen_N]), back_place(released_N[by_need])))
        changes = np.concatenate((changes_E, -moved_bytes_N[chosen_N], moved_bytes_N[by_need]))
        return int(np.cumsum(changes[np.lexsort((places, seconds))]).max())

    def _released(self, chosen_N: BoolArray, share: float) -> IntArray:
        """Return the block before which the copy back of each of a set may begin."""
        ended = np.searchsorted(self._end_K, self._back(chosen_N, share) + self._rounding, side="right")
        released: IntArray = np.clip(ended, self._made_place_N[chosen_N] + 1, self._needed_place_N[chosen_N])
        return released

    def _away(self, chosen_N: BoolArray, share: float) -> FloatArray:
        """Return when each of a set is on the host at the earliest."""
        seconds = share * self._copy_N[chosen_N]
        done = np.cumsum(seconds)
        away: FloatArray = done + np.maximum.accumulate(self._made_N[chosen_N] - (done - seconds))
        return away

    def _back(self, chosen_N: BoolArray, share: float) -> FloatArray:
        """Return when the copy back of each of a set begins at the latest."""
        last_first = self._by_need_N[chosen_N[self._by_need_N]][::-1]
        seconds = share * self._copy_N[last_first]
        done = np.cumsum(seconds)
        latest_N = np.empty(len(self.saved_N))
        latest_N[last_first] = np.minimum.accumulate(self._needed_N[last_first] + (done - seconds)) - done
        back: FloatArray = latest_N[chosen_N]
        return back
