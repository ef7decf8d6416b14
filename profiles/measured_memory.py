"""What the suite `memory` of a profile says of one GPU: the bytes of its context, of a communicator, and of rounding.

Figures count on the very GPU that was measured alone: they depend on its driver, its libraries and its multiprocessors.
A profile of CPUs holds resident memory of processes, which says nothing of a GPU's. Of equal points the last counts, as
of any other (`profiles.gates`); of communicators larger than a pair the largest figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from profiles.measure.journal import Entry
from profiles.measure.points import allocator_sizes
from profiles.recorded import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMemory:
    """What is known of a GPU's memory beside tensors.

    Args:
        context_bytes: Of a process and its libraries; None where it was not measured.
        pair_communicator_bytes: Of a communicator between two ranks; None likewise.
        group_communicator_bytes: Of a larger one; None likewise.
        rounded_fraction: What the caching allocator reserves beyond fresh tensors, as a part of them; None likewise.
    """

    context_bytes: int | None = None
    pair_communicator_bytes: int | None = None
    group_communicator_bytes: int | None = None
    rounded_fraction: float | None = None


def measured_memory(recording: Recording, *, devices: Sequence[str], least_memory_bytes: int) -> MeasuredMemory:
    """Return what a profile says of the memory of a cluster's GPUs; nothing where they are others.

    Args:
        recording: The profile.
        devices: The cluster's GPUs by name.
        least_memory_bytes: The memory of the smallest of them.
    """
    if any(name != recording.device for name in devices):
        return MeasuredMemory()
    figures = [
        entry
        for entry in recording.measured
        if entry.point.suite == "memory" and why_no_figure(entry, least_memory_bytes) is None
    ]
    by_place = {(entry.point.word("term"), entry.point.size("count")): bytes_of(entry) for entry in figures}
    groups = [num_bytes for (term, count), num_bytes in by_place.items() if term == "communicator" and count > 2]
    contexts = [num_bytes for (term, _), num_bytes in by_place.items() if term == "context"]
    rounded = [rounded_fraction(entry) for entry in figures if entry.point.word("term") == "allocator"]
    return MeasuredMemory(
        context_bytes=contexts[-1] if contexts else None,
        pair_communicator_bytes=by_place.get(("communicator", 2)),
        group_communicator_bytes=max(groups, default=None),
        rounded_fraction=rounded[-1] if rounded else None,
    )


def bytes_of(entry: Entry) -> int:
    """Return the bytes of a point of the suite `memory`."""
    return int(float(str(entry.result["bytes"])))


def rounded_fraction(entry: Entry) -> float:
    """Return what the caching allocator reserves beyond fresh tensors, as a part of them, by a point that says it."""
    return bytes_of(entry) / sum(allocator_sizes(entry.point.size("count")))


def why_no_figure(entry: Entry, memory_bytes: int) -> str | None:
    """Return why a point of the suite `memory` is no figure of a GPU with so much memory; None where it is one."""
    if entry.result.get("mode") != "driver":
        return "it is resident memory of a process on a CPU"
    if bytes_of(entry) >= memory_bytes:
        return f"{bytes_of(entry)} bytes are all that the GPU has, or more"
    if entry.point.word("term") == "context" and not bytes_of(entry):
        return "no context takes nothing"
    return None
