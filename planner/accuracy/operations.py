"""Predictions of single operations: kernels on one GPU and collectives, in a burst as benchmarks run them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.accuracy.kernel_rows import COLLECTIVES, KernelRow, kernel_row
from planner.accuracy.machines import nodes_named
from planner.accuracy.measurements import Kind, Row
from planner.accuracy.tables import Basis, Tables
from profiles.errors import CoverageError
from profiles.estimate import Estimate, Source
from profiles.measured import KernelCosts
from profiles.ops import CollectiveKind
from profiles.residuals import Query
from profiles.tables import Implementation, Shape, TableKind

_CUSTOM = "custom:"
_UNTUNED = re.compile(r"env-config-[12]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationPrediction:
    """One measured operation beside its prediction.

    Args:
        row: The row.
        measured_us: Measured microseconds; None where the row does not say.
        predicted_us: Predicted microseconds; None with an error.
        source: Where the prediction comes from: measured, interpolated and so on; None with an error.
        note: What stands behind it.
        error: Why there is no prediction.
    """

    row: Row
    measured_us: float | None = None
    predicted_us: float | None = None
    source: str | None = None
    note: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One row that can be priced.

    Args:
        index: Its place among the rows.
        kernel: What it says.
        measured_us: Its time; None where it does not say.
    """

    index: int
    kernel: KernelRow
    measured_us: float | None


class OperationPredictor:
    """Predicts rows of one kind of operation.

    Args:
        kind: The kind.
        tables: Which measured rows predictions may rest on.
    """

    def __init__(self, kind: Kind, tables: Tables) -> None:
        self.kind = kind
        self.tables = tables

    def predict(self, rows: Sequence[Row]) -> list[OperationPrediction]:
        """Return the predictions of rows, in their order; what cannot be priced says why."""
        found: dict[int, OperationPrediction] = {}
        asked: list[_Asked] = []
        for index, row in enumerate(rows):
            try:
                measured = row.number("latency_us")
                kernel = self._kernel(row)
            except (ValueError, CoverageError) as error:
                found[index] = _refused(row, error)
            else:
                asked.append(_Asked(index=index, kernel=kernel, measured_us=measured))
        for group, costs in self._groups(asked):
            found |= _predicted(rows, group, costs)
        return [found[index] for index in range(len(rows))]

    def _kernel(self, row: Row) -> KernelRow:
        """Return a row as a profile prices it.

        Raises:
            ValueError: It cannot be priced.
        """
        match self.kind:
            case Kind.COLLECTIVES:
                found = collective_row(row)
                inside = found.shape.sizes[0] <= found.cluster.largest_inside
                if inside and self.tables.basis is Basis.NODES_LEFT_OUT:
                    raise ValueError("it ran inside a node: collectives across nodes say nothing of it")
                return found
            case Kind.MOE_EXCHANGE:
                raise ValueError(
                    f"comm_backend {row.quoted('comm_backend')}: exchanges of experts' tokens have no price"
                )
            case _:
                return kernel_row(self.kind, row)

    def _groups(self, asked: Iterable[_Asked]) -> Iterable[tuple[list[_Asked], KernelCosts]]:
        """Return rows with what prices them: one system each, and where rows are left out, one fold each."""
        by_system: dict[tuple[str, str, int], list[_Asked]] = defaultdict(list)
        for entry in asked:
            by_system[entry.kernel.system].append(entry)
        for entries in by_system.values():
            # The largest cluster of a system holds the smaller ones.
            largest = max(entries, key=lambda entry: entry.kernel.cluster.world_size)
            cluster, table = largest.kernel.cluster, largest.kernel.table
            rows = [(entry.kernel.shape, entry.kernel.implementation, entry.measured_us) for entry in entries]
            for indices, measured in self.tables.folds(cluster, table, rows):
                yield [entries[index] for index in indices], KernelCosts(cluster, measured)


def _refused(row: Row, error: Exception) -> OperationPrediction:
    return OperationPrediction(row=row, error=" ".join(str(error).split()))


def _predicted(rows: Sequence[Row], group: Iterable[_Asked], costs: KernelCosts) -> Mapping[int, OperationPrediction]:
    """Return the predictions of rows that one table prices."""
    found: dict[int, OperationPrediction] = {}
    queries: dict[int, Query] = {}
    kept: dict[int, _Asked] = {}
    for entry in group:
        kernel = entry.kernel
        try:
            queries[entry.index] = costs.query(kernel.table, kernel.shape, kernel.implementation)
        except (ValueError, CoverageError) as error:
            found[entry.index] = _refused(rows[entry.index], error)
        else:
            kept[entry.index] = entry
    if not queries:
        return found
    table = next(iter(kept.values())).kernel.table
    for (index, query), estimate in zip(queries.items(), costs.estimates(table, list(queries.values())), strict=True):
        row = rows[index]
        if estimate.source is Source.ANALYTIC and row.text("library").startswith(_CUSTOM):
            found[index] = _refused(row, ValueError(f"library {row.quoted('library')} has no table on this GPU"))
            continue
        hosted = _hosted(estimate, costs.host_floor_seconds(query.implementation))
        found[index] = OperationPrediction(
            row=row,
            measured_us=kept[index].measured_us,
            predicted_us=hosted.seconds * 1e6,
            source=hosted.source.value,
            note=hosted.note,
        )
    return found


def _hosted(estimate: Estimate, floor_seconds: float) -> Estimate:
    """Return what a benchmark shows whose host takes so long to start a kernel."""
    if estimate.seconds >= floor_seconds:
        return estimate
    note = f"the host takes {floor_seconds * 1e6:.0f} us to start this kernel; {estimate.note}"
    return replace(estimate, seconds=floor_seconds, note=note)


def collective_row(row: Row) -> KernelRow:
    """Return a row of a benchmark of collectives as a profile prices it.

    Raises:
        ValueError: A cell cannot be used, no GPU has such a name, or the run cannot be priced.
    """
    name = row.text("op").lower()
    name = COLLECTIVES.get(name, name)
    if name not in set(CollectiveKind):
        raise ValueError(f"op {row.quoted('op')} is no collective")
    library = row.text("library")
    if not re.match(r"(nccl|rccl|custom:.+|)$", library, re.IGNORECASE):
        raise ValueError(f"library {row.quoted('library')} has no price")
    if _UNTUNED.match(row.text("variant")):
        raise ValueError(f"variant {row.quoted('variant')} sends over TCP sockets, untuned: it has no price")
    num_gpus, num_nodes = row.needed("num_gpus"), row.count("num_nodes") or 1
    return KernelRow(
        cluster=nodes_named(row.text("system"), num_gpus=num_gpus, num_nodes=num_nodes),
        table=TableKind.COLLECTIVES,
        shape=Shape(words=(name,), sizes=(num_gpus, row.needed("bytes"))),
        implementation=Implementation(
            framework=library.removeprefix(_CUSTOM) or "nccl",
            version=row.text("library_version"),
            kernel_source=row.text("variant"),
        ),
    )
