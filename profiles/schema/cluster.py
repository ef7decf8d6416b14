"""A cluster as a user writes it: a preset with changes, or everything inline.

`{preset: dgx-h100, nodes: 8}` takes a preset and replaces the fields that are given. Inline, a cluster is a GPU (a
catalogue name or a mapping), `gpus_per_node`, `nodes`, `nics` per node, and `links`: the levels of the network from
the inside out. Levels inside a node ("nvlink", "pcie") are derived and only listed to change their figures; a level
outside says how many nodes or GPUs it joins, and the last one joins all.

`{groups: [{preset: dgx-h100, nodes: 3}, {preset: dgx-a100, nodes: 1}]}` is a cluster of several kinds of nodes. What
else may be said of single nodes is in `profiles.schema.unequal`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Final, Self, TypeVar, cast

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from profiles.errors import CatalogueError
from profiles.hardware import Cluster, Device, LinkKind, UnequalNodes
from profiles.package_data import Section, entry, resolve_name
from profiles.schema.device import PCIE_X16_BYTES_PER_SECOND, STATED_BY_USER, DeviceEntry, PcieLink
from profiles.schema.finding import fail, reject
from profiles.schema.levels import PEER_LEVELS, Fabric, LinkEntry, NicEntry, build_levels
from profiles.schema.strict import Strict
from profiles.schema.unequal import NodeBandwidth, NodeNames, SaidOfNodes, SlowLinks
from profiles.schema.units import Bytes, BytesPerSecond

MOST_GPUS: Final = 2**20
"""The largest clusters have about 2**17 GPUs."""


def _look_up_gpu(value: object) -> object:
    """Return the catalogue's entry for a name; a mapping is a GPU of the user's own and stays as it is."""
    if isinstance(value, str):
        try:
            name = resolve_name(Section.DEVICES, value)
        except CatalogueError as error:
            reject(str(error))
        return DeviceEntry.model_validate(entry(Section.DEVICES, name))
    if not isinstance(value, dict | DeviceEntry):
        reject("a GPU is a name of the catalogue, or a mapping that describes one")
    return value


class NvmeEntry(Strict):
    """Local drives of one node.

    Args:
        count: Drives.
        capacity: Of one drive.
        bandwidth: Reading, of one drive; left out where it is not known.
        write_bandwidth: Writing, of one drive; left out where it is not known, and reading stands for it.
    """

    count: Annotated[int, Field(ge=1, le=1024)]
    capacity: Bytes
    bandwidth: BytesPerSecond | None = None
    write_bandwidth: BytesPerSecond | None = None


class ClusterEntry(Strict):
    """Nodes of one kind.

    Args:
        preset: Name of a ready-made cluster; every other field that is given replaces the preset's.
        name: What the user calls it.
        title: What it is, in a few words.
        gpu: Catalogue name, or a mapping.
        gpus_per_node: GPUs of one node.
        nodes: Nodes.
        nvlink_domain: GPUs joined by NVLink, Infinity Fabric or such; more than a node in rack-scale systems, 1 for
            none. Left out, the catalogue's product decides.
        nics: Network cards of one node.
        links: Levels of the network, from the inside out.
        host_ram: RAM of one node.
        host_link: PCIe generation of the slots, where it is not the GPU's own.
        nvme: Local drives of one node.
        price_per_gpu_hour: In the user's currency.
        watts_per_gpu: Watts of one GPU with its share of the node.
        sources: Field to where its figure comes from.
        node_names: Host name of each node.
        slow_links: Pairs of nodes that reach less than the others.
        node_bandwidth: What every pair of nodes reaches.
    """

    preset: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    title: Annotated[str, Field(max_length=200)] | None = None
    gpu: Annotated[DeviceEntry, BeforeValidator(_look_up_gpu, json_schema_input_type=str | DeviceEntry)]
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)]
    nodes: Annotated[int, Field(ge=1, le=131072)]
    nvlink_domain: Annotated[int, Field(ge=1, le=1024)] | None = None
    nics: NicEntry | None = None
    links: Annotated[list[LinkEntry], Field(max_length=16, default_factory=list)]
    host_ram: Bytes
    host_link: PcieLink | None = None
    nvme: NvmeEntry | None = None
    price_per_gpu_hour: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    watts_per_gpu: Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)] | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    node_names: NodeNames = None
    slow_links: SlowLinks
    node_bandwidth: NodeBandwidth | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: object) -> object:
        """Return the preset's fields, replaced by those that are given."""
        if not isinstance(data, Mapping) or data.get("preset") is None:
            return data
        wanted = data["preset"]
        if not isinstance(wanted, str):
            fail("cluster", ("preset",), "preset is the name of a ready-made cluster: write for example dgx-h100")
        try:
            name = resolve_name(Section.CLUSTERS, wanted)
        except CatalogueError as error:
            fail("cluster", ("preset",), str(error))
        base = entry(Section.CLUSTERS, name)
        base_sources = cast("Mapping[str, str]", base["sources"])
        given = {key: value for key, value in data.items() if value is not None or key not in base}
        kept = {field: source for field, source in base_sources.items() if field not in given}
        stated = given.pop("sources", {})
        sources = {**kept, **stated} if isinstance(stated, Mapping) else stated
        return {**base, "name": name, **given, "preset": name, "sources": sources}

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """Check what must hold between fields."""
        if self.gpus_per_node * self.nodes > MOST_GPUS:
            fail(
                "cluster",
                ("nodes",),
                f"{self.nodes} nodes of {self.gpus_per_node} GPUs are more than {MOST_GPUS:,} GPUs",
            )
        self._check_domain()
        build_levels(self.fabric)
        if self._said.is_anything:
            self._said.differences([self._alone()], [self.nodes])
        return self

    def _check_domain(self) -> None:
        """Check that NVLink domains and nodes divide one another, and that there is a link to join them."""
        domain, per_node = self.domain, self.gpus_per_node
        if domain % per_node and per_node % domain:
            fail(
                "cluster",
                ("nvlink_domain",),
                f"nvlink_domain = {domain} is neither a multiple nor a divisor of gpus_per_node = {per_node}",
            )
        stated = any(link.name in PEER_LEVELS and link.bandwidth is not None for link in self.links)
        if domain > 1 and self.gpu.peer_bandwidth is None and not stated:
            fail(
                "cluster",
                ("nvlink_domain",),
                f"{self.gpu.name} has no NVLink in the catalogue: write nvlink_domain: 1, or give its bandwidth "
                "as links: [{name: nvlink, bandwidth: 100GB/s}]",
            )

    @property
    def domain(self) -> int:
        """Return how many GPUs the peer link joins, as given or as the product is sold."""
        if self.nvlink_domain is not None:
            return self.nvlink_domain
        return self.gpu.default_peer_domain(self.gpus_per_node)

    @property
    def fabric(self) -> Fabric:
        """Return what the levels are built from."""
        return Fabric(
            device=self.device,
            gpus_per_node=self.gpus_per_node,
            nodes=self.nodes,
            domain=self.domain,
            nics=self.nics,
            links=tuple(self.links),
            nic_source=self.sources.get("nics", STATED_BY_USER),
        )

    @property
    def device(self) -> Device:
        """Return the GPU, in the slots that this cluster has."""
        device = self.gpu.to_device()
        if self.host_link is None:
            return device
        source = self.sources.get("host_link", STATED_BY_USER)
        return replace(
            device,
            host_link=self.host_link,
            host_bytes_per_second=PCIE_X16_BYTES_PER_SECOND[self.host_link],
            sources={**device.sources, "host_bytes_per_second": f"{self.host_link} x16 slots, {source}"},
        )

    def to_cluster(self) -> Cluster:
        """Return the cluster as the cost model sees it."""
        if not self._said.is_anything:
            return self._alone()
        return _with_differences(self._alone(), self._said.differences([self._alone()], [self.nodes]))

    @property
    def _said(self) -> SaidOfNodes:
        return SaidOfNodes(node_names=self.node_names, slow_links=self.slow_links, node_bandwidth=self.node_bandwidth)

    def _alone(self) -> Cluster:
        """Return the cluster with nothing said of single nodes."""
        nvme = self.nvme
        drive_bytes_per_second = None if nvme is None else nvme.bandwidth
        written_bytes_per_second = None if nvme is None else nvme.write_bandwidth
        return Cluster(
            name=self.name or f"{self.nodes} x {self.gpus_per_node} {self.gpu.name}",
            device=self.device,
            gpus_per_node=self.gpus_per_node,
            num_nodes=self.nodes,
            levels=build_levels(self.fabric),
            host_memory_bytes=self.host_ram,
            nvme_bytes_per_second=nvme.count * drive_bytes_per_second if nvme and drive_bytes_per_second else None,
            nvme_write_bytes_per_second=(
                nvme.count * written_bytes_per_second if nvme and written_bytes_per_second else None
            ),
            nvme_bytes=None if nvme is None else nvme.count * nvme.capacity,
            price_per_gpu_hour=self.price_per_gpu_hour,
            watts_per_gpu=self.watts_per_gpu,
        )


