"""One point of the space as a chain partition problem, and the solution as a layout.

A layer has one option, the point's recompute choice, or, where each layer has a choice of its own, all of them. Where
n layers of each stage are recomputed whole, a stage holds at least n, pays for n and has that much more room. The
problem carries each rank's capacity, for the surrogate `(m - 1) max + sum`. Sums of rounded bytes are not the rounded
bytes of sums, so there are two problems: in the careful one, demand rounded up, every choice fits by exact bytes; in
the generous one, demand rounded down, no split that fits is missing, so its optimum is a bound. Interleaved stages are
even and need no solver.
"""

import math
from dataclasses import dataclass

import numpy as np

from planner.frameworks.capabilities import ANY, Capabilities
from planner.layout import (
    REPLICAS_OUTERMOST,
    STAGES_OUTERMOST,
    Granularity,
    Layout,
    Offload,
    Overlap,
    Recompute,
    Schedule,
    stages_from_counts,
)
from planner.memory.saved import head_peak_bytes
from planner.memory.state_bytes import (
    communicator_bytes,
    fp8_copy_bytes,
    gradients_on_host,
    half_gradient_bytes,
    state_bytes,
)
from planner.memory.terms import WORKSPACE_BYTES
from planner.models.specs import ModelSpec
from planner.offloading.modules import NEAR_LAYERS, held_input_bytes, leaving_bytes
from planner.offloading.states import FP32_BYTES, PREFETCH_BUCKET_ELEMENTS
from planner.ranks.communication import shard_ranks
from planner.ranks.placement import RankModel
from planner.ranks.shard import Elements, RankLayer
from planner.requests.workload import TrainWorkload
from planner.search.bounds.shape_costs import ShapeCosts
from solvers.problem import Problem


def skeleton(  # noqa: PLR0913 - the dimensions of a point
    *,
    tp: int,
    sequence_parallel: bool,
    pp: int,
    vpp: int,
    dp: int,
    zero_stage: int,
    micro_batch_size: int,
    num_microbatches: int,
    recompute: Recompute,
    cp: int = 1,
    ulysses: int = 1,
    state_exchange: bool = False,
    ep: int = 1,
    etp: int = 1,
    state_replicas: int = 1,
    secondary_shard: int = 1,
    replicas_outermost: bool = False,
    offload: Offload | None = None,
    capabilities: Capabilities = ANY,
) -> Layout:
    """Return a point of the space as a layout whose layers are not placed yet.

    Communication is overlapped wherever the schedule can: gradients and parameters over dp, transfers only with
    interleaving (Megatron-LM has no overlapped transfers in plain 1F1B).
    """
    several = dp * cp > 1
    schedule = Schedule.NO_PIPELINE
    if pp > 1:
        schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    return Layout(
        tp=tp,
        sequence_parallel=sequence_parallel,
        pp=pp,
        vpp=vpp,
        dp=dp,
        zero_stage=zero_stage,
        micro_batch_size=micro_batch_size,
        num_microbatches=num_microbatches,
        schedule=schedule,
        recompute=recompute,
        overlap=Overlap(
            grad_reduce=several and zero_stage >= capabilities.reduce_overlap_from,
            param_gather=several and zero_stage >= capabilities.gather_overlap_from,
            p2p=vpp > 1,
        ),
        stages=stages_from_counts((0,) * (pp * vpp)),
        cp=cp,
        ulysses=ulysses,
        state_exchange=state_exchange,
        ep=ep,
        etp=etp,
        state_replicas=state_replicas,
        secondary_shard=secondary_shard,
        rank_order=REPLICAS_OUTERMOST if replicas_outermost else STAGES_OUTERMOST,
        offload=offload,
    )


