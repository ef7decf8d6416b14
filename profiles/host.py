"""What copies to host memory and passes over it take: assumptions, each with its source.

Updates on the CPUs are bound by memory (ZeRO-Offload: Ren et al., arXiv 2101.06840). No table of the cost model
measures a host. Its memory bandwidth is taken from the kind of slot in which its GPUs sit, which tells the generation
of its CPUs, with two sockets a node and every channel filled; a Grace CPU serves one Hopper or two Blackwell GPUs. The
GPUs of a node share it evenly.
"""

from profiles.constants import PCIE_FRACTION, Constant, Origin
from profiles.errors import CoverageError
from profiles.estimate import Estimate, Source
from profiles.hardware import Cluster
from profiles.ops import HostCopy, HostPass

SOCKETS_OF_A_NODE = 2
"""Sockets of a node whose GPUs hang on PCIe, each with its own memory."""


def _of_channels(*, channels: int, transfers_per_second: float, what: str) -> Constant:
    """Return the bandwidth of the memory channels of a node's sockets, 8 bytes a transfer."""
    rate = SOCKETS_OF_A_NODE * channels * transfers_per_second * 8
    return Constant(value=rate, low=0.0, high=2 * rate, source=f"assumption: {what}", origin=Origin.ASSUMED)


HOST_BYTES_PER_SECOND = {
    "pcie3": _of_channels(
        channels=6, transfers_per_second=2.666e9, what="two Xeon Scalable sockets of 6 channels DDR4-2666"
    ),
    "pcie4": _of_channels(channels=8, transfers_per_second=3.2e9, what="two EPYC 7002 sockets of 8 channels DDR4-3200"),
    "pcie5": _of_channels(
        channels=8,
        transfers_per_second=4.8e9,
        what="two 4th generation Xeon Scalable sockets of 8 channels DDR5-4800",
    ),
    "pcie6": _of_channels(
        channels=8, transfers_per_second=6.4e9, what="two Xeon 6700P sockets of 8 channels DDR5-6400"
    ),
}
"""Memory bandwidth of a node by the link of its GPUs."""

GRACE_BYTES_PER_SECOND = Constant(
    value=500e9,
    low=0.0,
    high=546e9,
    source="assumption: a Grace CPU with its LPDDR5X at the 500 GB/s of its data sheet",
    origin=Origin.ASSUMED,
)
GPUS_OF_A_GRACE = {"hopper": 1, "blackwell": 2}

HOST_MEMORY_FRACTION = Constant(
    value=0.76,
    low=0.67,
    high=0.79,
    source=(
        "assumption: passes on the CPUs reach 0.76 of the channels' rate with a thread for each core, as STREAM does on"
        " small CPUs (Texas Instruments SPRAD45A: 0.74 to 0.78; SPRACV1B: 0.67 to 0.79)"
    ),
    origin=Origin.ASSUMED,
)
"""How much of the channels' rate passes reach: the mean of eight figures, none of them of a server.

The two documents give STREAM's four kernels in parts of the rate of one DDR4-1600 channel: copy, scale, add and triad
0.77, 0.74, 0.78, 0.78 and 0.78, 0.79, 0.73, 0.74; with LPDDR4 0.69, 0.71, 0.67, 0.67, of which `low` is. That the many
channels of a server do as well is assumed.
"""

PAGEABLE_FRACTION = Constant(
    value=0.4,
    low=0.4,
    high=1.0,
    source=(
        "assumption: a copy from or to pageable memory runs at 0.4 of a pinned one, as on a laptop with a slow CPU"
        " (NVIDIA, How to Optimize Data Transfers in CUDA C/C++: pinned copies are more than twice as fast there, and"
        " gain less with a faster CPU)"
    ),
    origin=Origin.ASSUMED,
)
"""A guess below one half: the source says only that pinned copies are more than twice as fast, on one slow computer.

Pageable memory is copied to a staging buffer first (CUDA Runtime API, API synchronization behavior), so that the
fraction depends on the host's CPU. No figure of a GPU server is known.
"""


def host_memory_rate(cluster: Cluster) -> tuple[float, str]:
    """Return the host memory bandwidth that one GPU's process reaches while all work, and the assumptions behind it.

    Raises:
        CoverageError: The link of the GPUs tells nothing of their hosts.
    """
    device = cluster.device
    if device.host_link == "c2c":
        constant = GRACE_BYTES_PER_SECOND
        sharers = GPUS_OF_A_GRACE.get(device.architecture, 1)
    elif device.host_link in HOST_BYTES_PER_SECOND:
        constant = HOST_BYTES_PER_SECOND[device.host_link]
        sharers = cluster.gpus_per_node
    else:
        raise CoverageError(
            operation="passes over host memory",
            missing=f"no memory bandwidth is known for hosts whose GPUs hang on {device.host_link!r}",
            remedy=f"Use one of {', '.join((*HOST_BYTES_PER_SECOND, 'c2c'))}.",
        )
    rate = constant.value * HOST_MEMORY_FRACTION.value / sharers
    return rate, f"{constant.source}, shared by {sharers}; {HOST_MEMORY_FRACTION.source}"


def sockets_of_node(cluster: Cluster) -> int:
    """Return the sockets of a node, between which its GPUs and its memory's bandwidth are divided evenly."""
    if cluster.device.host_link == "c2c":
        return max(1, cluster.gpus_per_node // GPUS_OF_A_GRACE.get(cluster.device.architecture, 1))
    return min(SOCKETS_OF_A_NODE, cluster.gpus_per_node)


def host_pass(operation: HostPass, cluster: Cluster) -> Estimate:
    """Return the time of a pass over host memory."""
    rate, source = host_memory_rate(cluster)
    return Estimate(seconds=operation.num_bytes / rate, source=Source.ASSUMED, note=f"{operation.name}: {source}")


def host_copy(operation: HostCopy, cluster: Cluster) -> Estimate:
    """Return the time of a copy over the host link, which is no faster than the host's memory."""
    share, source = host_memory_rate(cluster)
    device = cluster.device
    link = device.host_bytes_per_second * PCIE_FRACTION.value
    note = f"{device.host_link} to the host at {PCIE_FRACTION.value} of its rate; {PCIE_FRACTION.source}"
    if not operation.pinned:
        link *= PAGEABLE_FRACTION.value
        note = f"{note}; {PAGEABLE_FRACTION.source}"
    if share < link:
        note = f"a copy to the host, bound by its memory: {source}"
    return Estimate(seconds=operation.num_bytes / min(link, share), source=Source.ASSUMED, note=note)
