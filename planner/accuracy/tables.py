"""Which measured rows predictions of kernels rest on: shipped tables, a user's, none, or the other rows of a file."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from profiles.errors import CoverageError
from profiles.gates import gated
from profiles.hardware import Cluster
from profiles.measured import KernelCosts, MeasuredKernels, measured_by, shipped_kernels
from profiles.profile import Profile
from profiles.tables import SPECS, Implementation, Shape, TableKind, TableRow

Measured = tuple[Shape, Implementation, float | None]


class Basis(StrEnum):
    """What predictions of kernels rest on."""

    TABLES = "tables"
    """Measured tables; a shape that they hold returns its measured time."""
    SURFACE = "surface"
    """Analytic models alone."""
    LEFT_OUT = "left-out"
    """Each part of the rows by tables made of the others."""
    NODES_LEFT_OUT = "nodes-left-out"
    """Collectives over each number of nodes by tables made of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Which measured rows predictions may rest on.

    Args:
        basis: What predictions rest on.
        profile: A user's profile instead of the shipped ones; None for those.
        parts: Parts that rows are dealt to, with a basis of left-out rows.
    """

    basis: Basis = Basis.TABLES
    profile: Profile | None = None
    parts: int = 0

    @property
    def text(self) -> str:
        """Return what predictions rest on, as output says it."""
        match self.basis:
            case Basis.SURFACE:
                return "analytic models alone, no measured table"
            case Basis.LEFT_OUT:
                return f"left out: each of {self.parts} parts predicted by tables of the others, equal shapes together"
            case Basis.NODES_LEFT_OUT:
                return "nodes left out: each number of nodes predicted by tables of the others, of the same system"
            case Basis.TABLES:
                return "the shipped tables" if self.profile is None else f"the tables of {self.profile.name}"

    def folds(
        self, cluster: Cluster, kind: TableKind, rows: Sequence[Measured]
    ) -> Iterator[tuple[list[int], MeasuredKernels | None]]:
        """Return the places of rows that the same tables predict, with those tables.

        Args:
            cluster: Where all rows ran.
            kind: Their kind.
            rows: What ran, by whom, and its microseconds.
        """
        everything = list(range(len(rows)))
        if self.basis is Basis.SURFACE:
            yield everything, None
        elif self.basis is Basis.TABLES:
            shipped = shipped_kernels(cluster.device) if self.profile is None else measured_by(self.profile)
            yield everything, shipped
        else:
            parts = [self._part(shape, cluster) for shape, _, _ in rows]
            for part in sorted(set(parts)):
                asked = [index for index in everything if parts[index] == part]
                kept = [rows[index] for index in everything if parts[index] != part]
                yield asked, _table_of(cluster, kind, kept)

    def _part(self, shape: Shape, cluster: Cluster) -> int:
        """Return which part a row belongs to: its number of nodes, or one that depends on its shape alone.

        The latter is the same for every format and whoever ran it, and scattered over shapes.
        """
        if self.basis is Basis.NODES_LEFT_OUT:
            num_gpus, _ = shape.sizes
            return -(-num_gpus // cluster.gpus_per_node)
        return zlib.crc32(repr(shape.sizes).encode()) % self.parts


def _table_of(cluster: Cluster, kind: TableKind, rows: Sequence[Measured]) -> MeasuredKernels:
    """Return measured rows as a table, those that are no kernel times left out."""
    costs = KernelCosts(cluster, None)
    priced: dict[Shape, float] = {}
    for shape in dict.fromkeys(shape for shape, _, _ in rows):
        with suppress(ValueError, CoverageError):  # such a row is refused where it is predicted
            priced[shape] = costs.query(kind, shape, Implementation()).analytic_seconds
    measured = [
        TableRow(shape=shape, latency_us=latency_us, samples=None, implementation=implementation)
        for shape, implementation, latency_us in rows
        if latency_us and shape in priced
    ]
    found = gated(SPECS[kind], measured, lambda shape: priced[shape])
    tables = {kind: found.kept}
    return MeasuredKernels(
        device=cluster.device,
        rows=lambda wanted: tables.get(wanted, ()),
        floors_us=found.floors_us,
        gpus_per_node=cluster.gpus_per_node,
        name="the other rows",
    )
