"""What a profile says of the kernels of an engine, as factors on what they are priced at without it.

    price in the engine = its own price * exp(residual),   residual = log(measured / own price of the kernel alone)

interpolated between measured shapes of a kind (`profiles.residuals`), as for training. A shape that was measured has
its measured time, less what the engine hides of a kernel's start, times what its kernels take over a burst; beyond what
was measured a residual fades, and the engine's own price is left.

To say how much of a step is measured, the same prices are added up once more with everything left out that comes from
elsewhere (`only`).

Axes: P shapes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from planner.arrays import FloatArray
from profiles.estimate import Source
from profiles.hardware import Cluster
from profiles.profiled import has_residuals
from profiles.recorded import recording_of
from profiles.residuals import Query, ResidualTable
from profiles.served_kernels import ServedKernel
from profiles.served_rows import ServedRows, served_rows
from profiles.tables import Implementation, Shape, TableRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What a profile says of some kernels.

    Args:
        factor_P: On their own prices.
        part_P: 1 where the price counts, 0 where only those of another source do.
    """

    factor_P: FloatArray
    part_P: FloatArray

    @property
    def counted_P(self) -> FloatArray:
        """Return the factors of the prices that count, 0 elsewhere."""
        counted_P: FloatArray = self.factor_P * self.part_P
        return counted_P


def unmeasured(count: int) -> Factors:
    """Return what is said of so many kernels that were not measured."""
    return Factors(factor_P=np.ones(count), part_P=np.ones(count))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """Kernels of which a profile is asked.

    Args:
        kernel: Which kernel.
        shapes: Its shapes.
        own_seconds_P: What each takes alone, by the engine's own prices.
        reference: The same on the measured GPU, for its rows; one for each kernel and engine.
        engine: Whose own price it is, where engines differ.
        stands_in: What was measured is another kernel that does as much.
    """

    kernel: ServedKernel
    shapes: Sequence[Shape]
    own_seconds_P: FloatArray
    reference: Callable[[Shape], float]
    engine: str = ""
    stands_in: bool = False


class _Tables:
    """The tables of one profile and what was read off them, by kernel and engine."""

    def __init__(self) -> None:
        self.tables: dict[tuple[ServedKernel, str], ResidualTable | None] = {}
        self.found: dict[tuple[ServedKernel, str, Shape, float], tuple[float, Source]] = {}


class Measured:
    """A profile beside the prices of one engine.

    Args:
        rows: What was measured.
        only: Prices of this source count and all others are 0; None counts everything.
        tables: What was read off the profile so far.
    """

    def __init__(self, rows: ServedRows, *, only: Source | None = None, tables: "_Tables | None" = None) -> None:
        self.rows = rows
        self.only = only
        self._tables = _Tables() if tables is None else tables

    def counting(self, source: Source) -> "Measured":
        """Return the same where only prices of a source count."""
        return Measured(self.rows, only=source, tables=self._tables)

    @property
    def rest(self) -> float:
        """Return the factor of prices that no profile knows."""
        return 1.0 if self.only is None else 0.0

    def factors(self, asked: Asked) -> Factors:
        """Return what the profile says of kernels; 1, and analytic, where nothing of their kind was measured."""
        found = self._found(asked)
        source = [Source.ASSUMED if asked.stands_in and of is not Source.ANALYTIC else of for _, of in found]
        counts = [self.only in {None, of} for of in source]
        return Factors(
            factor_P=np.array([factor for factor, _ in found], dtype=np.float64),
            part_P=np.array(counts, dtype=np.float64),
        )

    def _found(self, asked: Asked) -> list[tuple[float, Source]]:
        known = self._tables.found
        of = (asked.kernel, asked.engine)
        keys = [(*of, *key) for key in zip(asked.shapes, asked.own_seconds_P.tolist(), strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        table = self._table(of, asked.reference) if new else None
        if table is None:
            known |= dict.fromkeys(new, (1.0, Source.ANALYTIC))
        else:
            queries = [
                Query(shape=shape, implementation=Implementation(), analytic_seconds=seconds)
                for *_, shape, seconds in new
            ]
            for key, estimate in zip(new, table.estimates(queries), strict=True):
                if estimate is None:
                    known[key] = (1.0, Source.ANALYTIC)
                else:
                    known[key] = (estimate.seconds / key[-1], estimate.source if self.rows.is_own else Source.ASSUMED)
        return [known[key] for key in keys]

    def _table(self, of: tuple[ServedKernel, str], reference: Callable[[Shape], float]) -> ResidualTable | None:
        tables, (kernel, _) = self._tables.tables, of
        if of not in tables:
            name = Implementation(framework=self.rows.software)
            rows = [
                TableRow(shape=shape, latency_us=1e6 * seconds, samples=None, implementation=name)
                for shape, seconds in self.rows.of(kernel).items()
            ]
            tables[of] = (
                ResidualTable(kernel.family, rows, reference, name=self.rows.name, residuals_only=not self.rows.is_own)
                if rows
                else None
            )
        return tables[of]


def measured_on(cluster: Cluster) -> Measured | None:
    """Return what the profile of a cluster says of engines; None without one of its GPU or one with the same chip.

    Raises:
        profiles.errors.ProfileFileError: The profile cannot be read, or has changed.
    """
    if cluster.profile is None:
        return None
    recording = recording_of(cluster.profile)
    return Measured(served_rows(recording, cluster)) if has_residuals(recording, cluster.device) else None
