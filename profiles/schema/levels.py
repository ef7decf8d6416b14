"""The levels of a cluster's network, from what a user says about them.

From the inside out: the peer link (NVLink, Infinity Fabric) joins `domain` GPUs; PCIe joins the rest of a node; then
come the network's own levels, a rail group or leaf, a spine and so on. A level's bandwidth is one GPU's, one
direction: a network card's bandwidth is shared by the GPUs of a node and divided by the level's oversubscription. A
level that the cluster does not reach beyond is the last, and is cut to the cluster's size.
"""

from dataclasses import dataclass
from typing import Annotated, Final, NoReturn, Self

from pydantic import Field, model_validator

from profiles.hardware import Device, LinkKind, LinkLevel
from profiles.schema.device import STATED_BY_USER
from profiles.schema.finding import Place, fail
from profiles.schema.strict import Strict
from profiles.schema.units import BytesPerSecond, Seconds

PEER_LEVELS: Final = ("nvlink", "infinity-fabric")
HOST_LEVEL: Final = "pcie"
INNER_LEVELS: Final = (*PEER_LEVELS, HOST_LEVEL)

# Cost of one ring step by the kind of path: the table that NCCL's tuner starts from, for every generation and for all
# switch levels of a network alike. AMD's RCCL is assumed to be as fast.
_DEFAULT_LATENCY: Final = "hardware latency of a ring step with LL128 in NCCL's tuner (src/graph/tuning.cc)"
_PEER_SECONDS: Final = 1.9e-6
_PCIE_SECONDS: Final = 2.5e-6
_NETWORK_SECONDS: Final = 4.0e-6


class NicEntry(Strict):
    """Network cards of one node.

    Args:
        count: Cards that carry the traffic between GPUs.
        bandwidth: Of one card, one direction.
    """

    count: Annotated[int, Field(ge=1, le=256)]
    bandwidth: BytesPerSecond


class LinkEntry(Strict):
    """One level of the network.

    Args:
        name: What it is called; "nvlink", "infinity-fabric" and "pcie" are the levels inside a node or NVLink domain.
        nodes: Nodes that it joins; or
        gpus: GPUs that it joins. The last level says neither and joins all.
        bandwidth: Of one GPU, one direction; left out, the network cards' share or the GPU's own link.
        oversubscription: How many times less than the network cards' share is left to a GPU across this level.
        latency: Start-up time of one message.
        source: Where size and bandwidth come from.
        latency_source: Where the latency comes from.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
    nodes: Annotated[int, Field(ge=1, le=131072)] | None = None
    gpus: Annotated[int, Field(ge=1, le=2**20)] | None = None
    bandwidth: BytesPerSecond | None = None
    oversubscription: Annotated[float, Field(ge=1, le=1000, allow_inf_nan=False)] | None = None
    latency: Seconds | None = None
    source: Annotated[str, Field(min_length=1, max_length=400)] | None = None
    latency_source: Annotated[str, Field(min_length=1, max_length=400)] | None = None

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        """Check that nothing is said twice."""
        if self.nodes is not None and self.gpus is not None:
            fail("links", ("gpus",), f"{self.name}: give its size as nodes or as gpus, not both")
        if self.bandwidth is not None and self.oversubscription is not None:
            fail(
                "links",
                ("oversubscription",),
                f"{self.name}: give bandwidth, or oversubscription of the network cards, not both",
            )
        if self.name in INNER_LEVELS:
            for field in ("nodes", "gpus", "oversubscription"):
                if getattr(self, field) is not None:
                    size = "gpus_per_node" if self.name == HOST_LEVEL else "nvlink_domain"
                    fail("links", (field,), f"{self.name} has no {field}: its size is the cluster's {size}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What the levels are built from.

    Args:
        device: The GPU.
        gpus_per_node: GPUs of one node.
        nodes: Nodes.
        domain: GPUs that the peer link joins; 1 without one.
        nics: Network cards of one node.
        links: What the user says of levels, from the inside out.
        nic_source: Where the cards' figures come from.
    """

    device: Device
    gpus_per_node: int
    nodes: int
    domain: int
    nics: NicEntry | None
    links: tuple[LinkEntry, ...]
    nic_source: str

    @property
    def world_size(self) -> int:
        """Return the number of GPUs."""
        return self.gpus_per_node * self.nodes

    @property
    def inside_size(self) -> int:
        """Return how many GPUs reach one another without the network cards."""
        return max(self.domain, self.gpus_per_node)


