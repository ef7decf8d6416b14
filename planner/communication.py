"""What ranks send one another outside the layers: pipeline transfers, gradients, parameters, tied embeddings.

Gradients of everything but routed experts are reduced over dp times cp, those of routed experts over edp, once a step,
in buckets, beside the backward pass of the last micro-batch; with the optimizer sharded, updated parameters are
gathered beside the first forward pass (Megatron-LM's `--overlap-grad-reduce` and `--overlap-param-gather`). What does
not fit beside that pass, and at least one bucket, is exposed.

With hybrid sharding the ranks form groups that each hold everything: gradients are reduced and scattered inside a
group, then each rank's part is summed over the groups.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.layout import Layout
from planner.pricing import added_seconds
from planner.shard import Elements
from planner.workload import TrainWorkload
from profiles.ops import Collective, CollectiveKind, MemoryBound


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaGroup:
    """The ranks that hold the same weights.

    Args:
        size: How many.
        stride: How far apart.
        shard: Ranks of one group that splits everything once; all of them without hybrid sharding.
    """

    size: int
    stride: int
    shard: int


def replica_groups(layout: Layout) -> tuple[ReplicaGroup, ReplicaGroup]:
    """Return the replicas of everything but routed experts, and of routed experts."""
    dense, expert = layout.dp * layout.cp, layout.edp
    return (
        ReplicaGroup(size=dense, stride=layout.tp, shard=dense // layout.state_replicas),
        ReplicaGroup(size=expert, stride=layout.etp * layout.ep, shard=expert // layout.state_replicas),
    )


def shard_ranks(layout: Layout, *, zero_stage: int) -> tuple[int, int]:
    """Return over how many ranks what `zero_stage` splits is split: (dense, expert), 1 where it is not."""
    if layout.zero_stage < zero_stage:
        return 1, 1
    dense, expert = replica_groups(layout)
    return dense.shard, expert.shard


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelTraffic:
    """The collectives of one virtual stage's parameters, once a step, one after the other.

    Args:
        reduce: Gradient all-reduce (zero_stage 0) or reduce-scatter.
        gather: All-gather of the updated parameters; empty with zero_stage 0.
        gather_again: All-gather of the parameters in backward, with zero_stage 3.
        num_buckets: Buckets that the gradients are cut into.
    """

    reduce: tuple[Collective, ...]
    gather: tuple[Collective, ...]
    gather_again: tuple[Collective, ...]
    num_buckets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTraffic:
    """A data-parallel collective with its time.

    Args:
        seconds: All its buckets, one after the other.
        num_buckets: Buckets it is cut into; the last one has nothing to hide behind.
        slowdown: Seconds that a pass loses for each second of the collective beside it.
    """

    seconds: float
    num_buckets: int
    slowdown: float


def data_parallel_traffic(trainable: Elements, layout: Layout, workload: TrainWorkload) -> DataParallelTraffic:
    """Return the data-parallel collectives of one rank's trainable elements.

    A bucket holds `max(40e6, 1e6 dp)` elements (megatron.core.distributed.DistributedDataParallelConfig).
    """
    reduce: list[Collective] = []
    gather: list[Collective] = []
    again: list[Collective] = []
    buckets = 0
    groups = replica_groups(layout)
    for elements, group in zip((trainable.dense, trainable.expert), groups, strict=True):
        if not elements:
            continue
        buckets += -(-elements // max(40_000_000, 1_000_000 * group.size))
        gradient_bytes = elements * workload.gradient_dtype.num_bytes
        weight_bytes = elements * workload.precision.parameter_dtype.num_bytes
        if layout.zero_stage == 0:
            reduce.append(_collective(CollectiveKind.ALL_REDUCE, gradient_bytes, group.size, group.stride))
            continue
        reduce.append(_collective(CollectiveKind.REDUCE_SCATTER, gradient_bytes, group.shard, group.stride))
        if group.size > group.shard:
            part_bytes = -(-gradient_bytes // group.shard)
            apart = group.stride * group.shard
            reduce.append(_collective(CollectiveKind.ALL_REDUCE, part_bytes, group.size // group.shard, apart))
        gather.append(_collective(CollectiveKind.ALL_GATHER, weight_bytes, group.shard, group.stride))
        nearer = min(layout.secondary_shard, group.shard) if layout.secondary_shard > 1 else group.shard
        again.append(_collective(CollectiveKind.ALL_GATHER, weight_bytes, nearer, group.stride))
    return DataParallelTraffic(
        reduce=tuple(reduce), gather=tuple(gather), gather_again=tuple(again), num_buckets=max(1, buckets)
    )


def _collective(kind: CollectiveKind, buffer_bytes: int, size: int, stride: int) -> Collective:
    return Collective(kind=kind, buffer_bytes=buffer_bytes, size=size, stride=stride)


def exposed_seconds(traffic: TimedTraffic, *, beside_seconds: float, overlapped: bool) -> float:
    """Return what a data-parallel collective adds to the pass that it runs beside.

    Args:
        traffic: The collective.
        beside_seconds: The pass that it runs beside.
        overlapped: It runs beside the pass at all.
    """
    if not overlapped:
        return traffic.seconds
    last_bucket = traffic.seconds / traffic.num_buckets
    return max(last_bucket, added_seconds(traffic.seconds, beside_seconds, slowdown=traffic.slowdown))


def transfer(layout: Layout, *, pipeline_rank: int, stream_bytes: int) -> Collective:
    """Return the send from `pipeline_rank` to the next one (from the last to the first between chunks).

    Args:
        layout: The layout.
        pipeline_rank: Sender of activations, receiver of their gradients.
        stream_bytes: The residual stream of one micro-batch on one rank.
    """
    ranks_per_stage = layout.stage_ranks
    # Every rank of the stage sends at the same time and the slowest pair decides: reach from the first sender to the
    # last receiver, so that a boundary that any pair crosses is crossed.
    last_of_stage = ranks_per_stage - 1
    if pipeline_rank + 1 < layout.pp:
        first, distance = pipeline_rank * ranks_per_stage, ranks_per_stage + last_of_stage
    else:
        first, distance = 0, (layout.pp - 1) * ranks_per_stage + last_of_stage
    return Collective(
        kind=CollectiveKind.SEND_RECV, buffer_bytes=stream_bytes, size=2, stride=distance, first_rank=first
    )


def overlapped_transfer_seconds(
    transfer_seconds: tuple[float, ...], *, stage: int, layout: Layout, slowdown: float
) -> float:
    """Return what a pass of one virtual stage loses to the transfers beside it: what it receives and what it sends.

    Args:
        transfer_seconds: Time of each boundary between neighbouring virtual stages.
        stage: The virtual stage.
        layout: The layout; transfers that are not overlapped cost waiting instead.
        slowdown: Seconds that a pass loses for each second of a transfer.
    """
    if not layout.overlap.p2p:
        return 0.0
    return slowdown * sum(transfer_seconds[max(stage - 1, 0) : stage + 1])


def tied_embedding_reduction(num_elements: int, layout: Layout, workload: TrainWorkload) -> Collective | None:
    """Return the all-reduce of a tied table's gradient between first and last pipeline rank; None when both are one."""
    if layout.pp == 1 or not num_elements:
        return None
    return Collective(
        kind=CollectiveKind.ALL_REDUCE,
        buffer_bytes=num_elements * workload.gradient_dtype.num_bytes,
        size=2,
        stride=(layout.pp - 1) * layout.stage_ranks,
    )


