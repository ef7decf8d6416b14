"""What pipeline schedules that no target has would make of a plan's pipelines.

The search chooses among the schedules that its target runs: 1F1B and interleaved 1F1B. Here the plan's layouts are
priced under every other one, by the simulator of passes over each stage's own forward pass, gradient of the input and
gradient of the weights, with transfers, under the memory ledger of the plans. The fastest that fits says what the
target costs. It is shown and never planned, for `target: any` too: no bound covers these schedules, so that a plan with
one of them could not be called optimal.

Of a layout everything stays as it is but the schedule and the cut into stages: the layout's own cut where the schedule
has as many stages in the same places, else one that evens out the ranks' work, layer by layer.

Taken for all of them: transfers run beside the passes, which they slow down as with interleaving; where the layout's
own 1F1B waits for them, it is priced without that too, so that this gain is not taken for another schedule's. A
schedule that splits backward passes has an optimizer step for which ranks do not wait for one another, as its authors
have it, so that a step takes the longest span of a rank. Gradients that it runs one after the other are one backward
pass where that is shorter. Two copies of the model are twice as many data-parallel replicas of half
as many micro-batches: optimizer states are split over all of them, and each rank's gradients are added to those of the
rank that holds its other copies. Interwoven passes hide nothing here. A tied embedding counts twice even where a V has
both ends on one rank.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.capabilities import CAPABILITIES
from planner.communication import ends_distance, overlapped_transfer_seconds, shard_ranks, transfer
from planner.evaluate import stage_prices, tail_seconds
from planner.layers import build_graph
from planner.layout import Schedule, Stage, stages_from_counts
from planner.memory import FRAGMENTATION_FRACTION, memory_ledger, peak_memory_bytes
from planner.offload import optimizer_seconds
from planner.pass_prices import StagePasses, stage_passes
from planner.placement import PlacedModel, place
from planner.plan import OtherSchedules, Plan, PricedSchedule
from planner.report import memory_by_rank
from planner.schedules.bidirectional import NAME as BIDIRECTIONAL
from planner.schedules.bidirectional import bidirectional_interleaved
from planner.schedules.building_block import v_half, v_min
from planner.schedules.cuts import even_work
from planner.schedules.limited import NAME as LIMITED
from planner.schedules.limited import limited
from planner.schedules.passes import PassKind, PassOrder, PassTimeline, PassTimes, joined, peak_bytes_R, run
from planner.schedules.published import breadth_first, dual_pipe, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v
from planner.schedules.split_bounds import Memory
from profiles.estimate import CostModel
from profiles.ops import Collective, CollectiveKind
from profiles.planned import cost_model_on

MOST_LAYOUTS = 2
"""Pipelines of a plan that are priced, best first."""

BREADTH_FIRST_CHUNKS = 2

SPLIT = "gradients of weights apart from those of inputs"
POST_VALIDATION = "an optimizer step not synchronised (post-validation)"
TRANSFERS = "transfers beside the passes"
V_SHAPE = "stages in a V"
TWO_COPIES = "two copies of the weights"

BESIDE = "1F1B"
"""Where the layout has it already, only its transfers beside the passes are new."""

Builder = Callable[[int, int], PassOrder]

BUILDERS: Mapping[str, Builder] = {
    BESIDE: one_f_one_b,
    "GPipe": gpipe,
    "breadth-first": lambda pp, microbatches: breadth_first(pp, BREADTH_FIRST_CHUNKS, microbatches),
    "ZB-H1": zb_h1,
    "ZB-H2": zb_h2,
    "ZB-V": zb_v,
    "V-Half": v_half,
    "V-Min": v_min,
    "DualPipe": dual_pipe,
    BIDIRECTIONAL: bidirectional_interleaved,
}
"""Schedules whose order follows from ranks and micro-batches alone."""


def with_other_schedules(plan: Plan) -> Plan:
    """Return a plan with what other schedules would make of its pipelines.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    if not plan.plans:
        return plan
    if plan.cluster.unequal is not None:
        reason = "stages on nodes that differ are not priced under it"
        return replace(plan, schedules=OtherSchedules(priced=(), left_out=dict.fromkeys((*BUILDERS, LIMITED), reason)))
    capabilities = CAPABILITIES[plan.request.target]
    graph = build_graph(plan.model, plan.request.workload, eager=capabilities.eager)
    cost_model = cost_model_on(plan.cluster, capabilities.software)
    pipelines = [index for index, planned in enumerate(plan.plans) if planned.layout.pp > 1]
    priced: list[PricedSchedule] = []
    left_out: dict[str, str] = {}
    for index in pipelines[:MOST_LAYOUTS]:
        planned = plan.plans[index]
        placed = place(plan.model, graph, planned.layout, plan.request.workload, capabilities)
        pricer = _Pricer(placed, cost_model, limit_bytes=planned.memory_limit_bytes)
        for name in (*BUILDERS, LIMITED):
            try:
                found = pricer.price(name)
            except _NotPricedError as error:
                left_out.setdefault(name, f"layout {index}: {error}")
                continue
            priced.append(replace(found, index=index))
    for entry in priced:
        left_out.pop(entry.schedule, None)
    priced.sort(key=lambda entry: (entry.step_seconds, entry.index, entry.schedule))
    return replace(plan, schedules=OtherSchedules(priced=tuple(priced), left_out=left_out))