def build_levels(fabric: Fabric) -> tuple[LinkLevel, ...]:
    """Return the levels of a cluster, smallest first, the last as large as the cluster.

    Raises:
        ValidationError: Levels contradict one another or the cluster; the finding names the field.
    """
    _check_order(fabric)
    levels = (*_inner_levels(fabric), *_network_levels(fabric))
    kept: list[LinkLevel] = []
    for level in levels:
        reached = kept[-1].num_gpus if kept else 1
        if reached >= fabric.world_size:
            break
        kept.append(
            LinkLevel(
                name=level.name,
                kind=level.kind,
                num_gpus=min(level.num_gpus, fabric.world_size),
                bytes_per_second=level.bytes_per_second,
                latency_seconds=level.latency_seconds,
                source=level.source,
            )
        )
    return tuple(kept)


def _fail(place: Place, message: str) -> NoReturn:
    fail("cluster", place, message)


def _check_order(fabric: Fabric) -> None:
    """Check that names are unique, that inner levels come first and that they exist."""
    ranks = [INNER_LEVELS.index(link.name) if link.name in INNER_LEVELS else len(INNER_LEVELS) for link in fabric.links]
    for index, link in enumerate(fabric.links):
        if any(link.name == earlier.name for earlier in fabric.links[:index]):
            _fail(("links", index, "name"), f"level {link.name} is listed twice")
        if index and ranks[index] < ranks[index - 1]:
            _fail(
                ("links", index, "name"),
                f"{link.name} lies inside {fabric.links[index - 1].name}: list levels from the inside out",
            )
        if link.name in PEER_LEVELS and fabric.domain == 1:
            _fail(("links", index, "name"), f"there is no {link.name} level with nvlink_domain = 1")
        if link.name == HOST_LEVEL and fabric.domain >= fabric.gpus_per_node:
            _fail(
                ("links", index, "name"),
                f"there is no pcie level: nvlink_domain = {fabric.domain} joins all {fabric.gpus_per_node} GPUs "
                "of a node",
            )
    if sum(link.name in PEER_LEVELS for link in fabric.links) > 1:
        _fail(("links", 1, "name"), "nvlink and infinity-fabric are names of the same level: list one")


def _inner_levels(fabric: Fabric) -> list[LinkLevel]:
    """Return the peer link's level and PCIe's, where there are such."""
    given = {("peer" if link.name in PEER_LEVELS else link.name): link for link in fabric.links}
    levels: list[LinkLevel] = []
    device = fabric.device
    if fabric.domain > 1:
        link = given.get("peer", LinkEntry(name=PEER_LEVELS[0] if device.vendor == "nvidia" else PEER_LEVELS[1]))
        levels.append(
            _inner_level(
                link,
                kind=LinkKind.PEER,
                num_gpus=fabric.domain,
                device_figure=(device.peer_bytes_per_second or 0.0, device.sources.get("peer_bytes_per_second", "")),
                default_seconds=_PEER_SECONDS,
            )
        )
    if fabric.gpus_per_node > fabric.domain:
        levels.append(
            _inner_level(
                given.get(HOST_LEVEL, LinkEntry(name=HOST_LEVEL)),
                kind=LinkKind.HOST,
                num_gpus=fabric.gpus_per_node,
                device_figure=(device.host_bytes_per_second, device.sources["host_bytes_per_second"]),
                default_seconds=_PCIE_SECONDS,
            )
        )
    return levels


def _inner_level(
    link: LinkEntry, *, kind: LinkKind, num_gpus: int, device_figure: tuple[float, str], default_seconds: float
) -> LinkLevel:
    """Return one level inside a node or NVLink domain; what `link` leaves out is the GPU's own link."""
    figure, figure_source = device_figure
    bandwidth_source = figure_source if link.bandwidth is None else (link.source or STATED_BY_USER)
    return LinkLevel(
        name=link.name,
        kind=kind,
        num_gpus=num_gpus,
        bytes_per_second=figure if link.bandwidth is None else link.bandwidth,
        latency_seconds=default_seconds if link.latency is None else link.latency,
        source=f"bandwidth: {bandwidth_source}; {_latency_source(link)}",
    )


