"""What an optimizer step takes whose states lie on the drives of a node, and what it needs there and in memory.

As DeepSpeed's ZeRO-Infinity does it (Rajbhandari et al., arXiv 2104.07857; `runtime/swap_tensor` and
`runtime/zero/stage3.py` of deepspeed 0.19.8), with `zero_stage` 3 alone: stages 1 and 2 take `nvme` for `cpu`. Beside
what states in host memory do (`planner.offloading.states`), the fp32 gradients of the last micro-batch are copied to
page-locked buffers and written (`swap_out_gradients`), tensors below 1 MiB apart. The step then goes sub-group by
sub-group: it reads master weights, two moments and gradients, updates on the CPUs, casts and copies the weights, and
writes all but the gradients. Buffers are locked with `mlock`, and CUDA is not told of them (`csrc/pin_memory`), so that
copies to and from them are those of pageable memory.

Either of two swappers is planned. In turn (`PartitionedOptimizerSwapper`) nothing runs beside reading, updating and
writing. Pipelined (`PipelinedOptimizerSwapper`, `pipeline_read` and `pipeline_write`) the next sub-group is read and
the last one written while one is updated: three of them have buffers at once. Drives are taken to serve one request
after another, in the order in which they come, so that reading and writing do not hide each other. The pipelined one
never lets go of the memory in which the first step made the moments, but for the buffers that replace it in the next
step: until then all moments of a rank are in host memory.

Weights that lie on drives too (`planner.offloading.drive_weights`) are cast into a page-locked buffer and written
behind each sub-group's update, and the process waits for them (`_reassign_or_swap_out_partitioned_parameters`).

That gradients are written beside the last backward pass is not counted: it would take less than said here.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat

from profiles.estimate import Estimate
from profiles.ops import ComputeOp, DriveCopy, HostCopy, HostPass, MemoryBound

DRIVE_SUB_GROUP_ELEMENTS = 100_000_000
"""`sub_group_size` with states on drives: a tenth of DeepSpeed's default, whose buffers would take 48 GB a rank."""

DRIVE_PATH = "/local_nvme"
"""`nvme_path` where nothing else is said: a folder on the drives of each node, joined into one volume."""

BLOCK_BYTES = 1 << 20
"""`aio.block_size`, DeepSpeed's default, written out: what is smaller is not written (`is_swappable_tensor`)."""

ALIGNED_BYTES = 1024
"""What is written is rounded up to a multiple (`AIO_ALIGNED_BYTES`, with `intra_op_parallelism` 1)."""

FILES_OF_STATES = 3
"""Master weights and two moments of a sub-group."""

BUFFERS_OF_SUB_GROUP = FILES_OF_STATES + 1
"""Its gradients too."""

SUB_GROUPS_IN_FLIGHT = 3
"""One is read, one updated, one written where that is pipelined."""

_FP32_BYTES = 4