def formulate(  # noqa: PLR0913 - the parts of a point
    *,
    model: ModelSpec,
    workload: TrainWorkload,
    capabilities: Capabilities,
    costs: ShapeCosts,
    layout: Layout,
    limit_bytes: int,
    generous: bool,
) -> Problem:
    """Return the chain partition problem of one point with one chunk a rank.

    Args:
        model: The model.
        workload: The training run.
        capabilities: What runs it.
        costs: Costs of the point's shape.
        layout: The point; its stages are ignored.
        limit_bytes: What each GPU may use.
        generous: Round demand down, not up; see the module's docstring.
    """
    choice = costs.choice_of(layout.recompute)
    partial = layout.recompute.num_layers or 0
    choices = costs.layer_choices if layout.recompute.is_per_layer else (choice,)
    kind_L = costs.rank_model.chain.kinds
    num_stages = layout.pp
    seconds_DO = [[block.forward_seconds + block.backward_seconds_R[of] for of in choices] for block in costs.blocks_D]
    ends_S = np.full(num_stages, partial * costs.whole_layer_seconds)
    ends_S[0] += costs.embedding.forward_seconds + costs.embedding.backward_seconds_R[choice]
    ends_S[-1] += costs.head.forward_seconds + costs.head.backward_seconds_R[choice]
    micro = layout.num_microbatches
    in_flight_S = [min(micro, num_stages - stage) for stage in range(num_stages)]
    demand = _Demand(
        model=model,
        workload=workload,
        rank_model=costs.rank_model,
        layout=layout,
        capabilities=capabilities,
        generous=generous,
    )
    layers = costs.rank_model.layers
    static_D = [demand.layer_static(layer) for layer in layers]
    kept_O = [costs.recomputes[of] for of in choices]
    modules = layout.offloaded_modules
    activation_DO = [
        [demand.padded(layer.saved_bytes(kept) - leaving_bytes(layer, kept, modules)) for kept in kept_O]
        for layer in layers
    ]
    # What the layers that are recomputed whole do not keep.
    freed = demand.freed(partial * costs.whole_layer_bytes)
    capacity_S = [limit_bytes + generous + count * freed for count in in_flight_S]
    return Problem(
        bottleneck_weight=micro - 1,
        total_weight=1,
        seconds_LO=np.array([seconds_DO[kind] for kind in kind_L]),
        static_bytes_LO=np.array([[static_D[kind]] * len(choices) for kind in kind_L], dtype=np.int64),
        activation_bytes_LO=np.array([activation_DO[kind] for kind in kind_L], dtype=np.int64),
        fixed_seconds_S=ends_S,
        fixed_bytes_S=np.array(demand.fixed_S(), dtype=np.int64),
        in_flight_S=np.array(in_flight_S, dtype=np.int64),
        min_layers_S=np.array(
            _fewest_layers(num_stages, partial=partial, nothing_trains=workload.lora is not None), dtype=np.int64
        ),
        max_layers_S=np.full(num_stages, model.num_layers, dtype=np.int64),
        rank_of_stage_S=np.arange(num_stages, dtype=np.int64),
        capacity_bytes_R=np.array(capacity_S, dtype=np.int64),
    )


