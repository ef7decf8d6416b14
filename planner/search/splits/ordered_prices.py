"""Prices of one point under what is known of its node order: each pipeline rank has seconds and memory of its own."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from planner.evaluation.node_costs import Hops, Kinds, PartCosts
from planner.layout import Layout, Recompute, Stage
from planner.ranks.communication import gradient_norm_reduction, optimizer_traffic, tied_embedding_reduction, transfer
from planner.ranks.sharding import Sharding
from planner.search.bounds.costs import CostTable
from planner.search.bounds.shape_costs import PartTable, ShapeCosts
from planner.search.splits.candidates import Pricer
from planner.search.splits.point_prices import PointPrices, StageSeconds
from profiles.estimate import CostModel
from solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownOrder:
    """What a signature says of a node order.

    Args:
        bytes_per_second_of: Bandwidth of the slowest link by hops.
        kinds_of: Kinds by places; of a single kind there is nothing to know, and it is empty.
    """

    bytes_per_second_of: dict[Hops, float]
    kinds_of: dict[frozenset[int], Kinds]

    def slowest_bytes_per_second(self, hops: Hops) -> float:
        """Return the bandwidth of the slowest of some hops."""
        return self.bytes_per_second_of[hops]

    def kinds(self, places: frozenset[int]) -> Kinds:
        """Return the kinds of nodes at some places."""
        return self.kinds_of[places] if self.kinds_of else (0,)


class RankTable(CostTable):
    """The table of a space as one pipeline rank sees it.

    Args:
        table: The table at best.
        cost_model: Prices the pipeline rank's operations.
        layers: Costs of its layers by shape, shared with ranks that take as long.
    """

    def __init__(self, table: CostTable, cost_model: CostModel, layers: "dict[Sharding, ShapeCosts]") -> None:
        super().__init__(
            model=table.model,
            graph=table.graph,
            workload=table.workload,
            cost_model=cost_model,
            recomputes=table.recomputes,
            capabilities=table.capabilities,
        )
        self._table = table
        self._layers = layers

    def shape(self, sharding: Sharding) -> ShapeCosts:
        """Return the costs of one shape."""
        if sharding not in self._layers:
            found = self._table.shape(sharding)
            self._layers[sharding] = ShapeCosts(
                rank_model=found.rank_model,
                counts_D=found.counts_D,
                parts=PartTable(self.cost_model, self.recomputes),
            )
        return self._layers[sharding]


class OrderedPrices(PointPrices):
    """Prices splits of one point under what is known of a node order.

    Args:
        table: The table at best.
        point: The point.
        parts: Cost models of the point's parts.
        ranks: Prices of the point as if every pipeline rank were like each of them.
        missing_bytes_R: What each GPU of each pipeline rank has less than the GPU with most memory.
    """

    stages_are_alike = False

    def __init__(
        self,
        table: CostTable,
        point: Layout,
        *,
        parts: PartCosts,
        ranks: tuple[PointPrices, ...],
        missing_bytes_R: tuple[int, ...],
    ) -> None:
        super().__init__(table, point)
        self.ranks = ranks
        self.missing_bytes_R = missing_bytes_R
        self._parts = parts

    def peak_bytes(self, layout: Layout) -> int:
        """Return the peak of a split as if every GPU had most memory: what a GPU lacks is counted as used."""
        return max(self.peaks_R(layout)) if any(self.missing_bytes_R) else super().peak_bytes(layout)

    def peaks_R(self, layout: Layout) -> tuple[int, ...]:
        """Return the peak of each pipeline rank of a split, likewise."""
        return tuple(
            peak + missing for peak, missing in zip(super().peaks_R(layout), self.missing_bytes_R, strict=True)
        )

    def rank_peak_bytes(self, layout: Layout, pipeline_rank: int) -> int:
        """Return the peak of one pipeline rank of a split, likewise."""
        return super().rank_peak_bytes(layout, pipeline_rank) + self.missing_bytes_R[pipeline_rank]

    def stage_on(self, stage: Stage, pipeline_rank: int, recompute: Recompute | None = None) -> StageSeconds:
        """Return the times of one virtual stage on a pipeline rank, under the point's recompute choice or another."""
        return self.ranks[pipeline_rank].stage(stage, recompute)

    @cached_property
    def transfer_seconds_E(self) -> tuple[float, ...]:
        """Return the time of a transfer over each boundary between virtual stages."""
        point = self.point
        found = []
        for boundary in range(point.pp * point.vpp - 1):
            rank = boundary % point.pp
            sent = transfer(
                point,
                pipeline_rank=rank,
                stream_bytes=self.costs.rank_model.stream_bytes,
                capabilities=self.table.capabilities,
            )
            found.append(self._parts.of_boundary(rank).collective(sent).seconds)
        return tuple(found)

    def _transfer_slowdown(self, pipeline_rank: int) -> float:
        return self._parts.of_stage(pipeline_rank).transfer_slowdown

    def tail_seconds(self, layout: Layout) -> float:
        """Return what all ranks of a split wait for behind the last backward pass."""
        parts, workload = self._parts, self.table.workload
        seconds = parts.of_world.collective(gradient_norm_reduction(layout)).seconds
        reduction = tied_embedding_reduction(self.costs.rank_model.shared_table_elements, layout, workload)
        if reduction is not None:
            seconds += parts.of_ends.collective(reduction).seconds
        placed = self.place(layout)
        updates = (
            parts.of_stage(rank).compute(optimizer_traffic(placed.elements(rank, trainable=True), layout, workload))
            for rank in range(layout.pp)
        )
        return seconds + max(update.seconds for update in updates)


class OrderedPricer(Pricer):
    """Prices one point under what is known of a node order.

    Args:
        table: The table at best.
        limit_bytes: What the GPU with most memory may use.
        prices: Prices splits of the point.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int, prices: OrderedPrices) -> None:
        super().__init__(table, limit_bytes=limit_bytes)
        self._prices = prices

    def prices(self, _point: Layout) -> PointPrices:
        """Return what prices splits of the point."""
        return self._prices

    def problem(self, _prices: PointPrices, *, generous: bool) -> Problem:
        """Return the chain partition problem of the point, each stage as fast and as large as its pipeline rank."""
        problems = [super(OrderedPricer, self).problem(rank, generous=generous) for rank in self._prices.ranks]
        seconds_SLO = np.stack([problem.seconds_LO for problem in problems])
        return replace(
            problems[0],
            seconds_LO=seconds_SLO.min(axis=0),
            seconds_SLO=seconds_SLO,
            fixed_seconds_S=np.array([problem.fixed_seconds_S[rank] for rank, problem in enumerate(problems)]),
            capacity_bytes_R=problems[0].capacity_bytes_R - np.array(self._prices.missing_bytes_R, dtype=np.int64),
        )
