"""What a layout's parts cost on nodes that differ, under a node order.

Ranks are numbered as the mesh is (`Layout.rank_order`), and consecutive ranks fill a place for a node. A node order
says which node stands at each place. From it follows, for each group of ranks that communicate, which places its
messages cross between (`Hops`), and for each pipeline rank which kinds of nodes it holds:

- a ring passes from place to place and from the last back to the first, as NCCL joins nodes (`connectRings` in
  `src/graph/connect.cc` of NCCL), and a tree is taken to be as slow; the slowest hop sets its pace;
- in an all-to-all every node sends to every other, and the slowest pair sets the pace;
- a pipeline transfer goes from each node of one pipeline rank to its partner in the next; the slowest pair decides;
- the GPUs of a pipeline rank wait for one another in every step, so the slowest of them sets the pace of each
  operation.

Where nodes do not differ, every part has the cluster's own cost model.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

from planner.layout import Layout
from planner.memory.ledger import memory_limit_bytes
from profiles.estimate import CostModel, Estimate
from profiles.hardware import Cluster, UnequalNodes
from profiles.ops import Collective, CollectiveKind, ComputeOp
from profiles.software import TensorParallelOverlap
from profiles.unequal import UnequalCostModel

Hops = frozenset[tuple[int, int]]
"""Pairs of places, the lower one first, between which the messages of some group of ranks pass."""

Shape = tuple[bool, int, int]
"""Of a collective: whether every member sends to every other, its ranks, and how far apart they are."""

Kinds = tuple[int, ...]
"""Kinds of nodes, sorted; none where it is not known yet which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How a layout's ranks lie on places for nodes.

    Args:
        block_ranks: Ranks of one stage of one model replica; they are neighbours.
        dp: Model replicas.
        pp: Pipeline ranks.
        stage_distance: How far apart a rank and its like on the next pipeline rank are.
        replica_distance: How far apart a rank and its like in the next model replica are.
        gpus_per_node: Ranks of one place.
    """

    block_ranks: int
    dp: int
    pp: int
    stage_distance: int
    replica_distance: int
    gpus_per_node: int

    @property
    def num_places(self) -> int:
        """Return the places that the mesh takes."""
        return -(-self.block_ranks * self.dp * self.pp // self.gpus_per_node)

    def ranks(self, pipeline_rank: int) -> tuple[int, ...]:
        """Return the global ranks of one pipeline rank, in order."""
        first = pipeline_rank * self.stage_distance
        return tuple(
            first + replica * self.replica_distance + rank
            for replica in range(self.dp)
            for rank in range(self.block_ranks)
        )

    def places(self, pipeline_rank: int) -> frozenset[int]:
        """Return the places that hold a part of one pipeline rank."""
        return frozenset(rank // self.gpus_per_node for rank in self.ranks(pipeline_rank))

    def group_hops(self, pipeline_rank: int, shape: Shape) -> Hops:
        """Return where the messages of a collective inside one pipeline rank cross, in all of its groups."""
        return _group_hops(self, pipeline_rank, shape)

    def boundary(self, pipeline_rank: int) -> Hops:
        """Return where transfers from one pipeline rank to the next cross, from the last to the first ones."""
        return self._between(pipeline_rank, (pipeline_rank + 1) % self.pp)

    @property
    def ends(self) -> Hops:
        """Return where what the first and the last pipeline rank exchange crosses."""
        return self._between(0, self.pp - 1)

    def _between(self, here: int, there: int) -> Hops:
        pairs = zip(self.ranks(here), self.ranks(there), strict=True)
        return _hops((first // self.gpus_per_node, last // self.gpus_per_node) for first, last in pairs)


def mesh_of(layout: Layout, cluster: Cluster) -> Mesh:
    """Return how a layout lies on a cluster's nodes."""
    return Mesh(
        block_ranks=layout.tp * layout.cp,
        dp=layout.dp,
        pp=layout.pp,
        stage_distance=layout.stage_distance,
        replica_distance=layout.replica_distance,
        gpus_per_node=cluster.gpus_per_node,
    )


def shape_of(operation: Collective) -> Shape:
    """Return what of a collective decides where its messages cross."""
    return operation.kind is CollectiveKind.ALL_TO_ALL, operation.size, operation.stride


