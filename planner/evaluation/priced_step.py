"""What the parts of a step take, each virtual stage once, before and after its schedule is simulated."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from planner.evaluation.node_costs import part_costs
from planner.layout import Granularity, Layout, Offload, Recompute, Stage
from planner.offloading.copied_layers import PricedLayer, added_seconds
from planner.offloading.states import (
    gradient_copies,
    hosted_seconds,
    hosted_step_of,
    operations_of,
    parameter_copies,
    waited_for_link_seconds,
)
from planner.ranks.communication import (
    TimedTraffic,
    data_parallel_traffic,
    exposed_seconds,
    gradient_norm_reduction,
    optimizer_traffic,
    overlapped_transfer_seconds,
    slowdown_beside,
    tied_embedding_reduction,
    transfer,
)
from planner.ranks.placement import PlacedModel
from planner.ranks.pricing import launches_seconds, price_steps, restart_seconds
from planner.ranks.shard import RankLayer
from planner.ranks.step import Step, Term
from planner.schedules.orders import OperationOrder, operation_order
from planner.schedules.simulate import StageTimes, Timeline, operation_seconds, simulate
from profiles.estimate import CostModel, Estimate, Source
from profiles.ops import Collective, DriveCopy, HostCopy

SourceSeconds = defaultdict[Source, float]
"""Seconds by where their figure comes from."""

RECOMPUTATION = "recomputation"
DATA_PARALLEL = "data-parallel collectives"
OPTIMIZER = "optimizer step"
HOST = "optimizer states on the host"
ACTIVATIONS = "activations to the host and back"
BUBBLE = "pipeline bubble and transfers"


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerPrice:
    """One layer: seconds of one micro-batch by term, and by where they come from."""

    terms: defaultdict[str, float]
    of_sources: SourceSeconds
    forward_seconds: float
    backward_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePrice:
    """One virtual stage: seconds of one micro-batch by term and by where they come from, and its once-a-step extras."""

    terms: defaultdict[str, float]
    of_sources: SourceSeconds
    of_extra_source: Source
    forward_seconds: float
    backward_seconds: float
    first_forward_extra_seconds: float
    last_backward_extra_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One step: its virtual stages, the simulated pipeline, and what all ranks wait for after it."""

    stages: tuple[StagePrice, ...]
    timeline: Timeline
    tail_communication_seconds: float
    tail_optimizer_seconds: float
    tail_host_seconds: float

    @property
    def step_seconds(self) -> float:
        """Return the time of the whole step."""
        pipeline_seconds = float(self.timeline.rank_end_seconds_R.max())
        on_gpus = pipeline_seconds + self.tail_communication_seconds + self.tail_optimizer_seconds
        return on_gpus + self.tail_host_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedStep:
    """What the parts of one step take; its pipeline is simulated when that is asked for."""

    layout: Layout
    stages: tuple[StagePrice, ...]
    times: StageTimes
    tail_communication_seconds: float
    tail_optimizer_seconds: float
    tail_host_seconds: float

    def simulated(self) -> Simulated:
        """Return the step with its pipeline simulated."""
        return Simulated(
            stages=self.stages,
            timeline=simulate(self._order, self.times),
            tail_communication_seconds=self.tail_communication_seconds,
            tail_optimizer_seconds=self.tail_optimizer_seconds,
            tail_host_seconds=self.tail_host_seconds,
        )

    def least_seconds(self) -> float:
        """Return a time that `simulated` does not undercut but by rounding, from the work of each rank alone.

        Rank r begins once micro-batch 0 has come forward through the stages before it, then runs its own operations
        and waits for its own sends and receives between them. The last of them is the backward pass of its first
        chunk, from where the gradients go back through the stages before it.
        """
        layout, times = self.layout, self.times
        order = self._order
        seconds, kind_RK = operation_seconds(order, times), order.kinds.kind_RK
        own_R = seconds.duration_O[kind_RK].sum(axis=1) + seconds.gap_before_O[kind_RK].sum(axis=1)
        ranks = slice(0, layout.pp - 1)
        there = np.array(times.forward_seconds_V) + times.first_forward_extra_seconds_V
        ways_R = np.zeros(layout.pp)
        ways_R[1:] = np.cumsum(
            (there + times.backward_seconds_V)[ranks] + 2 * np.array(times.transfer_seconds_E[ranks])
        )
        tail = self.tail_communication_seconds + self.tail_optimizer_seconds + self.tail_host_seconds
        return float((own_R + ways_R).max()) + times.last_backward_extra_seconds_V[0] + tail

    @property
    def _order(self) -> OperationOrder:
        layout = self.layout
        return operation_order(layout.schedule, pp=layout.pp, vpp=layout.vpp, num_microbatches=layout.num_microbatches)