class MixedClusterEntry(Strict):
    """Several groups of nodes, each of one kind; nodes are numbered group after group.

    Args:
        groups: The groups, each with its `nodes`.
        name: What the user calls the cluster.
        title: What it is, in a few words.
        node_names: Host name of each node.
        slow_links: Pairs of nodes that reach less than the others.
        node_bandwidth: What every pair of nodes reaches.
    """

    groups: Annotated[list[ClusterEntry], Field(min_length=1, max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    title: Annotated[str, Field(max_length=200)] | None = None
    node_names: NodeNames = None
    slow_links: SlowLinks
    node_bandwidth: NodeBandwidth | None = None

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        """Check that the groups make one cluster."""
        first = self.groups[0]
        for index, group in enumerate(self.groups):
            for field in ("node_names", "slow_links", "node_bandwidth"):
                if getattr(group, field):
                    fail("cluster", ("groups", index, field), f"{field} stands beside groups, not in one of them")
            if group.gpus_per_node != first.gpus_per_node:
                fail(
                    "cluster",
                    ("groups", index, "gpus_per_node"),
                    f"{group.gpus_per_node} GPUs a node beside {first.gpus_per_node}: all nodes need equally many",
                )
            if group.device.vendor != first.device.vendor:
                fail(
                    "cluster",
                    ("groups", index, "gpu"),
                    f"{group.device.name} beside {first.device.name}: GPUs of two vendors run no collective together",
                )
        self._said.differences(self._alone(), self._counts)
        return self

    @property
    def _said(self) -> SaidOfNodes:
        return SaidOfNodes(node_names=self.node_names, slow_links=self.slow_links, node_bandwidth=self.node_bandwidth)

    @property
    def _counts(self) -> list[int]:
        return [group.nodes for group in self.groups]

    def _alone(self) -> list[Cluster]:
        """Return for each group a cluster as large as the whole, of its nodes alone."""
        found = []
        for index, group in enumerate(self.groups):
            whole = group.model_copy(update={"nodes": sum(self._counts)})
            try:
                found.append(whole.to_cluster())
            except ValidationError as error:
                first = error.errors()[0]
                fail("cluster", ("groups", index, *first["loc"]), first["msg"])
        return found

    def to_cluster(self) -> Cluster:
        """Return the cluster as the cost model sees it; host memory and drives are those of the smallest node."""
        alone, counts = self._alone(), self._counts
        fastest = max(alone, key=lambda cluster: cluster.device.dense_flops_per_second.get("bf16", 0.0))
        names = [group.name or group.device.name for group in self.groups]
        drives = [cluster.nvme_bytes for cluster in alone]
        rates = [cluster.nvme_bytes_per_second for cluster in alone]
        whole = replace(
            fastest,
            name=self.name or " + ".join(f"{count} x {name}" for count, name in zip(counts, names, strict=True)),
            host_memory_bytes=min(cluster.host_memory_bytes for cluster in alone),
            nvme_bytes=_least(drives),
            nvme_bytes_per_second=_least(rates),
            nvme_write_bytes_per_second=_least([cluster.nvme_write_bytes_per_second for cluster in alone]),
            price_per_gpu_hour=_mean([cluster.price_per_gpu_hour for cluster in alone], counts),
            watts_per_gpu=_mean([cluster.watts_per_gpu for cluster in alone], counts),
        )
        return _with_differences(whole, self._said.differences(alone, counts))


def _with_differences(cluster: Cluster, nodes: UnequalNodes) -> Cluster:
    """Return a cluster whose nodes differ, its network as fast as the best pair of them."""
    best = nodes.best_bytes_per_second
    levels = tuple(level.with_bandwidth(best) if level.kind is LinkKind.NETWORK else level for level in cluster.levels)
    return replace(cluster, levels=levels, unequal=nodes)


Figure = TypeVar("Figure", int, float)


def _least(figures: Sequence[Figure | None]) -> Figure | None:
    """Return the least figure; None where one is not known."""
    known = [figure for figure in figures if figure is not None]
    return min(known) if len(known) == len(figures) else None


def _mean(figures: Sequence[float | None], counts: Sequence[int]) -> float | None:
    """Return the mean over nodes; None where one is not known."""
    known = [figure * count for figure, count in zip(figures, counts, strict=True) if figure is not None]
    return sum(known) / sum(counts) if len(known) == len(figures) else None
