"""What an optimizer step takes when a part of the states is in host memory, and what that needs there.

As Megatron-LM's `HybridDeviceOptimizer` does it (`core/optimizer/cpu_offloading/hybrid_optimizer.py` of megatron-core
0.19.2, made in `core/optimizer/__init__.py`). Of the elements whose states a rank keeps, the offloaded ones are sent
as gradients to page-locked host memory, updated in fp32 by `torch.optim.AdamW(fused=True)` on the CPUs, cast to the
format of the weights there, and sent back from pageable memory; the GPU updates the others at the same time. One CPU
optimizer serves all tensors, or with `--overlap-cpu-optimizer-d2h-h2d` each tensor has its own, so that the copies of
later tensors run beside the update of earlier ones. Copies back from pageable memory keep the process waiting and
stay behind each update. Gradients that are not fp32 are cast on the host, through pageable memory, so that nothing
runs beside their copy.

With sharded weights (`zero_stage` 3) it is DeepSpeed's `offload_optimizer` (`runtime/zero/stage3.py` of deepspeed
0.19.8). Behind each backward pass of a micro-batch the rank's share of the gradients goes to page-locked memory, and it
is fetched from there, to be added to or for the norm (`partition_grads`); with the last one it goes there once more, in
fp32. The step scales the fp32 gradients on the CPUs, updates there (`DeepSpeedCPUAdam`), casts the weights and copies
them from pageable memory, sub-group by sub-group, with nothing beside it.

Of a part of these states (`ratio`: Twin-Flow of ZeRO-Offload++) the gradients take the same ways, but for the last fp32
copies, which stay on the GPU with what is kept there. The first sub-groups are the GPU's (`planner.offloading.
sub_groups`): it scales their gradients and updates them by `torch.optim.AdamW`, not fused but one operation after
another over all tensors (`foreach`), while nothing but the update of the host's first sub-group runs beside it, as the
copy behind that one waits for the GPU. That little is not counted: all would take less than said here. Elements are
priced as if they could be dealt one by one.

States on the drives of a node go through the same step, brought there and back: `planner.offloading.drive_step`.

With the weights on the host too it is also DeepSpeed's `offload_param`. A rank's share of the 16-bit weights lies in
one page-locked buffer (`stage3.py: _create_param_groups_fp16_flat_cpu_memory`), where the step casts the new weights
to, so that nothing is copied behind it. What a pass gathers is first fetched from there, by every rank its share, on
the stream of the gathering and before it (`partition_parameters.py: _all_gather_dtype`); the next modules' weights, as
many as `stage3_prefetch_bucket_size` says, are fetched while a module is computed. The link of a GPU carries these
copies and those of gradients, so that a backward pass hides no more of both together than it takes itself.

Weights on drives instead: `planner.offloading.drive_weights`.

On the host each offloaded element has an fp32 parameter, two fp32 moments, and a page-locked fp32 gradient, whose
buffer PyTorch rounds up to a power of two (`CachingHostAllocator`). While Megatron-LM makes the optimizer there are
also fp32 parameters of the rank's whole weights, before they are split.
"""

from dataclasses import dataclass

from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, ON_HOSTS, PIPELINED, Layout, Offload
from planner.offloading.drive_step import DRIVE_SUB_GROUP_ELEMENTS, DriveStep, Price, drive_step
from planner.ranks.communication import Count, num_moments, optimizer_traffic, shard_ranks
from planner.ranks.shard import Elements
from planner.requests.workload import DType, TrainWorkload
from profiles.ops import ComputeOp, DriveCopy, HostCopy, HostPass, MemoryBound

FP32_BYTES = DType.FP32.num_bytes
SHARDED_WEIGHTS = 3
"""The zero_stage at which all states go to the host, and gradients with each backward pass."""

FOREACH_ADAM_BYTES = 80
"""Bytes that an update of an fp32 element moves on the GPU where each operation has a pass of its own.

`torch/optim/adam.py: _multi_tensor_adam` of torch 2.13, neither fused nor capturable: read and written are the
parameter (weight decay), the first moment with the gradient read, the second moment twice, once with the gradient read,
the square root of it three times (first made, from the second moment), and the parameter with first moment and root
read: 8 + 12 + 8 + 12 + 8 + 8 + 8 + 16.
"""

