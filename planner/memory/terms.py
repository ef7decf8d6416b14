"""The lines of a rank's memory in each phase: what each is, its bytes, and where the figure comes from."""

import math
from dataclasses import dataclass, replace

from planner.frameworks.habits import PLANNED, Fsdp, Habits, LossHabit
from planner.frameworks.overheads import Overheads
from planner.layout import DRIVE_WEIGHTS, HOST_WEIGHTS, ON_HOSTS, Layout
from planner.memory.saved import head_peak_bytes, working_set_bytes
from planner.memory.state_bytes import (
    FP8_COPY_SOURCE,
    communicator_bytes,
    fp8_copy_bytes,
    gradients_on_host,
    half_gradient_bytes,
    kept_bytes,
    split_bytes,
    state_bytes,
    uses_precision_aware_optimizer,
)
from planner.models.graph import Mesh
from planner.offloading.drive_step import unwritten_elements
from planner.offloading.drive_weights import least_fused_part
from planner.offloading.modules import NEAR_LAYERS
from planner.offloading.states import PREFETCH_BUCKET_ELEMENTS, is_parted, sub_group_elements
from planner.offloading.sub_groups import largest_kept, tensor_elements
from planner.plans.plan import Phase
from planner.ranks.communication import num_moments, shard_ranks
from planner.ranks.placement import PlacedModel
from planner.ranks.shard import Elements
from planner.requests.workload import DType
from planner.units import MIB

WEIGHTS_AWAY = {HOST_WEIGHTS: "on the host", DRIVE_WEIGHTS: "on drives"}
"""Where weights are that are not on the GPU, in words."""

WORKSPACE_BYTES = 3 * 32 * MIB
WORKSPACE_SOURCE = (
    "cuBLAS workspaces of 32 MiB: of the forward thread, of the backward thread, Transformer Engine's own"
)
FIXED_SEGMENTS_FRACTION = 0.21
FIXED_SEGMENTS_SOURCE = (
    "21 % of activations and temporaries lost to an allocator without expandable segments, as of nine published"
    " Megatron-LM runs together"
)
FOREACH_SOURCE = "square roots of the second moments, of all parameters at once (torch.optim's foreach update)"
FRAGMENTATION = "fragmentation"
ADAM_MOMENTS = 2
ZERO_WEIGHTS = 3  # the zero_stage that splits weights
VISION_SOURCE = "16-bit parameters of the vision tower, taken as frozen, beside the embedding; its work is not priced"
ASSUMED_SOURCES = frozenset({FIXED_SEGMENTS_SOURCE, VISION_SOURCE})
"""Sources of figures that nobody measured for this hardware, beside those of `planner.frameworks.overheads`."""

PERMANENT_DIFFERENCE = "difference of a real run"
"""Term of what a calibration's run held beside the permanent terms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One line of the memory of a rank in one phase."""

    name: str
    num_bytes: int
    source: str


def rank_phases(
    placed: PlacedModel, pipeline_rank: int, dynamic: list[Term], habits: Habits = PLANNED
) -> tuple[tuple[Phase, list[Term]], ...]:
    """Return what one pipeline rank holds in each phase; `dynamic_terms` are what comes and goes with the passes."""
    always = _permanent_terms(placed, pipeline_rank, habits)
    moments = _moment_terms(placed, pipeline_rank, habits)
    return (
        (Phase.INITIALISATION, [*always, *_construction_terms(placed, pipeline_rank)]),
        (Phase.FORWARD_BACKWARD, [*always, *moments, *dynamic]),
        (Phase.OPTIMIZER_STEP, [*always, *moments, *_update_terms(placed, pipeline_rank, habits)]),
    )


def _split_note(elements: Elements, ranks: tuple[int, int]) -> str:
    """Return over how many ranks something is split, in words."""
    dense, expert = ranks
    note = f", split over {dense} ranks" if dense > 1 else ""
    if elements.expert and expert != dense:
        note += f", experts over {expert}" if expert > 1 else ", experts whole"
    return note


def _kept_note(layout: Layout) -> str:
    """Return which part of the optimizer's states is left on the GPU, in words."""
    return "" if layout.offload is None else f"; {1.0 - layout.offloaded_fraction:.4g} of them, the rest on the host"


