"""The ledger of a node's memory: what offloaded optimizer states take there, and what is left for everything else.

All ranks of a pipeline rank keep the same, so the node that keeps most is found among those with different pipeline
ranks. Megatron-LM moves whole tensors until the fraction is reached, so a rank may keep one tensor more on its host;
none keeps more on its GPU. DeepSpeed moves all states or whole sub-groups of them, which may come to more than the
fraction says (`planner.offloading.sub_groups`), and with them the share of all gradients that is added to
(`stage3.py: grad_partitions_flat_buffer`). A sub-group that stays on the GPU has its gradients there too, through a
page-locked buffer that the allocator keeps for the next of its size (`initialize_optimizer_states`): what is left of
such buffers at last is less than four times the largest. With the weights there too they lie in one page-locked buffer;
as the model is built each tensor's share has one of its own (`partition_parameters.py: _partition_param`), whose memory
PyTorch's `CachingHostAllocator` keeps when it is free. What else lies there: `planner.offloading.states`.

States on drives (`planner.offloading.drive_step`) leave their buffers there, the accumulated gradients, and the moments
that the first step makes: of a sub-group, or of all where drives are pipelined. Weights on drives
(`planner.offloading.drive_weights`) leave theirs, and the shares that are too small for drives. All ranks of a node
share its drives.

What layers or modules save has a page-locked buffer for each tensor, which the same allocator keeps from step to step.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from planner.arrays import BoolArray, FloatArray, IntArray
from planner.layout import DRIVE_WEIGHTS, HOST_WEIGHTS, ON_HOSTS, PIPELINED, Layout, Stage
from planner.memory.state_bytes import gradients_on_host, split_bytes
from planner.offloading.activations import copied_tensors
from planner.offloading.drive_step import (
    BLOCK_BYTES,
    BUFFERS_OF_SUB_GROUP,
    buffer_bytes,
    buffer_count,
    file_bytes,
    largest_sub_group,
)
from planner.offloading.drive_weights import drive_weights
from planner.offloading.modules import groups
from planner.offloading.states import FP32_BYTES, is_parted, offloaded_elements, updated_elements
from planner.offloading.sub_groups import largest_kept, most_beyond, tensor_elements
from planner.plans.plan import HostLine, HostMemory
from planner.ranks.communication import num_moments, shard_ranks
from planner.ranks.placement import PlacedModel
from planner.requests.workload import TrainWorkload
from planner.schedules.orders import operation_order, peak_activation_bytes
from planner.units import GIB
from profiles.hardware import Cluster

PROCESS_BYTES = 8 * GIB
PROCESS_SOURCE = (
    "assumption: 8 GiB of host memory for each GPU's process: interpreter, CUDA, data loading; no published figure"
)
SYSTEM_FRACTION = 0.1
SYSTEM_SOURCE = "assumption: a tenth of a node's memory for the system, file caches and checkpoints being written"
PINNED_ROUNDING = 2
"""At most what rounding a page-locked buffer up to a power of two makes of it."""

ASSUMED_HOST_SOURCES = frozenset({PROCESS_SOURCE, SYSTEM_SOURCE})
"""Sources of figures that nobody measured for this hardware."""

PARAMETERS = "offloaded master weights"
MOMENTS = "offloaded moments"
GRADIENTS = "page-locked gradients"
ACCUMULATED = "accumulated gradients"
BUFFERS = "buffers of drives"
FIRST_MOMENTS = "moments that the first step makes"
BELOW_A_BLOCK = "states below a block"
ON_DRIVES = "states and gradients on drives"
WEIGHTS_ON_DRIVES = "weights on drives"
WEIGHT_BUFFERS = "buffers of weights on drives"
SMALL_WEIGHTS = "weights below a block"
CONSTRUCTION = "unsplit master weights"
WEIGHTS = "page-locked weights"
BUILT = "weights as they were built"
ACTIVATIONS = "page-locked activations"
PROCESSES = "processes"
SYSTEM = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankBytes:
    """What one rank keeps on its host: in every step, and while its optimizer is made."""

    parameters: int
    moments: int
    gradients: int
    accumulated: int
    construction: int
    weights: int = 0
    built: int = 0
    buffers: int = 0
    below_a_block: int = 0
    weight_buffers: int = 0
    small_weights: int = 0


def host_memory(placed: PlacedModel, cluster: Cluster) -> HostMemory | None:
    """Return the ledger of the node that keeps most; None where nothing is offloaded."""
    layout = placed.layout
    if not layout.uses_hosts:
        return None
    if layout.offloaded_layers:
        lines = (_activation_line(placed, cluster), *reserve(cluster))
        return HostMemory(lines=lines, limit_bytes=cluster.host_memory_bytes)
    if layout.offload is None:
        lines = (_module_line(placed, cluster), *reserve(cluster))
        return HostMemory(lines=lines, limit_bytes=cluster.host_memory_bytes)
    of_rank = [_rank_bytes(placed, pipeline_rank) for pipeline_rank in range(layout.pp)]
    nodes = {ranks_of_node(layout, cluster.gpus_per_node, node) for node in range(cluster.num_nodes)}
    ledgers = [_node_lines([of_rank[rank] for rank in ranks], placed) for ranks in sorted(nodes)]
    heaviest = max(ledgers, key=lambda lines: sum(line.num_bytes for line in lines))
    return HostMemory(lines=(*heaviest, *reserve(cluster)), limit_bytes=cluster.host_memory_bytes)


def drive_memory(placed: PlacedModel, cluster: Cluster) -> HostMemory | None:
    """Return the ledger of the drives of the node whose ranks put most there; None where none do."""
    layout, ranks = placed.layout, range(placed.layout.pp)
    if not layout.uses_drives:
        return None
    states_R = weights_R = [0] * layout.pp
    if layout.drive_offload != ON_HOSTS:
        states_R = [file_bytes(_updated(placed, rank)) for rank in ranks]
    if layout.parameter_offload == DRIVE_WEIGHTS:
        weights_R = [drive_weights(placed, rank).file_bytes for rank in ranks]
    nodes = {ranks_of_node(layout, cluster.gpus_per_node, node) for node in range(cluster.num_nodes)}
    fullest = max(sorted(nodes), key=lambda held: sum(states_R[rank] + weights_R[rank] for rank in held))
    of_node = f"of {cluster.gpus_per_node} ranks"
    states = HostLine(
        term=ON_DRIVES,
        num_bytes=sum(states_R[rank] for rank in fullest),
        source=f"fp32: master weights, {num_moments(placed.workload)} moments, and the last step's gradients,"
        f" {of_node}",
    )
    weights = HostLine(
        term=WEIGHTS_ON_DRIVES,
        num_bytes=sum(weights_R[rank] for rank in fullest),
        source=f"{placed.workload.precision.parameter_dtype}, a file for each tensor, {of_node}",
    )
    lines = tuple(line for line in (states, weights) if line.num_bytes)
    return HostMemory(lines=lines, limit_bytes=cluster.nvme_bytes or 0)


def host_bytes_of_element(drive_offload: int, *, num_moments: int) -> int:
    """Return what an element takes of host memory at least whose state is there, or on drives.

    Args:
        drive_offload: How drives take part.
        num_moments: Moments of each element.
    """
    if drive_offload == ON_HOSTS:
        return (1 + num_moments + PINNED_ROUNDING) * FP32_BYTES
    return num_moments * FP32_BYTES if drive_offload == PIPELINED else 0


def least_drive_bytes(driven_X: FloatArray, *, cluster: Cluster) -> FloatArray:
    """Return what the drives of the node that needs most hold at least, as an array over points.

    Args:
        driven_X: Elements of a rank whose states are on drives, on average; one less is counted, for rounding.
        cluster: The nodes.
    """
    least_X: FloatArray = cluster.gpus_per_node * np.maximum(driven_X - 1.0, 0.0) * BUFFERS_OF_SUB_GROUP * FP32_BYTES
    return least_X


def least_node_bytes(
    offloaded_X: FloatArray, *, of_element: int, buffers_X: FloatArray, cluster: Cluster
) -> FloatArray:
    """Return what the node that keeps most keeps at least, as an array over points.

    Args:
        offloaded_X: Elements of a rank whose states are on the host, on average; one less is counted, for rounding.
        of_element: Bytes of each.
        buffers_X: What a rank has there beside them, at least, on average (`least_buffer_bytes`).
        cluster: The nodes.
    """
    of_rank_X = np.maximum(offloaded_X - 1.0, 0.0) * of_element + buffers_X
    needed_X: FloatArray = cluster.gpus_per_node * of_rank_X + sum(line.num_bytes for line in reserve(cluster))
    return needed_X


def least_buffer_bytes(
    updated_X: IntArray, *, pipelined_X: BoolArray, has_weights_X: BoolArray, workload: TrainWorkload
) -> FloatArray:
    """Return what a rank with sharded weights has on its host at least, on average, whichever part of its states is.

    These are its gradients, in a buffer of a power of two, which only without a pipeline all ranks fill alike, and its
    weights, where these are there.

    Args:
        updated_X: Elements of which a rank keeps the states, wherever, on average, rounded down.
        pipelined_X: There are several pipeline stages.
        has_weights_X: Weights are in host memory.
        workload: Says in which format gradients and weights are.
    """
    share_X = (updated_X * workload.gradient_dtype.num_bytes).astype(np.float64)
    rounded_X = np.exp2(np.ceil(np.log2(np.maximum(share_X, 1.0))))
    of_weight = workload.precision.parameter_dtype.num_bytes * (1 + PINNED_ROUNDING)
    buffers_X: FloatArray = np.where(pipelined_X, share_X, rounded_X) + np.where(
        has_weights_X, updated_X * of_weight, 0
    )
    return buffers_X


def reserve(cluster: Cluster) -> tuple[HostLine, ...]:
    """Return what a node needs whatever is offloaded."""
    return (
        HostLine(term=PROCESSES, num_bytes=cluster.gpus_per_node * PROCESS_BYTES, source=PROCESS_SOURCE),
        HostLine(term=SYSTEM, num_bytes=int(cluster.host_memory_bytes * SYSTEM_FRACTION), source=SYSTEM_SOURCE),
    )


def ranks_of_node(layout: Layout, gpus_per_node: int, node: int) -> tuple[int, ...]:
    """Return the pipeline rank of each GPU of a node, by its place."""
    first = node * gpus_per_node
    return tuple(rank // layout.stage_distance % layout.pp for rank in range(first, first + gpus_per_node))


def _updated(placed: PlacedModel, pipeline_rank: int) -> int:
    """Return the elements whose states one rank keeps, wherever."""
    trainable = placed.elements(pipeline_rank, trainable=True)
    dense_ranks, expert_ranks = shard_ranks(placed.layout, zero_stage=1)
    updated: int = updated_elements(
        dense=trainable.dense, expert=trainable.expert, dense_ranks=dense_ranks, expert_ranks=expert_ranks
    )
    return updated


def _driven_bytes(placed: PlacedModel, pipeline_rank: int, kept: _RankBytes) -> _RankBytes:
    """Return what one rank keeps on its host where drives hold its states."""
    layout, updated = placed.layout, _updated(placed, pipeline_rank)
    pipelined = layout.drive_offload == PIPELINED
    tensor = -(-placed.largest_tensor(pipeline_rank) // min(shard_ranks(layout, zero_stage=1)))
    largest = largest_sub_group(updated, tensor=tensor)
    of_moments = num_moments(placed.workload) * FP32_BYTES
    last = min(updated, BLOCK_BYTES // FP32_BYTES - 1)  # a last sub-group so small is not written
    return replace(
        kept,
        parameters=0,
        gradients=0,
        moments=(updated if pipelined else largest) * of_moments,
        buffers=buffer_bytes(largest, pipelined=pipelined),
        below_a_block=last * (of_moments + FP32_BYTES + PINNED_ROUNDING * FP32_BYTES),
    )


def _parted_elements(placed: PlacedModel, updated: int) -> tuple[int, int]:
    """Return the elements whose states are on the host at most, and those that have page-locked buffers."""
    layout, tensors = placed.layout, tensor_elements(placed.model)
    ranks = shard_ranks(layout, zero_stage=1)[0] * layout.tp
    beyond = most_beyond(tensors, ranks=ranks, fraction=layout.offloaded_fraction)
    away = min(updated, math.ceil(updated * (layout.offloaded_fraction + beyond)))
    left = 2 * largest_kept(tensors, ranks=ranks)  # blocks of each size below twice the largest, which are rounded up
    return away, min(updated, away + left)


def _rank_bytes(placed: PlacedModel, pipeline_rank: int) -> _RankBytes:
    layout = placed.layout
    assert layout.offload is not None
    trainable = placed.elements(pipeline_rank, trainable=True)
    updated = _updated(placed, pipeline_rank)
    if gradients_on_host(layout):
        share = updated * placed.workload.gradient_dtype.num_bytes
        weights = weight_buffers = small_weights = 0
        if layout.parameter_offload == DRIVE_WEIGHTS:
            driven = drive_weights(placed, pipeline_rank)
            weight_buffers, small_weights = driven.buffer_bytes, driven.kept_bytes * PINNED_ROUNDING
        elif layout.parameter_offload == HOST_WEIGHTS:
            of_element = placed.workload.precision.parameter_dtype.num_bytes
            weights = split_bytes(placed.elements(pipeline_rank), of_element, shard_ranks(layout, zero_stage=3))
        away, buffered = _parted_elements(placed, updated) if is_parted(layout) else (updated, updated)
        kept = _RankBytes(
            parameters=away * FP32_BYTES,
            moments=away * num_moments(placed.workload) * FP32_BYTES,
            gradients=buffered * FP32_BYTES * PINNED_ROUNDING,
            accumulated=_power_of_two(share),
            construction=0,
            weights=_power_of_two(weights),
            built=weights * PINNED_ROUNDING,
            weight_buffers=weight_buffers,
            small_weights=small_weights,
        )
        return kept if layout.drive_offload == ON_HOSTS else _driven_bytes(placed, pipeline_rank, kept)
    tensor = placed.largest_tensor(pipeline_rank)
    away = min(updated, offloaded_elements(updated, layout.offload) + tensor)
    whole = min(trainable.total, offloaded_elements(trainable.total, layout.offload) + tensor)
    return _RankBytes(
        parameters=away * FP32_BYTES,
        moments=away * num_moments(placed.workload) * FP32_BYTES,
        gradients=away * FP32_BYTES * PINNED_ROUNDING,
        accumulated=0,
        construction=whole * FP32_BYTES,
    )


def _node_lines(ranks: list[_RankBytes], placed: PlacedModel) -> tuple[HostLine, ...]:
    """Return what the ranks of a node keep in the phase that takes more."""
    layout = placed.layout
    if layout.drive_offload != ON_HOSTS:
        return _driven_lines(ranks, placed)
    part = f"{layout.offloaded_fraction:.4g} of the states of {len(ranks)} ranks"
    if is_parted(layout):
        part = f"{part}, and what whole sub-groups leave there beyond that"
    elif not gradients_on_host(layout):
        part = f"{part}, and a tensor of each"
    parameters = HostLine(term=PARAMETERS, num_bytes=sum(rank.parameters for rank in ranks), source=f"fp32; {part}")
    step: tuple[HostLine, ...] = (
        parameters,
        HostLine(
            term=MOMENTS,
            num_bytes=sum(rank.moments for rank in ranks),
            source=f"{num_moments(placed.workload)} in fp32; {part}",
        ),
        HostLine(
            term=GRADIENTS,
            num_bytes=sum(rank.gradients for rank in ranks),
            source=f"fp32, twice for buffers that are rounded up to a power of two; {part}",
        ),
    )
    if gradients_on_host(layout):
        return (*step, _accumulated_line(ranks, placed), *_weight_lines(ranks, placed))
    construction = HostLine(
        term=CONSTRUCTION,
        num_bytes=sum(rank.construction for rank in ranks),
        source="fp32 copies of the ranks' whole weights, while the split optimizer is made",
    )
    beginning = (parameters, construction)
    return max(step, beginning, key=lambda lines: sum(line.num_bytes for line in lines))


def _accumulated_line(ranks: list[_RankBytes], placed: PlacedModel) -> HostLine:
    return HostLine(
        term=ACCUMULATED,
        num_bytes=sum(rank.accumulated for rank in ranks),
        source=f"{placed.workload.gradient_dtype}, one page-locked buffer a rank, rounded up to a power of two",
    )


def _driven_lines(ranks: list[_RankBytes], placed: PlacedModel) -> tuple[HostLine, ...]:
    """Return what the ranks of a node keep there whose states are on its drives."""
    layout = placed.layout
    pipelined = layout.drive_offload == PIPELINED
    lines = (
        HostLine(
            term=BUFFERS,
            num_bytes=sum(rank.buffers for rank in ranks),
            source=f"{buffer_count(pipelined=pipelined)} page-locked buffers a rank, each as large as its largest"
            " sub-group in fp32",
        ),
        HostLine(
            term=FIRST_MOMENTS,
            num_bytes=sum(rank.moments for rank in ranks),
            source=f"{num_moments(placed.workload)} in fp32"
            + (", of all elements until the second step, as the pipelined swapper keeps them" if pipelined else "")
            + ("" if pipelined else ", of one sub-group after another"),
        ),
        HostLine(
            term=BELOW_A_BLOCK,
            num_bytes=sum(rank.below_a_block for rank in ranks),
            source="a last sub-group of less than 1 MiB at most, which stays on the host",
        ),
        _accumulated_line(ranks, placed),
    )
    return (*lines, *_weight_lines(ranks, placed))


def _weight_lines(ranks: list[_RankBytes], placed: PlacedModel) -> tuple[HostLine, ...]:
    """Return what the weights of the ranks of a node take there, which are there or on drives; else nothing."""
    dtype, place = placed.workload.precision.parameter_dtype, placed.layout.parameter_offload
    if place == DRIVE_WEIGHTS:
        return (
            HostLine(
                term=WEIGHT_BUFFERS,
                num_bytes=sum(rank.weight_buffers for rank in ranks),
                source=f"{dtype}; {drive_weights(placed).num_buffers} page-locked buffers a rank, each as large as its"
                " share of the largest tensor, and one for the new weights of its largest sub-group",
            ),
            HostLine(
                term=SMALL_WEIGHTS,
                num_bytes=sum(rank.small_weights for rank in ranks),
                source=f"{dtype}; shares of less than 1 MiB at most, a page-locked buffer each, rounded up to a power"
                " of two (counted twice)",
            ),
        )
    if place != HOST_WEIGHTS:
        return ()
    return (
        HostLine(
            term=WEIGHTS,
            num_bytes=sum(rank.weights for rank in ranks),
            source=f"{dtype}, one page-locked buffer a rank, rounded up to a power of two",
        ),
        HostLine(
            term=BUILT,
            num_bytes=sum(rank.built for rank in ranks),
            source=f"{dtype}, a page-locked buffer for each tensor, rounded up to a power of two (counted twice), which"
            " PyTorch's allocator keeps",
        ),
    )


def _activation_line(placed: PlacedModel, cluster: Cluster) -> HostLine:
    """Return what the saved tensors of offloaded layers take on a node; all its ranks hold all layers."""
    offloaded = placed.layout.offloaded_layers
    held = placed.rank_model.stage_layers(placed.layout.stages[0])[:offloaded]
    of_rank = sum(_power_of_two(num_bytes) for layer in held for num_bytes in copied_tensors(layer))
    return HostLine(
        term=ACTIVATIONS,
        num_bytes=cluster.gpus_per_node * of_rank,
        source=f"saved tensors of {offloaded} layers of a micro-batch, {cluster.gpus_per_node} ranks; a page-locked"
        " buffer each, rounded up to a power of two",
    )


def _module_line(placed: PlacedModel, cluster: Cluster) -> HostLine:
    """Return what the modules of the micro-batches in flight take on the node that keeps most."""
    layout = placed.layout
    order = operation_order(layout.schedule, pp=layout.pp, vpp=layout.vpp, num_microbatches=layout.num_microbatches)
    bytes_RC = np.array(
        [[_chunk_buffers(placed, stage) for stage in layout.chunks(rank)] for rank in range(layout.pp)], dtype=np.int64
    )
    of_rank = peak_activation_bytes(order, bytes_RC)
    nodes = {ranks_of_node(layout, cluster.gpus_per_node, node) for node in range(cluster.num_nodes)}
    return HostLine(
        term=ACTIVATIONS,
        num_bytes=max(sum(of_rank[rank] for rank in ranks) for ranks in nodes),
        source=f"{', '.join(layout.offloaded_modules)} of the micro-batches in flight, {cluster.gpus_per_node} ranks;"
        " a page-locked buffer for each tensor, rounded up to a power of two (twice for experts, part by part)",
    )


def _chunk_buffers(placed: PlacedModel, stage: Stage) -> int:
    """Return the page-locked buffers of one virtual stage, those of one micro-batch."""
    layout = placed.layout
    total = 0
    for layer, count in placed.rank_model.stage_counts(stage):
        for group in groups(layer, layout.recompute, layout.offloaded_modules):
            whole = PINNED_ROUNDING * group.num_bytes
            total += count * (whole if group.in_parts else sum(map(_power_of_two, group.tensor_bytes)))
    return total


def _power_of_two(num_bytes: int) -> int:
    """Return what PyTorch's allocator of page-locked memory takes for a buffer."""
    return 1 << max(num_bytes - 1, 0).bit_length() if num_bytes else 0
