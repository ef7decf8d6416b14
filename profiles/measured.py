"""Kernels priced by measured tables where there are some, by their analytic model elsewhere.

A table belongs to one GPU. A GPU with the same compute units at the same rates (H200 beside H100: other memory) takes
its residuals, not its times, and the estimate is marked as assumed. Between generations residuals carry over worse than
none, so any other GPU is priced by the analytic model alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from profiles.analytic import AnalyticCostModel
from profiles.catalogue import load_device
from profiles.chips import is_same_chip
from profiles.estimate import Estimate, Source
from profiles.hardware import Cluster, Device
from profiles.kernels.surface import KernelSurface
from profiles.ops import Collective, CollectiveKind
from profiles.profile import Profile
from profiles.residuals import Query, ResidualTable
from profiles.store import shipped_device_like, shipped_profile
from profiles.tables import SPECS, Implementation, Shape, TableKind, TableRow


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredKernels:
    """Measured rows of one GPU.

    Args:
        device: The GPU.
        rows: Returns the rows of one kind.
        floors_us: What the host took to start a kernel, where that hid short ones, by who ran it.
        gpus_per_node: GPUs of the nodes that collectives ran on; None where none did.
        name: Where they come from, for notes.
    """

    device: Device
    rows: Callable[[TableKind], tuple[TableRow, ...]]
    floors_us: Mapping[Implementation, float]
    gpus_per_node: int | None
    name: str


def measured_by(profile: Profile) -> MeasuredKernels:
    """Return the rows of a profile.

    Raises:
        CatalogueError: Its GPU is none of the catalogue.
    """
    floors = {
        origin.implementation: origin.host_floor_us
        for origin in profile.metadata.origins.values()
        if origin.host_floor_us is not None
    }
    device = load_device(profile.metadata.device)
    return MeasuredKernels(
        device=device,
        rows=profile.rows,
        floors_us=floors,
        gpus_per_node=profile.metadata.gpus_per_node,
        name=profile.name,
    )


def shipped_kernels(device: Device) -> MeasuredKernels | None:
    """Return the tables of the package for a GPU, or for one with the same chip; None where there are none."""
    name = shipped_device_like(device)
    profile = None if name is None else shipped_profile(name)
    return None if profile is None else measured_by(profile)


class KernelCosts:
    """Prices kernels and collectives in a burst.

    Collectives across nodes are answered, apart from those inside a node, by tables of nodes with as many of the same
    GPU; that their network is the same is taken for granted.

    Args:
        cluster: Where they run.
        measured: Rows measured there, or on a GPU with the same chip; None for the analytic model alone.
    """

    def __init__(self, cluster: Cluster, measured: MeasuredKernels | None) -> None:
        self.cluster = cluster
        self._analytic = _Analytic(cluster)
        self._measured = measured if measured is not None and is_same_chip(measured.device, cluster.device) else None
        self._tables: dict[tuple[TableKind, bool], ResidualTable] = {}

    @property
    def is_own_table(self) -> bool:
        """Return whether the tables were measured on this very GPU."""
        return self._measured is not None and self._measured.device.name == self.cluster.device.name

    def query(self, kind: TableKind, shape: Shape, implementation: Implementation) -> Query:
        """Return what is to be priced, with its analytic price.

        Raises:
            ValueError: No kernel has such a shape.
            CoverageError: The GPU lacks a rate that the kernel needs.
        """
        seconds = self._analytic.seconds(kind, shape)
        return Query(shape=shape, implementation=implementation, analytic_seconds=seconds)

    def host_floor_seconds(self, implementation: Implementation) -> float:
        """Return below what time a benchmark of this implementation shows its host, not its kernel; 0 if never."""
        if self._measured is None:
            return 0.0
        return 1e-6 * self._measured.floors_us.get(implementation, 0.0)

    def estimates(self, kind: TableKind, queries: Sequence[Query]) -> tuple[Estimate, ...]:
        """Return the price of every query."""
        found: dict[int, Estimate] = {}
        for across in (False, True):
            asked = [index for index, query in enumerate(queries) if self._is_across(kind, query.shape) is across]
            table = self._table(kind, across=across) if asked else None
            if table is None:
                continue
            priced = table.estimates([queries[index] for index in asked])
            found |= {
                index: self._carried_over(estimate)
                for index, estimate in zip(asked, priced, strict=True)
                if estimate is not None
            }
        return tuple(found.get(index) or _unmeasured(query) for index, query in enumerate(queries))

    def _is_across(self, kind: TableKind, shape: Shape) -> bool:
        """Return whether a shape is a collective across nodes, which depends on more than the GPU."""
        return kind is TableKind.COLLECTIVES and shape.sizes[0] > self.cluster.largest_inside

    def _carried_over(self, estimate: Estimate) -> Estimate:
        if self.is_own_table:
            return estimate
        return replace(estimate, source=Source.ASSUMED, note=f"{estimate.note}; carried over to another memory")

    def _table(self, kind: TableKind, *, across: bool) -> ResidualTable | None:
        """Return the rows of one kind inside a node, or across nodes; None where none were measured."""
        table = self._measured
        own_nodes = table is not None and self.is_own_table and table.gpus_per_node == self.cluster.gpus_per_node
        if table is None or (across and not own_nodes):
            return None
        if (kind, across) not in self._tables:
            rows = [row for row in table.rows(kind) if self._is_across(kind, row.shape) is across]
            analytic = self._analytic if self.is_own_table else _Analytic(replace(self.cluster, device=table.device))
            self._tables[kind, across] = ResidualTable(
                SPECS[kind],
                rows,
                lambda shape: analytic.seconds(kind, shape),
                name=table.name,
                residuals_only=not self.is_own_table,
            )
        return self._tables[kind, across]


def _unmeasured(query: Query) -> Estimate:
    return Estimate(
        seconds=query.analytic_seconds,
        source=Source.ANALYTIC,
        note="analytic model alone: no table has such a kernel on this GPU",
    )


class _Analytic:
    """Analytic prices on one cluster.

    Args:
        cluster: The cluster.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._surface = KernelSurface(cluster.device)
        self._cluster = cluster
        self._by_nodes: dict[int, AnalyticCostModel] = {}

    def seconds(self, kind: TableKind, shape: Shape) -> float:
        """Return the price of one shape.

        Raises:
            ValueError: No kernel has such a shape.
            CoverageError: The GPU lacks a rate that the kernel needs.
        """
        operation = SPECS[kind].operation
        if operation is not None:
            return self._surface.seconds(operation(shape))
        num_gpus, num_bytes = shape.sizes
        name = CollectiveKind(shape.words[0])
        collective = Collective(kind=name, buffer_bytes=num_bytes, size=num_gpus, stride=1)
        return self._of_nodes(num_gpus).collective(collective).seconds

    def _of_nodes(self, num_gpus: int) -> AnalyticCostModel:
        """Return prices on no more nodes than so many GPUs fill: what a benchmark of them runs on."""
        nodes = -(-num_gpus // self._cluster.gpus_per_node)
        if nodes not in self._by_nodes:
            self._by_nodes[nodes] = AnalyticCostModel(self._cluster.with_nodes(nodes), sustained=False)
        return self._by_nodes[nodes]