def _construction_terms(placed: PlacedModel, pipeline_rank: int) -> list[Term]:
    """Return what is there only while the optimizer is made: of a split one, fp32 copies of all weights that stay.

    `DistributedOptimizer` is handed a `HybridDeviceOptimizer` of the whole weights, and makes one of its own share
    before that one goes. With sharded weights each sub-group is cast to fp32 on the GPU on its way to the host, or on
    the host where the weights are there (`stage3.py: _create_fp32_partitions`).
    """
    layout = placed.layout
    if layout.offload is None or layout.parameters_offloaded:
        return []
    trainable = placed.elements(pipeline_rank, trainable=True)
    if gradients_on_host(layout):
        dense, expert = shard_ranks(layout, zero_stage=1)
        shares = (-(-trainable.dense // dense), -(-trainable.expert // expert))
        tensor = -(-placed.largest_tensor(pipeline_rank) // min(dense, expert))
        return [
            Term(
                name="master weights on their way",
                num_bytes=DType.FP32.num_bytes * min(sum(shares), sub_group_elements(layout) + tensor),
                source="fp32 copies of a sub-group's share, and of a tensor's that overshoots it",
            )
        ]
    return [
        Term(
            name="unsplit master weights",
            num_bytes=kept_bytes(trainable.total * DType.FP32.num_bytes, layout),
            source=f"fp32 copies of a first optimizer over whole weights{_kept_note(layout)}",
        )
    ]


def _is_fsdp(layout: Layout, habits: Habits) -> bool:
    return habits.fsdp is not Fsdp.NONE and layout.zero_stage == 3


def _repeated_communicator_bytes(layout: Layout, overheads: Overheads) -> int:
    """Return the memory of communicators over all ranks beside the first, which PyTorch's FSDP does not open.

    A mesh of one dimension is the default group; gradient norms are summed there too.
    """
    size = layout.world_size
    repeated = (layout.dp * layout.cp == size) + 1
    return repeated * overheads.communicator_bytes(size)


def _permanent_terms(placed: PlacedModel, pipeline_rank: int, habits: Habits) -> list[Term]:
    """Return what a rank holds from initialisation on."""
    layout, workload, overheads = placed.layout, placed.workload, placed.capabilities.overheads
    per_element = state_bytes(workload)
    if _is_fsdp(layout, habits):
        per_element = replace(per_element, weight=0, gradient=per_element.master)
    everything = placed.elements(pipeline_rank)
    trainable = placed.elements(pipeline_rank, trainable=True)
    states, gradients, weights = (shard_ranks(layout, zero_stage=stage) for stage in (1, 2, 3))
    terms = [
        Term(
            name="weights",
            num_bytes=0 if layout.parameters_offloaded else split_bytes(everything, per_element.weight, weights),
            source=WEIGHTS_AWAY[layout.parameter_offload]
            if layout.parameters_offloaded
            else f"{workload.precision.parameter_dtype} parameters of this rank{_split_note(everything, weights)}",
        ),
        Term(
            name="gradients",
            num_bytes=0 if gradients_on_host(layout) else split_bytes(trainable, per_element.gradient, gradients),
            source="on the host"
            if gradients_on_host(layout)
            else f"{workload.gradient_dtype} gradients{_split_note(trainable, gradients)}",
        ),
        Term(
            name="master weights",
            num_bytes=kept_bytes(split_bytes(trainable, per_element.master, states), layout),
            source=f"{per_element.master} bytes an element{_split_note(trainable, states)}{_kept_note(layout)}",
        ),
        Term(name="context and libraries", num_bytes=overheads.context_bytes, source=overheads.context_source),
        Term(name="workspaces", num_bytes=WORKSPACE_BYTES, source=WORKSPACE_SOURCE),
    ]
    if is_parted(layout):
        terms.append(
            Term(
                name="fp32 gradients",
                num_bytes=kept_bytes(split_bytes(trainable, DType.FP32.num_bytes, states), layout),
                source=f"kept with the states of sub-groups on the GPU{_split_note(trainable, states)}"
                f"{_kept_note(layout)}",
            )
        )
    half = half_gradient_bytes(layout, workload, placed.capabilities)
    if half:
        source = "gradients of a whole backward pass, before they are added to the accumulated ones"
        terms.append(Term(name="16-bit gradients", num_bytes=trainable.total * half, source=source))
    if layout.secondary_shard > 1:
        ranks = (layout.secondary_shard, min(layout.secondary_shard, weights[1]))
        secondary = split_bytes(everything, per_element.weight, ranks)
        source = f"second copy of the weights{_split_note(everything, ranks)}"
        terms.append(Term(name="secondary weights", num_bytes=secondary, source=source))
    if placed.model.vision is not None and pipeline_rank == 0:
        tower = placed.model.vision.num_parameters * per_element.weight
        terms.append(Term(name="vision tower", num_bytes=tower, source=VISION_SOURCE))
    communicators = communicator_bytes(layout, placed.model, overheads)
    if _is_fsdp(layout, habits):
        communicators -= _repeated_communicator_bytes(layout, overheads)
    if communicators:
        terms.append(Term(name="communicators", num_bytes=communicators, source=overheads.communicator_source))
    if overheads.fixed_bytes:
        source = overheads.fixed_source
        terms.append(Term(name=PERMANENT_DIFFERENCE, num_bytes=overheads.fixed_bytes, source=source))
    return terms


def _moment_terms(placed: PlacedModel, pipeline_rank: int, habits: Habits) -> list[Term]:
    """Return what is made at the first step and stays: moments, fp8 copies, gathered parameters."""
    layout, workload = placed.layout, placed.workload
    states = shard_ranks(layout, zero_stage=1)
    trainable = placed.elements(pipeline_rank, trainable=True)
    terms = [
        Term(
            name="optimizer moments",
            num_bytes=kept_bytes(split_bytes(trainable, state_bytes(workload).moments, states), layout),
            source=f"{num_moments(workload)} in {workload.moment_dtype}{_split_note(trainable, states)}"
            f"{_kept_note(layout)}",
        )
    ]
    if workload.precision.is_fp8 and not _is_fsdp(layout, habits):
        counted = placed.layer_counts(pipeline_rank)
        operands = sum(layer.gemm_operands * count for layer, count in counted)
        if layout.zero_stage == ZERO_WEIGHTS:  # a layer that is given back takes its copies with it
            operands = min(operands, 2 * max((layer.gemm_operands for layer, _ in counted), default=0))
        if pipeline_rank == layout.pp - 1:
            operands += placed.rank_model.head.gemm_operands  # of multi-token prediction
        copies = math.ceil(operands * fp8_copy_bytes(workload.precision))
        terms.append(Term(name="fp8 weight copies", num_bytes=copies, source=FP8_COPY_SOURCE))
    if layout.zero_stage == 3:
        terms.append(
            Term(
                name="gathered parameters",
                num_bytes=_gathered_elements(placed, pipeline_rank, habits) * state_bytes(workload).weight,
                source="embedding and head whole, and the layers that are gathered ahead",
            )
        )
    if layout.parameters_offloaded:
        terms.append(
            Term(
                name="fetched weights",
                num_bytes=_fetched_bytes(placed, pipeline_rank),
                source="this rank's share of a bucket that is gathered, fetched from the host"
                + (", whose buffers it was read into" if layout.parameter_offload == DRIVE_WEIGHTS else ""),
            )
        )
    return terms


def _fetched_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return what a rank fetches from the host at once: its share of a bucket, which a tensor's may overshoot."""
    weight = state_bytes(placed.workload).weight
    ranks = shard_ranks(placed.layout, zero_stage=3)
    bucket = PREFETCH_BUCKET_ELEMENTS + placed.largest_tensor(pipeline_rank)
    return min(split_bytes(placed.elements(pipeline_rank), weight, ranks), -(-bucket * weight // min(ranks)))


def _gathered_elements(placed: PlacedModel, pipeline_rank: int, habits: Habits) -> int:
    """Return the weights that are whole at once with sharded weights, at least two layers.

    Embedding and head are no units of Megatron-FSDP and stay whole for the step; PyTorch's root unit holds them alike.
    PyTorch gathers one layer ahead.
    """
    counted = placed.layer_counts(pipeline_rank)
    layers = sum(layer.elements().total * count for layer, count in counted)
    largest = max((layer.elements().total for layer, _ in counted), default=0)
    ends = placed.elements(pipeline_rank).total - layers
    ahead = placed.capabilities.prefetched_weights
    if not _is_fsdp(placed.layout, habits):
        return ends + min(layers, max(ahead, 2 * largest))
    two = min(layers, 2 * largest)
    apart = max(ends, two) if habits.fsdp is Fsdp.PER_PARAMETER else 0
    return ends + two + apart


def _queued_gradient_terms(placed: PlacedModel, pipeline_rank: int) -> list[Term]:
    """Return what sharded gradients take before they are reduced."""
    if placed.layout.zero_stage < 2:
        return []
    workload = placed.workload
    largest = max((layer.trainable.total for layer, _ in placed.layer_counts(pipeline_rank)), default=0)
    trainable = placed.elements(pipeline_rank, trainable=True).total
    queued = min(trainable, max(placed.capabilities.queued_gradients, 2 * largest))
    per_element = state_bytes(workload)
    terms = [
        Term(
            name="gradients to reduce",
            num_bytes=queued * per_element.gradient + largest * per_element.weight,
            source="whole buckets that wait to be reduced, and one layer's gradients before they are added",
        )
    ]
    if gradients_on_host(placed.layout):
        dense, expert = shard_ranks(placed.layout, zero_stage=2)
        share = -(-placed.largest_tensor(pipeline_rank) // min(dense, expert))
        terms.append(
            Term(
                name="gradients on their way",
                num_bytes=2 * share * (per_element.gradient + DType.FP32.num_bytes),
                source="a tensor's share fetched from the host and cast to fp32, and the next one's",
            )
        )
    return terms + _written_gradient_terms(placed, pipeline_rank, queued=queued)


def _written_gradient_terms(placed: PlacedModel, pipeline_rank: int, *, queued: int) -> list[Term]:
    """Return what a GPU holds of gradients that go to drives: a bucket's in fp32, and those that never get there.

    `partition_grads` casts what is reduced at once before it hands it on. Tensors below a block stay where they are
    until they are updated, and so do those whose end does not fill what is written at once, as a view of that end is
    kept (`optimizer_utils.py: _swap_out_gradients`).
    """
    if placed.layout.drive_offload == ON_HOSTS:
        return []
    dense, expert = shard_ranks(placed.layout, zero_stage=2)
    tensors = placed.trainable_tensors(pipeline_rank)
    bucket = queued // 2 + max((part.num_elements for part, _ in tensors), default=0)
    least_part = least_fused_part(placed.model)
    kept = 0
    for part, count in tensors:
        share = -(-part.num_elements // (expert if part.weight.mesh is Mesh.EXPERT else dense))
        kept += count * unwritten_elements(share, least_part=least_part)
    fp32 = DType.FP32.num_bytes
    return [
        Term(
            name="gradients to write",
            num_bytes=-(-min(placed.elements(pipeline_rank, trainable=True).total, bucket) // min(dense, expert))
            * fp32,
            source="this rank's share of a bucket in fp32, on its way to the drives",
        ),
        Term(
            name="gradients that are not written",
            num_bytes=kept * fp32,
            source="fp32, of tensors below 1 MiB or with an end that fills no KiB, until they are updated",
        ),
    ]


def _update_terms(placed: PlacedModel, pipeline_rank: int, habits: Habits) -> list[Term]:
    """Return what only the optimizer step needs: gradients copied to fp32, temporaries of an update in one call."""
    workload = placed.workload
    states = shard_ranks(placed.layout, zero_stage=1)
    trainable = placed.elements(pipeline_rank, trainable=True)
    terms: list[Term] = []
    copied = workload.gradient_dtype is not DType.FP32 and not uses_precision_aware_optimizer(workload)
    if copied and not _is_fsdp(placed.layout, habits) and not is_parted(placed.layout):
        terms.append(
            Term(
                name="fp32 gradients",
                num_bytes=kept_bytes(split_bytes(trainable, DType.FP32.num_bytes, states), placed.layout),
                source=f"copy of {workload.gradient_dtype} gradients for the update{_split_note(trainable, states)}"
                f"{_kept_note(placed.layout)}",
            )
        )
    if placed.layout.drive_offload != ON_HOSTS:
        terms += _written_gradient_terms(placed, pipeline_rank, queued=0)[1:]
    if is_parted(placed.layout):
        group = largest_kept(tensor_elements(placed.model), ranks=states[0] * placed.layout.tp)
        kept = kept_bytes(split_bytes(trainable, DType.FP32.num_bytes, states), placed.layout)
        terms.append(
            Term(
                name="update temporaries",
                num_bytes=min(kept, group * DType.FP32.num_bytes),
                source="square roots of the second moments of a sub-group that is updated on the GPU",
            )
        )
    if habits.foreach_update and num_moments(workload) == ADAM_MOMENTS:
        terms.append(
            Term(
                name="update temporaries",
                num_bytes=split_bytes(trainable, workload.moment_dtype.num_bytes, states),
                source=f"{FOREACH_SOURCE}{_split_note(trainable, states)}",
            )
        )
    return terms


def dynamic_terms(placed: PlacedModel, pipeline_rank: int, activation_bytes: int, habits: Habits) -> list[Term]:
    """Return what lives between a forward pass and its backward pass at the worst moment."""
    layout = placed.layout
    terms = [
        Term(
            name="activations",
            num_bytes=activation_bytes,
            source="saved tensors of the micro-batches in flight"
            + ("" if layout.pp == 1 else f", {layout.schedule} schedule")
            + (f", of all layers in a row but {layout.offloaded_layers}" if layout.offloaded_layers else "")
            + (
                f", of {', '.join(layout.offloaded_modules)} those of {NEAR_LAYERS} layers at most"
                if layout.offloaded_modules
                else ""
            ),
        )
    ]
    fsdp = _is_fsdp(layout, habits)
    working = working_set_bytes(placed, pipeline_rank)
    if fsdp:
        working += _reduced_layer_bytes(placed, pipeline_rank)
    has_head = any(stage.has_head for stage in layout.chunks(pipeline_rank))
    head = loss_bytes(placed, habits) if has_head else 0
    if head > working or (head and habits.fixed_segments):
        terms.append(
            Term(
                name="logits and loss",
                num_bytes=head,
                source=habits.loss.source
                if habits.loss is not None
                else "logits and what the loss makes of them; outweigh any layer's temporaries",
            )
        )
    if working >= head or habits.fixed_segments:
        terms.append(
            Term(
                name="backward temporaries",
                num_bytes=working,
                source="recomputed tensors and gradients of the largest layer",
            )
        )
    if not fsdp:
        terms += _queued_gradient_terms(placed, pipeline_rank)
    if layout.pp > 1:
        buffers = 2 * placed.rank_model.stream_bytes * (2 if layout.overlap.p2p else 1)
        terms.append(
            Term(name="pipeline buffers", num_bytes=buffers, source="received activations and their gradients")
        )
        in_flight = min(layout.num_microbatches, layout.pp - pipeline_rank)
        if habits.keeps_stage_outputs and not has_head:
            outputs = in_flight * placed.rank_model.stream_bytes
            terms.append(Term(name="stage outputs", num_bytes=outputs, source="kept until their gradients have come"))
    fraction, source = placed.capabilities.overheads.lost_fraction, placed.capabilities.overheads.lost_source
    if habits.fixed_segments:
        fraction, source = FIXED_SEGMENTS_FRACTION, FIXED_SEGMENTS_SOURCE
    lost = round(sum(term.num_bytes for term in terms) * fraction)
    terms.append(Term(name=FRAGMENTATION, num_bytes=lost, source=source))
    return terms


def _logits_bytes(placed: PlacedModel, loss: LossHabit, logit_bytes: int) -> int:
    """Return what so many bytes for each logit of one micro-batch take on a rank."""
    layout = placed.layout
    tokens = -(-placed.workload.seq_len // layout.cp) * layout.micro_batch_size
    vocab_size = placed.model.vocab_size
    return tokens * (vocab_size if loss.whole else -(-vocab_size // layout.tp)) * logit_bytes


def loss_bytes(placed: PlacedModel, habits: Habits) -> int:
    """Return what the head takes at the loss's peak."""
    if habits.loss is None:
        return head_peak_bytes(placed.rank_model)
    head = placed.rank_model.head
    beside = sum(part.num_bytes for part in head.saved if not part.saved.vocab_features)
    return beside + _logits_bytes(placed, habits.loss, habits.loss.logit_bytes)


def _reduced_layer_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return what PyTorch's FSDP takes to reduce a layer: gradients as computed, and the buffer that is reduced."""
    largest = max((layer.trainable.total for layer, _ in placed.layer_counts(pipeline_rank)), default=0)
    per_element = state_bytes(placed.workload)
    return largest * (per_element.weight + per_element.master)
