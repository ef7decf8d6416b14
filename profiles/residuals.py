"""What measured kernels say beyond their analytic price, interpolated.

seconds = analytic(shape) * exp(residual), with residual = log(measured / analytic) interpolated between measured shapes
by linear radial basis functions over the nearest of them (Wendland, Scattered Data Approximation, 2005, chapter 8). The
analytic price carries tiles, waves and bandwidth; the residual is smooth. A measured shape returns its measured time.
Outside of what was measured the residual of the nearest edge fades with distance: it is never extrapolated.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import KDTree

from profiles.estimate import Estimate, Source
from profiles.tables import Implementation, Shape, TableRow

FloatArray = NDArray[np.float64]

NEIGHBOURS = 40
"""Measured shapes that one interpolation sees."""

REACH = 4.0
"""Weighted octaves from the nearest measured shape within which a residual counts in full."""

HALF_LIFE = 4.0
"""Weighted octaves beyond that over which it falls to half."""

ROUNDING = 1e-9
"""Octaves below which a shape lies on the edge."""


class Places(Protocol):
    """How the shapes of a table lie; `profiles.tables.TableSpec` is one."""

    @property
    def coordinates(self) -> Callable[[Shape], tuple[float, ...]]:
        """Return where a shape lies, in octaves, weighted by how fast residuals change along each."""
        ...

    @property
    def words_apart(self) -> Callable[[tuple[str, ...], tuple[str, ...]], float | None]:
        """Return how unlike two rows' words are whose residuals stand in for one another; None where they do not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One shape to be priced.

    Args:
        shape: The shape.
        implementation: Who runs it, as far as it is said.
        analytic_seconds: Its analytic price.
    """

    shape: Shape
    implementation: Implementation
    analytic_seconds: float


class ResidualTable:
    """The rows of one kind of table on one GPU.

    Args:
        spec: How its shapes lie.
        rows: Measured rows.
        analytic_seconds: Price of one shape.
        name: Where the rows come from, for notes.
        residuals_only: Measured shapes are not answered with their times, which are another GPU's.
    """

    def __init__(
        self,
        spec: Places,
        rows: Iterable[TableRow],
        analytic_seconds: Callable[[Shape], float],
        *,
        name: str,
        residuals_only: bool = False,
    ) -> None:
        self.spec = spec
        self.name = name
        self._residuals_only = residuals_only
        self._analytic_seconds = analytic_seconds
        self._by_words: dict[tuple[str, ...], dict[Implementation, dict[tuple[int, ...], float]]] = {}
        for row in rows:
            least = self._by_words.setdefault(row.shape.words, {}).setdefault(row.implementation, {})
            sizes = row.shape.sizes
            # Repeated rows: what disturbs a kernel only adds to its time.
            least[sizes] = min(row.seconds, least.get(sizes, math.inf))
        self._pools: dict[tuple[tuple[str, ...], Implementation], _Pool] = {}

    def estimates(self, queries: Sequence[Query]) -> tuple[Estimate | None, ...]:
        """Return the price of every query; None where its formats were not measured at all."""
        found: dict[int, Estimate] = {}
        waiting: dict[tuple[tuple[str, ...], Implementation], list[int]] = defaultdict(list)
        for index, query in enumerate(queries):
            words = self._measured_words(query.shape.words)
            if words is None:
                continue
            measured = self._by_words[words]
            chosen = nearest_implementation(measured, query.implementation)
            seconds = measured[chosen].get(query.shape.sizes)
            if seconds is None or self._residuals_only or words != query.shape.words:
                waiting[words, chosen].append(index)
            else:
                found[index] = Estimate(
                    seconds=seconds, source=Source.MEASURED, note=f"measured: {chosen.text}, {self.name}"
                )
        for (words, chosen), indices in waiting.items():
            asked = [queries[index] for index in indices]
            found |= zip(indices, self._interpolated(words, chosen, asked), strict=True)
        return tuple(found.get(index) for index in range(len(queries)))

    def _measured_words(self, words: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the measured words whose residuals stand for others, itself first; None where none do."""
        if words in self._by_words:
            return words
        apart = {candidate: self.spec.words_apart(words, candidate) for candidate in sorted(self._by_words)}
        alike = {candidate: distance for candidate, distance in apart.items() if distance is not None}
        return min(alike, key=lambda candidate: alike[candidate], default=None)

    def _interpolated(
        self, words: tuple[str, ...], chosen: Implementation, queries: Sequence[Query]
    ) -> tuple[Estimate, ...]:
        residual_P, outside_P = self._pool(words, chosen).residuals([query.shape for query in queries])
        return tuple(
            self._estimate(query, words, chosen, residual=residual, outside=outside)
            for query, residual, outside in zip(queries, residual_P.tolist(), outside_P.tolist(), strict=True)
        )

    def _estimate(
        self, query: Query, words: tuple[str, ...], chosen: Implementation, *, residual: float, outside: float
    ) -> Estimate:
        note = f"analytic price times the residual of {chosen.text}, {self.name}"
        source = Source.INTERPOLATED
        if outside:
            note += f", faded over {outside:.1f} octaves beyond what was measured"
            source = Source.EXTRAPOLATED
        if words != query.shape.words:
            note += f", measured with {', '.join(words)}"
            source = Source.ASSUMED
        return Estimate(seconds=query.analytic_seconds * math.exp(residual), source=source, note=note)

    def _pool(self, words: tuple[str, ...], chosen: Implementation) -> "_Pool":
        """Return the rows of one implementation that a query of these words is interpolated between."""
        key = (words, chosen)
        if key not in self._pools:
            seconds = {
                Shape(words=words, sizes=sizes): seconds for sizes, seconds in self._by_words[words][chosen].items()
            }
            self._pools[key] = _Pool(self.spec, seconds, self._analytic_seconds)
        return self._pools[key]