ADAM_PASSES = 7
"""fp32 numbers that an update of Adam reads (parameter, gradient, two moments) or writes (all but the gradient)."""

SUB_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's default `sub_group_size`, which is written out: elements that it updates at once."""

PREFETCH_BUCKET_ELEMENTS = 50_000_000
"""DeepSpeed's default `stage3_prefetch_bucket_size`, which is written out: elements that it gathers at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedStep:
    """The operations of an optimizer step that is partly done on the host, on one rank.

    Args:
        before: Norm, clipping and the zeroing of gradients, on the GPU, and all launches of the step.
        kept: Traffic of the update of the elements that stay on the GPU.
        gradients: Copy of the others' gradients to the host.
        cast: Cast of these gradients on the host; None where they are fp32.
        update: Their update, and the cast of their parameters.
        parameters: Copy of their parameters to the GPU.
        overlapped: The gradients' copy runs beside updates.
        weights: Of the parameters that lie on drives, written behind the update; None where they do not.
        in_turn: The GPU updates what it keeps before the hosts update anything.
    """

    before: MemoryBound
    kept: MemoryBound
    gradients: HostCopy
    cast: HostPass | None
    update: HostPass
    parameters: HostCopy
    overlapped: bool
    weights: DriveCopy | None = None
    in_turn: bool = False


def updated_elements(*, dense: Count, expert: Count, dense_ranks: Count, expert_ranks: Count) -> Count:
    """Return the elements whose states one rank keeps, on the GPU or on its host."""
    updated: Count = -(-dense // dense_ranks) + -(-expert // expert_ranks)
    return updated


def is_parted(layout: Layout) -> bool:
    """Return whether whole sub-groups of the states are on the host and others on the GPU."""
    return layout.zero_stage == SHARDED_WEIGHTS and 0.0 < layout.offloaded_fraction < 1.0


def goes_whole(layout: Layout) -> bool:
    """Return whether all optimizer states leave the GPU, or none.

    So it is beside weights that lie away from it, of states on drives, and of weights sharded behind pipeline stages.
    """
    piped = layout.zero_stage == SHARDED_WEIGHTS and layout.pp > 1
    return layout.parameters_offloaded or layout.drive_offload != ON_HOSTS or piped


def offloaded_elements(updated: int, offload: Offload) -> int:
    """Return how many of a rank's elements are updated on the host."""
    return int(updated * offload.optimizer_fraction)


def gradient_copies(trainable: Elements, layout: Layout, workload: TrainWorkload) -> tuple[HostCopy, ...]:
    """Return the copies behind each backward pass of a stage with these trainable elements."""
    if layout.offload is None or layout.zero_stage < SHARDED_WEIGHTS:
        return ()
    share = _share_of(trainable, layout)
    return (HostCopy(num_bytes=2 * share * workload.gradient_dtype.num_bytes, pinned=True),)


def parameter_copies(everything: Elements, layout: Layout, workload: TrainWorkload) -> tuple[HostCopy | DriveCopy, ...]:
    """Return the copies before what each pass of a stage with these elements gathers, one after the other.

    Weights on drives are read into buffers first, of which CUDA is not told (`planner.offloading.drive_weights`).
    """
    if not layout.parameters_offloaded:
        return ()
    num_bytes = _share_of(everything, layout) * workload.precision.parameter_dtype.num_bytes
    if layout.parameter_offload == DRIVE_WEIGHTS:
        return DriveCopy(num_bytes=num_bytes, written=False), HostCopy(num_bytes=num_bytes, pinned=False)
    return (HostCopy(num_bytes=num_bytes, pinned=True),)


def waited_for_link_seconds(copied_seconds: float, *, beside_seconds: float, waited_seconds: float) -> float:
    """Return what a pass waits for the host link beyond what it waits for collectives with their copies, each alone.

    Args:
        copied_seconds: All copies beside the pass, one after the other.
        beside_seconds: The pass.
        waited_seconds: What it waits for each collective and its copies, added up.
    """
    return max(0.0, copied_seconds - beside_seconds - waited_seconds)