LayerPrices = dict[tuple[int, Recompute], _LayerPrice]
"""Prices of layers under one cost model, by the layer's identity: whoever keeps them keeps the layers too."""

_StageKey = tuple[tuple[RankLayer, ...], tuple[Recompute, ...], bool, bool]
"""Layers, what is recomputed of each, whether it holds the embedding and the head; layers are equal by identity."""


class Evaluator:
    """Prices one placed model; collects notes on where figures come from.

    Args:
        placed: The layout.
        cost_model: Prices operations.
        layers: Prices of the same layers under the same cost model that are known, and where more are kept.
    """

    def __init__(self, placed: PlacedModel, cost_model: CostModel, layers: LayerPrices | None = None) -> None:
        self.placed = placed
        self.cost_model = cost_model
        self.costs = part_costs(placed.layout, cost_model)
        self.notes: dict[str, set[tuple[Source, str]]] = {}
        self._layers = {} if layers is None else layers
        self._stages: dict[_StageKey, StagePrice] = {}

    def on(self, cost_model: CostModel) -> "Evaluator":
        """Return what prices another part of the layout, with the same notes."""
        if cost_model is self.cost_model:
            return self
        other = Evaluator(self.placed, self.cost_model)
        other.cost_model, other.notes = cost_model, self.notes
        return other

    def steps(
        self,
        steps: tuple[Step, ...],
        terms: defaultdict[str, float],
        of_sources: SourceSeconds,
        *,
        term: str | None = None,
    ) -> float:
        """Add the price of `steps` to `terms` (all of it to `term`, if named) and to its sources, and return it."""
        price = price_steps(steps, self.cost_model)
        _add(of_sources, price.of_sources)
        for kind, seconds in price.seconds.items():
            terms[term or kind.value] += seconds
        for kind, source, note in price.notes:
            self.notes.setdefault(term or kind.value, set()).add((source, note))
        return price.total_seconds

    def collective_seconds(self, collective: Collective, *, term: str) -> float:
        """Return the time of one collective and note under `term` where it comes from."""
        estimate = self.cost_model.collective(collective)
        if collective.size > 1:
            self.note(term, estimate.source, estimate.note)
        return estimate.seconds

    def note(self, term: str, source: Source, note: str) -> None:
        """Keep where a figure of a term comes from."""
        self.notes.setdefault(term, set()).add((source, note))

    def worst_source(self, term: str) -> Source:
        """Return the worst source of a term's figures so far: what is hidden of them nobody can tell apart."""
        order = list(Source)
        return max((source for source, _ in self.notes.get(term, ())), key=order.index, default=Source.ANALYTIC)

    def stage(self, stage: Stage) -> StagePrice:
        """Return the price of one virtual stage; one that holds the same is looked up."""
        held, recomputes = self.placed.rank_model.stage_layers(stage), self.placed.layout.layer_recomputes(stage)
        key = (held, recomputes, stage.has_embedding, stage.has_head)
        found = self._stages.get(key)
        if found is None:
            found = self._stages[key] = self._priced(stage, tuple(zip(held, recomputes, strict=True)))
        return found

    def _priced(self, stage: Stage, held: tuple[tuple[RankLayer, Recompute], ...]) -> StagePrice:
        """Return the price of one virtual stage of decoder layers, each recomputed in a way of its own."""
        placed = self.placed
        terms: defaultdict[str, float] = defaultdict(float)
        nothing = Recompute(granularity=Granularity.NONE)
        layers: list[tuple[RankLayer, Recompute]] = []
        if stage.has_embedding:
            layers.append((placed.rank_model.embedding, nothing))
        layers += held
        if stage.has_head:
            layers.append((placed.rank_model.head, nothing))
        forward = backward = 0.0
        of_sources: SourceSeconds = defaultdict(float)
        for layer, own in layers:
            price = self._layer(layer, own)
            forward += price.forward_seconds
            backward += price.backward_seconds
            _add(of_sources, price.of_sources)
            for term, seconds in price.terms.items():
                terms[term] += seconds
        whole = self._with_data_parallel(stage, terms, of_sources, forward, backward)
        has_copies = placed.layout.offloaded_modules or placed.layout.offloaded_layers
        return self._with_copies(whole, held) if has_copies else whole

    def _with_copies(self, price: StagePrice, held: tuple[tuple[RankLayer, Recompute], ...]) -> StagePrice:
        """Add what layers wait for copies of activations, and what they lose to those beside them."""
        priced = [
            PricedLayer(
                layer=layer,
                recompute=own,
                forward_seconds=self._layer(layer, own).forward_seconds,
                backward_seconds=self._layer(layer, own).backward_seconds,
            )
            for layer, own in held
        ]

        def tell(copied: Estimate) -> None:
            self.note(ACTIVATIONS, copied.source, copied.note)

        forward, backward = added_seconds(priced, self.placed.layout, self.cost_model, tell)
        price.terms[ACTIVATIONS] += forward + backward
        _add(price.of_sources, {self.worst_source(ACTIVATIONS): forward + backward})
        return replace(
            price,
            forward_seconds=price.forward_seconds + forward,
            backward_seconds=price.backward_seconds + backward,
        )

    def _layer(self, layer: RankLayer, recompute: Recompute) -> _LayerPrice:
        """Return the price of one layer; the same object again is looked up."""
        key = (id(layer), recompute)
        found = self._layers.get(key)
        if found is None:
            terms: defaultdict[str, float] = defaultdict(float)
            of_sources: SourceSeconds = defaultdict(float)
            again = layer.recomputed_steps(recompute)
            kernels = self.steps(layer.forward, terms, of_sources)
            forward = self._launched(launches_seconds(layer.forward, self.cost_model), kernels, terms)
            kernels = self.steps(layer.backward, terms, of_sources)
            kernels += self.steps(again, terms, of_sources, term=RECOMPUTATION)
            host = launches_seconds((*layer.backward, *again), self.cost_model)
            host += restart_seconds(layer.num_regions(recompute), self.cost_model)
            backward = self._launched(host, kernels, terms)
            _add(of_sources, {Source.ANALYTIC: terms.get(Term.LAUNCHES.value, 0.0)})
            found = _LayerPrice(terms=terms, of_sources=of_sources, forward_seconds=forward, backward_seconds=backward)
            self._layers[key] = found
        return found

    def _launched(self, host_seconds: float, kernel_seconds: float, terms: defaultdict[str, float]) -> float:
        """Return what a layer's pass takes: its kernels, or the host's time for starting them if that is longer."""
        waited = max(0.0, host_seconds - kernel_seconds)
        if waited:
            terms[Term.LAUNCHES.value] += waited
            self.note(Term.LAUNCHES.value, Source.ANALYTIC, "launches of the host, one after the other")
        return kernel_seconds + waited

    def _with_data_parallel(
        self,
        stage: Stage,
        terms: defaultdict[str, float],
        of_sources: SourceSeconds,
        forward: float,
        backward: float,
    ) -> StagePrice:
        """Add the exposed data-parallel collectives of one virtual stage."""
        placed = self.placed
        layout = placed.layout
        trainable = placed.rank_model.stage_elements(stage, pp=layout.pp, trainable=True)
        everything = placed.rank_model.stage_elements(stage, pp=layout.pp)
        traffic = data_parallel_traffic(
            trainable, layout, placed.workload, everything=everything, capabilities=placed.capabilities
        )
        reduce_seconds, gather_seconds, again_seconds = (
            sum(self.collective_seconds(collective, term=DATA_PARALLEL) for collective in collectives)
            for collectives in (traffic.reduce, traffic.gather, traffic.gather_again)
        )

        down_seconds = self._copied_seconds(gradient_copies(trainable, layout, placed.workload))
        up_seconds = self._copied_seconds(parameter_copies(everything, layout, placed.workload))

        def exposed(seconds: float, copied_seconds: float, beside_seconds: float, *, overlapped: bool) -> float:
            slowdown = slowdown_beside(
                collective_seconds=seconds,
                copied_seconds=copied_seconds,
                overlap_slowdown=self.cost_model.overlap_slowdown,
                copy_slowdown=self.cost_model.copy_slowdown,
            )
            timed = TimedTraffic(
                seconds=seconds + copied_seconds,
                num_buckets=traffic.num_buckets,
                slowdown=slowdown,
            )
            return exposed_seconds(timed, beside_seconds=beside_seconds, overlapped=overlapped)

        overlap = layout.overlap
        gather_forward = exposed(gather_seconds, up_seconds, forward, overlapped=overlap.param_gather)
        gather_backward = exposed(again_seconds, up_seconds, backward, overlapped=overlap.param_gather)
        reduced = exposed(reduce_seconds, down_seconds, backward, overlapped=overlap.grad_reduce)
        # Once a step, or (gradients or weights sharded too) for every micro-batch.
        first_extra, last_extra, backward_alone = gather_forward, reduced, backward
        if layout.zero_stage >= 2:
            last_extra = 0.0
            terms[DATA_PARALLEL] += reduced
            of_sources[self.worst_source(DATA_PARALLEL)] += reduced
            backward += reduced
        if layout.zero_stage == 3:
            first_extra = 0.0
            link = waited_for_link_seconds(
                down_seconds + up_seconds,
                beside_seconds=backward_alone,
                waited_seconds=reduced + gather_backward,
            )
            terms[DATA_PARALLEL] += gather_forward + gather_backward + link
            of_sources[self.worst_source(DATA_PARALLEL)] += gather_forward + gather_backward + link
            forward += gather_forward
            backward += gather_backward + link
        return StagePrice(
            terms=terms,
            of_sources=of_sources,
            of_extra_source=self.worst_source(DATA_PARALLEL),
            forward_seconds=forward,
            backward_seconds=backward,
            first_forward_extra_seconds=first_extra,
            last_backward_extra_seconds=last_extra,
        )

    def transfer_seconds(self) -> tuple[float, ...]:
        """Return the time of a transfer over each boundary between virtual stages."""
        placed = self.placed
        layout = placed.layout
        num_boundaries = len(layout.stages) - 1
        of_ranks = [
            self.on(self.costs.of_boundary(pipeline_rank)).collective_seconds(
                transfer(
                    layout,
                    pipeline_rank=pipeline_rank,
                    stream_bytes=placed.rank_model.stream_bytes,
                    capabilities=placed.capabilities,
                ),
                term=BUBBLE,
            )
            for pipeline_rank in range(min(layout.pp, num_boundaries))
        ]
        return tuple(of_ranks[index % layout.pp] for index in range(num_boundaries))

    def _copied_seconds(self, copies: tuple[HostCopy | DriveCopy, ...]) -> float:
        """Return what copies to and from host and drives take, one after the other, and note where that comes from."""
        total = 0.0
        for copy in copies:
            estimate = self.cost_model.compute(copy)
            self.note(DATA_PARALLEL, estimate.source, estimate.note)
            total += estimate.seconds
        return total

    def tail_seconds(self) -> tuple[float, float, float]:
        """Return (communication, optimizer, host) seconds after the last backward pass, on the slowest rank."""
        placed = self.placed
        layout, workload = placed.layout, placed.workload
        world, ends = self.on(self.costs.of_world), self.on(self.costs.of_ends)
        communication = world.collective_seconds(gradient_norm_reduction(layout), term=DATA_PARALLEL)
        reduction = tied_embedding_reduction(placed.rank_model.shared_table_elements, layout, workload)
        if reduction is not None:
            communication += ends.collective_seconds(reduction, term=DATA_PARALLEL)
        if layout.offload is not None:
            return communication, *self._hosted_seconds(layout.offload)
        slowest = 0.0
        for pipeline_rank in range(layout.pp):
            trainable = placed.elements(pipeline_rank, trainable=True)
            estimate = self.costs.of_stage(pipeline_rank).compute(optimizer_traffic(trainable, layout, workload))
            self.note(OPTIMIZER, estimate.source, estimate.note)
            slowest = max(slowest, estimate.seconds)
        return communication, slowest, 0.0

    def _hosted_seconds(self, offload: Offload) -> tuple[float, float]:
        """Return (GPU, host) seconds of the slowest rank's optimizer step, a part of its states being on the host."""
        placed = self.placed
        slowest = (0.0, 0.0)
        for pipeline_rank in range(placed.layout.pp):
            price = self.costs.of_stage(pipeline_rank).compute
            step = hosted_step_of(
                placed.elements(pipeline_rank, trainable=True), placed.layout, offload, placed.workload
            )
            slowest = max(slowest, hosted_seconds(step, price), key=sum)
            for term, operations in zip((OPTIMIZER, HOST), operations_of(step), strict=True):
                for operation in operations:
                    estimate = price(operation)
                    self.note(term, estimate.source, estimate.note)
        return slowest


