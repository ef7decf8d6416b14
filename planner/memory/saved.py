"""What a rank keeps of its micro-batches for backward, and the most that its layers work on at once."""

import numpy as np

from planner.layout import Stage
from planner.models.graph import LossReduction, Saved, Work
from planner.offloading.activations import held_bytes
from planner.offloading.modules import NEAR_LAYERS, has_lone_groups, held_input_bytes, leaving_bytes
from planner.ranks.placement import PlacedModel, RankModel
from planner.schedules.orders import operation_order, peak_activation_bytes, repeating_microbatches

SOFTMAX_NAME = "softmax of logits"
PLAIN_SOFTMAX_NAME = "log-softmax of logits"  # of plain modules, which count what is beside it themselves


def chunk_activation_bytes(placed: PlacedModel, stage: Stage) -> int:
    """Return what one virtual stage keeps of one micro-batch, the head's tensors (never two at once) left out."""
    recompute, rank_model = placed.layout.recompute, placed.rank_model
    total = rank_model.embedding.all_saved_bytes if stage.has_embedding else 0
    if placed.layout.offloaded_layers:
        return total + held_bytes(rank_model.stage_layers(stage), placed.layout.offloaded_layers)
    total -= chunk_leaving_bytes(placed, stage)
    if recompute.is_per_layer:
        for index, layer in enumerate(rank_model.stage_layers(stage), start=stage.first_layer):
            total += layer.saved_bytes(recompute.of_layer(index))
        return total
    if recompute.num_layers is None:
        return total + sum(layer.saved_bytes(recompute) * count for layer, count in rank_model.stage_counts(stage))
    recomputed, others = rank_model.counts_from(stage, recompute.num_layers)
    total += sum(layer.layer_input_bytes * count for layer, count in recomputed)
    return total + sum(layer.all_saved_bytes * count for layer, count in others)


def chunk_leaving_bytes(placed: PlacedModel, stage: Stage) -> int:
    """Return what of the saved tensors of one virtual stage waits on the host, those of one micro-batch."""
    modules, recompute = placed.layout.offloaded_modules, placed.layout.recompute
    if not modules or not stage.num_layers:
        return 0
    counts = placed.rank_model.stage_counts(stage)
    leaving = sum(leaving_bytes(layer, recompute, modules) * count for layer, count in counts)
    return leaving - held_input_bytes(placed.rank_model.stage_layers(stage)[0], stage, modules)


def working_set_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the most that one layer's backward needs beside what is kept: recomputed tensors and gradients.

    Where only the first layers of a stage are recomputed, the others have freed all that they kept by then. Where each
    layer has a choice of its own, what the layers behind it have freed is what they kept.
    """
    recompute = placed.layout.recompute
    largest = 0
    for stage in placed.layout.chunks(pipeline_rank):
        if recompute.is_per_layer:
            freed = 0
            numbered = enumerate(placed.rank_model.stage_layers(stage), start=stage.first_layer)
            for index, layer in reversed(tuple(numbered)):
                kept = layer.saved_bytes(recompute.of_layer(index))
                again = max(layer.all_saved_bytes - kept - freed, 0)
                largest = max(largest, again + layer.transient_bytes)
                freed += kept
            continue
        if recompute.num_layers is not None:
            recomputed, others = placed.rank_model.counts_from(stage, recompute.num_layers)
            freed = sum(layer.all_saved_bytes * count for layer, count in others)
            largest = max(largest, max((layer.transient_bytes for layer, _ in others), default=0))
            for layer, _ in recomputed:
                again = layer.all_saved_bytes - layer.saved_bytes(recompute)
                largest = max(largest, max(again - freed, 0) + layer.transient_bytes)
            continue
        for layer, _ in placed.rank_model.stage_counts(stage):
            again = layer.all_saved_bytes - layer.saved_bytes(recompute)
            largest = max(largest, again + layer.transient_bytes)
    return largest


def head_peak_bytes(rank_model: RankModel) -> int:
    """Return the loss's peak: fp32 softmax kept, what its backward pass holds beside it, the norm's tensors.

    Beside it are logits or their gradient in 16 bit. Megatron-LM's fused loss, which is compiled, also subtracts the
    target from an fp32 copy of the softmax (`fused_cross_entropy.py: calculate_gradients`): 10 bytes a logit, as its
    functional tests show. Multi-token prediction keeps a softmax of its own for each module, and its blocks have a
    backward pass as well.
    """
    head = rank_model.head
    softmaxes, kept = head.saved_as(SOFTMAX_NAME), head.all_saved_bytes
    beside = softmaxes[0].num_bytes // 2
    if any(_is_compiled_loss(part.operator.work) for part in head.operators) and not _is_plain(softmaxes[0].saved):
        beside += softmaxes[0].num_bytes
    if len(softmaxes) > 1:
        beside = max(beside, rank_model.head.transient_bytes)
    return kept + beside


def _is_compiled_loss(work: Work) -> bool:
    return isinstance(work, LossReduction) and work.num_reductions < LossReduction().num_reductions


def _is_plain(saved: Saved) -> bool:
    return saved.name.endswith(PLAIN_SOFTMAX_NAME)


def activation_peaks(placed: PlacedModel, *, rank: int | None = None) -> tuple[int, ...]:
    """Return what the saved tensors of each pipeline rank, or of the only one that is asked for, take at most.

    What a rank holds comes again with every period of the steady phase: one of them is looked at.
    """
    layout = placed.layout
    schedule, pp, vpp = layout.schedule, layout.pp, layout.vpp
    few = min(layout.num_microbatches, repeating_microbatches(schedule, pp=pp, vpp=vpp))
    order = operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=few)
    bytes_RC = np.zeros((pp, vpp), dtype=np.int64)
    for asked in range(pp) if rank is None else (rank,):
        bytes_RC[asked] = [chunk_activation_bytes(placed, stage) for stage in layout.chunks(asked)]
    if not layout.offloaded_modules:
        return peak_activation_bytes(order, bytes_RC, rank=rank)
    ranks = range(layout.pp) if rank is None else (rank,)
    leaving_RC = np.zeros_like(bytes_RC)
    for asked in ranks:
        chunks = layout.chunks(asked)
        leaving_RC[asked] = [chunk_leaving_bytes(placed, stage) for stage in chunks]
        if any(has_lone_groups(placed.rank_model.stage_layers(stage), layout) for stage in chunks):
            bytes_RC[asked] += leaving_RC[asked]
            leaving_RC[asked] = 0
    stays = peak_activation_bytes(order, bytes_RC, rank=rank)
    moves = peak_activation_bytes(order, leaving_RC, rank=rank)
    near = [near_bytes(placed, asked) for asked in ranks]
    return tuple(here + min(most, beside) for here, most, beside in zip(stays, moves, near, strict=True))


def near_bytes(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return what is on a GPU at once, at most, of the modules of its layers that wait on the host otherwise."""
    layout, rank_model = placed.layout, placed.rank_model
    chunks = layout.chunks(pipeline_rank)
    held = (layer for stage in chunks for layer, _ in rank_model.stage_counts(stage))
    of_layers = (leaving_bytes(layer, layout.recompute, layout.offloaded_modules) for layer in held)
    return NEAR_LAYERS * max(of_layers, default=0)
