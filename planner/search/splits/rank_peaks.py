"""The largest phase of each pipeline rank, exact, under one split of a point after another.

The search asks for peaks, not for the lines of a ledger, and of splits that are alike: what a rank needs beside saved
tensors depends on its key, and is worked out once for each.
"""

from collections.abc import Iterator

from planner.layout import Offload
from planner.memory.ledger import RankNeed, rank_need
from planner.memory.saved import activation_peaks, working_set_bytes
from planner.ranks.placement import PlacedModel, StageContents

_Key = tuple[Offload | None, int, bool, bool, tuple[StageContents, ...]]


class RankPeaks:
    """Peaks of the ranks under the splits of one point."""

    def __init__(self) -> None:
        self._known: dict[_Key, RankNeed] = {}

    def of_all(self, placed: PlacedModel) -> Iterator[int]:
        """Yield the peak of each pipeline rank, one after the other, lowest rank first."""
        for rank, activation_bytes in enumerate(activation_peaks(placed)):
            yield self._peak(placed, rank, activation_bytes)

    def of_rank(self, placed: PlacedModel, rank: int) -> int:
        """Return the peak of one pipeline rank."""
        (activation_bytes,) = activation_peaks(placed, rank=rank)
        return self._peak(placed, rank, activation_bytes)

    def _peak(self, placed: PlacedModel, rank: int, activation_bytes: int) -> int:
        """Return the peak of a rank; ranks of equal stages differ only where the first and the last one do."""
        layout = placed.layout
        contents = sorted(placed.rank_model.contents(stage) for stage in layout.chunks(rank))
        working = working_set_bytes(placed, rank) if layout.recompute.is_per_layer else 0
        key = (layout.offload, working, rank == 0, rank == layout.pp - 1, tuple(contents))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = rank_need(placed, rank)
        return found.peak_bytes(activation_bytes)