class _NotPricedError(Exception):
    """A schedule cannot run at these degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """The model cut into stages for a schedule, and what each stage costs.

    Args:
        placed: The model under the stages in model order.
        ranks: The rank of each stage, in model order.
        passes: What each of them costs and keeps.
        transfer_seconds: From each stage to the next; the last entry is 0.
        slowdown_seconds: What transfers beside a pass add to it.
    """

    placed: PlacedModel
    ranks: tuple[int, ...]
    passes: tuple[StagePasses, ...]
    transfer_seconds: tuple[float, ...]
    slowdown_seconds: tuple[float, ...]


class _Pricer:
    """Prices one layout under other schedules.

    Args:
        placed: The layout.
        cost_model: Prices operations.
        limit_bytes: What a GPU may hold.
    """

    def __init__(self, placed: PlacedModel, cost_model: CostModel, *, limit_bytes: int) -> None:
        self._placed = placed
        self._layout = placed.layout
        self._cost_model = cost_model
        self._limit_bytes = limit_bytes
        self._cuts: dict[tuple[int, ...], _Cut] = {}

    def price(self, name: str) -> PricedSchedule:
        """Return the layout under one schedule.

        Raises:
            _NotPricedError: The schedule does not run at these degrees.
        """
        pp, microbatches = self._layout.pp, self._layout.num_microbatches
        if name == BESIDE and self._layout.overlap.p2p:
            raise _NotPricedError("the search chooses among it and interleaving")
        if name == LIMITED:
            return self._priced(self._limited())
        try:
            order = BUILDERS[name](pp, microbatches)
        except ValueError as error:
            raise _NotPricedError(str(error)) from error
        num_layers = self._layout.stages[-1].first_layer + self._layout.stages[-1].num_layers
        if len(order.chains[0]) > num_layers:
            raise _NotPricedError(f"{len(order.chains[0])} stages need as many layers, not {num_layers}")
        return self._priced(order)

    def _limited(self) -> PassOrder:
        """Return the order of the scheduler that takes a memory limit."""
        cut = self._cut(tuple(range(self._layout.pp)))
        lines = memory_ledger(cut.placed, activation_bytes_R=(0,) * self._layout.pp)
        empty = [held.peak_bytes for held in memory_by_rank(lines, limit_bytes=self._limit_bytes)]
        left = [int((self._limit_bytes - held) / (1.0 + FRAGMENTATION_FRACTION)) for held in empty]
        activations = [stage.activation_bytes for stage in cut.passes]
        # The ledger has the head's tensors of one micro-batch; those of any more take the last rank's room.
        head_bytes = cut.placed.rank_model.head.all_saved_bytes
        left[-1] += head_bytes
        activations[-1] += head_bytes
        memory = Memory(
            activation_bytes_R=tuple(activations),
            weight_gradient_bytes_R=tuple(stage.weight_gradient_bytes for stage in cut.passes),
            limit_bytes_R=tuple(left),
        )
        chain = tuple(range(self._layout.pp))
        found = limited(_times(cut, (chain,)), memory, self._layout.num_microbatches, improve=True)
        if found is None:
            raise _NotPricedError("no order was found within memory")
        return found.order

    def _priced(self, order: PassOrder) -> PricedSchedule:
        cut = self._cut(tuple(order.rank_of_stage_V[stage] for stage in order.chains[0]))
        splits = any(entry.kind is PassKind.WEIGHT_GRADIENT for rank in range(order.pp) for entry in order.passes(rank))
        copies = len(order.chains)
        validates_later = splits and copies == 1
        times = _times(cut, order.chains)
        seconds = {order: _seconds(run(order, times), validates_later=validates_later)}
        if splits:
            whole = joined(order)
            seconds[whole] = _seconds(run(whole, times), validates_later=validates_later)
            order = min(seconds, key=seconds.__getitem__)
        ranks_in_a_v = len(cut.ranks) > order.pp and cut.ranks[-1] == cut.ranks[0]
        held = self._held(cut, order)
        peak = peak_memory_bytes(memory_ledger(held, activation_bytes_R=_activation_peaks(cut, order)))
        return PricedSchedule(
            schedule=order.name,
            index=0,
            layers_per_stage=tuple(stage.num_layers for stage in cut.placed.layout.stages),
            step_seconds=seconds[order] + self._tail_seconds(held, copies=copies),
            peak_memory_bytes=peak,
            fits=peak <= self._limit_bytes,
            needs=tuple(
                text
                for text, applies in (
                    (SPLIT, splits),
                    (POST_VALIDATION, validates_later),
                    (TRANSFERS, not self._layout.overlap.p2p),
                    (V_SHAPE, ranks_in_a_v),
                    (TWO_COPIES, copies > 1),
                )
                if applies
            ),
        )

    def _held(self, cut: _Cut, order: PassOrder) -> PlacedModel:
        """Return the model as each rank holds it under an order: what the ledger and the optimizer step are made from.

        The stages of a rank become its chunks, wherever they stand in the model. Two copies are twice the replicas.
        """
        pp, copies = order.pp, len(order.chains)
        stages = cut.placed.layout.stages
        of_rank: list[list[Stage]] = [[] for _ in range(pp)]
        for chain in order.chains:
            for position, stage in enumerate(chain):
                of_rank[order.rank_of_stage_V[stage]].append(stages[position])
        chunks = len(of_rank[0])
        layout = replace(
            cut.placed.layout,
            vpp=chunks,
            schedule=Schedule.INTERLEAVED if chunks > 1 else Schedule.ONE_F_ONE_B,
            stages=tuple(of_rank[rank][chunk] for chunk in range(chunks) for rank in range(pp)),
            dp=copies * self._layout.dp,
        )
        return replace(cut.placed, layout=layout)

    def _tail_seconds(self, held: PlacedModel, *, copies: int) -> float:
        """Return what comes behind the pipeline: the optimizer step, and for two copies the sum of their gradients."""
        layout, workload = held.layout, held.workload
        communication, *_ = tail_seconds(self._placed, self._cost_model)
        elements_R = [held.elements(rank, trainable=True) for rank in range(layout.pp)]
        price = self._cost_model.compute
        optimizer = max(sum(optimizer_seconds(elements, layout, workload, price)) for elements in elements_R)
        if copies > 1:
            dense, expert = shard_ranks(self._layout, zero_stage=1)
            num_bytes = max(
                (-(-elements.dense // dense) + -(-elements.expert // expert)) * workload.gradient_dtype.num_bytes
                for elements in elements_R
            )
            communication += self._cost_model.collective(
                Collective(
                    kind=CollectiveKind.ALL_REDUCE,
                    buffer_bytes=num_bytes,
                    size=copies,
                    stride=ends_distance(self._layout),
                )
            ).seconds
        return communication + optimizer

    def _cut(self, ranks: tuple[int, ...]) -> _Cut:
        """Return the model cut into a stage for each entry of `ranks`, which says where it runs."""
        found = self._cuts.get(ranks)
        if found is None:
            found = self._cuts[ranks] = self._new_cut(ranks)
        return found

    def _new_cut(self, ranks: tuple[int, ...]) -> _Cut:
        own, pp = self._layout, self._layout.pp
        if own.recompute.num_layers is not None and len(ranks) != len(own.stages):
            raise _NotPricedError("a number of recomputed layers is one of each stage, and it has other stages")
        same_places = ranks == tuple(index % pp for index in range(len(own.stages)))
        layout = replace(
            own,
            vpp=len(ranks) // pp,
            schedule=Schedule.INTERLEAVED if len(ranks) > pp else Schedule.ONE_F_ONE_B,
            overlap=replace(own.overlap, p2p=True),
            stages=own.stages if same_places else stages_from_counts(self._even_counts(ranks)),
        )
        placed = replace(self._placed, layout=layout)
        transfers = tuple(
            self._cost_model.collective(
                transfer(
                    layout,
                    pipeline_rank=min(here, there) if abs(here - there) == 1 else here,
                    stream_bytes=placed.rank_model.stream_bytes,
                    capabilities=placed.capabilities,
                )
            ).seconds
            if here != there
            else 0.0
            for here, there in pairwise(ranks)
        )
        slowdown = self._cost_model.transfer_slowdown
        return _Cut(
            placed=placed,
            ranks=ranks,
            passes=stage_passes(placed, self._cost_model),
            transfer_seconds=(*transfers, 0.0),
            slowdown_seconds=tuple(
                overlapped_transfer_seconds(transfers, stage=index, layout=layout, slowdown=slowdown)
                for index in range(len(ranks))
            ),
        )

    def _even_counts(self, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Return layers for each stage that even out the work of the ranks."""
        kinds = self._placed.rank_model.chain.kinds
        distinct = sorted(set(kinds))
        alone = [
            Stage(first_layer=kinds.index(kind), num_layers=1, has_embedding=False, has_head=False) for kind in distinct
        ]
        ends = [
            Stage(first_layer=0, num_layers=0, has_embedding=True, has_head=False),
            Stage(first_layer=0, num_layers=0, has_embedding=False, has_head=True),
        ]
        stages = (*alone, *ends)
        layout = replace(self._layout, pp=1, vpp=len(stages), stages=stages)
        prices = stage_prices(replace(self._placed, layout=layout), self._cost_model)
        *seconds, embedding, head = [price.forward_seconds + price.backward_seconds for price in prices]
        by_kind = dict(zip(distinct, seconds, strict=True))
        return even_work(
            [by_kind[kind] for kind in kinds], ranks, first_stage_seconds=embedding, last_stage_seconds=head
        )