Price = Callable[[ComputeOp], Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubGroup:
    """The operations of one sub-group's update.

    Args:
        read: Of states and gradients.
        update: On the CPUs, and the cast of the parameters.
        parameters: Copy of the parameters to the GPU.
        weights: Of the parameters that lie on drives; None where they do not.
        write: Of the states.
    """

    read: DriveCopy
    update: HostPass
    parameters: HostCopy
    weights: DriveCopy | None
    write: DriveCopy

    @property
    def operations(self) -> tuple[ComputeOp, ...]:
        """Return all of them, in their order."""
        weights = () if self.weights is None else (self.weights,)
        return (self.read, self.update, self.parameters, *weights, self.write)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveStep:
    """The operations of an optimizer step whose states are on drives, on one rank.

    Args:
        before: The norm, on the GPU.
        gradients: Copy of the gradients to buffers.
        written: Their way from there to the drives.
        whole: A sub-group as large as any.
        num_whole: How many there are.
        rest: A last, smaller one; None where nothing is left.
        pipelined: Sub-groups are read ahead, and written behind.
    """

    before: MemoryBound
    gradients: HostCopy
    written: DriveCopy
    whole: SubGroup
    num_whole: int
    rest: SubGroup | None
    pipelined: bool

    @property
    def operations(self) -> tuple[ComputeOp, ...]:
        """Return all that is not done on the GPU, equal ones once."""
        groups = ((self.whole,) if self.num_whole else ()) + ((self.rest,) if self.rest is not None else ())
        return self.gradients, self.written, *(part for group in groups for part in group.operations)

    def seconds(self, price: Price) -> tuple[float, float]:
        """Return what the GPU does of the step, and how long it waits for host and drives."""
        of_whole = _priced(self.whole, price)
        of_rest = () if self.rest is None else (_priced(self.rest, price),)
        waits = pipelined_seconds if self.pipelined else in_turn_seconds
        behind = waits(chain(repeat(of_whole, self.num_whole), of_rest))
        on_their_way = price(self.gradients).seconds + price(self.written).seconds
        return price(self.before).seconds, on_their_way + behind


@dataclass(frozen=True, slots=True, kw_only=True)
class SubGroupSeconds:
    """What reading, updating and writing a sub-group take, each alone, and writing its weights where they lie there."""

    read: float
    update: float
    write: float
    weights: float = 0.0


def drive_step(
    *,
    updated: int,
    before: MemoryBound,
    of_group: Callable[[int], tuple[HostPass, HostCopy, DriveCopy | None]],
    pipelined: bool,
) -> DriveStep:
    """Return the step of a rank whose states are on drives.

    Args:
        updated: Elements whose states it keeps.
        before: The norm, on the GPU.
        of_group: Gives the update of so many elements, the copy of their parameters, and what is written of these.
        pipelined: Sub-groups are read ahead, and written behind.
    """

    def group(elements: int) -> SubGroup:
        update, parameters, weights = of_group(elements)
        return SubGroup(
            read=DriveCopy(num_bytes=elements * BUFFERS_OF_SUB_GROUP * _FP32_BYTES, written=False),
            update=update,
            parameters=replace(parameters, pinned=False),
            weights=weights,
            write=DriveCopy(num_bytes=elements * FILES_OF_STATES * _FP32_BYTES, written=True),
        )

    num_whole, rest = divmod(updated, DRIVE_SUB_GROUP_ELEMENTS)
    return DriveStep(
        before=before,
        gradients=HostCopy(num_bytes=updated * _FP32_BYTES, pinned=False),
        written=DriveCopy(num_bytes=updated * _FP32_BYTES, written=True),
        whole=group(DRIVE_SUB_GROUP_ELEMENTS),
        num_whole=num_whole,
        rest=group(rest) if rest else None,
        pipelined=pipelined,
    )


def in_turn_seconds(groups: Iterable[SubGroupSeconds]) -> float:
    """Return what sub-groups take of which nothing runs beside anything else."""
    return sum(group.read + group.update + group.weights + group.write for group in groups)


def pipelined_seconds(groups: Iterable[SubGroupSeconds]) -> float:
    """Return what sub-groups take that are read ahead and written behind, by two clocks.

    The process waits for a sub-group's read, asks for the next one's, updates, writes weights that lie there and waits
    for that, waits for the last one's write, and asks for its own (`swap_in_optimizer_state`,
    `swap_out_optimizer_state`); the last write is waited for. The drives do one after another what they are asked for.
    """
    process = drives = here = written = 0.0
    for index, (group, following) in enumerate(_with_next(groups)):
        if index == 0:
            drives = here = group.read
        process = max(process, here)
        if following is not None:
            drives = here = max(drives, process) + following.read
        process += group.update
        if group.weights:
            process = drives = max(drives, process) + group.weights
        process = max(process, written)
        drives = written = max(drives, process) + group.write
    return written


def largest_sub_group(updated: int, *, tensor: int) -> int:
    """Return the elements of a rank's largest sub-group at most: tensors are added until it is large enough.

    Args:
        updated: Elements whose states it keeps.
        tensor: Its share of the largest tensor.
    """
    return min(updated, DRIVE_SUB_GROUP_ELEMENTS - 1 + tensor)


def buffer_count(*, pipelined: bool) -> int:
    """Return `buffer_count`: the buffers that the step needs, each as large as the largest sub-group."""
    return BUFFERS_OF_SUB_GROUP * (SUB_GROUPS_IN_FLIGHT if pipelined else 1)


def buffer_bytes(largest: int, *, pipelined: bool) -> int:
    """Return what the buffers of a rank take in page-locked memory, the largest sub-group having so many elements."""
    return buffer_count(pipelined=pipelined) * aligned_bytes(largest)


def aligned_bytes(elements: int) -> int:
    """Return what so many fp32 numbers take of a buffer or a file."""
    return -(-elements * _FP32_BYTES // ALIGNED_BYTES) * ALIGNED_BYTES


def unwritten_elements(share: int, *, least_part: float) -> int:
    """Return how many of a rank's gradients of a tensor stay on the GPU at most, being too few or uneven to be written.

    Args:
        share: Its elements.
        least_part: The tensor may be one, two equal ones, or three of which two are this part each.
    """
    if share * _FP32_BYTES % ALIGNED_BYTES:
        return share
    return below_block_elements(share, element_bytes=_FP32_BYTES, least_part=least_part)


def below_block_elements(share: int, *, element_bytes: int, least_part: float) -> int:
    """Return how many elements of a rank's share of a tensor lie at most in tensors too small for drives.

    Args:
        share: Its elements.
        element_bytes: Of each.
        least_part: As in `unwritten_elements`.
    """
    least = BLOCK_BYTES // element_bytes
    cuts = ((1.0,), (0.5, 0.5), (least_part, least_part, 1.0 - 2.0 * least_part))
    return math.ceil(max(sum(share * part for part in cut if share * part < least) for cut in cuts))


def file_bytes(updated: int) -> int:
    """Return what a rank's files take on drives at most: those of states, and the last step's gradients."""
    num_groups = -(-updated // DRIVE_SUB_GROUP_ELEMENTS)
    return BUFFERS_OF_SUB_GROUP * (updated * _FP32_BYTES + num_groups * ALIGNED_BYTES)


def _priced(group: SubGroup, price: Price) -> SubGroupSeconds:
    return SubGroupSeconds(
        read=price(group.read).seconds,
        update=price(group.update).seconds + price(group.parameters).seconds,
        write=price(group.write).seconds,
        weights=0.0 if group.weights is None else price(group.weights).seconds,
    )


def _with_next(groups: Iterable[SubGroupSeconds]) -> Iterator[tuple[SubGroupSeconds, SubGroupSeconds | None]]:
    """Yield each sub-group with the one behind it."""
    iterator = iter(groups)
    current = next(iterator, None)
    while current is not None:
        following = next(iterator, None)
        yield current, following
        current = following
