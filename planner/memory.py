"""The memory ledger: every term of one rank's memory, in exact bytes, phase by phase.

Phases: initialisation (weights, gradient buffer, master weights; moments are made at the first update), the worst
moment of forward and backward (everything, with as many micro-batches in flight as the schedule keeps), and the
optimizer step. The heaviest phase of the heaviest rank decides whether a plan fits.

Weights, gradients and states follow Megatron-LM's distributed optimizer (Rajbhandari et al., arXiv 1910.02054, for
the stages); activations are the saved tensors of `planner.graph`, which Korthikanti et al. (arXiv 2205.05198)
published as formulas.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.capabilities import Capabilities
from planner.communication import Count, Grid, communicator_sizes, grid_of, num_moments, shard_ranks
from planner.layout import Layout, Schedule, Stage
from planner.placement import PlacedModel, RankModel
from planner.plan import MemoryLine, Phase
from planner.schedule_orders import operation_order, peak_activation_bytes
from planner.shard import Elements
from planner.specs import ModelSpec
from planner.workload import DType, Optimizer, Precision, TrainWorkload

SOFTMAX_NAME = "softmax of logits"
MIB = 1 << 20
CONTEXT_BYTES = 700 * MIB
CONTEXT_SOURCE = "CUDA context, cuBLAS and Transformer Engine workspaces; no published figure"
PAIR_COMMUNICATOR_BYTES = 544 * MIB
GROUP_COMMUNICATOR_BYTES = 688 * MIB
COMMUNICATOR_SOURCE = "544 MiB for a pair, 688 MiB for a larger group (measured on A100, NVIDIA/nccl issue 964)"
FRAGMENTATION_FRACTION = 0.03
FRAGMENTATION_SOURCE = "3 % of activations and temporaries lost to the caching allocator"
VISION_SOURCE = "16-bit parameters of the vision tower, taken as frozen, beside the embedding; its work is not priced"
ASSUMED_SOURCES = frozenset({CONTEXT_SOURCE, FRAGMENTATION_SOURCE, COMMUNICATOR_SOURCE, VISION_SOURCE})
"""Sources of figures that nobody measured for this hardware."""


FP8_COPY_SOURCE = "Transformer Engine keeps a row-wise and a column-wise fp8 copy of each weight, with their scales"
FP8_COPY_BYTES = {
    Precision.FP8_DELAYED: 2.0,
    Precision.FP8_TENSORWISE: 2.0,
    Precision.FP8_BLOCKWISE: 2.0 + 2 * 4 / 128**2,  # an fp32 scale for each block of 128 x 128
    Precision.FP8_MXFP8: 2.0 + 2 / 32,  # an 8-bit scale for each run of 32
}
"""Bytes of fp8 copies for each element of a linear layer's weight."""


