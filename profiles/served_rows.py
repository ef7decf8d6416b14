"""The measured kernels of a serving engine: which points of a profile price it, and what each took.

Points are the operations that training plans price too (`profiles.measured_operations`), so both read one store; what
they are compared with is the engine's own price (`planner.serving.measured`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedRows:
    """The measured kernels of one profile as engines run them.

    Args:
        cluster: What was measured: nodes of a cluster, with the GPU of the profile.
        is_own: That GPU is the cluster's; else one with the same chip.
        name: Where they lie.
        software: What ran them: "torch 2.13.0".
        seconds: Of every measured shape, by kernel.
        kernel_seconds: What one kernel of a long graph takes; None where it was not measured on this GPU.
    """

    cluster: Cluster
    is_own: bool
    name: str
    software: str
    seconds: Mapping[ServedKernel, Mapping[Shape, float]]
    kernel_seconds: float | None

    @property
    def device(self) -> Device:
        """Return the GPU that was measured."""
        return self.cluster.device

    @property
    def text(self) -> str:
        """Return where they come from: "torch 2.13.0 on h100-sxm-80gb, measured"."""
        return f"{self.software} on {self.device.name}, {self.name}".strip()

    def of(self, kernel: ServedKernel) -> Mapping[Shape, float]:
        """Return the seconds of every measured shape of a kernel."""
        return self.seconds.get(kernel, MappingProxyType({}))


def served_rows(recording: Recording, cluster: Cluster) -> ServedRows:
    """Return what a profile says of engines.

    Args:
        recording: The profile, of the cluster's GPU or of one with the same chip.
        cluster: Where engines run.
    """
    measured = measured_nodes(recording, cluster)
    is_own = recording.device == cluster.device.name
    has_same_nodes = recording.gpus_per_node == cluster.gpus_per_node
    kept = judge(recording, measured).kept
    used = [entry for entry in kept if has_same_nodes or entry.point.suite != "collectives"]
    return ServedRows(
        cluster=measured,
        is_own=is_own,
        name=str(recording.directory),
        software=_software_of(recording),
        seconds=_by_shape(used, measured),
        kernel_seconds=graph_kernel_seconds(recording) if is_own else None,
    )


def _by_shape(entries: Iterable[Entry], cluster: Cluster) -> Mapping[ServedKernel, Mapping[Shape, float]]:
    """Return the mean seconds of those points of each shape that are most like an engine's."""
    links = CollectivePrices(cluster, sustained=False)
    found: dict[ServedKernel, dict[Shape, tuple[int, list[float]]]] = {}
    for entry in entries:
        kernel, shape = kernel_of(entry.point), _shape(entry.point, cluster, links)
        if kernel is None or shape is None:
            continue
        taken, unlike = seconds_of(entry), unlikeness(entry.point)
        assert taken is not None, "only points with a time are kept"
        of_kernel = found.setdefault(kernel, {})
        best, times = of_kernel.get(shape, (unlike, []))
        if unlike <= best:
            of_kernel[shape] = (unlike, [*(times if unlike == best else []), taken])
    return {
        kernel: {shape: geometric_mean(times) for shape, (_, times) in rows.items()} for kernel, rows in found.items()
    }


def _shape(point: Point, cluster: Cluster, links: CollectivePrices) -> Shape | None:
    """Return where a point lies among those of its kernel; None where the cluster has no such group of GPUs."""
    operation = operation_of(point)
    if operation is None:
        return None
    crosses = False
    if isinstance(operation, Collective):
        if (operation.size - 1) * operation.stride >= cluster.world_size:
            return None
        crosses = links.leaves_node(operation)
    place = place_of(operation, crosses=crosses)
    return None if place is None else place[1]


def _software_of(recording: Recording) -> str:
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