def nearest_implementation(
    measured: Mapping[Implementation, Mapping[tuple[int, ...], float]], wanted: Implementation
) -> Implementation:
    """Return the measured implementation that is most like another one.

    The framework counts most, then the kernel, then the version; among equals the one with most rows, then by name.
    """

    def likeness(candidate: Implementation) -> tuple[bool, bool, bool, int, tuple[int, ...]]:
        return (
            candidate.framework == wanted.framework != "",
            candidate.kernel_source == wanted.kernel_source != "",
            candidate.version == wanted.version != "",
            len(measured[candidate]),
            tuple(-ord(letter) for letter in candidate.text),
        )

    return max(measured, key=likeness)


def _one_a_place(places_PA: FloatArray, residual_P: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return every place once, with the mean of its residuals: two at one place have no interpolation."""
    distinct_PA, place_P = np.unique(places_PA, axis=0, return_inverse=True)
    if len(distinct_PA) == len(places_PA):
        return places_PA, residual_P
    place_P = place_P.reshape(-1)
    return distinct_PA, np.bincount(place_P, weights=residual_P) / np.bincount(place_P)


class _Pool:
    """Rows of one implementation with the same words, between which residuals are interpolated.

    Args:
        spec: How their shapes lie.
        measured: Seconds by shape.
        analytic_seconds: Price of one shape.
    """

    def __init__(
        self, spec: Places, measured: Mapping[Shape, float], analytic_seconds: Callable[[Shape], float]
    ) -> None:
        self._spec = spec
        places_PA = np.array([spec.coordinates(shape) for shape in measured])
        residual_P = np.array([math.log(seconds / analytic_seconds(shape)) for shape, seconds in measured.items()])
        places_PA, residual_P = _one_a_place(places_PA, residual_P)
        self._low_A, self._high_A = places_PA.min(axis=0), places_PA.max(axis=0)
        self._tree = KDTree(places_PA)
        self._interpolate = RBFInterpolator(
            places_PA, residual_P, neighbors=min(NEIGHBOURS, len(residual_P)), kernel="linear", degree=0
        )

    def residuals(self, shapes: Sequence[Shape]) -> tuple[FloatArray, FloatArray]:
        """Return the residual of each shape, and by how many octaves it lies outside of what was measured."""
        asked_PA = np.array([self._spec.coordinates(shape) for shape in shapes])
        edge_PA = np.clip(asked_PA, self._low_A, self._high_A)
        beyond_P = np.abs(asked_PA - edge_PA).sum(axis=1)
        distance_P, _ = self._tree.query(edge_PA)
        outside_P = np.where(beyond_P > ROUNDING, beyond_P, 0.0) + np.maximum(0.0, distance_P - REACH)
        return self._interpolate(edge_PA) * 0.5 ** (outside_P / HALF_LIFE), outside_P
