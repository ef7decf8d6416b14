"""Hardware, as the cost model sees it: a GPU, the links between GPUs, a cluster.

Bandwidths are one direction, per GPU. Every figure of a catalogue device carries its source.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from profiles.constants import OPERATIONS_BAND


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

    def with_bandwidth(self, bytes_per_second: float) -> "LinkLevel":
        """Return the level with another bandwidth."""
        return replace(self, bytes_per_second=bytes_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """What nodes of one kind have that others may have otherwise.

    Args:
        device: Their GPU.
        levels: Network levels of a cluster of such nodes alone, as large as the whole cluster.
    """

    device: Device
    levels: tuple[LinkLevel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnequalNodes:
    """How the nodes of a cluster differ; they are numbered from 0, in the order in which the user lists them.

    Args:
        names: Host name of each node; empty where the user gives none.
        kinds: The kinds of nodes, each held by some node.
        kind_of_node_N: The kind of each node.
        bytes_per_second_NN: Bandwidth of one GPU between two nodes, the slower direction, on the scale of
            `LinkLevel.bytes_per_second`; of a node with itself 0, which nothing reads.
        source: Where the figures come from.
    """

    names: tuple[str, ...]
    kinds: tuple[NodeKind, ...]
    kind_of_node_N: tuple[int, ...]
    bytes_per_second_NN: tuple[tuple[float, ...], ...]
    source: str

    def __post_init__(self) -> None:
        """Check that every node has its kind and its links."""
        count = len(self.kind_of_node_N)
        if set(self.kind_of_node_N) != set(range(len(self.kinds))):
            raise ValueError("kind_of_node_N must name every kind and no other")
        if len(self.bytes_per_second_NN) != count or any(len(row) != count for row in self.bytes_per_second_NN):
            raise ValueError(f"bytes_per_second_NN must have {count} rows of {count} numbers")
        rows = self.bytes_per_second_NN
        pairs = [(here, there) for here in range(count) for there in range(here)]
        if any(rows[here][there] != rows[there][here] or rows[here][there] <= 0 for here, there in pairs):
            raise ValueError("bytes_per_second_NN must be symmetric and positive")
        if len(self.names) not in (0, count) or len(set(self.names)) != len(self.names):
            raise ValueError(f"there must be {count} names, each another one, or none")

    @property
    def groups_alike(self) -> tuple[tuple[int, ...], ...]:
        """Return the nodes in groups of which any two could change places unnoticed, in order of first occurrence."""
        rates, groups = self.bytes_per_second_NN, list[list[int]]()
        for node, kind in enumerate(self.kind_of_node_N):
            for group in groups:
                other = group[0]
                if self.kind_of_node_N[other] == kind and all(
                    rates[node][third] == rates[other][third]
                    for third in range(len(rates))
                    if third not in (node, other)
                ):
                    group.append(node)
                    break
            else:
                groups.append([node])
        return tuple(map(tuple, groups))

    @property
    def best_bytes_per_second(self) -> float:
        """Return the bandwidth of the best pair; infinite for a single node."""
        return max((rate for row in self.bytes_per_second_NN for rate in row if rate), default=float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReference:
    """Which measurements a cluster is priced with (`profiles.recorded`).

    Args:
        directory: Where they lie, as the user named it.
        sha256: Of the journal.
    """

    directory: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """What a real run held beside the ledger of its plan.

    Args:
        lost_fraction: Beside activations and temporaries, as a part of them.
        fixed_bytes: Beside weights, states and what else is there all the time.
    """

    lost_fraction: float
    fixed_bytes: int

    def __post_init__(self) -> None:
        """Check that both are figures: no run holds less than the ledger's own bytes."""
        if not 0 <= self.lost_fraction < MOST_LOST:
            raise ValueError(f"lost_fraction is from 0 and below {MOST_LOST:g}")
        if not 0 <= self.fixed_bytes < MOST_FIXED_BYTES:
            raise ValueError(f"fixed_bytes is from 0 and below {MOST_FIXED_BYTES}")


MOST_LOST = 4.0
"""A run that holds five times what the ledger says is of something else."""

MOST_FIXED_BYTES = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """By how much a real run differed from its prediction, class by class.

    Args:
        factors: Names of `profiles.slowed.OperationClass`, each with measured over predicted time.
        source: The runs that it comes from.
        memory: What the run held beside the ledger; None where no snapshot shows it.
    """

    factors: tuple[tuple[str, float], ...]
    source: str
    memory: MemoryCalibration | None = None

    def __post_init__(self) -> None:
        """Check that each class has one factor above 0, and that there is something to calibrate by."""
        names = [name for name, _ in self.factors]
        unknown = sorted(set(names) - set(OPERATIONS_BAND))
        if unknown:
            raise ValueError(f"{unknown[0]} is no class of operations: they are {', '.join(OPERATIONS_BAND)}")
        told = names or self.memory is not None
        if not told or len(set(names)) != len(names) or not all(0 < factor < MOST_OFF for _, factor in self.factors):
            raise ValueError(f"each class needs one factor above 0 and below {MOST_OFF:g}")