def priced_step(placed: PlacedModel, cost_model: CostModel, layers: LayerPrices | None = None) -> PricedStep:
    """Return what the parts of a step take, before any schedule is simulated.

    Args:
        placed: The layout.
        cost_model: Prices operations.
        layers: Prices of the same layers under the same cost model that are known; more are added. Where nodes differ,
            those of the cost model for no rank in particular.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    return step_priced_by(Evaluator(placed, cost_model, layers))


def stage_prices(placed: PlacedModel, cost_model: CostModel) -> tuple[StagePrice, ...]:
    """Return what each virtual stage costs, before any schedule.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    evaluator = Evaluator(placed, cost_model)
    return tuple(evaluator.stage(stage) for stage in placed.layout.stages)


def tail_seconds(placed: PlacedModel, cost_model: CostModel) -> tuple[float, float, float]:
    """Return what all ranks wait for after the pipeline: (communication, optimizer, host) seconds.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    return Evaluator(placed, cost_model).tail_seconds()


def step_priced_by(evaluator: Evaluator) -> PricedStep:
    """Return what the parts of a step take, with notes left in the evaluator."""
    layout, costs = evaluator.placed.layout, evaluator.costs
    of_ranks = [evaluator.on(costs.of_stage(pipeline_rank)) for pipeline_rank in range(layout.pp)]
    stages = tuple(of_ranks[index % layout.pp].stage(stage) for index, stage in enumerate(layout.stages))
    transfers = evaluator.transfer_seconds()
    beside = tuple(
        overlapped_transfer_seconds(
            transfers, stage=index, layout=layout, slowdown=costs.of_stage(index % layout.pp).transfer_slowdown
        )
        for index in range(len(stages))
    )
    tail_communication, tail_optimizer, tail_host = evaluator.tail_seconds()
    return PricedStep(
        layout=layout,
        stages=stages,
        times=StageTimes(
            forward_seconds_V=tuple(stage.forward_seconds + added for stage, added in zip(stages, beside, strict=True)),
            backward_seconds_V=tuple(
                stage.backward_seconds + added for stage, added in zip(stages, beside, strict=True)
            ),
            transfer_seconds_E=transfers,
            blocking_transfers=layout.pp > 1 and not layout.overlap.p2p,
            first_forward_extra_seconds_V=tuple(stage.first_forward_extra_seconds for stage in stages),
            last_backward_extra_seconds_V=tuple(stage.last_backward_extra_seconds for stage in stages),
        ),
        tail_communication_seconds=tail_communication,
        tail_optimizer_seconds=tail_optimizer,
        tail_host_seconds=tail_host,
    )


def _add(of_sources: SourceSeconds, more: Mapping[Source, float]) -> None:
    """Add seconds by where they come from."""
    for source, seconds in more.items():
        of_sources[source] += seconds