def sharded_step(
    *,
    updated: int,
    workload: TrainWorkload,
    parameters: int = GPU_WEIGHTS,
    fraction: float = 1.0,
    least_fraction: float | None = None,
) -> HostedStep:
    """Return the step of a rank with states on the host, its weights being sharded.

    The fp32 gradients are scaled, read and written, before the update.

    Args:
        updated: Elements whose states it keeps.
        workload: The training run.
        parameters: Where the weights are, and stay.
        fraction: Part of the states that is on the host.
        least_fraction: A smaller part; what the hosts do is then that of this one, as in `hosted_step`.
    """
    away = int(updated * (fraction if least_fraction is None else least_fraction))
    kept = updated - int(updated * fraction)
    gradient, parameter = workload.gradient_dtype.num_bytes, workload.precision.parameter_dtype.num_bytes
    passes = (2 + ADAM_PASSES) * FP32_BYTES + FP32_BYTES + parameter
    on_gpu = 2 * FP32_BYTES + FOREACH_ADAM_BYTES + FP32_BYTES + parameter
    return HostedStep(
        before=MemoryBound(name="gradient norm", num_bytes=updated * (2 * gradient + FP32_BYTES), num_kernels=4),
        kept=MemoryBound(name=f"{workload.optimizer} step", num_bytes=kept * on_gpu, num_kernels=0),
        gradients=HostCopy(num_bytes=away * FP32_BYTES, pinned=True),
        cast=None,
        update=HostPass(name=f"{workload.optimizer} step on the CPUs", num_bytes=away * passes),
        parameters=HostCopy(num_bytes=away * parameter if parameters == GPU_WEIGHTS else 0, pinned=False),
        overlapped=False,
        weights=DriveCopy(num_bytes=away * parameter, written=True) if parameters == DRIVE_WEIGHTS else None,
        in_turn=True,
    )


def driven_step(  # noqa: PLR0913 - what a step needs
    *,
    updated: int,
    workload: TrainWorkload,
    drive_offload: int,
    parameters: int = GPU_WEIGHTS,
    fraction: float = 1.0,
    least_fraction: float | None = None,
) -> HostedStep | DriveStep:
    """Return the step of a rank with states on the host, or all of them on drives; its weights are sharded.

    Args:
        updated: Elements whose states it keeps.
        workload: The training run.
        drive_offload: How drives take part in it.
        parameters: Where the weights are, and stay.
        fraction: Part of the states that is not on the GPU.
        least_fraction: As in `sharded_step`.
    """
    hosted = sharded_step(
        updated=updated,
        workload=workload,
        parameters=parameters,
        fraction=fraction,
        least_fraction=least_fraction,
    )
    if drive_offload == ON_HOSTS:
        return hosted

    def of_group(elements: int) -> tuple[HostPass, HostCopy, DriveCopy | None]:
        group = sharded_step(updated=elements, workload=workload, parameters=parameters)
        return group.update, group.parameters, group.weights

    pipelined = drive_offload == PIPELINED
    return drive_step(updated=updated, before=hosted.before, of_group=of_group, pipelined=pipelined)


def sub_group_elements(layout: Layout) -> int:
    """Return the elements that are updated at once at least, where weights are sharded: `sub_group_size`."""
    return DRIVE_SUB_GROUP_ELEMENTS if layout.uses_drives else SUB_GROUP_ELEMENTS