MOST_OFF = 100.0
"""A prediction that is off by more is of something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes with equally many GPUs; equal ones, or `unequal` says how they differ.

    Where nodes differ, `device` and `levels` are those of the nodes with the fastest GPU, and the network that of the
    best pair of nodes.

    Args:
        name: Preset name, or what the user calls it.
        device: The GPU.
        gpus_per_node: GPUs of one node.
        num_nodes: Nodes.
        levels: Network levels, smallest first; the last one spans the cluster.
        host_memory_bytes: RAM of one node.
        nvme_bytes_per_second: What reading the local NVMe of one node reaches; None without.
        nvme_bytes: Local NVMe capacity of one node; None without.
        price_per_gpu_hour: In the user's currency; None leaves cost out.
        watts_per_gpu: Power of one GPU with its share of the node; None if unknown.
        nvme_write_bytes_per_second: What writing to it reaches; None where nothing is said of that.
        unequal: How its nodes differ; None where they do not.
        profile: What was measured on it; None for what the package knows.
        calibration: What predictions are multiplied by; None for nothing.
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
    nvme_write_bytes_per_second: float | None = None
    unequal: UnequalNodes | None = None
    profile: ProfileReference | None = None
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        """Check that the levels nest and span the cluster."""
        if self.unequal is not None and len(self.unequal.kind_of_node_N) != self.num_nodes:
            raise ValueError(f"{len(self.unequal.kind_of_node_N)} unequal nodes of {self.num_nodes}")
        spans = [level.num_gpus for level in self.levels]
        if spans != sorted(set(spans)):
            raise ValueError("link levels must be listed from the smallest to the largest, each larger than the last")
        if self.world_size > 1 and (not spans or spans[-1] < self.world_size):
            raise ValueError(f"no link level spans all {self.world_size} GPUs")

    @property
    def world_size(self) -> int:
        """Return the number of GPUs."""
        return self.gpus_per_node * self.num_nodes

    @property
    def device_counts(self) -> tuple[tuple[Device, int], ...]:
        """Return each GPU that it has with the number of nodes that hold it, in the order of the nodes."""
        if self.unequal is None:
            return ((self.device, self.num_nodes),)
        counts = Counter(self.unequal.kind_of_node_N)
        devices: dict[str, tuple[Device, int]] = {}
        for kind, count in counts.items():
            device = self.unequal.kinds[kind].device
            devices[device.name] = (device, devices.get(device.name, (device, 0))[1] + count)
        return tuple(devices.values())

    @property
    def nodes_in_words(self) -> str:
        """Return how many nodes of which GPUs it has: "8 x 8 h100-sxm-80gb"."""
        return " + ".join(f"{count} x {self.gpus_per_node} {device.name}" for device, count in self.device_counts)

    @property
    def most_memory_bytes(self) -> int:
        """Return the memory of the GPU that has most."""
        return max(device.memory_bytes for device, _ in self.device_counts)

    @property
    def least_memory_bytes(self) -> int:
        """Return the memory of the GPU that has least."""
        return min(device.memory_bytes for device, _ in self.device_counts)

    @property
    def has_one_memory(self) -> bool:
        """Return whether all its GPUs have equally much memory."""
        return self.least_memory_bytes == self.most_memory_bytes

    def of_kind(self, kind: int, *, network_bytes_per_second: float) -> "Cluster":
        """Return the cluster as if all its nodes were of one kind, and no link between nodes better than given."""
        assert self.unequal is not None, "only unequal nodes have kinds"
        chosen = self.unequal.kinds[kind]
        levels = tuple(
            level.with_bandwidth(min(level.bytes_per_second, network_bytes_per_second))
            if level.kind is LinkKind.NETWORK
            else level
            for level in chosen.levels
        )
        return replace(self, device=chosen.device, levels=levels, unequal=None)

    def with_nodes(self, num_nodes: int) -> "Cluster":
        """Return so many of its nodes, with the levels that join them.

        Raises:
            ValueError: It has not so many.
        """
        if not 0 < num_nodes <= self.num_nodes:
            raise ValueError(f"{num_nodes} nodes of a cluster of {self.num_nodes}")
        if self.unequal is not None and num_nodes < self.num_nodes:
            raise ValueError("which of the unequal nodes is not said")
        world_size = self.gpus_per_node * num_nodes
        spanning = next(index for index, level in enumerate(self.levels) if level.num_gpus >= world_size)
        return replace(self, num_nodes=num_nodes, levels=self.levels[: spanning + 1])

    def only(self, nodes: tuple[int, ...]) -> "Cluster":
        """Return the cluster of some of its nodes, numbered anew in this order; equal nodes where these do not differ.

        Prices and power stay the means over all.
        """
        whole = self.unequal
        assert whole is not None, "of equal nodes the number says which"
        held = sorted({whole.kind_of_node_N[node] for node in nodes})
        rows = tuple(tuple(whole.bytes_per_second_NN[here][there] for there in nodes) for here in nodes)
        best = max((rate for row in rows for rate in row if rate), default=float("inf"))
        fastest = max(held, key=lambda kind: whole.kinds[kind].device.dense_flops_per_second.get("bf16", 0.0))
        equal = self.of_kind(fastest, network_bytes_per_second=best).with_nodes(len(nodes))
        equal = replace(equal, levels=_within(equal.levels, equal.world_size))
        if len(held) == 1 and len({rate for row in rows for rate in row if rate}) <= 1:
            return equal
        unequal = UnequalNodes(
            names=tuple(whole.names[node] for node in nodes) if whole.names else (),
            kinds=tuple(
                replace(whole.kinds[kind], levels=_within(whole.kinds[kind].levels, equal.world_size)) for kind in held
            ),
            kind_of_node_N=tuple(held.index(whole.kind_of_node_N[node]) for node in nodes),
            bytes_per_second_NN=rows,
            source=whole.source,
        )
        return replace(equal, unequal=unequal)

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


def _within(levels: tuple[LinkLevel, ...], world_size: int) -> tuple[LinkLevel, ...]:
    """Return the levels that join so many GPUs, the last one no larger than that."""
    spanning = next(index for index, level in enumerate(levels) if level.num_gpus >= world_size)
    return (*levels[:spanning], replace(levels[spanning], num_gpus=world_size))
