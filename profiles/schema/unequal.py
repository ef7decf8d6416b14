"""Nodes that differ, as a user writes it: slow links, a measured matrix, groups of nodes of other hardware.

Nodes are numbered from 0 in the order in which they are listed, group after group; `node_names` gives their host
names. `slow_links` names pairs of nodes that reach less than the others, `node_bandwidth` every pair: what a transfer
between two nodes was measured to reach, per GPU, one direction. The cost model takes bandwidths of which collectives
reach a part (`profiles.constants.NETWORK_FRACTION`), so a measured figure is divided by that part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal, NoReturn

from pydantic import Field

from profiles.constants import NETWORK_FRACTION
from profiles.hardware import Cluster, LinkKind, NodeKind, UnequalNodes
from profiles.schema.device import STATED_BY_USER
from profiles.schema.finding import Place, fail
from profiles.schema.strict import Strict
from profiles.schema.units import BytesPerSecond

MOST_UNEQUAL_NODES: Final = 256
"""A plan file holds a figure for each pair."""

_UNITS: Final = {"GB/s": 1e9, "Gb/s": 1e9 / 8}

HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?$")]
NodeReference = Annotated[int, Field(ge=0)] | HostName


class SlowLink(Strict):
    """Two nodes that reach one another more slowly than others do.

    Args:
        nodes: Their numbers or names.
        bandwidth: What transfers between them reach, per GPU, one direction.
    """

    nodes: Annotated[list[NodeReference], Field(min_length=2, max_length=2)]
    bandwidth: BytesPerSecond


class NodeBandwidth(Strict):
    """What transfers between any two nodes reach, per GPU, one direction; of both directions the slower one counts.

    Args:
        unit: Unit of the numbers: GB/s (bytes) or Gb/s (bits).
        rows: Row i, column j: from node i to node j. What stands for a node with itself is not read.
    """

    unit: Literal["GB/s", "Gb/s"]
    rows: Annotated[
        list[list[Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]]], Field(max_length=MOST_UNEQUAL_NODES)
    ]


NodeNames = Annotated[list[HostName], Field(max_length=MOST_UNEQUAL_NODES)] | None
SlowLinks = Annotated[list[SlowLink], Field(max_length=10_000, default_factory=list)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidOfNodes:
    """What a cluster says of single nodes.

    Args:
        node_names: Host name of each node.
        slow_links: Pairs of nodes that reach less than the others.
        node_bandwidth: What every pair of nodes reaches.
    """

    node_names: Sequence[str] | None
    slow_links: Sequence[SlowLink]
    node_bandwidth: NodeBandwidth | None

    @property
    def is_anything(self) -> bool:
        """Return whether anything is said of single nodes."""
        return self.node_names is not None or bool(self.slow_links) or self.node_bandwidth is not None

    def differences(self, alone: Sequence[Cluster], counts: Sequence[int]) -> UnequalNodes:
        """Return how the nodes differ.

        Args:
            alone: For each group of nodes a cluster as large as the whole, of such nodes alone.
            counts: Nodes of each group.

        Raises:
            ValidationError: Nodes are named that are not there, or a figure is missing; the finding names the field.
        """
        if self.slow_links and self.node_bandwidth is not None:
            _fail(("slow_links",), "give slow_links or node_bandwidth, not both: the matrix holds every pair")
        groups = [group for group, count in enumerate(counts) for _ in range(count)]
        self._check_counts(len(groups))
        networks = [_network_bytes_per_second(cluster) for cluster in alone]
        rates = [[min(networks[here], networks[there]) for there in groups] for here in groups]
        if self.node_bandwidth is not None:
            rates = self._measured(len(groups), self.node_bandwidth)
        self._slow_down(rates)
        for node, row in enumerate(rates):
            row[node] = 0.0
        best = max(max(row) for row in rates)
        kinds: list[NodeKind] = []
        kind_of_group: list[int] = []
        for cluster in alone:
            kind = _kind(cluster, best if self.node_bandwidth is not None else None)
            if kind not in kinds:
                kinds.append(kind)
            kind_of_group.append(kinds.index(kind))
        return UnequalNodes(
            names=tuple(self.node_names or ()),
            kinds=tuple(kinds),
            kind_of_node_N=tuple(kind_of_group[group] for group in groups),
            bytes_per_second_NN=tuple(tuple(row) for row in rates),
            source=STATED_BY_USER,
        )

    def _check_counts(self, num_nodes: int) -> None:
        """Check that there are not too many nodes, and that each has a name, or none."""
        if num_nodes > MOST_UNEQUAL_NODES:
            _fail(("nodes",), f"{num_nodes} nodes that differ are more than {MOST_UNEQUAL_NODES}")
        if num_nodes < 2:
            _fail(("nodes",), "a single node has no other to differ from")
        names = self.node_names or []
        if self.node_names is not None and len(names) != num_nodes:
            _fail(("node_names",), f"{len(names)} names for {num_nodes} nodes")
        for index, name in enumerate(names):
            if name in names[:index]:
                _fail(("node_names", index), f"{name} is listed twice")

    def _slow_down(self, rates: list[list[float]]) -> None:
        """Put in what slow links reach."""
        for index, link in enumerate(self.slow_links):
            here, there = self._pair(index, link, len(rates))
            reached = link.bandwidth / NETWORK_FRACTION.value
            if reached > rates[here][there]:
                usual = rates[here][there] * NETWORK_FRACTION.value
                _fail(
                    ("slow_links", index, "bandwidth"),
                    f"{link.bandwidth / 1e9:g} GB/s is more than the {usual / 1e9:g} GB/s that the network cards of"
                    " these nodes reach: slow_links holds what is slower",
                )
            rates[here][there] = rates[there][here] = reached

    def _measured(self, num_nodes: int, matrix: NodeBandwidth) -> list[list[float]]:
        """Return the bandwidth of each pair, the slower direction."""
        if len(matrix.rows) != num_nodes:
            _fail(("node_bandwidth", "rows"), f"{len(matrix.rows)} rows for {num_nodes} nodes")
        for index, row in enumerate(matrix.rows):
            if len(row) != num_nodes:
                _fail(("node_bandwidth", "rows", index), f"{len(row)} numbers for {num_nodes} nodes")
            for other, value in enumerate(row):
                if other != index and value * _UNITS[matrix.unit] < 1e3:
                    _fail(("node_bandwidth", "rows", index, other), f"nodes {index} and {other} reach nothing")
        scale = _UNITS[matrix.unit] / NETWORK_FRACTION.value
        rows = matrix.rows
        return [
            [min(rows[here][there], rows[there][here]) * scale for there in range(num_nodes)]
            for here in range(num_nodes)
        ]

    def _pair(self, index: int, link: SlowLink, num_nodes: int) -> tuple[int, int]:
        """Return the numbers of the nodes that a slow link joins."""
        names = self.node_names or []
        found: list[int] = []
        for position, node in enumerate(link.nodes):
            place = ("slow_links", index, "nodes", position)
            if isinstance(node, str):
                if node not in names:
                    _fail(place, f"there is no node {node} in node_names")
                found.append(names.index(node))
            elif node >= num_nodes:
                _fail(place, f"there is no node {node}: nodes are numbered 0 to {num_nodes - 1}")
            else:
                found.append(node)
        here, there = found
        if here == there:
            _fail(("slow_links", index, "nodes"), "a link joins two nodes, not one with itself")
        return here, there


def _network_bytes_per_second(cluster: Cluster) -> float:
    """Return what one GPU has between nodes, which no level of the network may narrow."""
    if cluster.fast_domain_size > cluster.gpus_per_node:
        _fail(
            ("nvlink_domain",),
            f"NVLink joins {cluster.fast_domain_size} GPUs, more than a node of {cluster.gpus_per_node}: links between"
            " nodes can differ only where every node has its own",
        )
    levels = [level for level in cluster.levels if level.kind is LinkKind.NETWORK]
    if len({level.bytes_per_second for level in levels}) > 1:
        _fail(
            ("links",),
            f"{' and '.join(level.name for level in levels)} differ in bandwidth: where nodes differ, give the network"
            " as one level, and what pairs of nodes reach as node_bandwidth",
        )
    return levels[0].bytes_per_second


def _kind(cluster: Cluster, network_bytes_per_second: float | None) -> NodeKind:
    """Return what the nodes of a cluster have, with another bandwidth of its network where one is given."""
    levels = cluster.levels
    if network_bytes_per_second is not None:
        levels = tuple(
            level.with_bandwidth(network_bytes_per_second) if level.kind is LinkKind.NETWORK else level
            for level in levels
        )
    return NodeKind(device=cluster.device, levels=levels)


def _fail(place: Place, message: str) -> NoReturn:
    fail("cluster", place, message)