def _latency_source(link: LinkEntry) -> str:
    return f"latency: {_DEFAULT_LATENCY if link.latency is None else link.latency_source or STATED_BY_USER}"


def _network_levels(fabric: Fabric) -> list[LinkLevel]:
    """Return the levels outside nodes and NVLink domains; only checked as far as the cluster reaches."""
    outside = [(index, link) for index, link in enumerate(fabric.links) if link.name not in INNER_LEVELS]
    if fabric.world_size <= fabric.inside_size and not outside:
        return []
    if not outside:
        outside = [(len(fabric.links), LinkEntry(name="network"))]
    levels: list[LinkLevel] = []
    inner_size = fabric.inside_size
    for position, (index, link) in enumerate(outside):
        is_last = position == len(outside) - 1
        size = _size(fabric, link, index=index, inner_size=inner_size, is_last=is_last)
        level = _network_level(fabric, link, index=index, num_gpus=size)
        if levels and level.bytes_per_second > levels[-1].bytes_per_second:
            _fail(
                ("links", index, "bandwidth" if link.bandwidth is not None else "oversubscription"),
                f"{link.name} is faster than {levels[-1].name} inside it: a message across {link.name} crosses both",
            )
        levels.append(level)
        inner_size = size
    return levels


def _size(fabric: Fabric, link: LinkEntry, *, index: int, inner_size: int, is_last: bool) -> int:
    """Return how many GPUs a network level joins."""
    if link.nodes is None and link.gpus is None:
        if not is_last:
            _fail(
                ("links", index, "nodes"), f"{link.name} needs its size as nodes or gpus: only the last level joins all"
            )
        return max(fabric.world_size, inner_size)
    field = "nodes" if link.nodes is not None else "gpus"
    size = link.gpus if link.nodes is None else link.nodes * fabric.gpus_per_node
    assert size is not None
    if size < fabric.gpus_per_node:
        _fail(("links", index, field), f"{link.name} joins {size} GPUs, less than one node of {fabric.gpus_per_node}")
    if size <= inner_size or size % inner_size:
        _fail(
            ("links", index, field),
            f"{link.name} joins {size} GPUs: it must be a larger multiple of the {inner_size} GPUs inside it",
        )
    if is_last and size < fabric.world_size:
        _fail(
            ("links", index, field),
            f"{link.name} is the last level and joins {size} of {fabric.world_size} GPUs: leave {field} out, or add "
            "a level outside it such as {name: spine}",
        )
    return size


def _network_level(fabric: Fabric, link: LinkEntry, *, index: int, num_gpus: int) -> LinkLevel:
    """Return one network level with its bandwidth from the cards, unless it states one."""
    if link.bandwidth is not None:
        bandwidth, source = link.bandwidth, link.source or STATED_BY_USER
    elif fabric.nics is not None:
        divisor = link.oversubscription or 1.0
        bandwidth = fabric.nics.count * fabric.nics.bandwidth / fabric.gpus_per_node / divisor
        source = (
            f"{fabric.nics.count} network cards for {fabric.gpus_per_node} GPUs, oversubscription {divisor:g}"
            f" ({fabric.nic_source}{f'; {link.source}' if link.source else ''})"
        )
    elif index < len(fabric.links):
        _fail(
            ("links", index, "bandwidth"),
            f"{link.name} has no bandwidth: give it, or nics such as {{count: 8, bandwidth: 400Gb/s}}",
        )
    else:
        _fail(
            ("nics",),
            f"nics are needed to join {fabric.nodes} nodes: write for example {{count: 8, bandwidth: 400Gb/s}}",
        )
    return LinkLevel(
        name=link.name,
        kind=LinkKind.NETWORK,
        num_gpus=num_gpus,
        bytes_per_second=bandwidth,
        latency_seconds=_NETWORK_SECONDS if link.latency is None else link.latency,
        source=f"bandwidth: {source}; {_latency_source(link)}",
    )
