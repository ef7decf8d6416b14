"""What pipeline schedules that no target has would make of a plan's pipelines.

The search chooses among the schedules that its target runs: 1F1B and interleaved 1F1B. Here the plan's layouts are
priced under every other one, by the simulator of passes over each stage's own forward pass, gradient of the input and
gradient of the weights, with transfers, under the memory ledger of the plans. The fastest that fits says what the
target costs. It is shown and never planned, for `target: any` too: no bound covers these schedules, so that a plan with
one of them could not be called optimal.

Of a layout everything stays as it is but the schedule and the cut into stages (`planner.schedule_views.schedule_cuts`).

Taken for all of them: transfers run beside the passes, which they slow down as with interleaving; where the layout's
own 1F1B waits for them, it is priced without that too, so that this gain is not taken for another schedule's. A
schedule that splits backward passes has an optimizer step for which ranks do not wait for one another, as its authors
have it, so that a step takes the longest span of a rank. Gradients that it runs one after the other are one backward
pass where that is shorter. Two copies of the model are twice as many data-parallel replicas of half
as many micro-batches: optimizer states are split over all of them, and each rank's gradients are added to those of the
rank that holds its other copies. Interwoven passes hide nothing here. A tied embedding counts twice even where a V has
both ends on one rank.

Each is also priced with activations that wait in host memory (`planner.schedule_views.offloaded_schedules`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from planner.errors import InputError
from planner.evaluation.priced_step import tail_seconds
from planner.frameworks.capabilities import capabilities_of
from planner.layout import Schedule, Stage
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.layers import build_graph
from planner.offloading.states import optimizer_seconds
from planner.plans.plan import OffloadedSchedule, OtherSchedules, Phase, Plan, PricedSchedule
from planner.plans.rank_memory import memory_by_rank
from planner.ranks.communication import ends_distance, shard_ranks
from planner.ranks.placement import PlacedModel, place
from planner.schedule_views.offloaded_schedules import Offloaded, node_bytes, offloaded, room_on_host_bytes
from planner.schedule_views.schedule_cuts import Cut, Cutter, NotPricedError
from planner.schedules.bidirectional import NAME as BIDIRECTIONAL
from planner.schedules.bidirectional import bidirectional_interleaved
from planner.schedules.building_block import v_half, v_min
from planner.schedules.limited import NAME as LIMITED
from planner.schedules.limited import limited
from planner.schedules.passes import PassKind, PassOrder, PassTimeline, joined, peak_bytes_R, run
from planner.schedules.published import breadth_first, dual_pipe, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v
from planner.schedules.split_bounds import Memory
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.ops import Collective, CollectiveKind
from profiles.planned import cost_model_on

MOST_LAYOUTS = 2
"""Pipelines of a plan that are priced, best first. A choice: every schedule is made and simulated for each of them."""

BREADTH_FIRST_CHUNKS = 2
"""Stages of a rank: the fewest with which breadth-first differs from GPipe."""

SPLIT = "gradients of weights apart from those of inputs"
POST_VALIDATION = "an optimizer step not synchronised (post-validation)"
TRANSFERS = "transfers beside the passes"
V_SHAPE = "stages in a V"
TWO_COPIES = "two copies of the weights"

BESIDE = "1F1B"
"""Where the layout has it already, only its transfers beside the passes are new."""

UNEQUAL = "stages on nodes that differ are not priced under it"

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

NAMES = (*BUILDERS, LIMITED)


def with_other_schedules(plan: Plan) -> Plan:
    """Return a plan with what other schedules would make of its pipelines.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    if not plan.plans:
        return plan
    if plan.cluster.unequal is not None:
        return replace(plan, schedules=OtherSchedules(priced=(), left_out=dict.fromkeys(NAMES, UNEQUAL)))
    pipelines = [index for index, planned in enumerate(plan.plans) if planned.layout.pp > 1]
    priced: list[PricedSchedule] = []
    left_out: dict[str, str] = {}
    for index, pricer in zip(pipelines, _pricers(plan, pipelines[:MOST_LAYOUTS]), strict=False):
        for name in NAMES:
            try:
                found = pricer.price(name)
            except NotPricedError as error:
                left_out.setdefault(name, f"layout {index}: {error}")
                continue
            priced.append(replace(found, index=index))
    for entry in priced:
        left_out.pop(entry.schedule, None)
    priced.sort(key=lambda entry: (entry.step_seconds, entry.index, entry.schedule))
    return replace(plan, schedules=OtherSchedules(priced=tuple(priced), left_out=left_out))


