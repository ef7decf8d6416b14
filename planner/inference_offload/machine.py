"""A node as offloading sees it: one GPU that computes, what can hold data around it, and what joins them.

The GPU's process has the host to itself. Rates are those of `profiles.host` and `profiles.host_compute`, of the cost
model for links, and of `profiles.drives`. Where the cluster was measured its profile comes first: for the link to the
host, and for a drive, each way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.frameworks.overheads import overheads_on
from planner.inference_offload.request import OffloadRequest, Place
from planner.memory.host import reserve
from profiles.drives import drive_rates
from profiles.hardware import Cluster
from profiles.host import host_memory_rate
from profiles.host_compute import host_compute_rate
from profiles.ops import Collective, CollectiveKind, HostCopy
from profiles.planned import cost_model_on

_PIECE_BYTES = 1 << 30
"""A send so long that its start does not count."""

_COPY_BYTES = 1 << 28
"""A copy over the host link likewise, and the longest that profiles measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a node has for one model.

    Args:
        room_bytes: What each place holds, what is always taken left out; places that are not there are left out.
        link_bytes_per_second: Between host and GPU, each way.
        peer_bytes_per_second: From another GPU; 0 without.
        drive_bytes_per_second: Of all drives, read; 0 without.
        drive_write_bytes_per_second: The same, written.
        host_bytes_per_second: What passes over the host's memory reach.
        cpu_bytes_per_second: What the CPU's attention and products read.
        cpu_flops_per_second: What products on the CPUs reach.
        notes: Where the figures come from.
    """

    room_bytes: Mapping[Place, int]
    link_bytes_per_second: float
    peer_bytes_per_second: float
    drive_bytes_per_second: float
    drive_write_bytes_per_second: float
    host_bytes_per_second: float
    cpu_bytes_per_second: float
    cpu_flops_per_second: float
    notes: tuple[str, ...]

    def with_more(self, place: Place, num_bytes: int) -> "Machine":
        """Return the node with more room in a place."""
        return replace(self, room_bytes={**self.room_bytes, place: self.room_bytes[place] + num_bytes})


def machine_of(cluster: Cluster, request: OffloadRequest) -> Machine:
    """Return what a node of a cluster has.

    Raises:
        InputError: It has fewer GPUs than are asked for.
        CoverageError: A rate is not known.
    """
    if request.peers >= cluster.gpus_per_node:
        raise InputError(
            f"{request.peers} GPUs beside the one that computes, and a node of {cluster.name} has "
            f"{cluster.gpus_per_node}.",
            hint="Lower --peers.",
        )
    alone = replace(cluster, gpus_per_node=1, num_nodes=1, levels=(), unequal=None)
    device = cluster.device
    host_rate, host_source = host_memory_rate(alone)
    link = cost_model_on(alone).compute(HostCopy(num_bytes=_COPY_BYTES, pinned=True))
    overheads = overheads_on(cluster)
    cpu_rate, cpu_source = request.cpu_flops_per_second, "as given"
    if cpu_rate is None:
        cpu_rate, cpu_source = host_compute_rate(device)
    room = {
        Place.GPU: device.memory_bytes - overheads.context_bytes,
        Place.HOST: alone.host_memory_bytes - sum(line.num_bytes for line in reserve(alone)),
    }
    notes = [
        f"GPU: {overheads.context_source}, {overheads.context_bytes >> 20} MiB",
        *(f"host: {line.term}, {line.source}" for line in reserve(alone)),
        f"host memory: {host_source}",
        f"link: {link.note}",
        f"products on the CPUs: {cpu_source}",
        f"what the CPUs read: {'as given' if request.cpu_bytes_per_second else 'as fast as passes over host memory'}",
    ]
    peer_rate = 0.0
    if request.peers:
        sent = Collective(kind=CollectiveKind.SEND_RECV, buffer_bytes=_PIECE_BYTES, size=2, stride=1)
        peer = cost_model_on(cluster.with_nodes(1)).collective(sent)
        peer_rate = _PIECE_BYTES / peer.seconds
        room[Place.PEER] = request.peers * (device.memory_bytes - overheads.context_bytes)
        notes.append(f"peer GPUs: {peer.note}")
    drives = drive_rates(cluster)
    if drives is not None and cluster.nvme_bytes is not None:
        room[Place.DRIVE] = cluster.nvme_bytes
        notes.append(f"drives: {drives.note}")
    elif cluster.nvme_bytes is not None:
        notes.append("drives: not used, because neither the cluster nor a profile says their bandwidth")
    return Machine(
        room_bytes={place: max(0, num_bytes) for place, num_bytes in room.items()},
        link_bytes_per_second=_COPY_BYTES / link.seconds,
        peer_bytes_per_second=peer_rate,
        drive_bytes_per_second=drives.read_bytes_per_second if drives and Place.DRIVE in room else 0.0,
        drive_write_bytes_per_second=drives.write_bytes_per_second if drives and Place.DRIVE in room else 0.0,
        host_bytes_per_second=host_rate,
        cpu_bytes_per_second=request.cpu_bytes_per_second or host_rate,
        cpu_flops_per_second=cpu_rate,
        notes=tuple(notes),
    )
