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


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured figure that a gate judges.

    Args:
        name: What was measured; equal names are the same thing measured again.
        group: What it shares with the rows that it is held against.
        backend: The same name in every way of running it; rows of one are held against each other.
        places: Where it lies among its group, in octaves.
        sizes: Its sizes; a row with none smaller is no less work.
        seconds: What was measured.
        least_seconds: No faster by the datasheet; 0 where nothing is known.
        expected_seconds: By the analytic model, or a measure of its work; residuals are over this.
        is_priced: The expectation is the analytic model's.
        work: A measure of its work.
        line: Where it stands.
    """

    name: str
    group: tuple[str, ...]
    backend: tuple[object, ...]
    places: tuple[float, ...]
    sizes: tuple[int, ...]
    seconds: float
    least_seconds: float
    expected_seconds: float
    is_priced: bool
    work: float
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Excluded:
    """A row that planning leaves out.

    Args:
        row: The row.
        fault: What kind of fault it has.
        reason: What is wrong with it.
    """

    row: Row
    fault: str
    reason: str


ROOFLINE_TOLERANCE = 0.97
"""A row below this part of the least time is faster than the datasheet allows: a boosted clock adds less than 3 %."""

LEAST_PLATEAU = 4
"""Rows that make a plateau at least."""

PLATEAU_WIDTH = 1.1
"""Rows within this factor of the fastest are equally fast."""

PLATEAU_WORK = 4.0
"""Their work spans at least this factor: less may be chance."""

NOT_MONOTONE = 1.5
"""More work that takes less time by this factor is no effect of tiles and waves: those make a third at most."""

UNITS = (1e3, 1e6, 1e-3, 1e-6)
UNIT_TOLERANCE = 1.6
"""A factor from the neighbours within this of a power of a thousand is a unit, most likely."""


def judged(rows: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[Excluded, ...]]:
    """Return which rows planning may use, in their order, and which not, each with one reason.

    The gates stand in an order in which an earlier one explains most: the same thing measured again (the last
    counts), faster than the roofline, flat plateaus below which nothing gets cheaper, far from another backend, far
    from every neighbour, and more work in less time. What one gate takes out the next does not see, so that one bad
    row makes no other look bad.
    """
    excluded: list[Excluded] = []
    kept = list(rows)
    for gate in (_repeated, _too_fast, _plateaus, _backends, _strays, _not_monotone):
        found = gate(kept)
        excluded += found
        gone = {id(entry.row) for entry in found}
        kept = [row for row in kept if id(row) not in gone]
    return tuple(kept), tuple(sorted(excluded, key=lambda entry: entry.row.line))


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us"


def _repeated(rows: Sequence[Row]) -> list[Excluded]:
    last = {row.name: row for row in rows}
    return [
        Excluded(row=row, fault="duplicate", reason=f"measured again at line {last[row.name].line}")
        for row in rows
        if last[row.name] is not row
    ]


def _too_fast(rows: Sequence[Row]) -> list[Excluded]:
    return [
        Excluded(
            row=row,
            fault="faster than the roofline",
            reason=f"takes {_us(row.seconds)}, the datasheet allows no less than {_us(row.least_seconds)}",
        )
        for row in rows
        if row.seconds < ROOFLINE_TOLERANCE * row.least_seconds
    ]


def _by_group(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    return list(groups.values())


def _plateaus(rows: Sequence[Row]) -> list[Excluded]:
    """Return rows whose kernel is hidden: equally fast whatever the work, and far slower than the work needs."""
    found = []
    for group in _by_group([row for row in rows if row.is_priced]):
        floor = min(row.seconds for row in group)
        hidden = [
            row
            for row in group
            if row.seconds <= PLATEAU_WIDTH * floor and row.seconds > HIDDEN_FACTOR * row.expected_seconds
        ]
        if len(hidden) < LEAST_PLATEAU:
            continue
        work = [row.work for row in hidden]
        if max(work) < PLATEAU_WORK * min(work):
            continue
        reason = f"{len(hidden)} rows of unlike work all take about {_us(floor)}: the host's launch hides them"
        found += [Excluded(row=row, fault="flat plateau", reason=reason) for row in hidden]
    return found


def _backends(rows: Sequence[Row]) -> list[Excluded]:
    """Return rows that take several times as long as the same work run in another way."""
    best: dict[tuple[object, ...], Row] = {}
    for row in rows:
        if row.backend not in best or row.seconds < best[row.backend].seconds:
            best[row.backend] = row
    return [
        Excluded(
            row=row,
            fault="far from another backend",
            reason=f"takes {row.seconds / best[row.backend].seconds:.3g} times as long as {best[row.backend].name}",
        )
        for row in rows
        if row.seconds > SPIKE_FACTOR * best[row.backend].seconds
    ]


def _strays(rows: Sequence[Row]) -> list[Excluded]:
    """Return rows far from what their neighbours say, the farthest first and each judged without the ones before.

    Only rows with a price are held so: over a measure of work alone short kernels look slow.
    """
    found = []
    for group in _by_group([row for row in rows if row.is_priced]):
        kept = list(group)
        while len(kept) > 2:
            apart = _from_neighbours(kept)
            worst = max(range(len(kept)), key=lambda index: abs(apart[index]))
            if abs(apart[worst]) <= math.log(SPIKE_FACTOR):
                break
            found.append(_stray(kept.pop(worst), math.exp(apart[worst])))
    return found


def _stray(row: Row, factor: float) -> Excluded:
    unit = next((unit for unit in UNITS if unit / UNIT_TOLERANCE < factor < unit * UNIT_TOLERANCE), None)
    told = f"{factor:.3g} times what its neighbours say"
    if unit is not None:
        return Excluded(row=row, fault="swapped unit", reason=f"{told}: its unit may be another")
    return Excluded(row=row, fault="far from its neighbours", reason=told)


def _from_neighbours(rows: Sequence[Row]) -> list[float]:
    """Return by how much each row's residual differs from the median of those of the nearest rows around it."""
    residual_P = np.array([math.log(row.seconds / row.expected_seconds) for row in rows])
    places_PA = np.array([row.places for row in rows])
    count = min(AROUND + 1, len(rows))
    nearest_PN = np.asarray(KDTree(places_PA).query(places_PA, k=count)[1])
    return [
        float(residual_P[position] - np.median([residual_P[index] for index in nearest if index != position]))
        for position, nearest in enumerate(nearest_PN.tolist())
    ]


def _not_monotone(rows: Sequence[Row]) -> list[Excluded]:
    """Return rows that take less time than rows of less work: of two the one that its neighbours speak against."""
    found = []
    for group in _by_group(rows):
        if len(group) < 2:
            continue
        apart = _from_neighbours(group)
        sizes_PA = np.array([row.sizes for row in group], dtype=np.float64)
        seconds_P = np.array([row.seconds for row in group])
        gone: set[int] = set()
        order = sorted(range(len(group)), key=lambda index: -abs(apart[index]))
        for index in order:
            above_P = (sizes_PA >= sizes_PA[index]).all(axis=1) & (seconds_P * NOT_MONOTONE < seconds_P[index])
            below_P = (sizes_PA <= sizes_PA[index]).all(axis=1) & (seconds_P > NOT_MONOTONE * seconds_P[index])
            others = [int(other) for other in np.flatnonzero(above_P | below_P) if int(other) not in gone]
            if not others:
                continue
            gone.add(index)
            other = group[others[0]]
            found.append(
                Excluded(
                    row=group[index],
                    fault="not monotone",
                    reason=f"takes {_us(group[index].seconds)}, and {other.name} takes {_us(other.seconds)}",
                )
            )
    return found
