"""What the splits of one point cost, from the cost table: the step times that the search compares.

Stage times come from the table, equal layers counted, not walked; `planner.evaluation.evaluate` walks them again.
Stages of one point that hold the same are priced once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from planner.layout import Layout, Recompute, Stage
from planner.offloading.activations import layer_copy
from planner.offloading.modules import Group, copy_of, groups
from planner.offloading.states import gradient_copies, optimizer_seconds, parameter_copies, waited_for_link_seconds
from planner.ranks.communication import (
    DataParallelTraffic,
    TimedTraffic,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    overlapped_transfer_seconds,
    slowdown_beside,
    tied_embedding_reduction,
    transfer,
)
from planner.ranks.placement import PlacedModel, StageContents
from planner.ranks.pricing import steps_seconds
from planner.ranks.shard import Elements
from planner.ranks.sharding import sharding_of
from planner.schedules.bounds import split_bound_seconds
from planner.schedules.simulate import StageTimes
from planner.schedules.span import span_seconds
from planner.search.bounds import module_waits
from planner.search.bounds.copy_waits import backward_wait_seconds, forward_wait_seconds, hidden_copy_seconds
from planner.search.bounds.costs import CostTable
from planner.search.bounds.module_waits import Passed
from planner.search.splits.rank_peaks import RankPeaks
from profiles.ops import Collective, DriveCopy, HostCopy

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


_PassedLayer = tuple[tuple[Passed, ...], float]
"""The offloaded modules of a layer in the order of a pass, and what runs behind the last of them."""


def _around(groups: Sequence[Group], own: Sequence[float], copies: Sequence[float], whole: float) -> _PassedLayer:
    """Return a layer's groups in forward order; what is not theirs runs in front of the experts', or behind all."""
    rest = max(0.0, whole - sum(own))
    first = sum(not group.in_parts for group in groups)
    passed = tuple(
        Passed(group.module, rest if index == first else 0.0, seconds, copy)
        for index, (group, seconds, copy) in enumerate(zip(groups, own, copies, strict=True))
    )
    return passed, rest if first == len(groups) else 0.0


def _reversed(layer: _PassedLayer) -> _PassedLayer:
    """Return the same layer from its end to its beginning."""
    passed, behind = layer
    before = [*(group.before_seconds for group in passed), behind]
    turned = tuple(
        group._replace(before_seconds=before[index + 1]) for index, group in reversed(list(enumerate(passed)))
    )
    return turned, before[0]


def _one_after_the_other(layers: Sequence[_PassedLayer]) -> tuple[list[Passed], float]:
    """Return the groups of several layers in a row, and what runs behind the last of them."""
    found: list[Passed] = []
    behind = 0.0
    for passed, after in layers:
        for group in passed:
            found.append(group._replace(before_seconds=group.before_seconds + behind))
            behind = 0.0
        behind += after
    return found, behind


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
        self._stages: dict[tuple[StageContents, tuple[_Alike, ...], tuple[int, ...]], StageSeconds] = {}
        self._of_point: dict[Stage | StageContents, StageSeconds] = {}
        self._optimizers: dict[tuple[int, int], float] = {}
        self._peaks = RankPeaks()
        self._last_times: tuple[Layout, StageTimes] | None = None

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
        return self._peaks.of_all(self.place(layout))

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
        """Return what the passes and transfers of a split take; asked again of the same one, the same."""
        if self._last_times is None or self._last_times[0] is not layout:
            self._last_times = layout, self._times(layout)
        return self._last_times[1]

    def _times(self, layout: Layout) -> StageTimes:
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
        found = self._of_point.get(stage)
        if found is None:
            # Where all layers are treated alike or are alike, and nobody waits for one behind another, stages of equal
            # contents are.
            rank_model = self.costs.rank_model
            first_differ = recompute.num_layers is not None and rank_model.chain.num_kinds > 1
            key = stage if first_differ or self.point.offloaded_modules else rank_model.contents(stage)
            found = self._of_point.get(key)
            if found is None:
                found = self._of_point[key] = self._stage(stage, recompute)
            self._of_point[stage] = found
        return found

    def _stage(self, stage: Stage, recompute: Recompute) -> StageSeconds:
        """Return the times of one virtual stage, those of equal contents worked out once."""
        contents = self.costs.rank_model.contents(stage)
        alike = self._alike(stage, contents, recompute)
        in_order = self._in_order(stage) if self.point.offloaded_modules else ()
        found = self._stages.get((contents, alike, in_order))
        if found is None:
            found = self._stages[contents, alike, in_order] = self._priced(stage, contents, alike)
        return found

    def _in_order(self, stage: Stage) -> tuple[int, ...]:
        """Return the kinds of the layers of a virtual stage; where modules wait on the host their order matters."""
        return self.costs.rank_model.chain.kinds[stage.first_layer : stage.first_layer + stage.num_layers]

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
        if point.offloaded_modules:
            waits = self._module_waits(stage)
        trainable = costs.rank_model.stage_elements(stage, pp=point.pp, trainable=True)
        everything = costs.rank_model.stage_elements(stage, pp=point.pp)
        traffic = data_parallel_traffic(
            trainable, point, self.table.workload, everything=everything, capabilities=self.table.capabilities
        )
        down = self._copied_seconds(gradient_copies(trainable, point, self.table.workload))
        up = self._copied_seconds(parameter_copies(everything, point, self.table.workload))
        reduce, gather, again = (
            self._timed(sum(self._collective_seconds(part) for part in parts), traffic, copied=copied)
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
        """Return what copies of activations add to the passes of a stage, forward and backward."""
        costs, offloaded = self.costs, self.point.offloaded_layers
        choice, kinds = costs.choice_of(self.point.recompute), costs.rank_model.chain.kinds
        copies_D = [self.table.cost_model.compute(layer_copy(layer)).seconds for layer in costs.rank_model.layers]
        held = [(costs.blocks_D[kind], copies_D[kind]) for kind in kinds[stage.first_layer :][: stage.num_layers]]
        copies = [copy for _, copy in held]
        forth = [block.forward_seconds for block, _ in held]
        back = [block.backward_seconds_R[choice] for block, _ in held]
        lost = self.table.cost_model.copy_slowdown or 0.0
        waits = (
            (forward_wait_seconds(forth, copies, offloaded=offloaded), forth),
            (backward_wait_seconds(back, copies, offloaded=offloaded), back),
        )
        there, again = (
            wait + lost * hidden_copy_seconds(passes, copies, offloaded=offloaded, waited_seconds=wait)
            for wait, passes in waits
        )
        return there, again

    def _module_waits(self, stage: Stage) -> tuple[float, float]:
        """Return what copies of modules add to the passes of a stage, forward and backward."""
        costs, kinds = self.costs, self._in_order(stage)
        in_order = [self._passed_D[kind] for kind in kinds]
        there, _ = _one_after_the_other([forward for forward, _ in in_order])
        back, behind = _one_after_the_other([backward for _, backward in reversed(in_order)])
        forward = module_waits.forward_wait_seconds(there)
        in_pipeline = self.point.pp > 1
        backward = module_waits.backward_wait_seconds(back, behind_seconds=behind, in_pipeline=in_pipeline)
        choice, copies = costs.choice_of(self.point.recompute), [group.copy_seconds for group in there]
        forth = [costs.blocks_D[kind].forward_seconds for kind in kinds]
        again = [costs.blocks_D[kind].backward_seconds_R[choice] for kind in kinds]
        lost = self.table.cost_model.copy_slowdown or 0.0
        added, added_again = (
            wait + lost * hidden_copy_seconds(passes, copies, offloaded=len(copies), waited_seconds=wait)
            for wait, passes in ((forward, forth), (backward, again))
        )
        return added, added_again

    @cached_property
    def _passed_D(self) -> tuple[tuple[_PassedLayer, _PassedLayer], ...]:
        """Return what each kind of layer takes around its offloaded modules, forward and backward."""
        price, costs, recompute = self.table.cost_model, self.costs, self.point.recompute
        choice = costs.choice_of(recompute)
        found: list[tuple[_PassedLayer, _PassedLayer]] = []
        for layer, seconds in zip(costs.rank_model.layers, costs.blocks_D, strict=True):
            copied = groups(layer, recompute, self.point.offloaded_modules)
            copies = [max(price.compute(part).seconds for part in copy_of(group.num_bytes)) for group in copied]
            parts = [[part for operator in group.operators for part in operator.forward] for group in copied]
            forward = _around(copied, [steps_seconds(part, price) for part in parts], copies, seconds.forward_seconds)
            parts = [[part for operator in group.operators for part in operator.backward] for group in copied]
            backward = _around(
                copied, [steps_seconds(part, price) for part in parts], copies, seconds.backward_seconds_R[choice]
            )
            found.append((forward, _reversed(backward)))
        return tuple(found)

    def _copied_seconds(self, copies: tuple[HostCopy | DriveCopy, ...]) -> float:
        """Return what copies to and from the host take, and from drives, one after the other."""
        return sum(self.table.cost_model.compute(copy).seconds for copy in copies)

    def _collective_seconds(self, collective: Collective) -> float:
        return self.table.cost_model.collective(collective).seconds

    def _timed(self, seconds: float, traffic: DataParallelTraffic, *, copied: float) -> TimedTraffic:
        """Return collectives of so many seconds with the copies to or from the host that go with them."""
        costs = self.table.cost_model
        slowdown = slowdown_beside(
            collective_seconds=seconds,
            copied_seconds=copied,
            overlap_slowdown=costs.overlap_slowdown,
            copy_slowdown=costs.copy_slowdown,
        )
        return TimedTraffic(seconds=seconds + copied, num_buckets=traffic.num_buckets, slowdown=slowdown)

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
