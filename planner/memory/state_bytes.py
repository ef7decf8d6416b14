"""Bytes of an element's states, of fp8 copies and of communicators: what the ledger and its bounds both count by."""

import math
from dataclasses import dataclass

from planner.frameworks.capabilities import Capabilities
from planner.frameworks.overheads import Overheads
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.offloading.states import SHARDED_WEIGHTS
from planner.ranks.communication import Count, Grid, communicator_sizes, grid_of, num_moments
from planner.ranks.shard import Elements
from planner.requests.workload import DType, Optimizer, Precision, TrainWorkload

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


def gradients_on_host(layout: Layout) -> bool:
    """Return whether a rank's share of the gradients lies on the host beside its optimizer states."""
    return layout.offload is not None and layout.zero_stage == SHARDED_WEIGHTS


def kept_bytes(num_bytes: int, layout: Layout) -> int:
    """Return what is left on a GPU of the bytes of optimizer states, the rest being in host memory; rounded up."""
    fraction = layout.offloaded_fraction
    return math.ceil(num_bytes * (1.0 - fraction)) if fraction else num_bytes


def half_gradient_bytes(layout: Layout, workload: TrainWorkload, capabilities: Capabilities) -> int:
    """Return the bytes per trainable element of 16-bit gradients that are kept beside the accumulated ones."""
    apart = workload.gradient_dtype is not workload.precision.parameter_dtype
    return 2 if capabilities.half_gradients and layout.zero_stage == 1 and apart else 0


def uses_precision_aware_optimizer(workload: TrainWorkload) -> bool:
    """Return whether master weights or moments are kept in less than fp32."""
    return workload.master_dtype is not DType.FP32 or workload.moment_dtype is not DType.FP32


def communicator_bytes(layout: Layout, model: ModelSpec, overheads: Overheads) -> int:
    """Return the memory of every communicator that one rank opens."""
    return communicators_bytes(grid_of(layout), model, overheads)


def communicators_bytes(grid: Grid[Count], model: ModelSpec, overheads: Overheads) -> Count:
    """Return the memory of every communicator that one rank opens, of one layout or of many."""
    sizes = communicator_sizes(grid, tied_embedding=model.copies_embedding, has_experts=model.has_experts)
    pairs, groups = sizes[0] * 0, sizes[0] * 0
    for size in sizes:
        pairs = pairs + 1 * (size == 2)
        groups = groups + 1 * (size > 2)
    total: Count = pairs * overheads.pair_communicator_bytes + groups * overheads.group_communicator_bytes
    return total


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