def fp8_copy_bytes(precision: Precision) -> float:
    """Return the bytes of fp8 copies for each element of a linear layer's weight; 0 without fp8."""
    return FP8_COPY_BYTES.get(precision, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateBytes:
    """Bytes per element of what belongs to a trainable weight, before any sharding.

    Args:
        weight: The parameter itself.
        gradient: Its gradient accumulator.
        master: The optimizer's copy.
        moments: The optimizer's moments.
    """

    weight: int
    gradient: int
    master: int
    moments: int


def state_bytes(workload: TrainWorkload) -> StateBytes:
    """Return the bytes per trainable element.

    With states in less than fp32, Transformer Engine's fused Adam keeps of an fp32 master of bf16 weights only the 16
    bits that the weight lacks.
    """
    precision_aware = uses_precision_aware_optimizer(workload)
    master = workload.master_dtype.num_bytes
    if (
        precision_aware
        and workload.master_dtype is DType.FP32
        and workload.precision.parameter_dtype is DType.BF16
        and workload.optimizer is Optimizer.ADAM
    ):
        master = 2
    return StateBytes(
        weight=workload.precision.parameter_dtype.num_bytes,
        gradient=workload.gradient_dtype.num_bytes,
        master=master,
        moments=num_moments(workload) * workload.moment_dtype.num_bytes,
    )


def half_gradient_bytes(layout: Layout, workload: TrainWorkload, capabilities: Capabilities) -> int:
    """Return the bytes per trainable element of 16-bit gradients that are kept beside the accumulated ones."""
    apart = workload.gradient_dtype is not workload.precision.parameter_dtype
    return 2 if capabilities.half_gradients and layout.zero_stage == 1 and apart else 0


def uses_precision_aware_optimizer(workload: TrainWorkload) -> bool:
    """Return whether master weights or moments are kept in less than fp32."""
    return workload.master_dtype is not DType.FP32 or workload.moment_dtype is not DType.FP32


def chunk_activation_bytes(placed: PlacedModel, stage: Stage) -> int:
    """Return what one virtual stage keeps of one micro-batch, the head's tensors (never two at once) left out."""
    recompute, rank_model = placed.layout.recompute, placed.rank_model
    total = rank_model.embedding.all_saved_bytes if stage.has_embedding else 0
    if recompute.num_layers is None:
        return total + sum(layer.saved_bytes(recompute) * count for layer, count in rank_model.stage_counts(stage))
    for index, layer in enumerate(rank_model.stage_layers(stage)):
        total += layer.layer_input_bytes if index < recompute.num_layers else layer.all_saved_bytes
    return total


def _working_set_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the most that one layer's backward needs beside what is kept: recomputed tensors and gradients.

    Where only the first layers of a stage are recomputed, the others have freed at least as much by then.
    """
    recompute = placed.layout.recompute
    largest = 0
    for stage in placed.layout.chunks(pipeline_rank):
        freed_before = recompute.num_layers is not None and stage.num_layers > recompute.num_layers
        for layer, _ in placed.rank_model.stage_counts(stage):
            again = 0 if freed_before else layer.all_saved_bytes - layer.saved_bytes(recompute)
            largest = max(largest, again + layer.transient_bytes)
    return largest


def communicator_bytes(layout: Layout, model: ModelSpec) -> int:
    """Return the memory of every communicator that one rank opens."""
    return communicators_bytes(grid_of(layout), model)


def communicators_bytes(grid: Grid[Count], model: ModelSpec) -> Count:
    """Return the memory of every communicator that one rank opens, of one layout or of many."""
    sizes = communicator_sizes(grid, tied_embedding=model.copies_embedding, has_experts=model.has_experts)
    pairs, groups = sizes[0] * 0, sizes[0] * 0
    for size in sizes:
        pairs = pairs + 1 * (size == 2)
        groups = groups + 1 * (size > 2)
    total: Count = pairs * PAIR_COMMUNICATOR_BYTES + groups * GROUP_COMMUNICATOR_BYTES
    return total


def head_peak_bytes(rank_model: RankModel) -> int:
    """Return the loss's peak: fp32 softmax kept, logits or their gradient in 16 bit beside it, the norm's tensors.

    Multi-token prediction keeps a softmax of its own for each module, and its blocks have a backward pass as well.
    """
    softmaxes = [part.num_bytes for part in rank_model.head.saved if part.saved.name.endswith(SOFTMAX_NAME)]
    kept = sum(part.num_bytes for part in rank_model.head.saved)
    beside = softmaxes[0] // 2
    if len(softmaxes) > 1:
        beside = max(beside, rank_model.head.transient_bytes)
    return kept + beside


@lru_cache(maxsize=256)
def _activation_peaks(
    schedule: Schedule, pp: int, vpp: int, num_microbatches: int, bytes_per_stage: tuple[int, ...]
) -> tuple[int, ...]:
    order = operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches)
    bytes_RC = np.array(bytes_per_stage, dtype=np.int64).reshape(vpp, pp).T
    return peak_activation_bytes(order, bytes_RC)


def memory_ledger(placed: PlacedModel) -> tuple[MemoryLine, ...]:
    """Return every line of every pipeline rank's memory."""
    layout = placed.layout
    peaks = _activation_peaks(
        layout.schedule,
        layout.pp,
        layout.vpp,
        layout.num_microbatches,
        tuple(chunk_activation_bytes(placed, stage) for stage in layout.stages),
    )
    lines: list[MemoryLine] = []
    for pipeline_rank in range(layout.pp):
        always = _permanent_terms(placed, pipeline_rank)
        moments = _moment_terms(placed, pipeline_rank)
        dynamic = _dynamic_terms(placed, pipeline_rank, peaks[pipeline_rank])
        for phase, terms in (
            (Phase.INITIALISATION, always),
            (Phase.FORWARD_BACKWARD, [*always, *moments, *dynamic]),
            (Phase.OPTIMIZER_STEP, [*always, *moments, *_update_terms(placed, pipeline_rank)]),
        ):
            lines += [
                MemoryLine(
                    rank=layout.first_global_rank(pipeline_rank),
                    phase=phase,
                    term=term.name,
                    num_bytes=term.num_bytes,
                    source=term.source,
                )
                for term in terms
            ]
    return tuple(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    name: str
    num_bytes: int
    source: str


def _share(num_bytes: int, group: int) -> int:
    return -(-num_bytes // group)


def split_bytes(elements: Elements, per_element: int, ranks: tuple[int, int]) -> int:
    """Return one rank's part of what the ranks of each grid split, both parts rounded up.

    Args:
        elements: Elements on the rank before they are split.
        per_element: Bytes of each.
        ranks: Over how many ranks (dense, expert).
    """
    return _share(elements.dense * per_element, ranks[0]) + _share(elements.expert * per_element, ranks[1])


def _split_note(elements: Elements, ranks: tuple[int, int]) -> str:
    """Return over how many ranks something is split, in words."""
    dense, expert = ranks
    note = f", split over {dense} ranks" if dense > 1 else ""
    if elements.expert and expert != dense:
        note += f", experts over {expert}" if expert > 1 else ", experts whole"
    return note


def _permanent_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what a rank holds from initialisation on."""
    layout, workload = placed.layout, placed.workload
    per_element = state_bytes(workload)
    everything = placed.elements(pipeline_rank)
    trainable = placed.elements(pipeline_rank, trainable=True)
    states, gradients, weights = (shard_ranks(layout, zero_stage=stage) for stage in (1, 2, 3))
    terms = [
        _Term(
            name="weights",
            num_bytes=split_bytes(everything, per_element.weight, weights),
            source=f"{workload.precision.parameter_dtype} parameters of this rank{_split_note(everything, weights)}",
        ),
        _Term(
            name="gradients",
            num_bytes=split_bytes(trainable, per_element.gradient, gradients),
            source=f"{workload.gradient_dtype} gradients{_split_note(trainable, gradients)}",
        ),
        _Term(
            name="master weights",
            num_bytes=split_bytes(trainable, per_element.master, states),
            source=f"{per_element.master} bytes an element{_split_note(trainable, states)}",
        ),
        _Term(name="context and libraries", num_bytes=CONTEXT_BYTES, source=CONTEXT_SOURCE),
    ]
    half = half_gradient_bytes(layout, workload, placed.capabilities)
    if half:
        source = "gradients of a whole backward pass, before they are added to the accumulated ones"
        terms.append(_Term(name="16-bit gradients", num_bytes=trainable.total * half, source=source))
    if layout.secondary_shard > 1:
        ranks = (layout.secondary_shard, min(layout.secondary_shard, weights[1]))
        secondary = split_bytes(everything, per_element.weight, ranks)
        source = f"second copy of the weights{_split_note(everything, ranks)}"
        terms.append(_Term(name="secondary weights", num_bytes=secondary, source=source))
    if placed.model.vision is not None and pipeline_rank == 0:
        tower = placed.model.vision.num_parameters * per_element.weight
        terms.append(_Term(name="vision tower", num_bytes=tower, source=VISION_SOURCE))
    communicators = communicator_bytes(layout, placed.model)
    if communicators:
        terms.append(_Term(name="communicators", num_bytes=communicators, source=COMMUNICATOR_SOURCE))
    return terms


def _moment_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what is made at the first step and stays: moments, fp8 copies, gathered parameters."""
    layout, workload = placed.layout, placed.workload
    states = shard_ranks(layout, zero_stage=1)
    trainable = placed.elements(pipeline_rank, trainable=True)
    terms = [
        _Term(
            name="optimizer moments",
            num_bytes=split_bytes(trainable, state_bytes(workload).moments, states),
            source=f"{num_moments(workload)} in {workload.moment_dtype}{_split_note(trainable, states)}",
        )
    ]
    if workload.precision.is_fp8:
        operands = sum(layer.gemm_operands * count for layer, count in placed.layer_counts(pipeline_rank))
        if pipeline_rank == layout.pp - 1:
            operands += placed.rank_model.head.gemm_operands  # of multi-token prediction
        copies = math.ceil(operands * fp8_copy_bytes(workload.precision))
        terms.append(_Term(name="fp8 weight copies", num_bytes=copies, source=FP8_COPY_SOURCE))
    if layout.zero_stage == 3:
        terms.append(
            _Term(
                name="gathered parameters",
                num_bytes=_gathered_elements(placed, pipeline_rank) * state_bytes(workload).weight,
                source="embedding and head whole, and the layers that are gathered ahead",
            )
        )
    return terms


def _gathered_elements(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the weights that are whole at once with sharded weights, at least two layers.

    Embedding and head are no units of Megatron-FSDP and stay whole for the step.
    """
    counted = placed.layer_counts(pipeline_rank)
    layers = sum(layer.elements().total * count for layer, count in counted)
    largest = max((layer.elements().total for layer, _ in counted), default=0)
    ends = placed.elements(pipeline_rank).total - layers
    return ends + min(layers, max(placed.capabilities.prefetched_weights, 2 * largest))


def _queued_gradient_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what sharded gradients take before they are reduced."""
    if placed.layout.zero_stage < 2:
        return []
    workload = placed.workload
    largest = max((layer.trainable.total for layer, _ in placed.layer_counts(pipeline_rank)), default=0)
    trainable = placed.elements(pipeline_rank, trainable=True).total
    queued = min(trainable, max(placed.capabilities.queued_gradients, 2 * largest))
    per_element = state_bytes(workload)
    return [
        _Term(
            name="gradients to reduce",
            num_bytes=queued * per_element.gradient + largest * per_element.weight,
            source="whole buckets that wait to be reduced, and one layer's gradients before they are added",
        )
    ]


def _update_terms(placed: PlacedModel, pipeline_rank: int) -> list[_Term]:
    """Return what only the optimizer step needs: 16-bit gradients are copied to fp32 for fp32 master weights."""
    workload = placed.workload
    if workload.gradient_dtype is DType.FP32 or uses_precision_aware_optimizer(workload):
        return []
    states = shard_ranks(placed.layout, zero_stage=1)
    trainable = placed.elements(pipeline_rank, trainable=True)
    return [
        _Term(
            name="fp32 gradients",
            num_bytes=split_bytes(trainable, DType.FP32.num_bytes, states),
            source=f"copy of the {workload.gradient_dtype} gradients for the update{_split_note(trainable, states)}",
        )
    ]


def _dynamic_terms(placed: PlacedModel, pipeline_rank: int, activation_bytes: int) -> list[_Term]:
    """Return what lives between a forward pass and its backward pass at the worst moment."""
    layout = placed.layout
    terms = [
        _Term(
            name="activations",
            num_bytes=activation_bytes,
            source="saved tensors of the micro-batches in flight"
            + ("" if layout.pp == 1 else f", {layout.schedule} schedule"),
        )
    ]
    working = _working_set_bytes(placed, pipeline_rank)
    has_head = any(stage.has_head for stage in layout.chunks(pipeline_rank))
    head = head_peak_bytes(placed.rank_model) if has_head else 0
    if head > working:
        terms.append(
            _Term(
                name="logits and loss",
                num_bytes=head,
                source="logits and what the loss makes of them; outweigh any layer's temporaries",
            )
        )
    else:
        terms.append(
            _Term(
                name="backward temporaries",
                num_bytes=working,
                source="recomputed tensors and gradients of the largest layer",
            )
        )
    terms += _queued_gradient_terms(placed, pipeline_rank)
    if layout.pp > 1:
        buffers = 2 * placed.rank_model.stream_bytes * (2 if layout.overlap.p2p else 1)
        terms.append(
            _Term(name="pipeline buffers", num_bytes=buffers, source="received activations and their gradients")
        )
    lost = round(sum(term.num_bytes for term in terms) * FRAGMENTATION_FRACTION)
    terms.append(_Term(name="fragmentation", num_bytes=lost, source=FRAGMENTATION_SOURCE))
    return terms


def peak_memory_bytes(lines: tuple[MemoryLine, ...]) -> int:
    """Return the largest phase of the heaviest rank."""
    totals: dict[tuple[int, Phase], int] = {}
    for line in lines:
        key = (line.rank, line.phase)
        totals[key] = totals.get(key, 0) + line.num_bytes
    return max(totals.values())


def memory_limit_bytes(device_bytes: int, headroom: float) -> int:
    """Return what a plan may use of a GPU's memory."""
    return int(device_bytes * (1.0 - headroom))
