"""What updates by turns (`planner.offloading.interleaved`) would make of a layout with states on its hosts.

More states may go to the hosts than the layout has there, in steps of `STEP_PERCENT`: by turns the GPUs update some of
them after all, and need room for that. The passes stay as they are, and so do the copies behind each micro-batch. On a
GPU, gradients that stay there count beside all that a pass holds, although activations leave as they come; a sub-group
on its way counts beside what the optimizer step holds. On the hosts all states are page-locked then, each buffer
rounded up to a power of two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from planner.evaluation.described import placed_alone
from planner.layout import Layout
from planner.memory.host import MOMENTS, PARAMETERS, PINNED_ROUNDING, host_memory
from planner.memory.ledger import memory_ledger
from planner.offloading.drive_step import Price
from planner.offloading.interleaved import (
    best_stride,
    buffer_bytes,
    gpu_elements,
    interleaved_seconds,
    is_on_gpu,
    sub_groups,
    turn_seconds,
)
from planner.offloading.states import FP32_BYTES, SHARDED_WEIGHTS, hosted_seconds, sharded_step, updated_elements
from planner.plans.plan import Phase, Plan
from planner.ranks.communication import shard_ranks
from planner.ranks.placement import PlacedModel
from planner.requests.workload import TrainWorkload
from profiles.hardware import Cluster
from profiles.ops import HostCopy

STEP_PERCENT = 5
"""Steps in which more states are put on the hosts: a choice, a finer one gains less than a sub-group's update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleavedUpdates:
    """A layout whose GPUs and CPUs update sub-groups by turns.

    Args:
        fraction: Part of the states that is on the hosts between steps.
        num_groups: Sub-groups of a rank's states there.
        stride: Every sub-group of this number is updated on the GPU.
        step_seconds: What the step takes.
        gpu_fraction: Part of the states on the hosts that is updated on the GPU.
    """

    fraction: float
    num_groups: int
    stride: int
    step_seconds: float
    gpu_fraction: float


def has_updates_by_turns(layout: Layout) -> bool:
    """Return whether a layout's states are on the hosts as DeepSpeed has them there, weights and drives left out."""
    if layout.offload is None or layout.zero_stage < SHARDED_WEIGHTS or layout.pp > 1:
        return False
    return not (layout.parameters_offloaded or layout.offload.drives)


def interleaved_updates(plan: Plan, *, index: int) -> InterleavedUpdates | None:
    """Return the fastest way to update a layout's sub-groups by turns; None where none fits, or there is none.

    Args:
        plan: A plan with layouts.
        index: Which of them.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    planned, workload = plan.plans[index], plan.request.workload
    layout = planned.layout
    if not has_updates_by_turns(layout):
        return None
    placed, cost_model = placed_alone(layout, plan.model, plan.cluster, plan.request)
    price, trainable = cost_model.compute, placed.elements(0, trainable=True)
    dense_ranks, expert_ranks = shard_ranks(layout, zero_stage=1)
    updated: int = updated_elements(
        dense=trainable.dense, expert=trainable.expert, dense_ranks=dense_ranks, expert_ranks=expert_ranks
    )

    def tail_seconds(fraction: float) -> tuple[float, float]:
        return hosted_seconds(sharded_step(updated=updated, workload=workload, fraction=fraction), price)

    passes = planned.step_seconds - sum(tail_seconds(layout.offloaded_fraction))
    found: list[InterleavedUpdates] = []
    for part in _with_more_on_hosts(placed):
        fraction = part.layout.offloaded_fraction
        away, (on_gpu, _) = int(updated * fraction), tail_seconds(fraction)
        strides = _fitting_strides(part, away, plan.cluster, limit_bytes=planned.memory_limit_bytes)
        best = best_stride(strides, partial(_shared_seconds, tuple(sub_groups(away)), workload, price))
        if best is not None:
            stride, shared = best
            found.append(
                InterleavedUpdates(
                    fraction=fraction,
                    num_groups=sum(1 for _ in sub_groups(away)),
                    stride=stride,
                    step_seconds=passes + on_gpu + shared,
                    gpu_fraction=gpu_elements(away, stride=stride) / away,
                )
            )
    return min(found, key=lambda updates: updates.step_seconds, default=None)


def _shared_seconds(sizes: tuple[int, ...], workload: TrainWorkload, price: Price, stride: int) -> float:
    """Return what copies of gradients and the updates of sub-groups of these sizes take at a stride."""
    sent = sum(size for index, size in enumerate(sizes) if not is_on_gpu(index, stride)) * FP32_BYTES
    turns = {size: turn_seconds(size, workload, price) for size in set(sizes)}
    gradients = price(HostCopy(num_bytes=sent, pinned=True)).seconds
    return gradients + interleaved_seconds([turns[size] for size in sizes], stride=stride)


def _fitting_strides(placed: PlacedModel, away: int, cluster: Cluster, *, limit_bytes: int) -> tuple[int, ...]:
    """Return the strides at which GPUs and hosts hold what updates by turns need.

    A process has page-locked buffers for the 16-bit weights of as many sub-groups as the CPUs update in a round.
    """
    in_passes = _held_bytes(placed, Phase.FORWARD_BACKWARD)
    in_step = _held_bytes(placed, Phase.OPTIMIZER_STEP) + buffer_bytes(away)
    room = limit_bytes - max(in_passes, in_step)
    of_gradient = placed.workload.gradient_dtype.num_bytes
    of_weights = placed.workload.precision.parameter_dtype.num_bytes * PINNED_ROUNDING
    buffer = cluster.gpus_per_node * max(sub_groups(away), default=0) * of_weights
    on_host = _host_room_bytes(placed, cluster)
    return tuple(
        stride
        for stride in range(2, sum(1 for _ in sub_groups(away)) + 1)
        if gpu_elements(away, stride=stride) * of_gradient <= room and (stride - 1) * buffer <= on_host
    )


def _with_more_on_hosts(placed: PlacedModel) -> Iterator[PlacedModel]:
    """Yield a layout with its part of the states on the hosts, and with larger ones."""
    layout = placed.layout
    assert layout.offload is not None, "states are on the hosts"
    planned = layout.offloaded_fraction
    larger = (percent / 100 for percent in range(STEP_PERCENT, 101, STEP_PERCENT))
    for fraction in (planned, *(part for part in larger if part > planned)):
        offload = replace(layout.offload, optimizer_fraction=fraction)
        yield replace(placed, layout=replace(layout, offload=offload))


def _held_bytes(placed: PlacedModel, phase: Phase) -> int:
    """Return what each GPU holds in a phase; there are no pipeline ranks."""
    return sum(line.num_bytes for line in memory_ledger(placed) if line.phase is phase)


def _host_room_bytes(placed: PlacedModel, cluster: Cluster) -> int:
    """Return what is left of the node that holds most, its states being page-locked."""
    ledger = host_memory(placed, cluster)
    assert ledger is not None, "states are on the hosts"
    rounded = sum(line.num_bytes for line in ledger.lines if line.term in {PARAMETERS, MOMENTS})
    return ledger.limit_bytes - ledger.num_bytes - (PINNED_ROUNDING - 1) * rounded
