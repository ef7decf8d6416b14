"""What it brings a pipeline schedule when activations wait in host memory: less memory, or one that fits at all.

As long as there is room, only what keeps no pass waiting moves (`planner.schedules.offload_choice`), and the step takes
as long as without. A rank without room for what it then holds moves a part of all that waits for another block, and its
passes wait for copies; of the `PRESSURES` the fastest step counts that fits.

A copy takes what the link of the GPU takes, or the host's memory with copies of all GPUs of the node both ways at once,
whichever is longer (`profiles.host`). Host memory is that of the node whose GPUs' hosts hold most; it must be there
beside what processes, the system and offloaded optimizer states take (`planner.memory.host`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.layout import Layout
from planner.memory.host import host_memory, ranks_of_node, reserve
from planner.ranks.placement import PlacedModel
from planner.schedules.offload import (
    Copies,
    Offload,
    device_bytes,
    host_bytes,
    least_peak_bytes_R,
    most_bytes,
    moved_bytes,
    run_offloaded,
)
from planner.schedules.offload_choice import PRESSURES, Sizes, pressed, unnoticed
from planner.schedules.passes import PassKind, PassOrder, PassTimeline, PassTimes
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.ops import HostCopy, HostPass


@dataclass(frozen=True, slots=True, kw_only=True)
class Offloaded:
    """A schedule whose activations partly wait on the host.

    Args:
        timeline: Its passes; where none waits for a copy those without any, but for rounding.
        waits: Passes wait for copies.
        copies_R: Its copies.
        device_bytes_R: The most activations that each rank holds.
        host_bytes_R: The most that its host holds of it.
        moved_fraction: Part of all activations of the step that moves.
    """

    timeline: PassTimeline
    waits: bool
    copies_R: tuple[Copies, ...]
    device_bytes_R: tuple[int, ...]
    host_bytes_R: tuple[int, ...]
    moved_fraction: float


def copy_seconds(num_bytes: int, cost_model: CostModel) -> float:
    """Return the time of a copy between a GPU and its host while all GPUs of the node copy as much both ways.

    Raises:
        profiles.errors.CoverageError: It has no cost.
    """
    link = cost_model.compute(HostCopy(num_bytes=num_bytes, pinned=True))
    memory = cost_model.compute(HostPass(name="copies of activations", num_bytes=2 * num_bytes))
    return max(link.seconds, memory.seconds)


def offloaded(
    without: PassTimeline,
    times: PassTimes,
    sizes: Sizes,
    *,
    room_bytes_R: Sequence[int],
    step_seconds: Callable[[PassTimeline], float],
) -> Offloaded | None:
    """Return a schedule with activations on the host; None where none can move.

    Args:
        without: The schedule without any copies.
        times: What its passes take.
        sizes: What they keep, and what copying it takes.
        room_bytes_R: What each rank has for activations.
        step_seconds: What the passes take of a step; of several ways to fit the shortest counts.
    """
    order = without.order
    gentle = unnoticed(without, sizes)
    found = _offloaded(order, times, sizes, gentle)
    full = [rank for rank, held in enumerate(found.device_bytes_R) if held > room_bytes_R[rank]]
    least_R = least_peak_bytes_R(
        order,
        activation_bytes_V=sizes.activation_bytes_V,
        weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
    )
    if full and all(least <= room for least, room in zip(least_R, room_bytes_R, strict=True)):
        tried = [
            _offloaded(order, times, sizes, pressed(without, sizes, gentle, ranks=full, pressure=pressure))
            for pressure in PRESSURES
        ]
        fitting = [
            entry
            for entry in tried
            if all(held <= room for held, room in zip(entry.device_bytes_R, room_bytes_R, strict=True))
        ]
        found = min(fitting, key=lambda entry: step_seconds(entry.timeline), default=found)
    return found if found.moved_fraction else None


def node_bytes(host_bytes_R: Sequence[int], layout: Layout, cluster: Cluster) -> int:
    """Return what the host of a node holds, of the node that holds most."""
    nodes = {ranks_of_node(layout, cluster.gpus_per_node, node) for node in range(cluster.num_nodes)}
    return max(sum(host_bytes_R[rank] for rank in ranks) for ranks in nodes)


def room_on_host_bytes(placed: PlacedModel, cluster: Cluster) -> int:
    """Return what a node has left for activations beside its processes and the states that are there already."""
    states = host_memory(placed, cluster)
    taken = reserve(cluster) if states is None else states.lines
    return cluster.host_memory_bytes - sum(line.num_bytes for line in taken)


def _offloaded(order: PassOrder, times: PassTimes, sizes: Sizes, offload: Offload) -> Offloaded:
    timeline = run_offloaded(order, times, offload)
    saved_bytes = sum(
        sizes.activation_bytes_V[entry.stage]
        for rank in range(order.pp)
        for entry in order.passes(rank)
        if entry.kind is PassKind.FORWARD
    )
    moved = sum(moved_bytes(entry, sizes.activation_bytes_V) for entries in offload.moved_R for entry in entries)
    return Offloaded(
        timeline=timeline.passes,
        waits=bool(offload.most_under_way),
        copies_R=timeline.copies_R,
        device_bytes_R=tuple(
            most_bytes(
                device_bytes(
                    timeline.passes,
                    rank,
                    copies,
                    activation_bytes_V=sizes.activation_bytes_V,
                    weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
                )
            )
            for rank, copies in enumerate(timeline.copies_R)
        ),
        host_bytes_R=tuple(
            most_bytes(host_bytes(copies, activation_bytes_V=sizes.activation_bytes_V)) for copies in timeline.copies_R
        ),
        moved_fraction=moved / saved_bytes if saved_bytes else 0.0,
    )
