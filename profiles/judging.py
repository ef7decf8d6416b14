"""Which points of a profile planning may use: each held against the datasheet, the analytic price and its neighbours.

What the gates are is in `profiles.gates`; here stands what they are told of a point. Where the catalogue holds the GPU,
or a cluster is given whose GPU it is, points have a price and a roofline; else they are held against one another alone.
"""

import math
from dataclasses import dataclass, replace

from profiles.analytic import AnalyticCostModel
from profiles.catalogue import device_names, load_device
from profiles.errors import CoverageError
from profiles.gates import Excluded, Row, judged
from profiles.hardware import Cluster, Device
from profiles.measure.budget import work_of
from profiles.measure.journal import Entry
from profiles.measure.points import Point
from profiles.measured_operations import Operation, operation_of
from profiles.ops import Attention, Collective, CollectiveKind, Gemm, HostCopy, MemoryBound
from profiles.recorded import Recording
from profiles.schema import ClusterEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The rows of a profile, sorted by whether planning may use them.

    Args:
        kept: Points that it may.
        excluded: Those that it may not.
        roofline: What they were held against; empty where no datasheet is known.
    """

    kept: tuple[Entry, ...]
    excluded: tuple[Excluded, ...]
    roofline: str


def measured_device(recording: Recording) -> Device | None:
    """Return the GPU of a profile, where the catalogue holds it."""
    return load_device(recording.device) if recording.device in device_names() else None


def measured_nodes(recording: Recording, cluster: Cluster) -> Cluster:
    """Return the nodes that a profile was measured on, or as many of them as a cluster has.

    Of a profile of another GPU with the same chip they are a cluster's with that GPU: what it says beyond an analytic
    price is over its own.
    """
    nodes = max(1, min(-(-recording.most_ranks // cluster.gpus_per_node), cluster.num_nodes))
    found = cluster if nodes == cluster.num_nodes else cluster.with_nodes(nodes)
    device = measured_device(recording)
    return found if device is None or device.name == cluster.device.name else replace(found, device=device)


def judge(recording: Recording, cluster: Cluster | None = None) -> Judged:
    """Return which points of a profile planning may use.

    Args:
        recording: The profile.
        cluster: Where they were measured, for the roofline and the analytic price of neighbours; None for one node of
            the GPU, where the catalogue holds it.
    """
    cluster = judged_on(recording, cluster)
    analytic = None if cluster is None else AnalyticCostModel(cluster, sustained=False)
    device = None if cluster is None else cluster.device
    entries = {entry.line: entry for entry in recording.measured if seconds_of(entry) is not None}
    rows = [_row(entry, device, analytic) for entry in entries.values()]
    kept, excluded = judged(rows)
    return Judged(
        kept=tuple(entries[row.line] for row in kept),
        excluded=excluded,
        roofline="" if device is None else device.name,
    )


def judged_on(recording: Recording, cluster: Cluster | None) -> Cluster | None:
    """Return the cluster that a profile is held against: the given one if its GPU was measured, else one node."""
    own = cluster is not None and recording.device == cluster.device.name
    return cluster if own else _one_node(recording)


def _one_node(recording: Recording) -> Cluster | None:
    """Return a node of the GPU that was measured; None where the catalogue does not hold it."""
    if measured_device(recording) is None:
        return None
    per_node = recording.gpus_per_node
    node = {"gpu": recording.device, "gpus_per_node": per_node, "nodes": 1, "host_ram": UNREAD_RAM}
    return ClusterEntry.model_validate(node).to_cluster()


ALONE = ("launch", "overlap")
"""Suites whose points are no more and no less work of one another: seconds of one launch of several, of a side that
something else slows down. They are held against nothing but themselves, measured again."""

UNREAD_RAM = "1TB"
"""Host memory of a node whose kernels alone are priced."""


def seconds_of(entry: Entry) -> float | None:
    """Return what a point took; None of one that has no time."""
    found = entry.result.get("seconds")
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _row(entry: Entry, device: Device | None, analytic: AnalyticCostModel | None) -> Row:
    point, seconds = entry.point, seconds_of(entry)
    assert seconds is not None, "only points with a time are judged"
    operation = operation_of(point)
    expected = None if analytic is None or operation is None else price_of(analytic, operation)
    return Row(
        name=point.key,
        group=(point.key,) if point.suite in ALONE else point.group,
        backend=_without_backend(point),
        places=tuple(math.log2(max(size, 1)) for size in point.sizes),
        sizes=_growing(point),
        seconds=seconds,
        least_seconds=0.0 if device is None or operation is None else least_seconds(operation, device),
        expected_seconds=work_of(point) if expected is None else expected,
        is_priced=expected is not None,
        work=work_of(point),
        line=entry.line,
    )


def price_of(model: AnalyticCostModel, operation: Operation) -> float | None:
    """Return the price of an operation; None where it has none, as a collective of more ranks than there are."""
    if isinstance(operation, Collective) and (operation.size - 1) * operation.stride >= model.cluster.world_size:
        return None
    try:
        found = model.collective(operation) if isinstance(operation, Collective) else model.compute(operation)
    except CoverageError:
        return None
    return found.seconds or None


def _without_backend(point: Point) -> tuple[object, ...]:
    """Return what is measured, however it is run."""
    if point.suite != "collectives":
        return (point.key,)
    return (point.suite, point.word("kind"), point.word("beside"), *point.sizes)


def _growing(point: Point) -> tuple[int, ...]:
    """Return the sizes with which work grows: a window that is none is the largest, and heads share keys."""
    if point.suite == "attention":
        sizes = list(point.sizes)
        if not point.size("window"):
            sizes[3] = point.size("kv_len")
        return tuple(sizes)
    if point.suite == "collectives":
        size, stride, num_bytes = point.sizes
        # Groups of unlike shapes are not held against each other: which has more work, the network decides.
        return (size, -size, stride, -stride, num_bytes)
    return point.sizes


def least_seconds(operation: Operation, device: Device) -> float:
    """Return what an operation takes at the datasheet's rates: no kernel is faster.

    Traffic counts where most of it cannot stay in a cache. A collective sends what a rank does not hold itself, once,
    over a link between GPUs; switches may add up on the way.
    """
    match operation:
        case Gemm() | Attention():
            rate = device.dense_flops_per_second.get(operation.dtype)
            computing = 0.0 if rate is None else operation.flops / rate
            return max(computing, _moving_seconds(operation.num_bytes, device))
        case MemoryBound():
            return _moving_seconds(operation.num_bytes, device)
        case HostCopy():
            return operation.num_bytes / device.host_bytes_per_second
        case Collective():
            link = device.peer_bytes_per_second or device.host_bytes_per_second
            moved = operation.buffer_bytes
            if operation.kind is not CollectiveKind.SEND_RECV:
                moved = moved * (operation.size - 1) // operation.size
            return moved / link
    return 0.0


CACHED_BYTES = 1 << 30
"""Traffic below this may stay in a cache: the largest of a GPU has 256 MB (AMD Instinct MI300X, Infinity Cache)."""


def _moving_seconds(num_bytes: float, device: Device) -> float:
    return 0.0 if num_bytes < CACHED_BYTES else num_bytes / device.memory_bytes_per_second
