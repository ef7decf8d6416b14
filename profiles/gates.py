"""Which measured rows are no kernel times: gates that a profile's rows pass before they are kept.

A benchmark that starts one kernel from Python per turn measures the host where the kernel is shorter than its launch:
all small shapes take the same, far longer than the GPU needs. A row that takes several times as long as every shape
around it met another program on the machine.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from profiles.tables import Implementation, Shape, TableKind, TableRow, TableSpec

LONGEST_LAUNCH_US = 30.0
"""A floor above this is the host's: starting one kernel takes it 3 to 15 us (`profiles.constants`)."""

HIDDEN_FACTOR = 2.0
"""A kernel that needs less than the floor over this is hidden by its launch."""

FLOOR_QUANTILE = 0.05

SPIKE_FACTOR = 3.0
"""A residual this many times that of every shape around it is interference."""

AROUND = 8
"""Nearest shapes that a row is held against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gated:
    """Rows sorted by whether they are kernel times.

    Args:
        kept: Rows that are.
        rejected: Rows that are not, each with the reason.
        floors_us: Host floors found, by implementation.
    """

    kept: tuple[TableRow, ...]
    rejected: tuple[tuple[TableRow, str], ...]
    floors_us: dict[Implementation, float]


def gated(spec: TableSpec, rows: Sequence[TableRow], analytic_seconds: Callable[[Shape], float]) -> Gated:
    """Return which rows of one table are kernel times.

    Args:
        spec: The kind of table.
        rows: Its rows.
        analytic_seconds: Price of one shape.
    """
    groups: dict[tuple[tuple[str, ...], Implementation], list[TableRow]] = defaultdict(list)
    for row in rows:
        groups[row.shape.words, row.implementation].append(row)
    kept: list[TableRow] = []
    rejected: list[tuple[TableRow, str]] = []
    floors: dict[Implementation, float] = {}
    for (_, implementation), group in groups.items():
        needed = [analytic_seconds(row.shape) * 1e6 for row in group]
        floor = float(np.quantile([row.latency_us for row in group], FLOOR_QUANTILE))
        hosted = spec.kind is TableKind.GEMM and floor > LONGEST_LAUNCH_US
        remaining = []
        for row, needed_us in zip(group, needed, strict=True):
            if hosted and needed_us < floor / HIDDEN_FACTOR and row.latency_us < HIDDEN_FACTOR * floor:
                reason = f"host launch: no {row.implementation.text} row is below {floor:.0f} us, whatever its size"
                rejected.append((row, reason))
            else:
                remaining.append((row, needed_us))
        if hosted:
            floors[implementation] = floor
        for row, factor in _spikes(spec, remaining):
            if factor > SPIKE_FACTOR:
                rejected.append((row, f"interference: {factor:.0f} times every shape around it"))
            else:
                kept.append(row)
    return Gated(kept=tuple(kept), rejected=tuple(rejected), floors_us=floors)


def _spikes(spec: TableSpec, rows: Sequence[tuple[TableRow, float]]) -> list[tuple[TableRow, float]]:
    """Return rows with what their residual is over the largest of the nearest rows'."""
    if len(rows) <= AROUND:
        return [(row, 1.0) for row, _ in rows]
    residuals = [math.log(row.latency_us / needed_us) for row, needed_us in rows]
    places_PA = np.array([spec.coordinates(row.shape) for row, _ in rows])
    nearest_PN = np.asarray(KDTree(places_PA).query(places_PA, k=AROUND + 1)[1])
    return [
        (row, math.exp(residual - max(residuals[index] for index in nearest if index != position)))
        for position, ((row, _), residual, nearest) in enumerate(zip(rows, residuals, nearest_PN.tolist(), strict=True))
    ]