def gradient_norm_reduction(layout: Layout) -> Collective:
    """Return the all-reduce of one number over every rank that clipping needs."""
    return Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=4, size=layout.world_size, stride=1)


def optimizer_traffic(trainable: Elements, layout: Layout, workload: TrainWorkload) -> MemoryBound:
    """Return the memory traffic of norm, clipping and update on one rank."""
    dense_ranks, expert_ranks = shard_ranks(layout, zero_stage=1)
    num_bytes = optimizer_bytes(
        dense=trainable.dense,
        expert=trainable.expert,
        dense_ranks=dense_ranks,
        expert_ranks=expert_ranks,
        workload=workload,
    )
    return optimizer_step(num_bytes, workload)


Count = TypeVar("Count", int, NDArray[np.int64])


def optimizer_bytes(
    *, dense: Count, expert: Count, dense_ranks: Count, expert_ranks: Count, workload: TrainWorkload
) -> Count:
    """Return the bytes that norm, clipping and update move on one rank, of one layout or of many.

    Of the elements that the rank updates: the gradient is read for the norm and again for the update, master weights
    and moments are read and written, the parameter is written. Its whole gradient buffer is zeroed.

    Args:
        dense: Trainable elements of everything but routed experts, before they are split.
        expert: Those of routed experts.
        dense_ranks: Ranks that split the states of the former.
        expert_ranks: Ranks that split the states of the latter.
        workload: The training run.
    """
    updated = -(-dense // dense_ranks) + -(-expert // expert_ranks)
    gradient = workload.gradient_dtype.num_bytes
    parameter = workload.precision.parameter_dtype.num_bytes
    states = workload.master_dtype.num_bytes + num_moments(workload) * workload.moment_dtype.num_bytes
    moved: Count = updated * (2 * gradient + 2 * states + parameter) + (dense + expert) * gradient
    return moved


def optimizer_step(num_bytes: int, workload: TrainWorkload) -> MemoryBound:
    """Return the optimizer step that moves so many bytes."""
    return MemoryBound(name=f"{workload.optimizer} step", num_bytes=num_bytes, num_kernels=4)


def num_moments(workload: TrainWorkload) -> int:
    """Return the moments that the optimizer keeps per element: two for Adam, one for SGD with momentum."""
    return 2 if workload.optimizer.value == "adam" else 1


def communicator_sizes(layout: Layout, *, tied_embedding: bool, has_experts: bool) -> tuple[int, ...]:
    """Return the sizes of the communicators that one rank opens, groups of one left out.

    The default group of all ranks; tensor and data parallel; context parallel, and its inner and outer groups where
    both are used; the experts' groups; the groups of hybrid sharding; the gradient norm's group (all ranks where states
    are sharded, else one model replica); the pipeline's group, or with overlapped transfers, which PyTorch does not
    batch, a pair with each neighbour; the first and the last stage for a tied embedding.
    """
    world = layout.world_size
    dense, expert = replica_groups(layout)
    sizes = [world, layout.tp, dense.size, world if layout.zero_stage >= 1 else layout.tp * layout.pp, layout.cp]
    if layout.ulysses not in (1, layout.cp):
        sizes += [layout.ulysses, layout.ring]
    if has_experts:
        # Token counts travel over ep and etp together; with etp 1 that is the experts' own group.
        sizes += [layout.ep, expert.size, *([layout.etp, layout.ep * layout.etp] if layout.etp > 1 else [])]
    if layout.state_replicas > 1:
        sizes += [dense.shard, layout.state_replicas]
    if layout.overlap.p2p:
        sizes += [2] * min(layout.pp - 1, 2)
    else:
        sizes.append(layout.pp)
    if tied_embedding and layout.pp > 1:
        sizes.append(2)
    return tuple(size for size in sizes if size > 1)