def _seconds(timeline: PassTimeline, *, validates_later: bool) -> float:
    """Return what the pipeline takes of a step, whether ranks wait for one another behind it or not."""
    return timeline.span_seconds if validates_later else timeline.end_seconds


def _times(cut: _Cut, chains: tuple[tuple[int, ...], ...]) -> PassTimes:
    """Return what the passes of all stages take, every copy of the model like the first."""
    position_V = {stage: position for chain in chains for position, stage in enumerate(chain)}
    found = [
        (cut.passes[position], cut.slowdown_seconds[position], cut.transfer_seconds[position])
        for position in (position_V[stage] for stage in sorted(position_V))
    ]
    return PassTimes(
        forward_seconds_V=tuple(stage.forward_seconds + slower for stage, slower, _ in found),
        input_gradient_seconds_V=tuple(stage.input_gradient_seconds + slower for stage, slower, _ in found),
        weight_gradient_seconds_V=tuple(stage.weight_gradient_seconds for stage, _, _ in found),
        transfer_seconds_V=tuple(seconds for _, _, seconds in found),
        backward_seconds_V=tuple(stage.backward_seconds + slower for stage, slower, _ in found),
        first_forward_extra_seconds_V=tuple(stage.first_forward_extra_seconds for stage, _, _ in found),
        last_gradient_extra_seconds_V=tuple(stage.last_gradient_extra_seconds for stage, _, _ in found),
    )


def _activation_peaks(cut: _Cut, order: PassOrder) -> tuple[int, ...]:
    """Return the most activations that each rank holds under an order.

    The ledger has the head's tensors of one micro-batch beside them; an order that holds more is given the others here.
    """
    position_V = {stage: position for chain in order.chains for position, stage in enumerate(chain)}
    by_stage = [cut.passes[position_V[stage]] for stage in range(order.num_stages)]
    peaks_R = peak_bytes_R(
        order,
        activation_bytes_V=[stage.activation_bytes for stage in by_stage],
        weight_gradient_bytes_V=[stage.weight_gradient_bytes for stage in by_stage],
    )
    last = {chain[-1] for chain in order.chains}
    is_last_V = [int(stage in last) for stage in range(order.num_stages)]
    heads_R = peak_bytes_R(order, activation_bytes_V=is_last_V, weight_gradient_bytes_V=[0] * order.num_stages)
    head_bytes = cut.placed.rank_model.head.all_saved_bytes
    return tuple(peak + head_bytes * max(0, heads - 1) for peak, heads in zip(peaks_R, heads_R, strict=True))
