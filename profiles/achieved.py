"""What a measured point achieves: flops or bytes a second, and what part of the datasheet's rate that is."""

from dataclasses import dataclass

from profiles.hardware import Device
from profiles.judging import least_seconds
from profiles.measure.journal import Entry
from profiles.measured_operations import operation_of
from profiles.ops import Attention, Collective, CollectiveKind, Gemm, HostCopy, MemoryBound


@dataclass(frozen=True, slots=True, kw_only=True)
class Achieved:
    """The rate of one point.

    Args:
        work: Flops, or bytes moved.
        per_second: Flops or bytes a second.
        unit: "FLOP/s" or "B/s".
        fraction: Part of what the datasheet allows; None where that is not known.
    """

    work: float
    per_second: float
    unit: str
    fraction: float | None


def bus_factor(kind: CollectiveKind, size: int) -> float:
    """Return by what a collective's buffer over its time is multiplied to compare with a link's bandwidth.

    As nccl-tests has it (`doc/PERFORMANCE.md`): what each rank must send of the buffer at least by a ring.
    """
    match kind:
        case CollectiveKind.ALL_REDUCE:
            return 2 * (size - 1) / size
        case CollectiveKind.SEND_RECV:
            return 1.0
        case _:
            return (size - 1) / size


def achieved(entry: Entry, device: Device | None) -> Achieved | None:
    """Return the rate of a point; None for one that measures no operation.

    Args:
        entry: The point.
        device: Its GPU; None where its datasheet is not known.
    """
    operation = operation_of(entry.point)
    seconds = entry.result.get("seconds")
    if operation is None or not isinstance(seconds, int | float):
        return None
    match operation:
        case Gemm() | Attention():
            least = 0.0 if device is None else least_seconds(operation, device)
            work, unit = float(operation.flops), "FLOP/s"
        case MemoryBound() | HostCopy():
            work, unit = float(operation.num_bytes), "B/s"
            rate = None if device is None else device.memory_bytes_per_second
            if device is not None and isinstance(operation, HostCopy):
                rate = device.host_bytes_per_second
            least = 0.0 if rate is None else work / rate
        case Collective():
            work, unit = operation.buffer_bytes * bus_factor(operation.kind, operation.size), "B/s"
            link = None if device is None else device.peer_bytes_per_second or device.host_bytes_per_second
            least = 0.0 if link is None else work / link
        case _:
            return None
    fraction = least / seconds if least else None
    return Achieved(work=work, per_second=work / seconds, unit=unit, fraction=fraction)
