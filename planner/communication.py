"""What ranks send one another outside the layers: pipeline transfers, gradients, parameters, tied embeddings.

Ranks are numbered tp fastest, then cp, dp, pp. Gradients are reduced over dp times cp once a step, in buckets, beside
the backward pass of the last micro-batch; with the optimizer sharded, updated parameters are gathered beside the first
forward pass (Megatron-LM's `--overlap-grad-reduce` and `--overlap-param-gather`). What does not fit beside that pass,
and at least one bucket, is exposed.
"""

from dataclasses import dataclass

from planner.layout import Layout
from planner.pricing import added_seconds
from planner.workload import TrainWorkload
from profiles.ops import Collective, CollectiveKind, MemoryBound


@dataclass(frozen=True, slots=True, kw_only=True)
class DataParallelTraffic:
    """The collectives of one virtual stage's parameters, once a step.

    Args:
        reduce: Gradient all-reduce (zero_stage 0) or reduce-scatter.
        gather: All-gather of the updated parameters; None with zero_stage 0.
        num_buckets: Buckets that the gradients are cut into.
    """

    reduce: Collective
    gather: Collective | None
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


def data_parallel_traffic(num_trainable: int, layout: Layout, workload: TrainWorkload) -> DataParallelTraffic:
    """Return the data-parallel collectives of `num_trainable` elements on one rank.

    A bucket holds `max(40e6, 1e6 dp)` elements (megatron.core.distributed.DistributedDataParallelConfig).
    """
    group = layout.dp * layout.cp
    sharded = layout.zero_stage >= 1
    reduce = Collective(
        kind=CollectiveKind.REDUCE_SCATTER if sharded else CollectiveKind.ALL_REDUCE,
        buffer_bytes=num_trainable * workload.gradient_dtype.num_bytes,
        size=group,
        stride=layout.tp,
    )
    gather = None
    if sharded:
        gather = Collective(
            kind=CollectiveKind.ALL_GATHER,
            buffer_bytes=num_trainable * workload.precision.parameter_dtype.num_bytes,
            size=group,
            stride=layout.tp,
        )
    bucket = max(40_000_000, 1_000_000 * group)
    return DataParallelTraffic(reduce=reduce, gather=gather, num_buckets=max(1, -(-num_trainable // bucket)))


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
    ranks_per_stage = layout.tp * layout.cp * layout.dp
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
        stride=(layout.pp - 1) * layout.tp * layout.cp * layout.dp,
    )


def gradient_norm_reduction(layout: Layout) -> Collective:
    """Return the all-reduce of one number over every rank that clipping needs."""
    return Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=4, size=layout.world_size, stride=1)


def optimizer_traffic(num_trainable: int, layout: Layout, workload: TrainWorkload) -> MemoryBound:
    """Return the memory traffic of norm, clipping and update on one rank.

    Of the elements that the rank updates: the gradient is read for the norm and again for the update, master weights
    and moments are read and written, the parameter is written. Its whole gradient buffer is zeroed.
    """
    group = layout.dp * layout.cp if layout.zero_stage >= 1 else 1
    updated = -(-num_trainable // group)
    gradient = workload.gradient_dtype.num_bytes
    parameter = workload.precision.parameter_dtype.num_bytes
    states = workload.master_dtype.num_bytes + num_moments(workload) * workload.moment_dtype.num_bytes
    num_bytes = updated * (2 * gradient + 2 * states + parameter) + num_trainable * gradient
    return MemoryBound(name=f"{workload.optimizer} step", num_bytes=num_bytes, num_kernels=4)


def num_moments(workload: TrainWorkload) -> int:
    """Return the moments that the optimizer keeps per element: two for Adam, one for SGD with momentum."""
    return 2 if workload.optimizer.value == "adam" else 1


def communicator_sizes(layout: Layout, *, tied_embedding: bool) -> tuple[int, ...]:
    """Return the sizes of the communicators that one rank opens, groups of one left out.

    The default group of all ranks; tensor and data parallel; the gradient norm's group (all ranks where states are
    sharded, else one model replica); the pipeline's group, or with overlapped transfers, which PyTorch does not batch,
    a pair with each neighbour; the first and the last stage for a tied embedding.
    """
    world = layout.world_size
    sizes = [world, layout.tp, layout.dp * layout.cp, world if layout.zero_stage >= 1 else layout.tp * layout.pp]
    if layout.overlap.p2p:
        sizes += [2] * min(layout.pp - 1, 2)
    else:
        sizes.append(layout.pp)
    if tied_embedding and layout.pp > 1:
        sizes.append(2)
    return tuple(size for size in sizes if size > 1)