def scheduled(plan: Plan, index: int, name: str) -> "Scheduled":
    """Return when the passes of a layout of a plan run under another schedule.

    Args:
        plan: The plan.
        index: The layout, by its place among the plans.
        name: The schedule.

    Raises:
        InputError: There is no such schedule, or the layout does not run under it.
        profiles.errors.CoverageError: Something has no cost.
    """
    if name not in NAMES:
        raise InputError(f"There is no pipeline schedule {name!r}.", hint=f"Use one of {', '.join(NAMES)}.")
    refusal = UNEQUAL if plan.cluster.unequal is not None else "it has no pipeline"
    if plan.cluster.unequal is None and plan.plans[index].layout.pp > 1:
        (pricer,) = _pricers(plan, [index])
        try:
            return pricer.scheduled(name)
        except NotPricedError as error:
            refusal = str(error)
    raise InputError(f"Layout {index} does not run under {name}: {refusal}.")


def _pricers(plan: Plan, indices: Sequence[int]) -> "Iterator[_Pricer]":
    """Yield what prices each of these layouts."""
    capabilities = capabilities_of(plan.cluster, plan.request.target)
    graph = build_graph(plan.model, plan.request.workload, eager=capabilities.eager)
    cost_model = cost_model_on(plan.cluster, capabilities.software)
    for index in indices:
        planned = plan.plans[index]
        placed = place(plan.model, graph, planned.layout, plan.request.workload, capabilities)
        yield _Pricer(placed, cost_model, plan.cluster, limit_bytes=planned.memory_limit_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A layout under another schedule.

    Args:
        cut: Its stages.
        timeline: When its passes run without any copies.
        offloaded: The same with activations on the host; None where none can wait there.
        held: The model as each rank holds it.
        more_bytes_R: What each rank holds beside its activations and what the ledger has.
        splits: The schedule has gradients of weights apart from those of inputs.
    """

    cut: Cut
    timeline: PassTimeline
    offloaded: Offloaded | None
    held: PlacedModel
    more_bytes_R: tuple[int, ...]
    splits: bool

    @property
    def validates_later(self) -> bool:
        """Return whether ranks do not wait for one another behind the pipeline."""
        return self.splits and len(self.timeline.order.chains) == 1

    def seconds(self, timeline: PassTimeline) -> float:
        """Return what the pipeline takes of a step, with these passes."""
        return _seconds(timeline, validates_later=self.validates_later)

    def peak_memory_bytes(self, activation_bytes_R: Sequence[int]) -> int:
        """Return the largest phase of the heaviest rank with so many activations."""
        together = tuple(own + more for own, more in zip(activation_bytes_R, self.more_bytes_R, strict=True))
        return peak_memory_bytes(memory_ledger(self.held, activation_bytes_R=together))


class _Pricer:
    """Prices one layout under other schedules.

    Args:
        placed: The layout.
        cost_model: Prices operations.
        cluster: Where it runs.
        limit_bytes: What a GPU may hold.
    """

    def __init__(self, placed: PlacedModel, cost_model: CostModel, cluster: Cluster, *, limit_bytes: int) -> None:
        self._placed = placed
        self._layout = placed.layout
        self._cost_model = cost_model
        self._cluster = cluster
        self._limit_bytes = limit_bytes
        self._cutter = Cutter(placed, cost_model)

    def scheduled(self, name: str) -> Scheduled:
        """Return when the passes run under one schedule.

        Raises:
            NotPricedError: It does not run at these degrees.
        """
        order = self._order(name)
        cut = self._cutter.cut(tuple(order.rank_of_stage_V[stage] for stage in order.chains[0]))
        times, sizes = cut.times(order.chains), cut.sizes(order.chains)
        splits = any(entry.kind is PassKind.WEIGHT_GRADIENT for rank in range(order.pp) for entry in order.passes(rank))
        validates_later = splits and len(order.chains) == 1
        seconds = partial(_seconds, validates_later=validates_later)
        timelines = [run(entry, times) for entry in ((order, joined(order)) if splits else (order,))]
        timeline = min(timelines, key=seconds)
        held = self._held(cut, timeline.order)
        more_bytes_R = cut.more_heads_bytes_R(timeline.order)
        room = [room - more for room, more in zip(self._room_bytes(held), more_bytes_R, strict=True)]
        return Scheduled(
            cut=cut,
            timeline=timeline,
            offloaded=offloaded(timeline, times, sizes, room_bytes_R=room, step_seconds=seconds),
            held=held,
            more_bytes_R=more_bytes_R,
            splits=splits,
        )

    def price(self, name: str) -> PricedSchedule:
        """Return the layout under one schedule.

        Raises:
            NotPricedError: It does not run at these degrees.
        """
        found = self.scheduled(name)
        order, sizes = found.timeline.order, found.cut.sizes(found.timeline.order.chains)
        peaks_R = peak_bytes_R(
            order,
            activation_bytes_V=sizes.activation_bytes_V,
            weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
        )
        peak = found.peak_memory_bytes(peaks_R)
        tail = self._tail_seconds(found.held, copies=len(order.chains))
        with_host = None
        if found.offloaded is not None:
            moved = found.offloaded
            host = node_bytes(moved.host_bytes_R, self._layout, self._cluster)
            less = found.peak_memory_bytes(moved.device_bytes_R)
            with_host = OffloadedSchedule(
                step_seconds=found.seconds(moved.timeline if moved.waits else found.timeline) + tail,
                peak_memory_bytes=less,
                host_memory_bytes=host,
                moved_fraction=moved.moved_fraction,
                fits=less <= self._limit_bytes and host <= room_on_host_bytes(self._placed, self._cluster),
            )
        return PricedSchedule(
            schedule=order.name,
            index=0,
            layers_per_stage=tuple(stage.num_layers for stage in found.cut.placed.layout.stages),
            step_seconds=found.seconds(found.timeline) + tail,
            peak_memory_bytes=peak,
            fits=peak <= self._limit_bytes,
            needs=tuple(
                text
                for text, applies in (
                    (SPLIT, found.splits),
                    (POST_VALIDATION, found.validates_later),
                    (TRANSFERS, not self._layout.overlap.p2p),
                    (V_SHAPE, found.cut.is_v),
                    (TWO_COPIES, len(order.chains) > 1),
                )
                if applies
            ),
            offloaded=with_host if with_host is not None and with_host.peak_memory_bytes < peak else None,
        )

    def _order(self, name: str) -> PassOrder:
        """Return what the ranks run under one schedule."""
        pp, microbatches = self._layout.pp, self._layout.num_microbatches
        if name == BESIDE and self._layout.overlap.p2p:
            raise NotPricedError("the search chooses among it and interleaving")
        if name == LIMITED:
            return self._limited()
        try:
            order = BUILDERS[name](pp, microbatches)
        except ValueError as error:
            raise NotPricedError(str(error)) from error
        num_layers = self._layout.stages[-1].first_layer + self._layout.stages[-1].num_layers
        if len(order.chains[0]) > num_layers:
            raise NotPricedError(f"{len(order.chains[0])} stages need as many layers, not {num_layers}")
        return order

    def _limited(self) -> PassOrder:
        """Return the order of the scheduler that takes a memory limit."""
        cut = self._cutter.cut(tuple(range(self._layout.pp)))
        left = self._room_bytes(cut.placed)
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
        found = limited(cut.times((chain,)), memory, self._layout.num_microbatches, improve=True)
        if found is None:
            raise NotPricedError("no order was found within memory")
        return found.order

    def _room_bytes(self, held: PlacedModel) -> list[int]:
        """Return what each rank has for activations."""
        lines = memory_ledger(held, activation_bytes_R=(0,) * held.layout.pp)
        empty = [
            rank.phase_bytes[Phase.FORWARD_BACKWARD] for rank in memory_by_rank(lines, limit_bytes=self._limit_bytes)
        ]
        lost = held.capabilities.overheads.lost_fraction
        return [int((self._limit_bytes - held_bytes) / (1.0 + lost)) for held_bytes in empty]

    def _held(self, cut: Cut, order: PassOrder) -> PlacedModel:
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


def _seconds(timeline: PassTimeline, *, validates_later: bool) -> float:
    """Return what the pipeline takes of a step, whether ranks wait for one another behind it or not."""
    return timeline.span_seconds if validates_later else timeline.end_seconds
