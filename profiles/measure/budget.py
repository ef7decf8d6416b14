"""Which point is measured next: where the planner's interpolation between what is known is worst, and most rides on it.

Points of a group lie at the logarithms of their sizes. Of a group g with measured points M, the error of interpolating
at a point p is taken as roughness(g) x distance(p, M), in octaves: residuals log(seconds / work) of neighbours differ
by `roughness` an octave, which is learned from the group's own measured points (the mean over them of what the residual
of the nearest other one misses, over the distance) and starts at `PRIOR`. The next point has the largest

    weight(p) x roughness(g) x distance(p, M),

a group without any point the distance `FAR`. Ties go to the point that comes first in the request. Without a budget
every point is measured and only the order depends on this.

Legend of axes: P points of the request, A sizes of one group.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from profiles.measure.points import Point, Wanted

FloatArray = NDArray[np.float64]

PRIOR = 0.1
"""What residuals of neighbours an octave apart differ by, before anything is known: about 10 %."""

FAR = 40.0
"""Octaves from a group's points while it has none: farther than any two sizes of a grid lie apart."""

LEARNED_FROM = 4
"""Measured points from which a group's roughness is its own."""


def places_PA(points: Sequence[Point]) -> FloatArray:
    """Return where points of one group lie."""
    return np.log2(np.maximum(np.array([point.sizes for point in points], dtype=np.float64), 0.5))


def work_of(point: Point) -> float:
    """Return a measure of a point's work, up to a factor: with it residuals of a group are nearly flat."""
    size = {name: float(point.size(name)) for name in _WORK.get(point.suite, ())}
    return max(1.0, math.prod(size.values()))


_WORK: Mapping[str, tuple[str, ...]] = {
    "gemm": ("batch", "m", "n", "k"),
    "experts": ("batch", "m", "n", "k"),
    "attention": ("batch", "query_len", "kv_len", "heads"),
    "elementwise": ("rows", "features"),
    "collectives": ("bytes",),
    "copies": ("bytes",),
    "layer": ("batch", "tokens", "hidden", "hidden"),
}


class _Group:
    """The points of one group.

    Args:
        indices: Their places in the request.
        points: The points.
        weights_P: What rides on each.
    """

    def __init__(self, indices: Sequence[int], points: Sequence[Point], weights_P: FloatArray) -> None:
        self._indices = indices
        self._position = {point: position for position, point in enumerate(points)}
        self._points = points
        self._places_PA = places_PA(points)
        self._weights_P = weights_P
        self._distance_P = np.full(len(points), FAR)
        self._open_P = np.ones(len(points), dtype=bool)
        self._known_places: list[FloatArray] = []
        self._residuals: list[float] = []
        self._misses: list[float] = []

    def __contains__(self, point: Point) -> bool:
        return point in self._position

    def close(self, point: Point) -> None:
        """Take a point off the list."""
        if point in self._position:
            self._open_P[self._position[point]] = False

    def learn(self, point: Point, seconds: float) -> None:
        """Take note of a measured point, which may be none of the request."""
        place = places_PA([point])[0]
        residual = math.log(seconds / work_of(point))
        if self._known_places:
            apart = np.abs(np.array(self._known_places) - place).sum(axis=1)
            nearest = int(apart.argmin())
            if apart[nearest] > 0:
                self._misses.append(abs(residual - self._residuals[nearest]) / float(apart[nearest]))
        self._known_places.append(place)
        self._residuals.append(residual)
        self._distance_P = np.minimum(self._distance_P, np.abs(self._places_PA - place).sum(axis=1))

    @property
    def roughness(self) -> float:
        """Return by how much residuals of neighbours differ, an octave apart."""
        if len(self._misses) < LEARNED_FROM:
            return PRIOR
        return float(np.mean(self._misses))

    def best(self) -> tuple[float, int] | None:
        """Return the score and the place in the request of the point to measure next; None where none is left."""
        if not self._open_P.any():
            return None
        score_P = np.where(self._open_P, self._weights_P * self._distance_P, -1.0)
        position = int(score_P.argmax())
        return float(score_P[position]) * self.roughness, self._indices[position]


class Chooser:
    """Says which point of a request comes next; see the module's docstring.

    Args:
        wanted: The request.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = wanted
        by_group: dict[tuple[str, ...], list[int]] = {}
        for index, entry in enumerate(wanted):
            by_group.setdefault(entry.point.group, []).append(index)
        self._groups = {
            name: _Group(
                indices,
                [wanted[index].point for index in indices],
                np.array([wanted[index].weight for index in indices], dtype=np.float64),
            )
            for name, indices in by_group.items()
        }

    def close(self, point: Point) -> None:
        """Take a point off the list: it is done, or cannot be measured."""
        group = self._groups.get(point.group)
        if group is not None:
            group.close(point)

    def learn(self, point: Point, seconds: float) -> None:
        """Take note of what a point took."""
        group = self._groups.get(point.group)
        if group is not None:
            group.learn(point, seconds)

    def next(self) -> int | None:
        """Return the place in the request of the point to measure next; None where all are done."""
        best: tuple[float, int] | None = None
        for group in self._groups.values():
            found = group.best()
            if found is not None and (best is None or (found[0], -found[1]) > (best[0], -best[1])):
                best = found
        return None if best is None else best[1]
