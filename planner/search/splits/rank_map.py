"""Prices the points of a space on nodes that differ: which node takes which place, together with the layers' split.

The table of the space prices everything at best (`profiles.unequal`), so its bounds hold for every node order. A point
that they leave open becomes a node order problem (`solvers.node_order`): its hops are those of the point's own
collectives and transfers (`planner.evaluation.node_costs`), its rooms the pipeline ranks, where GPUs differ. What an
order amounts to is priced like any point (`planner.search.splits.ordered_prices`). That price never falls when
a link gets slower or a pipeline rank holds one more kind of node, as the solver needs it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from planner.arrays import FloatArray
from planner.evaluation.node_costs import (
    Hops,
    Kinds,
    Mesh,
    NodeOrder,
    PartCosts,
    Setting,
    Shape,
    mesh_of,
    node_order_of,
    part_costs,
    pipeline_rank_limits,
    shape_of,
)
from planner.layout import Layout
from planner.memory.ledger import memory_limit_bytes
from planner.ranks.communication import data_parallel_traffic, tied_embedding_reduction
from planner.ranks.shard import Elements
from planner.ranks.sharding import Sharding, sharding_of
from planner.search.bounds.costs import SHARE_ROUNDING, Bounds, CostTable
from planner.search.bounds.shape_costs import LayerSeconds, PartTable, ShapeCosts
from planner.search.space.points import Points
from planner.search.splits.candidates import Candidate, PointBound, Pricer, Rejected, has_single_split
from planner.search.splits.ordered_prices import KnownOrder, OrderedPricer, OrderedPrices, RankTable
from planner.search.splits.point_prices import PointPrices
from planner.search.splits.settle import Settled, settle
from profiles.hardware import Cluster, UnequalNodes
from profiles.unequal import UnequalCostModel
from solvers.node_order import OrderProblem, OrderSolution, Price, Signature, solve
from solvers.problem import Problem


def pricer_on(cluster: Cluster, table: CostTable, *, headroom: float, limit_bytes: int | None = None) -> Pricer:
    """Return what prices the points of a space on a cluster.

    Args:
        cluster: The cluster.
        table: Costs of the space.
        headroom: Fraction of each GPU's memory that stays free.
        limit_bytes: What no GPU may exceed beside that; None for no such limit.
    """
    if limit_bytes is None:
        limit_bytes = memory_limit_bytes(cluster.most_memory_bytes, headroom)
    if cluster.unequal is None:
        return Pricer(table, limit_bytes=limit_bytes, cluster=cluster)
    return MappedPricer(table, limit_bytes=limit_bytes, headroom=headroom)


class MappedPricer(Pricer):
    """Prices points of one space on nodes that differ.

    Layouts whose layers are placed are priced under their own node order; without one, in the order of the cluster.

    Args:
        table: Costs of the space, at best.
        limit_bytes: What no GPU may exceed.
        headroom: Fraction of each GPU's memory that stays free.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int, headroom: float) -> None:
        super().__init__(table, limit_bytes=limit_bytes)
        assert isinstance(table.cost_model, UnequalCostModel), "nodes that differ have a cost model of their own"
        self._cost_model: UnequalCostModel = table.cost_model
        self._headroom = headroom
        self._at_best = Pricer(table, limit_bytes=limit_bytes)
        self._solutions: dict[Layout, OrderSolution] = {}
        self._shapes: dict[Sharding, frozenset[Shape]] = {}
        self._layers: dict[tuple[Kinds, tuple[tuple[Shape, float], ...]], dict[Sharding, ShapeCosts]] = {}

    @property
    def nodes(self) -> UnequalNodes:
        """Return how the nodes differ."""
        return self._cost_model.nodes

    def bounds(self, points: Points) -> Bounds:
        """Return times that no split and node order of each point undercuts that fits.

        At best, and where GPUs differ, with as few pipeline ranks as may hold GPUs of each kind. N nodes of a kind take
        at least n = ceil(N * GPUs of a node / GPUs of a pipeline rank) of p pipeline ranks. Where everything takes rho
        times as long on that kind as at best, or longer, and W at best in all, the slowest rank has T for each
        micro-batch with W <= (p - n) T + n T / rho.
        """
        bounds = super().bounds(points)
        if not len(points):
            return bounds
        pipeline_X, any_split_X = bounds.pipeline_seconds_X, bounds.any_split_seconds_X
        shapes, shape_X = self.table.shapes_of(points)
        pp_X, micro_X = points.pp_X, points.num_microbatches_X
        stage_ranks_X = self._cost_model.cluster.world_size // pp_X
        parts_X = pp_X * points.vpp_X
        light_SR = np.stack([shape.layer_seconds_DR.min(axis=0) for shape in shapes])
        lightest_X = self.table.model.num_layers // parts_X * points.vpp_X * light_SR[shape_X, points.recompute_X]
        work_X = bounds.work_seconds_X
        for kind, slower_SR in enumerate(self._slower_KSR(shapes)):
            count = self.nodes.kind_of_node_N.count(kind) * self._cost_model.cluster.gpus_per_node
            held_X = np.minimum(-(-count // stage_ranks_X), pp_X)
            slower_X = slower_SR[shape_X, points.recompute_X]
            slowest_X = work_X / (pp_X - held_X + held_X / slower_X)
            any_split_X = np.maximum(any_split_X, micro_X * slowest_X * (1.0 - SHARE_ROUNDING))
            plain_X = np.where(micro_X > pp_X, work_X + (micro_X - pp_X) * slowest_X, 0.0)
            known_X = micro_X * slower_X * np.where(pp_X == 1, work_X, lightest_X)
            is_known_X = (pp_X == 1) | (points.vpp_X > 1)
            pipeline_X = np.maximum(pipeline_X, np.where(is_known_X, known_X, plain_X) * (1.0 - SHARE_ROUNDING))
        pipeline_X = np.maximum(pipeline_X, any_split_X)
        return replace(bounds, pipeline_seconds_X=pipeline_X, any_split_seconds_X=any_split_X)

    def _slower_KSR(self, shapes: tuple[ShapeCosts, ...]) -> Iterator[FloatArray]:
        """Yield for each kind of nodes how many times as long as at best everything takes at least, by shape."""
        for kind in self._cost_model.kinds:
            alone = self._cost_model.of_kind(kind, self.nodes.best_bytes_per_second)
            parts = PartTable(alone, self.table.recomputes)
            rows = []
            for shape in shapes:
                own = ShapeCosts(rank_model=shape.rank_model, counts_D=shape.counts_D, parts=parts)
                of_layers_R = (own.layer_seconds_DR / shape.layer_seconds_DR).min(axis=0)
                others = [_passes_seconds(own.embedding) / _passes_seconds(shape.embedding)]
                others.append(_passes_seconds(own.head) / _passes_seconds(shape.head))
                others.append(own.whole_layer_seconds / shape.whole_layer_seconds)
                rows.append(np.minimum(of_layers_R, min(others)))
            yield np.stack(rows)

    def prices(self, point: Layout) -> PointPrices:
        """Return what prices splits of a point under its own node order."""
        return self._under(point, NodeOrder(nodes=self.nodes, order=node_order_of(point, self.nodes))).prices(point)

    def least_prices(self, point: Layout) -> PointPrices:
        """Return what no split of a point undercuts, under any node order."""
        return PointPrices(self.table, point)

    def problem(self, prices: PointPrices, *, generous: bool) -> Problem:
        """Return the chain partition problem of a point under its own node order."""
        own = NodeOrder(nodes=self.nodes, order=node_order_of(prices.point, self.nodes))
        return self._under(prices.point, own).problem(prices, generous=generous)

    def is_settled(self, point: Layout) -> bool:
        """Return whether a point that was priced has no other split, and no node order was left out."""
        solution = self._solutions.get(point)
        return has_single_split(point) and (solution is None or solution.is_complete)

    def price(self, point: Layout, *, bound: PointBound, ceiling_seconds: float) -> Candidate | Rejected:
        """Return a point under its best node order, or why it is not worth it.

        Args:
            point: A point; its layers are placed here.
            bound: What the space knows of it.
            ceiling_seconds: A step this long is of no interest.
        """
        at_best = self._at_best.price(point, bound=bound, ceiling_seconds=ceiling_seconds)
        if isinstance(at_best, Rejected):
            return at_best
        solution = self.orders(point, bound=bound, ceiling_seconds=ceiling_seconds)
        best = solution.best
        proved = min(
            solution.open_bound_seconds,
            ceiling_seconds,
            best.price.seconds,
            *(leaf.price.bound_seconds for leaf in solution.leaves),
        )
        proved = max(proved, at_best.lower_bound_seconds)
        if math.isinf(best.price.seconds):
            return Rejected(fits=math.isfinite(proved) and proved >= ceiling_seconds, bound_seconds=proved)
        found = self.known(point, best.signature).price(point, bound=bound, ceiling_seconds=math.inf)
        assert isinstance(found, Candidate), "an order that was priced is priced again"
        return ordered(found, best.order, lower_bound_seconds=min(proved, found.step_seconds))

    def orders(self, point: Layout, *, bound: PointBound, ceiling_seconds: float) -> OrderSolution:
        """Return the node orders of a point that are worth looking at; asked again, the same."""
        if point in self._solutions:
            return self._solutions[point]
        single = has_single_split(point)

        def price(signature: Signature) -> Price:
            found = self.known(point, signature).price(point, bound=bound, ceiling_seconds=ceiling_seconds)
            if isinstance(found, Rejected):
                proved = max(found.bound_seconds, ceiling_seconds) if found.fits and single else found.bound_seconds
                return Price(seconds=math.inf, bound_seconds=proved)
            proved = found.step_seconds if single else found.lower_bound_seconds
            return Price(seconds=found.step_seconds, bound_seconds=proved)

        solution = solve(self._order_problem(point), price, ceiling_seconds=ceiling_seconds)
        self._solutions[point] = solution
        return solution

    def _order_problem(self, layout: Layout) -> OrderProblem:
        nodes, mesh = self.nodes, mesh_of(layout, self._cost_model.cluster)
        return OrderProblem(
            rate_NN=nodes.bytes_per_second_NN,
            kind_N=nodes.kind_of_node_N,
            hops_H=tuple(dict.fromkeys(self._hops(layout, mesh))),
            rooms_K=self._rooms(mesh),
        )

    def _hops(self, layout: Layout, mesh: Mesh) -> Iterator[Hops]:
        """Yield where a layout's messages cross between places; of the gradient norm, see `PartCosts.of_world`."""
        model = PointPrices(self.table, layout).costs.rank_model
        shapes = sorted(self._layer_shapes(layout) | _traffic_shapes(layout, self.table))
        for rank in range(layout.pp):
            for shape in shapes:
                yield from _crossing(mesh.group_hops(rank, shape))
        last = layout.pp if layout.vpp > 1 else layout.pp - 1
        for rank in range(last):
            yield from _crossing(mesh.boundary(rank))
        if tied_embedding_reduction(model.shared_table_elements, layout, self.table.workload) is not None:
            yield from _crossing(mesh.ends)

    def _rooms(self, mesh: Mesh) -> tuple[frozenset[int], ...]:
        """Return the places of each part whose kinds of nodes count; none where all nodes are of one kind."""
        if len(self.nodes.kinds) == 1:
            return ()
        of_ranks = [mesh.places(rank) for rank in range(mesh.pp)]
        pairs = [of_ranks[rank] | of_ranks[(rank + 1) % mesh.pp] for rank in range(mesh.pp)]
        return tuple(dict.fromkeys((*of_ranks, *pairs, frozenset(range(mesh.num_places)))))

    def known(self, point: Layout, signature: Signature) -> Pricer:
        """Return what prices a point under what a signature says."""
        problem = self._order_problem(point)
        setting = KnownOrder(
            bytes_per_second_of=dict(zip(problem.hops_H, signature.slowest_H, strict=True)),
            kinds_of={
                room: tuple(sorted(kinds)) for room, kinds in zip(problem.rooms_K, signature.kinds_K, strict=True)
            },
        )
        return self._under(point, setting)

    def _under(self, point: Layout, setting: Setting) -> OrderedPricer:
        """Return what prices a point under what is known of a node order."""
        cluster = self._cost_model.cluster
        parts = part_costs(point, self._cost_model, setting=setting)
        limits_R = pipeline_rank_limits(point, cluster, setting=setting, headroom=self._headroom)
        prices = OrderedPrices(
            self.table,
            point,
            parts=parts,
            ranks=tuple(PointPrices(self._rank_table(point, rank, parts, setting), point) for rank in range(point.pp)),
            missing_bytes_R=tuple(max(self.limit_bytes - limit, 0) for limit in limits_R),
        )
        return OrderedPricer(self.table, limit_bytes=self.limit_bytes, prices=prices)

    def _rank_table(self, point: Layout, rank: int, parts: PartCosts, setting: Setting) -> RankTable:
        """Return the table of one pipeline rank; its layers are priced once for all that take as long."""
        mesh = mesh_of(point, self._cost_model.cluster)
        crossing = ((shape, mesh.group_hops(rank, shape)) for shape in sorted(self._layer_shapes(point)))
        key = (
            setting.kinds(mesh.places(rank)),
            tuple((shape, setting.slowest_bytes_per_second(hops)) for shape, hops in crossing if hops),
        )
        return RankTable(self.table, parts.of_stage(rank), self._layers.setdefault(key, {}))

    def _layer_shapes(self, layout: Layout) -> frozenset[Shape]:
        """Return the shapes of the collectives inside a layout's layers."""
        sharding = sharding_of(layout, self.table.workload, vocab_divisor=self.table.capabilities.vocab_divisor)
        if sharding not in self._shapes:
            model = self.table.shape(sharding).rank_model
            steps = (
                step
                for layer in (model.embedding, *model.layers, model.head)
                for step in (*layer.forward, *layer.backward)
            )
            self._shapes[sharding] = frozenset(
                shape_of(step.collective) for step in steps if step.collective is not None and step.collective.size > 1
            )
        return self._shapes[sharding]


def ordered(candidate: Candidate, order: tuple[int, ...], *, lower_bound_seconds: float) -> Candidate:
    """Return a candidate with its node order; the order in which the cluster lists its nodes is not said."""
    said = () if order == tuple(range(len(order))) else order
    return replace(
        candidate, layout=replace(candidate.layout, node_order=said), lower_bound_seconds=lower_bound_seconds
    )


def settle_point(pricer: Pricer, point: Layout, *, bound: PointBound, best_seconds: float) -> Settled:
    """Return the best split of a point that beats `best_seconds`, where nodes differ with its node order.

    Args:
        pricer: Prices splits.
        point: A point of which not everything was looked at.
        bound: What the space knows of it.
        best_seconds: What a step takes that is known.
    """
    if not isinstance(pricer, MappedPricer):
        return settle(pricer, point, bound=bound, best_seconds=best_seconds)
    solution = pricer.orders(point, bound=bound, ceiling_seconds=best_seconds)
    least, ceiling = solution.open_bound_seconds, best_seconds
    better: Candidate | None = None
    for leaf in solution.leaves:
        if leaf.price.bound_seconds >= ceiling or has_single_split(point):
            continue
        settled = settle(pricer.known(point, leaf.signature), point, bound=bound, best_seconds=ceiling)
        least = min(least, max(leaf.price.bound_seconds, settled.bound_seconds))
        if settled.better is not None:
            ceiling = settled.better.step_seconds
            better = ordered(settled.better, leaf.order, lower_bound_seconds=ceiling)
    return Settled(bound_seconds=min(least, ceiling), better=better)


def _passes_seconds(end: LayerSeconds) -> float:
    """Return the forward and backward pass of the embedding or the head, which is never recomputed."""
    return end.forward_seconds + end.backward_seconds_R[0]


def _traffic_shapes(layout: Layout, table: CostTable) -> frozenset[Shape]:
    """Return the shapes of the data-parallel collectives of a layout, whatever its stages hold."""
    elements = Elements(dense=1, expert=int(table.graph.has_experts))
    traffic = data_parallel_traffic(elements, layout, table.workload, capabilities=table.capabilities)
    operations = (*traffic.reduce, *traffic.gather, *traffic.gather_again)
    return frozenset(shape_of(operation) for operation in operations if operation.size > 1)


def _crossing(hops: Hops) -> Iterator[Hops]:
    """Yield hops, unless there is none."""
    if hops:
        yield hops