def _hops(pairs: Iterable[tuple[int, int]]) -> Hops:
    return frozenset((min(pair), max(pair)) for pair in pairs if pair[0] != pair[1])


@lru_cache(maxsize=4096)
def _group_hops(mesh: Mesh, pipeline_rank: int, shape: Shape) -> Hops:
    """Return where the groups of a shape cross between places; groups begin at multiples of size times stride."""
    every_pair, size, stride = shape
    members: dict[tuple[int, int], dict[int, None]] = {}
    for rank in mesh.ranks(pipeline_rank):
        group = members.setdefault((rank // (size * stride), rank % stride), {})
        group[rank // mesh.gpus_per_node] = None
    found = {tuple(places) for places in members.values()}
    if every_pair:
        return _hops((here, there) for places in found for here in places for there in places)
    return _hops((places[index - 1], places[index]) for places in found for index in range(len(places)))


class Setting(Protocol):
    """What is known of a node order."""

    def slowest_bytes_per_second(self, hops: Hops) -> float:
        """Return the bandwidth of the slowest of some hops, at least one."""

    def kinds(self, places: frozenset[int]) -> Kinds:
        """Return the kinds of nodes at some places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrder:
    """A node order, place by place.

    Args:
        nodes: How the nodes differ.
        order: The node at each place.
    """

    nodes: UnequalNodes
    order: tuple[int, ...]

    def slowest_bytes_per_second(self, hops: Hops) -> float:
        """Return the bandwidth of the slowest of some hops."""
        rates, order = self.nodes.bytes_per_second_NN, self.order
        return min(rates[order[here]][order[there]] for here, there in hops)

    def kinds(self, places: frozenset[int]) -> Kinds:
        """Return the kinds of nodes at some places."""
        return tuple(sorted({self.nodes.kind_of_node_N[self.order[place]] for place in places}))


def node_order_of(layout: Layout, nodes: UnequalNodes) -> tuple[int, ...]:
    """Return the node at each place; without a word of the layout, the nodes as they are listed."""
    return layout.node_order or tuple(range(len(nodes.kind_of_node_N)))


class PartCostModel:
    """Prices the operations of one part of a layout.

    Args:
        best: Prices operations at best.
        kinds: Kinds of nodes that hold the part; none where that is not known.
        bytes_per_second_of: Bandwidth of the slowest link that a collective uses.
    """

    def __init__(
        self, best: UnequalCostModel, *, kinds: Kinds, bytes_per_second_of: Callable[[Collective], float]
    ) -> None:
        self.best = best
        self.held_kinds = kinds
        self._bytes_per_second_of = bytes_per_second_of
        self.compute = lru_cache(maxsize=None)(self._compute)
        self.collective = lru_cache(maxsize=None)(self._collective)

    def _compute(self, operation: ComputeOp) -> Estimate:
        if not self.held_kinds:
            return self.best.compute(operation)
        return self.best.slowest_compute(operation, self.held_kinds)

    def _collective(self, operation: Collective) -> Estimate:
        rate = self._bytes_per_second_of(operation)
        if not self.held_kinds:
            return self.best.fastest_collective(operation, rate)
        return self.best.slowest_collective(operation, self.held_kinds, rate)

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self.best.launch_seconds

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self.best.tensor_parallel_overlap

    @cached_property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        if not self.held_kinds:
            return self.best.overlap_slowdown
        return self.best.slowdown(self.held_kinds, transfers=False)

    @cached_property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline transfer runs beside it."""
        if not self.held_kinds:
            return self.best.transfer_slowdown
        return self.best.slowdown(self.held_kinds, transfers=True)

    @cached_property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second of a copy to or from the host beside it, if known."""
        if not self.held_kinds:
            return self.best.copy_slowdown
        return self.best.slowdown_by_copies(self.held_kinds)


class PartCosts:
    """The cost models of a layout's parts.

    Args:
        cost_model: Prices operations on the cluster; where nodes differ, at best.
        mesh: How the layout lies on the nodes; None where nodes do not differ.
        setting: What is known of the node order; None likewise.
    """

    def __init__(self, cost_model: CostModel, *, mesh: Mesh | None, setting: Setting | None) -> None:
        self.cost_model = cost_model
        self._mesh = mesh
        self._setting = setting
        self._of_stage: dict[int, CostModel] = {}

    def of_stage(self, pipeline_rank: int) -> CostModel:
        """Return what prices the operations inside one pipeline rank."""
        if pipeline_rank not in self._of_stage:
            self._of_stage[pipeline_rank] = self._stage_model(pipeline_rank)
        return self._of_stage[pipeline_rank]

    def of_boundary(self, pipeline_rank: int) -> CostModel:
        """Return what prices transfers from one pipeline rank to the next."""
        mesh = self._mesh
        if mesh is None:
            return self.cost_model
        places = mesh.places(pipeline_rank) | mesh.places((pipeline_rank + 1) % mesh.pp)
        return self._across(mesh.boundary(pipeline_rank), places)

    @property
    def of_ends(self) -> CostModel:
        """Return what prices the exchange of the first with the last pipeline rank."""
        mesh = self._mesh
        return self.cost_model if mesh is None else self._across(mesh.ends, mesh.places(0) | mesh.places(mesh.pp - 1))

    @property
    def of_world(self) -> CostModel:
        """Return what prices a collective of all ranks: of so few bytes that no link's bandwidth matters."""
        mesh = self._mesh
        return self.cost_model if mesh is None else self._across(frozenset(), frozenset(range(mesh.num_places)))

    def _stage_model(self, pipeline_rank: int) -> CostModel:
        cost_model, mesh, setting = self.cost_model, self._mesh, self._setting
        if mesh is None or setting is None or not isinstance(cost_model, UnequalCostModel):
            return cost_model
        best = cost_model.nodes.best_bytes_per_second

        def bytes_per_second_of(operation: Collective) -> float:
            hops = mesh.group_hops(pipeline_rank, shape_of(operation))
            return setting.slowest_bytes_per_second(hops) if hops else best

        kinds = setting.kinds(mesh.places(pipeline_rank))
        return PartCostModel(cost_model, kinds=kinds, bytes_per_second_of=bytes_per_second_of)

    def _across(self, hops: Hops, places: frozenset[int]) -> CostModel:
        """Return what prices a collective between ranks at some places that crosses these hops."""
        cost_model, setting = self.cost_model, self._setting
        if setting is None or not isinstance(cost_model, UnequalCostModel):
            return cost_model
        rate = setting.slowest_bytes_per_second(hops) if hops else cost_model.nodes.best_bytes_per_second
        return PartCostModel(cost_model, kinds=setting.kinds(places), bytes_per_second_of=lambda _operation: rate)


def part_costs(layout: Layout, cost_model: CostModel, *, setting: Setting | None = None) -> PartCosts:
    """Return the cost models of a layout's parts.

    Args:
        layout: The layout.
        cost_model: Prices operations on the cluster.
        setting: What is known of the node order; None takes the layout's own.
    """
    if not isinstance(cost_model, UnequalCostModel):
        return PartCosts(cost_model, mesh=None, setting=None)
    nodes = cost_model.nodes
    setting = setting or NodeOrder(nodes=nodes, order=node_order_of(layout, nodes))
    return PartCosts(cost_model, mesh=mesh_of(layout, cost_model.cluster), setting=setting)


def pipeline_rank_limits(
    layout: Layout, cluster: Cluster, *, headroom: float, setting: Setting | None = None
) -> tuple[int, ...]:
    """Return what each GPU of each pipeline rank may use: the least of its GPUs' memories, headroom taken off.

    Args:
        layout: The layout.
        cluster: The cluster.
        headroom: Fraction of each GPU's memory that stays free.
        setting: What is known of the node order; None takes the layout's own. Where no kind is known, most counts.
    """
    most = memory_limit_bytes(cluster.most_memory_bytes, headroom)
    nodes = cluster.unequal
    if nodes is None:
        return (most,) * layout.pp
    setting = setting or NodeOrder(nodes=nodes, order=node_order_of(layout, nodes))
    mesh = mesh_of(layout, cluster)
    of_kind = [memory_limit_bytes(kind.device.memory_bytes, headroom) for kind in nodes.kinds]
    return tuple(
        min((of_kind[kind] for kind in setting.kinds(mesh.places(rank))), default=most) for rank in range(layout.pp)
    )
