"""One point of the space, priced exactly: split into stages, checked against memory, simulated.

Stage times come from the cost table, equal layers counted, not walked; `planner.evaluate` walks them again.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from planner.communication import (
    DataParallelTraffic,
    TimedTraffic,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    optimizer_traffic,
    overlapped_transfer_seconds,
    tied_embedding_reduction,
    transfer,
)
from planner.costs import CostTable
from planner.formulate import formulate, skeleton
from planner.layout import Granularity, Layout, Recompute, Stage, stages_from_counts
from planner.memory import memory_ledger, peak_memory_bytes
from planner.placement import PlacedModel, StageContents
from planner.points import Points
from planner.schedules.bounds import ROUNDING, lower_bound_seconds
from planner.schedules.orders import OperationOrder, operation_order
from planner.schedules.simulate import StageTimes, simulate
from planner.shape_costs import ShapeCosts
from planner.sharding import sharding_of
from planner.space import interleaved_counts
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
    """A point that was not simulated.

    Args:
        fits: It fits into memory, but cannot be among the best.
        bound_seconds: No split of it that fits takes less; infinite where it is proved that none fits.
    """

    fits: bool
    bound_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A point with its layers placed.

    Args:
        layout: The layout.
        peak_memory_bytes: Its peak, by the ledger.
        pipeline_bound_seconds: No split of the point that fits has a shorter pipeline.
    """

    layout: Layout
    peak_memory_bytes: int
    pipeline_bound_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _LongestPath:
    """The longest path through a pipeline, as far as the split decides it."""

    constant_seconds: float
    peaks: Peaks


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A point of which every split is known to be no better than one that is known.

    Args:
        better: The best split, where one beat what was known before; None where none did.
    """

    better: "Candidate | None"


_Seconds = tuple[float, float, float, float]
"""Forward, backward, first forward extra and last backward extra of one virtual stage."""

MOST_SPLITS = 2_000
"""Splits of one point that are looked at to close its gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A point that was priced exactly.

    Args:
        layout: The layout, layers placed.
        step_seconds: Simulated time of one step.
        peak_memory_bytes: Largest phase of the heaviest rank.
        lower_bound_seconds: No split of the point takes less.
    """

    layout: Layout
    step_seconds: float
    peak_memory_bytes: int
    lower_bound_seconds: float

    @property
    def merit(self) -> tuple[float, int, int, int, int, int]:
        """Return the sort key: time, then memory, then the simpler layout."""
        layout = self.layout
        return (self.step_seconds, self.peak_memory_bytes, layout.pp, layout.vpp, layout.tp, layout.zero_stage)

    @property
    def point(self) -> Layout:
        """Return the layout without its split: equal for every split of one point."""
        return replace(self.layout, stages=stages_from_counts((0,) * len(self.layout.stages)))


def layout_at(points: Points, index: int, table: CostTable) -> Layout:
    """Return one point as a layout whose layers are not placed yet."""
    recompute = table.recomputes[int(points.recompute_X[index])]
    partial = int(points.recompute_layers_X[index])
    if partial:
        recompute = Recompute(granularity=Granularity.FULL, num_layers=partial)
    cp = int(points.cp_X[index])
    return skeleton(
        tp=int(points.tp_X[index]),
        sequence_parallel=bool(points.sequence_parallel_X[index]),
        cp=cp,
        ulysses=int(points.ulysses_X[index]),
        state_exchange=cp > 1 and table.exchanges_states,
        ep=int(points.ep_X[index]),
        etp=int(points.etp_X[index]),
        state_replicas=int(points.state_replicas_X[index]),
        secondary_shard=int(points.secondary_shard_X[index]),
        pp=int(points.pp_X[index]),
        vpp=int(points.vpp_X[index]),
        dp=int(points.dp_X[index]),
        zero_stage=int(points.zero_stage_X[index]),
        micro_batch_size=int(points.micro_batch_size_X[index]),
        num_microbatches=int(points.num_microbatches_X[index]),
        recompute=recompute,
        capabilities=table.capabilities,
    )


class Pricer:
    """Prices points of one space.

    Args:
        table: Costs of the space.
        limit_bytes: What each GPU may use.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int) -> None:
        self.table = table
        self.limit_bytes = limit_bytes

    def costs_of(self, layout: Layout) -> ShapeCosts:
        """Return the cost table of a layout's shape."""
        capabilities = self.table.capabilities
        return self.table.shape(sharding_of(layout, self.table.workload, vocab_divisor=capabilities.vocab_divisor))

    def split(self, layout: Layout) -> Split | None:
        """Return `layout` with its layers placed; None when no split can fit into memory.

        The peak of the split is exact. It exceeds the limit only where the one split that there is does, or where one
        was found that rounded bytes admit.
        """
        if has_single_split(layout):
            counts = interleaved_counts(self.table.model.num_layers, layout.pp * layout.vpp)
            assert counts is not None, "the space holds only interleaved stages that come out even"
            return self._with_counts(layout, counts, pipeline_bound_seconds=0.0)
        bound = self._solved(layout, generous=True)
        if bound is None or bound.peak_memory_bytes <= self.limit_bytes:
            return bound
        careful = self._solved(layout, generous=False)
        return bound if careful is None else replace(careful, pipeline_bound_seconds=bound.pipeline_bound_seconds)

    def fitting(self, layout: Layout) -> Layout | None:
        """Return `layout` with its layers placed; None when no split was found that fits by exact bytes."""
        split = self.split(layout)
        return None if split is None or split.peak_memory_bytes > self.limit_bytes else split.layout

    def _problem(self, layout: Layout, *, generous: bool) -> Problem:
        return formulate(
            model=self.table.model,
            workload=self.table.workload,
            capabilities=self.table.capabilities,
            costs=self.costs_of(layout),
            layout=layout,
            limit_bytes=self.limit_bytes,
            generous=generous,
        )

    def _solved(self, layout: Layout, *, generous: bool) -> Split | None:
        problem = self._problem(layout, generous=generous)
        solution = solve(problem, solver="dp")
        if solution.status is Status.INFEASIBLE or solution.bound is None:
            return None
        return self._with_counts(
            layout,
            solution.layers_S(layout.pp),
            pipeline_bound_seconds=self._pipeline_bound_seconds(problem, layout) if generous else 0.0,
        )

    def _pipeline_bound_seconds(self, problem: Problem, layout: Layout) -> float:
        """Return a pipeline time that no split under memory undercuts, exact for the longest of these paths.

        With t_k forward plus backward of stage k, W their sum, p = pp and m micro-batches, micro-batch 0 passes the
        whole model and comes back to rank r, rank r runs m - p + r backward and forward passes in turn until its last
        forward, and micro-batch m - 1 passes the rest of the model and comes back to the start (inequality (1) of
        `any_split_bound_seconds`):

            W + (t_k of all k > r) + (m - p + r) t_r, and the transfers on that way.
        """
        path = self._longest_path(problem, layout)
        return (path.constant_seconds + path.peaks.least()) * (1.0 - ROUNDING)

    def _longest_path(self, problem: Problem, layout: Layout) -> "_LongestPath":
        transfers = np.array(self._transfer_seconds(layout))
        pairs_R = np.arange(layout.pp) + (layout.num_microbatches - layout.pp)
        behind_R = np.append(np.cumsum(transfers[::-1])[::-1], 0.0)
        extra_R = 2 * behind_R
        if not layout.overlap.p2p:
            # Blocking: a rank waits for its neighbour before it between backward and forward, behind it otherwise.
            extra_R = extra_R + pairs_R * np.append(0.0, transfers) + (pairs_R - 1) * np.append(transfers, 0.0)
        work = float(problem.seconds_LO.sum() + problem.fixed_seconds_S.sum())
        peaks = Peaks(problem=problem, own_weight_S=pairs_R.astype(np.float64), extra_seconds_S=extra_R)
        return _LongestPath(constant_seconds=work + 2 * float(transfers.sum()), peaks=peaks)

    def settle(self, layout: Layout, *, bound: PointBound, best_seconds: float) -> Settled | None:
        """Return the best split of a point that beats `best_seconds`, all that might having been simulated.

        None where there are too many to look at.

        Args:
            layout: A point.
            bound: What the space knows of it.
            best_seconds: What a step takes that is known.
        """
        path = self._longest_path(self._problem(layout, generous=True), layout)

        def limit(seconds: float) -> float:
            """Return the path's value at which no split beats a step of so many seconds."""
            return (seconds - bound.tail_seconds) * (1.0 + ROUNDING) - path.constant_seconds

        splits = path.peaks.splits_below(limit(best_seconds), at_most=MOST_SPLITS)
        if splits is None:
            return None
        best: Candidate | None = None
        ceiling = best_seconds
        costs = self.costs_of(layout)
        times_of: dict[StageContents, _Seconds] = {}
        for value, counts in splits:
            if value >= limit(ceiling):
                break
            placed = replace(layout, stages=stages_from_counts(counts))
            stages = self._seconds_of_stages(costs, placed, times_of)
            # On the path lie the first forward pass of every stage and the last backward pass of the first one.
            extras = sum(first for _, _, first, _ in stages) + stages[0][3]
            if value + extras >= limit(ceiling):
                continue
            order, times, tail_seconds = self._schedule(placed, times_of)
            if lower_bound_seconds(order, times) + tail_seconds >= ceiling:
                continue
            peak_bytes = peak_memory_bytes(memory_ledger(self.place(placed)))
            if peak_bytes > self.limit_bytes:
                continue
            seconds = float(simulate(order, times).rank_end_seconds_R.max()) + tail_seconds
            if seconds < ceiling:
                ceiling = seconds
                best = Candidate(
                    layout=placed, step_seconds=seconds, peak_memory_bytes=peak_bytes, lower_bound_seconds=seconds
                )
        return Settled(better=best)

    def _with_counts(self, layout: Layout, counts: tuple[int, ...], *, pipeline_bound_seconds: float) -> Split:
        placed = replace(layout, stages=stages_from_counts(counts))
        return Split(
            layout=placed,
            peak_memory_bytes=peak_memory_bytes(memory_ledger(self.place(placed))),
            pipeline_bound_seconds=pipeline_bound_seconds,
        )

    def place(self, layout: Layout) -> PlacedModel:
        """Return the model under `layout`."""
        return PlacedModel(
            model=self.table.model,
            rank_model=self.costs_of(layout).rank_model,
            layout=layout,
            workload=self.table.workload,
            capabilities=self.table.capabilities,
        )

    def price(self, layout: Layout, *, bound: PointBound, ceiling_seconds: float) -> Candidate | Rejected:
        """Return `layout` priced exactly, or why it is not worth it.

        Args:
            layout: A point; its layers are placed here.
            bound: What the space knows of it.
            ceiling_seconds: A step this long is of no interest.
        """
        split = self.split(layout)
        if split is None:
            return Rejected(fits=False, bound_seconds=math.inf)
        bound_seconds = max(bound.pipeline_seconds, split.pipeline_bound_seconds) + bound.tail_seconds
        placed_layout = split.layout
        if split.peak_memory_bytes > self.limit_bytes:
            proved = has_single_split(layout)
            return Rejected(fits=False, bound_seconds=math.inf if proved else bound_seconds)
        if bound_seconds >= ceiling_seconds:
            return Rejected(fits=True, bound_seconds=bound_seconds)
        order, times, tail_seconds = self._schedule(placed_layout)
        if lower_bound_seconds(order, times) + tail_seconds >= ceiling_seconds:
            return Rejected(fits=True, bound_seconds=bound_seconds)
        return Candidate(
            layout=placed_layout,
            step_seconds=float(simulate(order, times).rank_end_seconds_R.max()) + tail_seconds,
            peak_memory_bytes=split.peak_memory_bytes,
            lower_bound_seconds=bound_seconds,
        )

    def candidate(self, layout: Layout, *, lower_bound_seconds: float) -> Candidate:
        """Return a layout whose layers are placed, priced exactly."""
        return Candidate(
            layout=layout,
            step_seconds=self.step_seconds(layout),
            peak_memory_bytes=peak_memory_bytes(memory_ledger(self.place(layout))),
            lower_bound_seconds=lower_bound_seconds,
        )

    def step_seconds(self, layout: Layout) -> float:
        """Return the simulated time of one step, from the table."""
        order, times, tail_seconds = self._schedule(layout)
        return float(simulate(order, times).rank_end_seconds_R.max()) + tail_seconds

    def _schedule(
        self, layout: Layout, times_of: dict[StageContents, _Seconds] | None = None
    ) -> tuple[OperationOrder, StageTimes, float]:
        """Return what the pipeline runs, how long each part takes, and the seconds behind it.

        Args:
            layout: The layout.
            times_of: Times of stages of the same point that are known; more are added.
        """
        costs = self.costs_of(layout)
        stages = self._seconds_of_stages(costs, layout, {} if times_of is None else times_of)
        forward_V, backward_V, first_V, last_V = zip(*stages, strict=True)
        transfers = self._transfer_seconds(layout)
        slowdown = self.table.cost_model.transfer_slowdown
        beside = [
            overlapped_transfer_seconds(transfers, stage=index, layout=layout, slowdown=slowdown)
            for index in range(len(stages))
        ]
        times = StageTimes(
            forward_seconds_V=tuple(seconds + added for seconds, added in zip(forward_V, beside, strict=True)),
            backward_seconds_V=tuple(seconds + added for seconds, added in zip(backward_V, beside, strict=True)),
            transfer_seconds_E=transfers,
            blocking_transfers=layout.pp > 1 and not layout.overlap.p2p,
            first_forward_extra_seconds_V=first_V,
            last_backward_extra_seconds_V=last_V,
        )
        order = operation_order(layout.schedule, pp=layout.pp, vpp=layout.vpp, num_microbatches=layout.num_microbatches)
        return order, times, self._tail_seconds(costs, layout)

    def _seconds_of_stages(
        self, costs: ShapeCosts, layout: Layout, times_of: dict[StageContents, _Seconds]
    ) -> list[_Seconds]:
        """Return the times of every virtual stage; equal ones are looked up in `times_of`, new ones added to it."""
        stages: list[_Seconds] = []
        for stage in layout.stages:
            contents = costs.rank_model.contents(stage)
            if contents not in times_of:
                times_of[contents] = self._stage_times(costs, layout, stage)
            stages.append(times_of[contents])
        return stages

    def _transfer_seconds(self, layout: Layout) -> tuple[float, ...]:
        """Return the time of a transfer over each boundary between virtual stages."""
        collective, stream_bytes = self.table.cost_model.collective, self.costs_of(layout).rank_model.stream_bytes
        return tuple(
            collective(
                transfer(
                    layout,
                    pipeline_rank=index % layout.pp,
                    stream_bytes=stream_bytes,
                    capabilities=self.table.capabilities,
                )
            ).seconds
            for index in range(len(layout.stages) - 1)
        )

    def _stage_times(self, costs: ShapeCosts, layout: Layout, stage: Stage) -> _Seconds:
        """Return (forward, backward, first forward extra, last backward extra) seconds of one virtual stage."""
        choice = costs.choice_of(layout.recompute)
        counts_D = costs.rank_model.chain.counts(stage.first_layer, stage.num_layers)
        forward = sum(n * block.forward_seconds for n, block in zip(counts_D, costs.blocks_D, strict=True))
        backward = sum(n * block.backward_seconds_R[choice] for n, block in zip(counts_D, costs.blocks_D, strict=True))
        backward += min(layout.recompute.num_layers or 0, stage.num_layers) * costs.whole_layer_seconds
        if stage.has_embedding:
            forward += costs.embedding.forward_seconds
            backward += costs.embedding.backward_seconds_R[choice]
        if stage.has_head:
            forward += costs.head.forward_seconds
            backward += costs.head.backward_seconds_R[choice]
        trainable = costs.rank_model.stage_elements(stage, pp=layout.pp, trainable=True)
        everything = costs.rank_model.stage_elements(stage, pp=layout.pp)
        traffic = data_parallel_traffic(
            trainable, layout, self.table.workload, everything=everything, capabilities=self.table.capabilities
        )
        collective = self.table.cost_model.collective
        reduce, gather, again = (
            self._timed(sum(collective(part).seconds for part in parts), traffic)
            for parts in (traffic.reduce, traffic.gather, traffic.gather_again)
        )
        overlap = layout.overlap
        gathered = exposed_seconds(gather, beside_seconds=forward, overlapped=overlap.param_gather)
        gathered_again = exposed_seconds(again, beside_seconds=backward, overlapped=overlap.param_gather)
        reduced = exposed_seconds(reduce, beside_seconds=backward, overlapped=overlap.grad_reduce)
        match layout.zero_stage:
            case 3:
                return forward + gathered, backward + reduced + gathered_again, 0.0, 0.0
            case 2:
                return forward, backward + reduced, gathered, 0.0
            case _:
                return forward, backward, gathered, reduced

    def _timed(self, seconds: float, traffic: DataParallelTraffic) -> TimedTraffic:
        return TimedTraffic(
            seconds=seconds,
            num_buckets=traffic.num_buckets,
            slowdown=self.table.cost_model.overlap_slowdown,
        )

    def _tail_seconds(self, costs: ShapeCosts, layout: Layout) -> float:
        """Return what all ranks wait for behind the last backward pass."""
        cost_model, workload = self.table.cost_model, self.table.workload
        seconds = cost_model.collective(gradient_norm_reduction(layout)).seconds
        reduction = tied_embedding_reduction(costs.rank_model.shared_table_elements, layout, workload)
        if reduction is not None:
            seconds += cost_model.collective(reduction).seconds
        placed = self.place(layout)
        of_ranks = {placed.elements(rank, trainable=True) for rank in range(layout.pp)}
        updates = (cost_model.compute(optimizer_traffic(elements, layout, workload)) for elements in of_ranks)
        return seconds + max(update.seconds for update in updates)


def has_single_split(layout: Layout) -> bool:
    """Return whether the searched space holds one split of the layers: no pipeline, or interleaved stages."""
    return layout.pp == 1 or layout.vpp > 1