def _fewest_layers(num_stages: int, *, partial: int, nothing_trains: bool) -> list[int]:
    """Return the fewest layers of each stage: none beside the embedding or the head, unless a part is recomputed.

    With adapters a stage without layers would have nothing to train (`nothing_trains`).
    """
    fewest = [max(partial, 1)] * num_stages
    if num_stages > 1 and not partial and not nothing_trains:
        fewest[0] = fewest[-1] = 0
    return fewest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """What one point's layers and stages need, in bytes rounded down (generous) or up.

    The ledger rounds fragmentation to the nearest byte, so a generous rank has one byte more.
    """

    model: ModelSpec
    workload: TrainWorkload
    rank_model: RankModel
    layout: Layout
    capabilities: Capabilities
    generous: bool

    def padded(self, num_bytes: int) -> int:
        """Return dynamic bytes with their fragmentation."""
        exact = num_bytes * (1.0 + self.capabilities.overheads.lost_fraction)
        return math.floor(exact) if self.generous else math.ceil(exact)

    def freed(self, num_bytes: int) -> int:
        """Return dynamic bytes that are not kept after all, with their fragmentation."""
        exact = num_bytes * (1.0 + self.capabilities.overheads.lost_fraction)
        return math.ceil(exact) if self.generous else math.floor(exact)

    def share(self, num_bytes: int, group: int) -> int:
        """Return one rank's part of what `group` ranks split."""
        return num_bytes // group if self.generous else -(-num_bytes // group)

    def states(self, *, trainable: Elements, frozen: Elements) -> int:
        """Return weights, gradients and optimizer states of these elements."""
        per_element = state_bytes(self.workload)
        layout = self.layout
        states, gradients, weights = (shard_ranks(layout, zero_stage=stage) for stage in (1, 2, 3))
        parts = []
        if not layout.parameters_offloaded:
            parts.append((trainable + frozen, per_element.weight, weights))
        if not gradients_on_host(layout):
            parts.append((trainable, per_element.gradient, gradients))
        half = half_gradient_bytes(layout, self.workload, self.capabilities)
        if half:
            parts.append((trainable, half, (1, 1)))
        if layout.secondary_shard > 1:
            secondary = (layout.secondary_shard, min(layout.secondary_shard, weights[1]))
            parts.append((trainable + frozen, per_element.weight, secondary))
        held = sum(
            self.share(elements.dense * num_bytes, dense) + self.share(elements.expert * num_bytes, expert)
            for elements, num_bytes, (dense, expert) in parts
        )
        kept, rounded = 1.0 - layout.offloaded_fraction, math.floor if self.generous else math.ceil
        of_gradients = FP32_BYTES if gradients_on_host(layout) else 0  # of the elements that are updated on the GPU
        for num_bytes in (per_element.master, per_element.moments, of_gradients):
            dense, expert = trainable.dense * num_bytes, trainable.expert * num_bytes
            held += rounded((self.share(dense, states[0]) + self.share(expert, states[1])) * kept)
        return held

    def layer_static(self, layer: RankLayer) -> int:
        """Return what one layer holds whatever is in flight."""
        copies = layer.gemm_operands * fp8_copy_bytes(self.workload.precision)
        rounded = math.floor(copies) if self.generous else math.ceil(copies)
        return rounded + self.states(trainable=layer.elements(trainable=True), frozen=layer.elements(trainable=False))

    def _waiting_bytes(self) -> int:
        """Return at most what a rank holds unsharded of what is sharded: queued gradients, gathered weights."""
        layout, rank_model, target = self.layout, self.rank_model, self.capabilities
        if layout.zero_stage < 2:
            return 0
        per_element = state_bytes(self.workload)
        largest = max(layer.elements().total for layer in rank_model.layers)
        queued = max(target.queued_gradients, 2 * largest) * per_element.gradient + largest * per_element.weight
        if layout.zero_stage == 2:
            return self.padded(queued)
        ends = rank_model.embedding.elements().total + rank_model.head_elements(pp=layout.pp).total
        gathered = ends + max(target.prefetched_weights, 2 * largest)
        if layout.parameters_offloaded:
            held = (*rank_model.layers, rank_model.embedding, rank_model.head)
            tensor = max(part.num_elements for layer in held for part in layer.weights)
            gathered += self.share(PREFETCH_BUCKET_ELEMENTS + tensor, min(shard_ranks(layout, zero_stage=3)))
        return self.padded(queued) + gathered * per_element.weight

    def _near_bytes(self) -> int:
        """Return at most what a rank holds of modules that wait on the host otherwise, and what stays after all."""
        layout, layers = self.layout, self.rank_model.layers
        modules, later = layout.offloaded_modules, stages_from_counts((0, 0))[1]
        if not modules:
            return 0
        near = NEAR_LAYERS * max(leaving_bytes(layer, layout.recompute, modules) for layer in layers)
        held = max(held_input_bytes(layer, later, modules) for layer in layers)
        return self.padded(near + min(layout.num_microbatches, layout.pp) * held)

    def fixed_S(self) -> list[int]:
        """Return what each stage holds whatever its layers.

        Where blocks differ, the largest working set counts on every stage (generous: the smallest); where each layer
        has a choice of its own, that of one recomputed whole (generous: of one that keeps everything).
        """
        layout, rank_model = self.layout, self.rank_model
        layers = rank_model.layers
        extreme = min if self.generous else max
        # Where a part of a stage is recomputed, the rest has freed more by then (unless there is no rest).
        partial = layout.recompute.num_layers is not None
        again = layout.recompute
        if layout.recompute.is_per_layer:
            again = Recompute(granularity=Granularity.NONE if self.generous else Granularity.FULL)
        working = extreme(
            (0 if partial else layer.all_saved_bytes - layer.saved_bytes(again)) + layer.transient_bytes
            for layer in layers
        )
        overheads = self.capabilities.overheads
        always = overheads.context_bytes + overheads.fixed_bytes + WORKSPACE_BYTES
        always += communicator_bytes(layout, self.model, overheads)
        if layout.pp > 1:
            always += self.padded(2 * rank_model.stream_bytes)
        if not self.generous:
            always += self._waiting_bytes() + self._near_bytes()
        fixed = [always + self.padded(working)] * layout.pp
        if self.generous and layout.pp > 1 and not partial:
            working = 0  # a stage at either end may hold no layer
            fixed[0] = always
        fixed[-1] = always + self.padded(max(working, head_peak_bytes(rank_model)))
        embedding = rank_model.embedding
        fixed[0] += min(layout.num_microbatches, layout.pp) * self.padded(embedding.all_saved_bytes)
        fixed[0] += self.states(
            trainable=embedding.elements(trainable=True), frozen=embedding.elements(trainable=False)
        )
        if self.model.vision is not None:
            fixed[0] += self.model.vision.num_parameters * state_bytes(self.workload).weight
        copies = rank_model.head.gemm_operands * fp8_copy_bytes(self.workload.precision)
        fixed[-1] += math.floor(copies) if self.generous else math.ceil(copies)
        fixed[-1] += self.states(
            trainable=rank_model.head_elements(pp=layout.pp, trainable=True),
            frozen=rank_model.head_elements(pp=layout.pp, trainable=False),
        )
        return fixed
