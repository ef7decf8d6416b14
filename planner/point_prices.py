"""What the splits of one point cost, from the cost table: the step times that the search compares.

Stage times come from the table, equal layers counted, not walked; `planner.evaluate` walks them again. Stages of one
point that hold the same are priced once.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from planner.activation_offload import layer_copy
from planner.communication import (
    DataParallelTraffic,
    TimedTraffic,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    overlapped_transfer_seconds,
    tied_embedding_reduction,
    transfer,
)
from planner.copy_waits import backward_wait_seconds, forward_wait_seconds
from planner.costs import CostTable
from planner.layout import Layout, Recompute, Stage
from planner.offload import gradient_copies, optimizer_seconds, parameter_copies, waited_for_link_seconds
from planner.placement import PlacedModel, StageContents
from planner.rank_peaks import RankPeaks
from planner.schedules.bounds import split_bound_seconds
from planner.schedules.simulate import StageTimes
from planner.schedules.span import span_seconds
from planner.shard import Elements
from planner.sharding import sharding_of
from profiles.ops import Collective, HostCopy

_Alike = tuple[int, int, int]
"""A kind of layer, a recompute choice, and how many layers of a stage are of both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSeconds:
    """What one micro-batch costs on one virtual stage.

    Args:
        forward: Forward pass.
        backward: Backward pass, recomputation included.
        first_forward_extra: What the first forward pass of a step takes more.
        last_backward_extra: What keeps the rank busy behind the last backward pass.
    """

    forward: float
    backward: float
    first_forward_extra: float
    last_backward_extra: float