def hosted_step(
    *, updated: int, whole: int, offload: Offload, workload: TrainWorkload, least: Offload | None = None
) -> HostedStep:
    """Return the step of a rank whose weights are whole.

    Args:
        updated: Elements whose states it keeps.
        whole: Elements whose gradients it holds.
        offload: Which part is done on the host.
        workload: The training run.
        least: A smaller part. Then the host does what it does of that one and the GPU what `offload` leaves to it, so
            that no part between the two takes less.
    """
    away = offloaded_elements(updated, least or offload)
    kept = updated - offloaded_elements(updated, offload)
    gradient, parameter = workload.gradient_dtype.num_bytes, workload.precision.parameter_dtype.num_bytes
    states = (1 + num_moments(workload)) * FP32_BYTES
    full = workload.gradient_dtype is DType.FP32
    kept_bytes = kept * (gradient + 2 * states + parameter)
    return HostedStep(
        before=MemoryBound(name="gradient norm", num_bytes=(updated + whole) * gradient, num_kernels=4),
        kept=MemoryBound(name=f"{workload.optimizer} step", num_bytes=kept_bytes, num_kernels=0),
        gradients=HostCopy(num_bytes=away * gradient, pinned=full),
        cast=None if full else HostPass(name="cast of gradients", num_bytes=away * (gradient + FP32_BYTES)),
        update=HostPass(
            name=f"{workload.optimizer} step on the CPUs",
            num_bytes=away * (ADAM_PASSES * FP32_BYTES + FP32_BYTES + parameter),
        ),
        parameters=HostCopy(num_bytes=away * parameter, pinned=False),
        overlapped=offload.overlapped and full,
    )


def hosted_seconds(step: HostedStep | DriveStep, price: Price) -> tuple[float, float]:
    """Return what the GPU does of a step, and how long all wait for the host beyond that.

    Nothing waits for the GPU's own update but the step's end.
    """
    if isinstance(step, DriveStep):
        return step.seconds(price)

    def seconds(operation: ComputeOp | None) -> float:
        return 0.0 if operation is None else price(operation).seconds

    kept, down = seconds(step.kept), seconds(step.gradients) + seconds(step.cast)
    up = seconds(step.parameters) + seconds(step.weights)
    update = seconds(step.update)
    on_gpu = seconds(step.before) + kept
    if step.in_turn:
        return on_gpu, down + update + up
    if step.overlapped:
        return on_gpu, max(0.0, max(down, update + up) - kept)
    return on_gpu, down + max(kept, update) + up - kept


def optimizer_seconds(
    trainable: Elements, layout: Layout, workload: TrainWorkload, price: Price
) -> tuple[float, float]:
    """Return what the GPU of a rank does of its optimizer step, and how long all wait for the host beyond that."""
    if layout.offload is None:
        return price(optimizer_traffic(trainable, layout, workload)).seconds, 0.0
    return hosted_seconds(hosted_step_of(trainable, layout, layout.offload, workload), price)


def operations_of(step: HostedStep | DriveStep) -> tuple[tuple[ComputeOp, ...], tuple[ComputeOp, ...]]:
    """Return the operations of a step: on the GPU, and to, on and from the host."""
    if isinstance(step, DriveStep):
        return (step.before,), step.operations
    hosted: tuple[ComputeOp | None, ...] = (step.gradients, step.cast, step.update, step.parameters, step.weights)
    return (step.before, step.kept), tuple(part for part in hosted if part is not None)


def hosted_step_of(
    trainable: Elements, layout: Layout, offload: Offload, workload: TrainWorkload, *, least: Offload | None = None
) -> HostedStep | DriveStep:
    """Return the step of a rank with these trainable elements; `least` as in `hosted_step`."""
    updated = _share_of(trainable, layout)
    if layout.zero_stage == SHARDED_WEIGHTS:
        return driven_step(
            updated=updated,
            workload=workload,
            drive_offload=layout.drive_offload,
            parameters=layout.parameter_offload,
            fraction=offload.optimizer_fraction,
            least_fraction=None if least is None else least.optimizer_fraction,
        )
    return hosted_step(updated=updated, whole=trainable.total, offload=offload, workload=workload, least=least)


def _share_of(elements: Elements, layout: Layout) -> int:
    """Return one rank's share of elements whose states are split."""
    dense_ranks, expert_ranks = shard_ranks(layout, zero_stage=1)
    share: int = updated_elements(
        dense=elements.dense, expert=elements.expert, dense_ranks=dense_ranks, expert_ranks=expert_ranks
    )
    return share
