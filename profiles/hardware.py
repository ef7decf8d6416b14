"""Hardware, as the cost model sees it: a GPU, the links between GPUs, a cluster.

Bandwidths are one direction, per GPU. Every figure of a catalogue device carries its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class LinkKind(StrEnum):
    """What a level of the network is made of."""

    PEER = "peer"
    """Links between GPUs: NVLink, Infinity Fabric."""
    HOST = "host"
    """The slots of a node: PCIe."""
    NETWORK = "network"
    """Network cards and switches between nodes."""


class PeerTopology(StrEnum):
    """How the GPUs of a peer domain are joined."""

    SWITCHED = "switched"
    """Through switches: any two GPUs have the whole bandwidth between them."""
    MESH = "mesh"
    """Pair by pair: two of N GPUs share a link of 1 / (N - 1) of a GPU's bandwidth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU.

    Args:
        name: Catalogue name, for example "h100-sxm-80gb".
        vendor: "nvidia" or "amd".
        architecture: "volta", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4".
        compute_capability: CUDA compute capability such as "9.0"; None on other vendors.
        num_compute_units: Streaming multiprocessors, or compute units.
        memory_bytes: Memory that a program sees.
        memory_bytes_per_second: Datasheet memory bandwidth.
        dense_flops_per_second: Datasheet tensor-core rate by format, without sparsity. A missing format cannot be
            used.
        peer_bytes_per_second: NVLink, Infinity Fabric or such between GPUs, one direction; None without.
        peer_topology: How that link joins a domain; of no meaning without such a link.
        host_bytes_per_second: Link to the host, one direction.
        host_link: "pcie3", "pcie4", "pcie5", "pcie6" or "c2c".
        tdp_watts: Board power.
        sources: Field name to where its figure is printed.
    """

    name: str
    vendor: str
    architecture: str
    compute_capability: str | None
    num_compute_units: int
    memory_bytes: int
    memory_bytes_per_second: float
    dense_flops_per_second: Mapping[str, float]
    peer_bytes_per_second: float | None
    peer_topology: PeerTopology
    host_bytes_per_second: float
    host_link: str
    tdp_watts: float
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLevel:
    """One level of the network, from the inside out.

    Args:
        name: "nvlink", "pcie", "rail", "leaf", "spine" and so on.
        kind: What it is made of; decides how much of its bandwidth is reached.
        num_gpus: GPUs that reach one another without leaving this level.
        bytes_per_second: Bandwidth of one GPU at this level, one direction, oversubscription already taken off.
        latency_seconds: Start-up time of one message at this level.
        source: Where the figures come from.
    """

    name: str
    kind: LinkKind
    num_gpus: int
    bytes_per_second: float
    latency_seconds: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Equal nodes of equal GPUs.

    Args:
        name: Preset name, or what the user calls it.
        device: The GPU.
        gpus_per_node: GPUs of one node.
        num_nodes: Nodes.
        levels: Network levels, smallest first; the last one spans the cluster.
        host_memory_bytes: RAM of one node.
        nvme_bytes_per_second: Local NVMe bandwidth of one node; None without.
        nvme_bytes: Local NVMe capacity of one node; None without.
        price_per_gpu_hour: In the user's currency; None leaves cost out.
        watts_per_gpu: Power of one GPU with its share of the node; None if unknown.
    """

    name: str
    device: Device
    gpus_per_node: int
    num_nodes: int
    levels: tuple[LinkLevel, ...]
    host_memory_bytes: int
    nvme_bytes_per_second: float | None
    nvme_bytes: int | None
    price_per_gpu_hour: float | None
    watts_per_gpu: float | None

    def __post_init__(self) -> None:
        """Check that the levels nest and span the cluster."""
        spans = [level.num_gpus for level in self.levels]
        if spans != sorted(set(spans)):
            raise ValueError("link levels must be listed from the smallest to the largest, each larger than the last")
        if self.world_size > 1 and (not spans or spans[-1] < self.world_size):
            raise ValueError(f"no link level spans all {self.world_size} GPUs")

    @property
    def world_size(self) -> int:
        """Return the number of GPUs."""
        return self.gpus_per_node * self.num_nodes

    def with_nodes(self, num_nodes: int) -> "Cluster":
        """Return so many of its nodes, with the levels that join them.

        Raises:
            ValueError: It has not so many.
        """
        if not 0 < num_nodes <= self.num_nodes:
            raise ValueError(f"{num_nodes} nodes of a cluster of {self.num_nodes}")
        world_size = self.gpus_per_node * num_nodes
        spanning = next(index for index, level in enumerate(self.levels) if level.num_gpus >= world_size)
        return replace(self, num_nodes=num_nodes, levels=self.levels[: spanning + 1])

    @property
    def largest_inside(self) -> int:
        """Return how many GPUs a collective may have without the network: a node's, or a larger NVLink domain's."""
        return max(self.gpus_per_node, self.fast_domain_size)

    @property
    def fast_domain_size(self) -> int:
        """Return how many GPUs reach one another without the network: the NVLink domain, or a PCIe node.

        Where NVLink joins only some GPUs of a node, that part counts.
        """
        if not self.levels or self.levels[0].kind is LinkKind.NETWORK:
            return 1
        return self.levels[0].num_gpus
