"""What operations take where classes of them are slower than predicted, by a band or by a calibration.

Every operation belongs to one class. What a kernel hides of a collective, a slower kernel hides more of, so a step gets
longer by less than its class does.
"""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache

from profiles.collectives import CollectivePrices
from profiles.constants import OPERATIONS_BAND, Constant
from profiles.estimate import CostModel, Estimate
from profiles.hardware import Cluster, LinkKind
from profiles.ops import Attention, Collective, ComputeOp, DriveCopy, Gemm, HostCopy, HostPass, MemoryBound, StateScan
from profiles.software import Software, TensorParallelOverlap


class OperationClass(StrEnum):
    """What may be slower than predicted, all of it together."""

    PRODUCTS = "matrix products"
    ATTENTION = "attention"
    """Recurrences too, of which nothing is on record."""
    MEMORY_BOUND = "memory-bound kernels"
    INSIDE = "collectives inside a node"
    BETWEEN = "collectives between nodes"
    HOST = "launches of the host"
    """Copies to host memory and drives and passes over it too, of which nothing is on record."""

    @property
    def band(self) -> Constant:
        """Return how far it may be off, as a factor less one."""
        return OPERATIONS_BAND[self.value]


def classes_on(cluster: Cluster) -> tuple[OperationClass, ...]:
    """Return the classes of which a cluster runs some operations."""
    kinds = {level.kind for level in cluster.levels}
    absent = set()
    if LinkKind.NETWORK not in kinds:
        absent.add(OperationClass.BETWEEN)
    if not kinds - {LinkKind.NETWORK}:
        absent.add(OperationClass.INSIDE)
    return tuple(kind for kind in OperationClass if kind not in absent)


class ScaledCostModel:
    """A cost model of which some classes of operations take a multiple of what is predicted.

    Args:
        predicted: Prices operations as predicted, on equal nodes.
        cluster: Where they run.
        software: What runs them.
        factors: By class, how many times as long it takes; 1 where it is missing.
        notes: By class, what is said of its prices.
    """

    def __init__(
        self,
        predicted: CostModel,
        *,
        cluster: Cluster,
        software: Software,
        factors: Mapping[OperationClass, float],
        notes: Mapping[OperationClass, str],
    ) -> None:
        self.predicted = predicted
        self.factors = factors
        self._notes = notes
        self._links = CollectivePrices(cluster, software)
        self.compute = lru_cache(maxsize=None)(self._compute)
        self.collective = lru_cache(maxsize=None)(self._collective)

    def _compute(self, operation: ComputeOp) -> Estimate:
        """Return the time of one operation on one GPU."""
        return self._scaled(self.predicted.compute(operation), class_of(operation))

    def _collective(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part."""
        leaves = self._links.leaves_node(operation)
        return self._scaled(
            self.predicted.collective(operation), OperationClass.BETWEEN if leaves else OperationClass.INSIDE
        )

    def _scaled(self, estimate: Estimate, kind: OperationClass) -> Estimate:
        if kind not in self.factors:
            return estimate
        note = f"{estimate.note}; {self._notes[kind]}"
        return Estimate(seconds=estimate.seconds * self.factors[kind], source=estimate.source, note=note)

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self.predicted.launch_seconds * self.factors.get(OperationClass.HOST, 1.0)

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self.predicted.tensor_parallel_overlap

    @property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        return self.predicted.overlap_slowdown

    @property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it."""
        return self.predicted.transfer_slowdown

    @property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second of a copy to or from the host beside it, if known."""
        return self.predicted.copy_slowdown


class SlowedCostModel(ScaledCostModel):
    """A cost model of which one class of operations takes longer by its band.

    Args:
        predicted: Prices operations as predicted, on equal nodes.
        cluster: Where they run.
        software: What runs them.
        slow: The class.
    """

    def __init__(self, predicted: CostModel, *, cluster: Cluster, software: Software, slow: OperationClass) -> None:
        super().__init__(
            predicted,
            cluster=cluster,
            software=software,
            factors={slow: 1.0 + slow.band.value},
            notes={slow: f"{slow} slower by {100 * slow.band.value:g} %"},
        )


def calibrated(predicted: CostModel, *, cluster: Cluster, software: Software) -> CostModel:
    """Return a cost model with the factors of a cluster's calibration; itself without any."""
    calibration = cluster.calibration
    if calibration is None or not calibration.factors:
        return predicted
    factors = {OperationClass(name): factor for name, factor in calibration.factors}
    return ScaledCostModel(
        predicted,
        cluster=cluster,
        software=software,
        factors=factors,
        notes={kind: f"calibrated, x {factor:.4g}" for kind, factor in factors.items()},
    )


def class_of(operation: ComputeOp) -> OperationClass:
    """Return the class of what runs on one GPU."""
    match operation:
        case Gemm():
            return OperationClass.PRODUCTS
        case Attention() | StateScan():
            return OperationClass.ATTENTION
        case MemoryBound():
            return OperationClass.MEMORY_BOUND
        case HostCopy() | HostPass() | DriveCopy():
            return OperationClass.HOST
