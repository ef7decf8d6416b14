"""The measured kernels of a serving engine: which points of a profile price it, and what each took.

Points are the operations that training plans price too
(`profiles.measured_operations`), so both read one store; what they are compared with is the engine's own price
(`planner.serving.measured`).
"""

from collections.abc import Mapping
from statistics import geometric_mean
from types import MappingProxyType

from profiles.collectives import CollectivePrices
from profiles.hardware import Cluster, Device
from profiles.judging import judge, measured_nodes, seconds_of
from profiles.measure.journal import Entry
from profiles.measure.points import Point
from profiles.measured_operations import operation_of, place_of
from profiles.ops import Collective
from profiles.recorded import Recording
from profiles.served_kernels import ServedKernel, kernel_of, unlikeness
from profiles.tables import Shape


class ServedRows:
    """The measured kernels of one profile as engines run them.

    Args:
        recording: The profile, of the cluster's GPU or of one with the same chip.
        cluster: Where engines run.
    """

    def __init__(self, recording: Recording, cluster: Cluster) -> None:
        self.cluster = measured_nodes(recording, cluster)
        self.is_own = recording.device == cluster.device.name
        self.name = str(recording.directory)
        self.torch = _torch_of(recording)
        self._measured_device = recording.device
        self._has_same_nodes = recording.gpus_per_node == cluster.gpus_per_node
        self._links = CollectivePrices(self.cluster, sustained=False)
        self._rows = self._sorted(judge(recording, self.cluster).kept)
        self.kernel_seconds = graph_kernel_seconds(recording) if self.is_own else None

    @property
    def text(self) -> str:
        """Return where they come from: "torch 2.13.0 on h100-sxm-80gb, measured"."""
        return f"{self.torch} on {self._measured_device}, {self.name}".strip()

    @property
    def device(self) -> Device:
        """Return the GPU that was measured."""
        return self.cluster.device

    def of(self, kernel: ServedKernel) -> Mapping[Shape, float]:
        """Return the seconds of every measured shape of a kernel."""
        return self._rows.get(kernel, MappingProxyType({}))

    def _sorted(self, kept: tuple[Entry, ...]) -> Mapping[ServedKernel, Mapping[Shape, float]]:
        found: dict[ServedKernel, dict[Shape, tuple[int, list[float]]]] = {}
        for entry in kept:
            kernel, shape = kernel_of(entry.point), self._shape(entry.point)
            if kernel is None or shape is None:
                continue
            taken, unlike = seconds_of(entry), unlikeness(entry.point)
            assert taken is not None, "only points with a time are kept"
            of_kernel = found.setdefault(kernel, {})
            best, times = of_kernel.get(shape, (unlike, []))
            if unlike <= best:
                of_kernel[shape] = (unlike, [*(times if unlike == best else []), taken])
        return {
            kernel: {shape: geometric_mean(times) for shape, (_, times) in rows.items()}
            for kernel, rows in found.items()
        }

    def _shape(self, point: Point) -> Shape | None:
        operation = operation_of(point)
        if operation is None:
            return None
        crosses = False
        if isinstance(operation, Collective):
            reach = (operation.size - 1) * operation.stride
            if not self._has_same_nodes or reach >= self.cluster.world_size:
                return None
            crosses = self._links.leaves_node(operation)
        place = place_of(operation, crosses=crosses)
        return None if place is None else place[1]


def _torch_of(recording: Recording) -> str:
    software = recording.newest.get("software")
    version = software.get("torch") if isinstance(software, Mapping) else None
    return "" if version is None else f"torch {version}"


def graph_kernel_seconds(recording: Recording) -> float | None:
    """Return what one kernel of the longest measured graph takes; None where none was measured."""
    found = [
        (entry.point.size("kernels"), seconds_of(entry))
        for entry in recording.measured
        if entry.point.suite == "launch" and entry.point.word("term") == "graph"
    ]
    return max(found, key=lambda of_count: of_count[0])[1] if found else None
