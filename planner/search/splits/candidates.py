"""One point of the space, priced exactly: split into stages, simulated, checked against memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.layout import (
    DRIVE_WEIGHTS,
    GPU_WEIGHTS,
    ON_HOSTS,
    PIPELINED,
    Granularity,
    Layout,
    Offload,
    Recompute,
    stages_from_counts,
)
from planner.memory.host import drive_memory, host_memory
from planner.offloading.states import SHARDED_WEIGHTS
from planner.schedules.bounds import ROUNDING
from planner.search.bounds.costs import Bounds, CostTable
from planner.search.space.dimensions import interleaved_counts
from planner.search.space.points import Points
from planner.search.splits.formulate import formulate, skeleton
from planner.search.splits.layer_choices import LayerChooser
from planner.search.splits.point_prices import PointPrices
from profiles.hardware import Cluster
from solvers.dp import Peaks
from solvers.problem import Problem
from solvers.registry import solve
from solvers.solution import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class PointBound:
    """What the space knows of a point: its pipeline and what follows it take no less, whatever the split."""

    pipeline_seconds: float
    tail_seconds: float

    @property
    def step_seconds(self) -> float:
        """Return the bound of the whole step."""
        return self.pipeline_seconds + self.tail_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A point of which no split was taken.

    Args:
        fits: It may fit into memory, but cannot be among the best.
        bound_seconds: No split of it that fits takes less; infinite where it is proved that none fits.
        by_host: A split fits into the GPUs, and not into the memory of a node.
    """

    fits: bool
    bound_seconds: float
    by_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point that was priced exactly.

    Args:
        layout: The layout, layers placed.
        step_seconds: Simulated time of one step.
        peak_memory_bytes: Largest phase of the heaviest rank.
        lower_bound_seconds: No split of the point takes less.
        point: The layout without its split: equal for every split of one point, or, where each layer has a recompute
            choice of its own and all have the same, of the point with that one.
    """

    layout: Layout
    step_seconds: float
    peak_memory_bytes: int
    lower_bound_seconds: float
    point: Layout

    @property
    def merit(self) -> tuple[float, int, int, int, int, int, bool]:
        """Return the sort key: time, then memory, then the simpler layout."""
        layout = self.layout
        simplicity = (layout.pp, layout.vpp, layout.tp, layout.zero_stage, layout.recompute.is_per_layer)
        return (self.step_seconds, self.peak_memory_bytes, *simplicity)


def layout_at(points: Points, index: int, table: CostTable) -> Layout:
    """Return one point as a layout whose layers are not placed yet."""
    recompute = table.recomputes[int(points.recompute_X[index])]
    partial = int(points.recompute_layers_X[index])
    if partial:
        recompute = Recompute(granularity=Granularity.FULL, num_layers=partial)
    cp, zero_stage = int(points.cp_X[index]), int(points.zero_stage_X[index])
    offloaded, drives = int(points.optimizer_offload_X[index]), int(points.drive_offload_X[index])
    weights = int(points.parameter_offload_X[index])
    point = skeleton(
        tp=int(points.tp_X[index]),
        sequence_parallel=bool(points.sequence_parallel_X[index]),
        cp=cp,
        ulysses=int(points.ulysses_X[index]),
        state_exchange=cp > 1 and table.exchanges_states,
        ep=int(points.ep_X[index]),
        etp=int(points.etp_X[index]),
        state_replicas=int(points.state_replicas_X[index]),
        secondary_shard=int(points.secondary_shard_X[index]),
        replicas_outermost=bool(points.replicas_outermost_X[index]),
        pp=int(points.pp_X[index]),
        vpp=int(points.vpp_X[index]),
        dp=int(points.dp_X[index]),
        zero_stage=zero_stage,
        micro_batch_size=int(points.micro_batch_size_X[index]),
        num_microbatches=int(points.num_microbatches_X[index]),
        recompute=recompute,
        offload=Offload(
            optimizer_fraction=offloaded / 100,
            overlapped=zero_stage < SHARDED_WEIGHTS or drives == PIPELINED,
            parameters=weights != GPU_WEIGHTS,
            drives=drives != ON_HOSTS,
            parameter_drives=weights == DRIVE_WEIGHTS,
        )
        if offloaded
        else None,
        capabilities=table.capabilities,
    )
    layers = int(points.offloaded_layers_X[index])
    if layers or table.modules:
        return replace(point, offloaded_layers=layers, offloaded_modules=table.modules)
    return point


@dataclass(frozen=True, slots=True, kw_only=True)
class LongestPath:
    """The longest path through a plain pipeline, as far as the split decides it.

    With t_k forward plus backward of stage k, W their sum, p = pp and m micro-batches, micro-batch 0 passes the whole
    model and comes back to rank r, rank r runs m - p + r backward and forward passes in turn until its last forward,
    and micro-batch m - 1 passes the rest of the model and comes back to the start (inequality (1) of
    `any_split_bound_seconds`):

        W + (t_k of all k > r) + (m - p + r) t_r, and the transfers on that way.
    """

    constant_seconds: float
    peaks: Peaks

    def value_at(self, step_seconds: float, *, tail_seconds: float) -> float:
        """Return the value of `peaks` from which on no split takes less than so many seconds a step."""
        return (step_seconds - tail_seconds) * (1.0 + ROUNDING) - self.constant_seconds

    def least_seconds(self) -> float:
        """Return a pipeline time that no split within memory undercuts; infinite where none fits."""
        return (self.constant_seconds + self.peaks.least()) * (1.0 - ROUNDING)


class Pricer:
    """Prices points of one space.

    Args:
        table: Costs of the space.
        limit_bytes: What each GPU may use.
        cluster: Whose nodes must hold what is offloaded; None asks no node.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int, cluster: Cluster | None = None) -> None:
        self.table = table
        self.limit_bytes = limit_bytes
        self.cluster = cluster

    def hosts_hold(self, prices: PointPrices, split: Layout) -> bool:
        """Return whether every node has the memory and the drives for what a split puts there, by exact bytes."""
        if not split.uses_hosts or self.cluster is None:
            return True
        placed = prices.place(split)
        ledgers = (host_memory(placed, self.cluster), drive_memory(placed, self.cluster))
        return all(ledger is None or ledger.num_bytes <= ledger.limit_bytes for ledger in ledgers)

    def prices(self, point: Layout) -> PointPrices:
        """Return what prices splits of a point."""
        return PointPrices(self.table, point)

    def least_prices(self, point: Layout) -> PointPrices:
        """Return what no split of a point undercuts, wherever its nodes stand."""
        return self.prices(point)

    def bounds(self, points: Points) -> Bounds:
        """Return times that no split of each point undercuts that fits."""
        return self.table.bounds(points, limit_bytes=self.limit_bytes)

    def is_settled(self, point: Layout) -> bool:
        """Return whether a point that was priced has nothing else to look at."""
        return has_single_split(point)

    def fitting(self, point: Layout) -> Layout | None:
        """Return a point with its layers placed; None when no split was found that fits by exact bytes."""
        prices = self.prices(point)
        fitting = (
            split
            for split in self._splits(prices)
            if prices.peak_bytes(split) <= self.limit_bytes and self.hosts_hold(prices, split)
        )
        return next(fitting, None)

    def _splits(self, prices: PointPrices, problem: Problem | None = None) -> Iterator[Layout]:
        """Yield a point's best split by the surrogate, then the best of those that fit with every number rounded up.

        Where each layer has a recompute choice of its own, they are the best under exact bytes; none, and no split.
        """
        splits = self._unchosen_splits(prices, problem)
        if not prices.point.recompute.is_per_layer:
            yield from splits
            return
        chooser = LayerChooser(prices, limit_bytes=self.limit_bytes)
        yield from (chosen for split in splits if (chosen := chooser.chosen(split)) is not None)

    def _unchosen_splits(self, prices: PointPrices, problem: Problem | None) -> Iterator[Layout]:
        point = prices.point
        if has_single_split(point):
            counts = interleaved_counts(self.table.model.num_layers, point.pp * point.vpp)
            assert counts is not None, "the space holds only interleaved stages that all get a layer"
            yield replace(point, stages=stages_from_counts(counts))
            return
        for generous in (True, False):
            rounded = problem if generous and problem is not None else self.problem(prices, generous=generous)
            solution = solve(rounded, solver="dp")
            if solution.status is Status.INFEASIBLE:
                return
            yield replace(point, stages=stages_from_counts(solution.layers_S(point.pp)))

    def problem(self, prices: PointPrices, *, generous: bool) -> Problem:
        """Return the chain partition problem of a point with one chunk a rank."""
        return formulate(
            model=self.table.model,
            workload=self.table.workload,
            capabilities=self.table.capabilities,
            costs=prices.costs,
            layout=prices.point,
            limit_bytes=self.limit_bytes,
            generous=generous,
        )

    def longest_path(self, problem: Problem, prices: PointPrices) -> LongestPath:
        """Return the longest path through a plain pipeline of more than one rank."""
        point, transfers = prices.point, np.array(prices.transfer_seconds_E)
        pairs_R = np.arange(point.pp) + (point.num_microbatches - point.pp)
        behind_R = np.append(np.cumsum(transfers[::-1])[::-1], 0.0)
        extra_R = 2 * behind_R
        if not point.overlap.p2p:
            # Blocking: a rank waits for its neighbour before it between backward and forward, behind it otherwise.
            extra_R = extra_R + pairs_R * np.append(0.0, transfers) + (pairs_R - 1) * np.append(transfers, 0.0)
        work = float(problem.seconds_LO.min(axis=1).sum() + problem.fixed_seconds_S.sum())
        peaks = Peaks(problem=problem, own_weight_S=pairs_R.astype(np.float64), extra_seconds_S=extra_R)
        return LongestPath(constant_seconds=work + 2 * float(transfers.sum()), peaks=peaks)

    def price(self, point: Layout, *, bound: PointBound, ceiling_seconds: float) -> Candidate | Rejected:
        """Return a point priced exactly, or why it is not worth it.

        Args:
            point: A point; its layers are placed here.
            bound: What the space knows of it.
            ceiling_seconds: A step this long is of no interest.
        """
        prices = self.prices(point)
        pipeline_seconds, problem = bound.pipeline_seconds, None
        single = has_single_split(point)
        if not single:
            problem = self.problem(prices, generous=True)
            pipeline_seconds = max(pipeline_seconds, self.longest_path(problem, prices).least_seconds())
        bound_seconds = pipeline_seconds + bound.tail_seconds
        if math.isinf(bound_seconds):
            return Rejected(fits=False, bound_seconds=math.inf)
        if bound_seconds >= ceiling_seconds:
            return Rejected(fits=True, bound_seconds=bound_seconds)
        by_host = False
        for split in self._splits(prices, problem):
            # Most splits that are too slow need not be simulated to know it.
            if prices.least_pipeline_seconds(split) + bound.tail_seconds >= ceiling_seconds:
                return Rejected(fits=True, bound_seconds=bound_seconds)
            step_seconds = prices.step_seconds(split)
            if step_seconds >= ceiling_seconds:
                return Rejected(fits=True, bound_seconds=bound_seconds)
            peak_bytes = prices.peak_bytes(split)
            if peak_bytes > self.limit_bytes:
                continue
            by_host = not self.hosts_hold(prices, split)
            if not by_host:
                return Candidate(
                    layout=split,
                    step_seconds=step_seconds,
                    peak_memory_bytes=peak_bytes,
                    lower_bound_seconds=bound_seconds,
                    point=unplaced(split),
                )
        return Rejected(fits=False, bound_seconds=math.inf if single else bound_seconds, by_host=by_host)

    def placed(self, split: Layout, *, lower_bound_seconds: float) -> Candidate | None:
        """Return a split that fits into the GPUs, priced exactly; None where the nodes do not hold what it offloads."""
        held = self.hosts_hold(self.prices(split), split)
        return self.candidate(split, lower_bound_seconds=lower_bound_seconds) if held else None

    def candidate(self, layout: Layout, *, lower_bound_seconds: float) -> Candidate:
        """Return a layout whose layers are placed, priced exactly."""
        prices = self.prices(layout)
        return Candidate(
            layout=layout,
            step_seconds=prices.step_seconds(layout),
            peak_memory_bytes=prices.peak_bytes(layout),
            lower_bound_seconds=lower_bound_seconds,
            point=unplaced(layout),
        )


def unplaced(layout: Layout) -> Layout:
    """Return the point that a layout whose layers are placed is a split of; see `Candidate.point`."""
    recompute, choices = layout.recompute, set(layout.recompute.layers)
    if choices:
        recompute = choices.pop() if len(choices) == 1 else Recompute(granularity=Granularity.PER_LAYER)
    return replace(layout, stages=stages_from_counts((0,) * len(layout.stages)), recompute=recompute)


def has_single_split(layout: Layout) -> bool:
    """Return whether the searched space holds one split of the layers: no pipeline, or interleaved stages."""
    return layout.pp == 1 or layout.vpp > 1
