"""The largest phase of each pipeline rank, exact, under one split of a point after another.

The search asks for peaks, not for the lines of a ledger, and of splits that are alike: what a rank needs beside saved
tensors depends on its key, and is worked out once for each. So is the peak itself where all layers are treated alike,
or the stages that the rank runs say which of them are not.
"""

from planner.layout import Offload, Stage
from planner.memory.ledger import RankNeed, rank_need
from planner.memory.saved import activation_peaks, working_set_bytes
from planner.ranks.placement import PlacedModel, StageContents

_Key = tuple[Offload | None, int, bool, bool, tuple[StageContents, ...]]

_Chunks = tuple[int, Offload | None, int, tuple[Stage | StageContents, ...]]
"""A rank, what is offloaded, and the stages that it runs: what they hold, or where they stand if that matters."""


class RankPeaks:
    """Peaks of the ranks under the splits of one point."""

    def __init__(self) -> None:
        self._known: dict[_Key, RankNeed] = {}
        self._of_chunks: dict[_Chunks, int] = {}

    def of_all(self, placed: PlacedModel) -> tuple[int, ...]:
        """Return the peak of each pipeline rank, lowest rank first."""
        layout = placed.layout
        if layout.recompute.is_per_layer:
            return tuple(self._peak(placed, rank, num_bytes) for rank, num_bytes in enumerate(activation_peaks(placed)))
        chunks_R = [_chunks(placed, rank) for rank in range(layout.pp)]
        left = [rank for rank, chunks in enumerate(chunks_R) if chunks not in self._of_chunks]
        activation_bytes_R = activation_peaks(placed) if len(left) > 1 else ()
        for rank in left:
            (num_bytes,) = activation_bytes_R[rank : rank + 1] or activation_peaks(placed, rank=rank)
            self._of_chunks[chunks_R[rank]] = self._peak(placed, rank, num_bytes)
        return tuple(self._of_chunks[chunks] for chunks in chunks_R)

    def of_rank(self, placed: PlacedModel, rank: int) -> int:
        """Return the peak of one pipeline rank."""
        chunks = None if placed.layout.recompute.is_per_layer else _chunks(placed, rank)
        found = None if chunks is None else self._of_chunks.get(chunks)
        if found is None:
            (activation_bytes,) = activation_peaks(placed, rank=rank)
            found = self._peak(placed, rank, activation_bytes)
            if chunks is not None:
                self._of_chunks[chunks] = found
        return found

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


def _chunks(placed: PlacedModel, rank: int) -> _Chunks:
    """Return what decides the peak of a rank where no layer has a recompute choice of its own."""
    layout, rank_model = placed.layout, placed.rank_model
    first_differ = layout.recompute.num_layers is not None and rank_model.chain.num_kinds > 1
    chunks: tuple[Stage | StageContents, ...] = layout.chunks(rank)
    if not (first_differ or layout.offloaded_layers or layout.offloaded_modules):
        chunks = tuple(map(rank_model.contents, layout.chunks(rank)))
    return rank, layout.offload, layout.offloaded_layers, chunks
