"""What operations take on nodes that differ: at best, and on given nodes over given links.

As a cost model it prices everything on the best: each operation on whichever GPU is fastest at it, collectives over
the best link. No placement on the real nodes takes less, so bounds of it hold. `on` prices what a group of nodes does
together: ranks wait for one another, so an operation takes as long as on the slowest of their GPUs, and a collective as
long as over the slowest link that it uses.
"""

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache

from profiles.analytic import AnalyticCostModel
from profiles.estimate import CostModel, Estimate
from profiles.hardware import Cluster, UnequalNodes
from profiles.ops import Collective, ComputeOp
from profiles.software import Software, TensorParallelOverlap


class UnequalCostModel:
    """Prices operations at best; see the module's docstring.

    Args:
        cluster: A cluster whose nodes differ.
        software: What runs the operations.
        with_tables: Adds what was measured on a GPU to the prices of a cluster of such GPUs.
    """

    def __init__(
        self, cluster: Cluster, software: Software, *, with_tables: Callable[[AnalyticCostModel], CostModel]
    ) -> None:
        assert cluster.unequal is not None, "equal nodes have a cost model of their own"
        self.cluster = cluster
        self.nodes: UnequalNodes = cluster.unequal
        self._software = software
        self._with_tables = with_tables
        self._models: dict[tuple[int, float], CostModel] = {}
        self.compute = lru_cache(maxsize=None)(self._compute)
        self.collective = lru_cache(maxsize=None)(self._collective)

    @property
    def kinds(self) -> tuple[int, ...]:
        """Return the kinds of nodes."""
        return tuple(range(len(self.nodes.kinds)))

    def of_kind(self, kind: int, bytes_per_second: float) -> CostModel:
        """Return the cost model of equal nodes of one kind, joined by links of so much bandwidth at most."""
        key = (kind, min(bytes_per_second, self.nodes.best_bytes_per_second))
        if key not in self._models:
            cluster = self.cluster.of_kind(kind, network_bytes_per_second=key[1])
            self._models[key] = self._with_tables(AnalyticCostModel(cluster, self._software))
        return self._models[key]

    def slowest_compute(self, operation: ComputeOp, kinds: Iterable[int]) -> Estimate:
        """Return the time of one operation on whichever of these nodes' GPUs is slowest at it.

        Raises:
            CoverageError: A GPU has no rate for the format, or its architecture no constants.
        """
        best = self.nodes.best_bytes_per_second
        return max((self.of_kind(kind, best).compute(operation) for kind in kinds), key=_seconds)

    def slowest_collective(self, operation: Collective, kinds: Iterable[int], bytes_per_second: float) -> Estimate:
        """Return the time of one collective on these nodes, whose slowest link has so much bandwidth."""
        found = (self.of_kind(kind, bytes_per_second).collective(operation) for kind in kinds)
        return max(found, key=_seconds)

    def fastest_collective(self, operation: Collective, bytes_per_second: float) -> Estimate:
        """Return the time of one collective on the best nodes, over a slowest link of so much bandwidth."""
        return min((self.of_kind(kind, bytes_per_second).collective(operation) for kind in self.kinds), key=_seconds)

    def slowdown(self, kinds: Iterable[int], *, transfers: bool) -> float:
        """Return what the kernels of these nodes lose at most beside a collective, or beside a pipeline transfer."""
        models = [self.of_kind(kind, self.nodes.best_bytes_per_second) for kind in kinds]
        return max(model.transfer_slowdown if transfers else model.overlap_slowdown for model in models)

    def slowdown_by_copies(self, kinds: Iterable[int]) -> float | None:
        """Return what the kernels of these nodes lose at most beside a copy to or from the host, if that is known."""
        models = [self.of_kind(kind, self.nodes.best_bytes_per_second) for kind in kinds]
        known = [model.copy_slowdown for model in models if model.copy_slowdown is not None]
        return max(known, default=None)

    def _compute(self, operation: ComputeOp) -> Estimate:
        best = self.nodes.best_bytes_per_second
        return min((self.of_kind(kind, best).compute(operation) for kind in self.kinds), key=_seconds)

    def _collective(self, operation: Collective) -> Estimate:
        return self.fastest_collective(operation, self.nodes.best_bytes_per_second)

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self._software.launch_seconds.value

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self._software.tensor_parallel_overlap

    @cached_property
    def overlap_slowdown(self) -> float:
        """Return the least seconds that a kernel loses for each second that a collective runs beside it."""
        return min(self.slowdown((kind,), transfers=False) for kind in self.kinds)

    @cached_property
    def transfer_slowdown(self) -> float:
        """Return the least seconds that a kernel loses for each second that a pipeline transfer runs beside it."""
        return min(self.slowdown((kind,), transfers=True) for kind in self.kinds)

    @cached_property
    def copy_slowdown(self) -> float | None:
        """Return the least seconds that a kernel loses for each second of a copy beside it, where all nodes know it."""
        found = [self.slowdown_by_copies((kind,)) for kind in self.kinds]
        known = [lost for lost in found if lost is not None]
        return min(known) if len(known) == len(found) else None


def _seconds(estimate: Estimate) -> float:
    return estimate.seconds
