"""What ranks send one another outside the layers: pipeline transfers, gradients, parameters, tied embeddings.

Gradients of everything but routed experts are reduced over dp times cp, those of routed experts over edp, once a step,
in buckets, beside the backward pass of the last micro-batch; with the optimizer sharded, updated parameters are
gathered beside the first forward pass (Megatron-LM's `--overlap-grad-reduce` and `--overlap-param-gather`). What does
not fit beside that pass, and at least one bucket, is exposed.

With hybrid sharding the ranks form groups that each hold everything: gradients are reduced and scattered inside a
group, then each rank's part is summed over the groups.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.frameworks.capabilities import ANY, Capabilities
from planner.layout import REPLICAS_OUTERMOST, Layout
from planner.ranks.pricing import added_seconds
from planner.ranks.shard import Elements
from planner.requests.workload import TrainWorkload
from profiles.ops import Collective, CollectiveKind, MemoryBound

Count = TypeVar("Count", int, NDArray[np.int64])
"""A number of one layout, or an array of it over many."""


BUCKET_ELEMENTS = 40_000_000
"""Gradients of a bucket at least (megatron.core.distributed.DistributedDataParallelConfig)."""

BUCKET_ELEMENTS_OF_RANK = 1_000_000
"""Gradients of a bucket at least for each rank that they are reduced over, as there."""


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
    # With replicas outermost all stages lie between two of them; cp is 1 then (`planner.evaluation.validate`).
    between = layout.replica_distance // (layout.tp * layout.cp)
    return (
        ReplicaGroup(size=dense, stride=layout.tp * between, shard=dense // layout.state_replicas),
        ReplicaGroup(size=expert, stride=layout.etp * layout.ep * between, shard=expert // layout.state_replicas),
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


def data_parallel_traffic(
    trainable: Elements,
    layout: Layout,
    workload: TrainWorkload,
    *,
    everything: Elements | None = None,
    capabilities: Capabilities = ANY,
) -> DataParallelTraffic:
    """Return the data-parallel collectives of one rank.

    Gradients are of trainable elements; so is what is gathered, but with sharded weights it is everything.

    Args:
        trainable: Elements on the rank that have a gradient.
        layout: The layout.
        workload: The training run.
        everything: All elements on the rank; None where all are trained.
        capabilities: What runs it.
    """
    everything = trainable if everything is None else everything
    reduce: list[Collective] = []
    gather: list[Collective] = []
    again: list[Collective] = []
    buckets = 0
    groups = replica_groups(layout)
    gathered = everything if layout.zero_stage == 3 else trainable
    of_grids = ((trainable.dense, gathered.dense), (trainable.expert, gathered.expert))
    for (elements, gathered_elements), group in zip(of_grids, groups, strict=True):
        if not gathered_elements:
            continue
        buckets += -(-elements // max(BUCKET_ELEMENTS, BUCKET_ELEMENTS_OF_RANK * group.size))
        gradient_bytes = elements * workload.gradient_dtype.num_bytes
        weight_bytes = gathered_elements * workload.precision.parameter_dtype.num_bytes
        if layout.zero_stage == 0:
            reduce.append(_collective(CollectiveKind.ALL_REDUCE, gradient_bytes, group.size, group.stride))
            continue
        scattered = layout.zero_stage >= capabilities.reduce_scatter_from
        kind = CollectiveKind.REDUCE_SCATTER if scattered else CollectiveKind.ALL_REDUCE
        reduce.append(_collective(kind, gradient_bytes, group.shard, group.stride))
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


def slowdown_beside(
    *, collective_seconds: float, copied_seconds: float, overlap_slowdown: float, copy_slowdown: float | None
) -> float:
    """Return what a pass loses for each second of collectives and of copies to or from the host beside it, one by one.

    Args:
        collective_seconds: The collectives.
        copied_seconds: The copies.
        overlap_slowdown: Seconds that a pass loses for each of the collectives'.
        copy_slowdown: The same of the copies'; None takes them to slow a pass down as collectives do.
    """
    total = collective_seconds + copied_seconds
    if copy_slowdown is None or not copied_seconds:
        return overlap_slowdown
    return (collective_seconds * overlap_slowdown + copied_seconds * copy_slowdown) / total


def exposed_seconds(traffic: TimedTraffic, *, beside_seconds: float, overlapped: bool) -> float:
    """Return what a data-parallel collective adds to the pass that it runs beside.

    Args:
        traffic: The collective.
        beside_seconds: The pass that it runs beside.
        overlapped: It runs beside the pass at all.
    """
    if not overlapped:
        return traffic.seconds
    return max(
        traffic.seconds / traffic.num_buckets, added_seconds(traffic.seconds, beside_seconds, slowdown=traffic.slowdown)
    )


def transfer(layout: Layout, *, pipeline_rank: int, stream_bytes: int, capabilities: Capabilities = ANY) -> Collective:
    """Return the send from `pipeline_rank` to the next one (from the last to the first between chunks).

    Args:
        layout: The layout.
        pipeline_rank: Sender of activations, receiver of their gradients.
        stream_bytes: The residual stream of one micro-batch on one rank.
        capabilities: What runs it; the gathering of scattered parts inside a node is left out.
    """
    if capabilities.scattered_transfers and not layout.sequence_parallel:
        stream_bytes = -(-stream_bytes // layout.tp)
    # Every rank of the stage sends at the same time and the slowest pair decides: reach from the first sender to the
    # last receiver, so that a boundary that any pair crosses is crossed. With replicas outermost that is the stage of
    # the first replica, which lies in the network as every other does.
    neighbours = layout.stage_distance
    last_of_stage = neighbours - 1
    if pipeline_rank + 1 < layout.pp:
        first, distance = pipeline_rank * neighbours, neighbours + last_of_stage
    else:
        first, distance = 0, (layout.pp - 1) * neighbours + last_of_stage
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


def ends_distance(layout: Layout) -> int:
    """Return how far apart the first and the last pipeline rank count as, for a collective of such pairs.

    Groups begin at multiples of their span. With replicas outermost a pair lies inside its replica, wherever that
    begins: it counts as one half of the replica with the other.
    """
    if layout.rank_order == REPLICAS_OUTERMOST:
        return -(-layout.replica_distance // 2)
    return (layout.pp - 1) * layout.stage_distance


def tied_embedding_reduction(num_elements: int, layout: Layout, workload: TrainWorkload) -> Collective | None:
    """Return the all-reduce of a tied table's gradient between first and last pipeline rank; None when both are one."""
    if layout.pp == 1 or not num_elements:
        return None
    return Collective(
        kind=CollectiveKind.ALL_REDUCE,
        buffer_bytes=num_elements * workload.gradient_dtype.num_bytes,
        size=2,
        stride=ends_distance(layout),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid(Generic[Count]):
    """The degrees that decide which communicators a rank opens, of one layout or of many.

    Args:
        tp: Tensor-parallel degree.
        cp: Context-parallel degree.
        ulysses: Part of cp that exchanges heads.
        pp: Pipeline-parallel degree.
        dp: Data-parallel degree.
        ep: Expert-parallel degree.
        etp: Tensor-parallel degree of the experts.
        zero_stage: What is sharded.
        state_replicas: Groups that each hold everything that is sharded.
        secondary_shard: Ranks that split a second copy of the weights.
        interleaved: Transfers overlap, as they do with virtual stages; 0 or 1.
    """

    tp: Count
    cp: Count
    ulysses: Count
    pp: Count
    dp: Count
    ep: Count
    etp: Count
    zero_stage: Count
    state_replicas: Count
    secondary_shard: Count
    interleaved: Count


def grid_of(layout: Layout) -> Grid[int]:
    """Return the degrees of a layout."""
    return Grid(
        tp=layout.tp,
        cp=layout.cp,
        ulysses=layout.ulysses,
        pp=layout.pp,
        dp=layout.dp,
        ep=layout.ep,
        etp=layout.etp,
        zero_stage=layout.zero_stage,
        state_replicas=layout.state_replicas,
        secondary_shard=layout.secondary_shard,
        interleaved=int(layout.overlap.p2p),
    )


def communicator_sizes(grid: Grid[Count], *, tied_embedding: bool, has_experts: bool) -> tuple[Count, ...]:
    """Return the sizes of the communicators that one rank opens; those of 1 or less are not opened.

    The default group of all ranks; tensor and data parallel; context parallel, and its inner and outer groups where
    both are used; the experts' groups; the groups of hybrid sharding and of a second copy; the gradient norm's group
    (all ranks where states are sharded, else one model replica); the pipeline's group, or with overlapped transfers,
    which PyTorch does not batch, a pair with each neighbour; the first and the last stage for a tied embedding.
    """

    def where(condition: Count, size: Count) -> Count:
        """Return `size` where the condition is 1, else 0."""
        product: Count = condition * size
        return product

    replicas = grid.dp * grid.cp
    world = grid.tp * replicas * grid.pp
    sharded = 1 * (grid.zero_stage >= 1)
    mixed = (grid.ulysses > 1) * (grid.ulysses < grid.cp)
    sizes = [world, grid.tp, replicas, where(sharded, world) + where(1 - sharded, grid.tp * grid.pp), grid.cp]
    sizes += [where(1 * mixed, grid.ulysses), where(1 * mixed, grid.cp // grid.ulysses)]
    if has_experts:
        # Token counts travel over ep and etp together; with etp 1 that is the experts' own group.
        both, split = grid.ep * grid.etp, 1 * (grid.etp > 1)
        sizes += [grid.ep, grid.tp * replicas // both, grid.etp, where(split, both)]
    in_groups = 1 * (grid.state_replicas > 1)
    sizes += [where(in_groups, replicas // grid.state_replicas), where(in_groups, grid.state_replicas)]
    sizes += [grid.secondary_shard, where(1 - grid.interleaved, grid.pp)]
    sizes += [where(grid.interleaved * (grid.pp > neighbours), 2 * sharded**0) for neighbours in (1, 2)]
    if tied_embedding:
        sizes.append(where(1 * (grid.pp > 1), 2 * sharded**0))
    return tuple(sizes)