class PointPrices:
    """Prices splits of one point.

    Args:
        table: Costs of the space.
        point: The point; where its layers lie does not matter.
    """

    stages_are_alike = True
    """Whether a stage takes as long on every pipeline rank."""

    def __init__(self, table: CostTable, point: Layout) -> None:
        self.table = table
        self.point = point
        divisor = table.capabilities.vocab_divisor
        self.costs = table.shape(sharding_of(point, table.workload, vocab_divisor=divisor))
        self._stages: dict[tuple[StageContents, tuple[_Alike, ...]], StageSeconds] = {}
        self._of_point: dict[Stage | StageContents, StageSeconds] = {}
        self._optimizers: dict[tuple[int, int], float] = {}
        self._peaks = RankPeaks()

    def place(self, layout: Layout) -> PlacedModel:
        """Return the model under a split of the point."""
        return PlacedModel(
            model=self.table.model,
            rank_model=self.costs.rank_model,
            layout=layout,
            workload=self.table.workload,
            capabilities=self.table.capabilities,
        )

    def peak_bytes(self, layout: Layout) -> int:
        """Return the exact peak of a split."""
        return max(self._peaks.of_all(self.place(layout)))

    def peaks_R(self, layout: Layout) -> tuple[int, ...]:
        """Return the exact peak of each pipeline rank of a split."""
        return tuple(self._peaks.of_all(self.place(layout)))

    def rank_peak_bytes(self, layout: Layout, pipeline_rank: int) -> int:
        """Return the exact peak of one pipeline rank of a split."""
        return self._peaks.of_rank(self.place(layout), pipeline_rank)

    def step_seconds(self, layout: Layout) -> float:
        """Return the simulated time of one step of a split."""
        return self.pipeline_seconds(layout) + self.tail_seconds(layout)

    def pipeline_seconds(self, layout: Layout) -> float:
        """Return the simulated time up to the end of the last rank's passes and their extras."""
        return span_seconds(
            layout.schedule,
            pp=layout.pp,
            vpp=layout.vpp,
            num_microbatches=layout.num_microbatches,
            times=self.times(layout),
        )

    def least_pipeline_seconds(self, layout: Layout) -> float:
        """Return a time that `pipeline_seconds` does not undercut, from the work of each rank alone."""
        return split_bound_seconds(
            self.times(layout), pp=layout.pp, vpp=layout.vpp, num_microbatches=layout.num_microbatches
        )

    def times(self, layout: Layout) -> StageTimes:
        """Return what the passes and transfers of a split take."""
        stages = self.stages(layout)
        beside_V = self.beside_seconds_V
        return StageTimes(
            forward_seconds_V=tuple(stage.forward + added for stage, added in zip(stages, beside_V, strict=True)),
            backward_seconds_V=tuple(stage.backward + added for stage, added in zip(stages, beside_V, strict=True)),
            transfer_seconds_E=self.transfer_seconds_E,
            blocking_transfers=layout.pp > 1 and not layout.overlap.p2p,
            first_forward_extra_seconds_V=tuple(stage.first_forward_extra for stage in stages),
            last_backward_extra_seconds_V=tuple(stage.last_backward_extra for stage in stages),
        )

    def stages(self, layout: Layout) -> list[StageSeconds]:
        """Return the times of every virtual stage of a split."""
        return [self.stage_on(stage, index % layout.pp, layout.recompute) for index, stage in enumerate(layout.stages)]

    def stage_on(self, stage: Stage, _pipeline_rank: int, recompute: Recompute | None = None) -> StageSeconds:
        """Return the times of one virtual stage on a pipeline rank, under the point's recompute choice or another."""
        return self.stage(stage, recompute)

    @cached_property
    def transfer_seconds_E(self) -> tuple[float, ...]:
        """Return the time of a transfer over each boundary between virtual stages."""
        point = self.point
        of_rank = [
            self._collective_seconds(
                transfer(
                    point,
                    pipeline_rank=rank,
                    stream_bytes=self.costs.rank_model.stream_bytes,
                    capabilities=self.table.capabilities,
                )
            )
            for rank in range(min(point.pp, point.pp * point.vpp - 1))
        ]
        return tuple(of_rank[boundary % point.pp] for boundary in range(point.pp * point.vpp - 1))

    @cached_property
    def beside_seconds_V(self) -> tuple[float, ...]:
        """Return what the passes of each virtual stage lose to the transfers beside them."""
        slowdown_R = [self._transfer_slowdown(rank) for rank in range(self.point.pp)]
        return tuple(
            overlapped_transfer_seconds(
                self.transfer_seconds_E,
                stage=stage,
                layout=self.point,
                slowdown=slowdown_R[stage % self.point.pp],
            )
            for stage in range(self.point.pp * self.point.vpp)
        )

    def _transfer_slowdown(self, _pipeline_rank: int) -> float:
        """Return what a pass on one pipeline rank loses for each second of a transfer beside it."""
        return self.table.cost_model.transfer_slowdown

    def stage(self, stage: Stage, recompute: Recompute | None = None) -> StageSeconds:
        """Return the times of one virtual stage, under the point's recompute choice or one that is given."""
        recompute = recompute or self.point.recompute
        if recompute is not self.point.recompute or recompute.is_per_layer:
            return self._stage(stage, recompute)
        # Where all layers are treated alike, stages of equal contents are.
        key = stage if recompute.num_layers is not None else self.costs.rank_model.contents(stage)
        found = self._of_point.get(key)
        if found is None:
            found = self._of_point[key] = self._stage(stage, recompute)
        return found

    def _stage(self, stage: Stage, recompute: Recompute) -> StageSeconds:
        """Return the times of one virtual stage, those of equal contents worked out once."""
        contents = self.costs.rank_model.contents(stage)
        alike = self._alike(stage, contents, recompute)
        found = self._stages.get((contents, alike))
        if found is None:
            found = self._stages[contents, alike] = self._priced(stage, contents, alike)
        return found

    def _alike(self, stage: Stage, contents: StageContents, recompute: Recompute) -> tuple[_Alike, ...]:
        """Return how many layers of one virtual stage are of which kind and recomputed in which way."""
        costs = self.costs
        if not recompute.is_per_layer:
            choice, counts_D = costs.choice_of(recompute), contents.counts_D
            kept = tuple((kind, choice, count) for kind, count in enumerate(counts_D) if count)
            if recompute.num_layers is None:
                return kept
            first_D = costs.rank_model.chain.counts(stage.first_layer, min(recompute.num_layers, stage.num_layers))
            again = tuple((kind, costs.whole_choice, count) for kind, count in enumerate(first_D) if count)
            return again + tuple((kind, of, count - first_D[kind]) for kind, of, count in kept if count > first_D[kind])
        held = slice(stage.first_layer, stage.first_layer + stage.num_layers)
        counted: Counter[tuple[int, int]] = Counter()
        for (kind, own), run in groupby(zip(costs.rank_model.chain.kinds[held], recompute.layers[held], strict=True)):
            counted[kind, costs.choice_of(own)] += len(tuple(run))
        return tuple((kind, choice, count) for (kind, choice), count in sorted(counted.items()))

    def _priced(self, stage: Stage, contents: StageContents, alike: tuple[_Alike, ...]) -> StageSeconds:
        costs, point = self.costs, self.point
        choice = costs.choice_of(point.recompute)
        forward = sum(n * block.forward_seconds for n, block in zip(contents.counts_D, costs.blocks_D, strict=True))
        backward = sum(n * costs.blocks_D[kind].backward_seconds_R[of] for kind, of, n in alike)
        if stage.has_embedding:
            forward += costs.embedding.forward_seconds
            backward += costs.embedding.backward_seconds_R[choice]
        if stage.has_head:
            forward += costs.head.forward_seconds
            backward += costs.head.backward_seconds_R[choice]
        waits = self._copy_waits(stage) if point.offloaded_layers else (0.0, 0.0)
        trainable = costs.rank_model.stage_elements(stage, pp=point.pp, trainable=True)
        everything = costs.rank_model.stage_elements(stage, pp=point.pp)
        traffic = data_parallel_traffic(
            trainable, point, self.table.workload, everything=everything, capabilities=self.table.capabilities
        )
        down = self._copied_seconds(gradient_copies(trainable, point, self.table.workload))
        up = self._copied_seconds(parameter_copies(everything, point, self.table.workload))
        reduce, gather, again = (
            self._timed(sum(self._collective_seconds(part) for part in parts) + copied, traffic)
            for parts, copied in (
                (traffic.reduce, down),
                (traffic.gather, up),
                (traffic.gather_again, up),
            )
        )
        overlap = point.overlap
        gathered = exposed_seconds(gather, beside_seconds=forward, overlapped=overlap.param_gather)
        gathered_again = exposed_seconds(again, beside_seconds=backward, overlapped=overlap.param_gather)
        reduced = exposed_seconds(reduce, beside_seconds=backward, overlapped=overlap.grad_reduce)
        # Once a step, or (gradients or weights sharded too) for every micro-batch.
        every_forward = gathered if point.zero_stage == 3 else 0.0
        every_backward = reduced if point.zero_stage >= 2 else 0.0
        if point.zero_stage == 3:
            every_backward += gathered_again
            every_backward += waited_for_link_seconds(down + up, beside_seconds=backward, waited_seconds=every_backward)
        return StageSeconds(
            forward=forward + every_forward + waits[0],
            backward=backward + every_backward + waits[1],
            first_forward_extra=0.0 if point.zero_stage == 3 else gathered,
            last_backward_extra=0.0 if point.zero_stage >= 2 else reduced,
        )

    def _copy_waits(self, stage: Stage) -> tuple[float, float]:
        """Return what the passes of a stage wait for the copies of activations: forward and backward."""
        costs, offloaded = self.costs, self.point.offloaded_layers
        choice, kinds = costs.choice_of(self.point.recompute), costs.rank_model.chain.kinds
        copies_D = [self.table.cost_model.compute(layer_copy(layer)).seconds for layer in costs.rank_model.layers]
        held = [(costs.blocks_D[kind], copies_D[kind]) for kind in kinds[stage.first_layer :][: stage.num_layers]]
        copies = [copy for _, copy in held]
        there = forward_wait_seconds([block.forward_seconds for block, _ in held], copies, offloaded=offloaded)
        back = [block.backward_seconds_R[choice] for block, _ in held]
        return there, backward_wait_seconds(back, copies, offloaded=offloaded)

    def _copied_seconds(self, copies: tuple[HostCopy, ...]) -> float:
        """Return what copies to and from the host take, one after the other."""
        return sum(self.table.cost_model.compute(copy).seconds for copy in copies)

    def _collective_seconds(self, collective: Collective) -> float:
        return self.table.cost_model.collective(collective).seconds

    def _timed(self, seconds: float, traffic: DataParallelTraffic) -> TimedTraffic:
        return TimedTraffic(
            seconds=seconds,
            num_buckets=traffic.num_buckets,
            slowdown=self.table.cost_model.overlap_slowdown,
        )

    def tail_seconds(self, layout: Layout) -> float:
        """Return what all ranks of a split wait for behind the last backward pass."""
        placed = self.place(layout)
        of_ranks = {placed.elements(rank, trainable=True) for rank in range(layout.pp)}
        slowest = 0.0
        for elements in of_ranks:
            key = (elements.dense, elements.expert)
            if key not in self._optimizers:
                self._optimizers[key] = self._optimizer_seconds(elements)
            slowest = max(slowest, self._optimizers[key])
        return self._tail_communication_seconds + slowest

    def _optimizer_seconds(self, elements: Elements) -> float:
        return sum(optimizer_seconds(elements, self.point, self.table.workload, self.table.cost_model.compute))

    @cached_property
    def _tail_communication_seconds(self) -> float:
        seconds = self._collective_seconds(gradient_norm_reduction(self.point))
        shared = self.costs.rank_model.shared_table_elements
        reduction = tied_embedding_reduction(shared, self.point, self.table.workload)
        return seconds if reduction is None else seconds + self._collective_seconds(reduction)
