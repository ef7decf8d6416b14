"""Interleaved points of a space: in what order they are worth a look, and what no split of them undercuts.

A point stands for the split that is as even as the layers allow; the others are not searched to the end. What is said
here holds of every split that fits, even or not.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from planner.arrays import FloatArray
from planner.layout import Layout
from planner.search.bounds.costs import Bounds, Rooms
from planner.search.space.points import Points
from planner.search.splits.candidates import PointBound, Pricer, layout_at
from planner.search.splits.uneven import least_seconds

BLOCK = 32
"""Points whose rooms are worked out together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interleaved:
    """Interleaved points with their bounds.

    Args:
        points: The points.
        bounds: Their bounds, in the same order.
    """

    points: Points
    bounds: Bounds
    _rooms: dict[int, Rooms] = field(default_factory=dict)

    @property
    def any_split_seconds_X(self) -> FloatArray:
        """Return a step time that no split of each point undercuts that fits."""
        total_X: FloatArray = self.bounds.any_split_seconds_X + self.bounds.tail_seconds_X
        return total_X

    def layout(self, pricer: Pricer, index: int) -> Layout:
        """Return one point, its layers not placed."""
        return layout_at(self.points, index, pricer.table)

    def known(self, index: int) -> PointBound:
        """Return what the space knows of the even split of a point."""
        bounds = self.bounds
        return PointBound(
            pipeline_seconds=float(bounds.pipeline_seconds_X[index]), tail_seconds=float(bounds.tail_seconds_X[index])
        )

    def least_seconds(self, pricer: Pricer, index: int, *, ceiling_seconds: float) -> float:
        """Return a step time that no split of a point undercuts, looked for below `ceiling_seconds`."""
        of_rooms = least_seconds(
            pricer,
            self.layout(pricer, index),
            bound=self.known(index),
            ceiling_seconds=ceiling_seconds,
            rooms=self._rooms_at(pricer, index),
        )
        return max(float(self.any_split_seconds_X[index]), of_rooms)

    def _rooms_at(self, pricer: Pricer, index: int) -> Rooms:
        """Return what the ranks of a point can hold by memory, worked out for those that are likely to be next too."""
        if index not in self._rooms:
            same = np.flatnonzero(self.points.pp_X == self.points.pp_X[index])
            by_bound = same[np.argsort(self.any_split_seconds_X[same], kind="stable")].tolist()
            block = [index, *(other for other in by_bound if other != index and other not in self._rooms)][:BLOCK]
            rooms = pricer.table.layer_rooms(self.points.where(np.array(block)), limit_bytes=pricer.limit_bytes)
            self._rooms.update({of: rooms.at(position) for position, of in enumerate(block)})
        return self._rooms[index]

    def open_below(
        self,
        pricer: Pricer,
        ceiling_seconds: float,
        *,
        at_most: int,
        by_even_split: bool = False,
        only: Collection[Layout] | None = None,
    ) -> tuple[tuple[float, int], ...]:
        """Return (bound, index) of the first points of which some split may take less than `ceiling_seconds`.

        Args:
            pricer: Prices them.
            ceiling_seconds: A step that is known.
            at_most: How many.
            by_even_split: In the order of the bound of the even split, not of that of any.
            only: Points that may be returned; None for all.
        """
        any_split_X = self.any_split_seconds_X
        order = np.argsort(self.bounds.step_seconds_X if by_even_split else any_split_X, kind="stable")
        may_beat = (
            (least, index)
            for index in order[any_split_X[order] < ceiling_seconds].tolist()
            if only is None or self.layout(pricer, index) in only
            if (least := self.least_seconds(pricer, index, ceiling_seconds=ceiling_seconds)) < ceiling_seconds
        )
        return tuple(islice(may_beat, at_most))

    def roomiest(self, pricer: Pricer, *, at_most: int) -> tuple[tuple[float, int], ...]:
        """Return (bound, index) of the points whose ranks have room for most layers in any split."""
        capacity_X = pricer.table.capacity_layers_X(self.points, limit_bytes=pricer.limit_bytes, any_split=True)
        any_split_X = self.any_split_seconds_X
        return tuple(
            (float(any_split_X[index]), index) for index in np.argsort(-capacity_X, kind="stable")[:at_most].tolist()
        )


def least_of_all(groups: tuple[Interleaved, ...], pricer: Pricer, *, ceiling_seconds: float) -> float:
    """Return a step time that no split of any point undercuts; `ceiling_seconds` at most."""
    least = ceiling_seconds
    for group in groups:
        any_split_X = group.any_split_seconds_X
        for index in np.argsort(any_split_X, kind="stable").tolist():
            if any_split_X[index] >= least:
                break
            least = min(least, group.least_seconds(pricer, index, ceiling_seconds=ceiling_seconds))
    return least
