"""Updates that GPU and CPUs share by turns: every k-th sub-group of the states is brought to the GPU and back.

Deep Optimizer States (Maurya, Ye, Rafique, Cappello and Nicolae, Middleware 2024, arXiv 2410.21316), as the authors'
fork of DeepSpeed goes about it (github.com/DataStates/DeepSpeed, branch deep-optimizer-states: `runtime/zero/stage3.py`
with `prefetch_optimizer_gap`, and `csrc/async_copier`). Of sub-groups 0, 1, ... the GPU updates those whose number and
one is a multiple of the stride k, the CPUs all others. When the CPUs come to the first of a round of k, two kinds of
copies are asked for, each state (parameter, two moments) on a stream of its own: what the GPU updated last goes back,
and into the same buffers comes what it updates next. The CPUs then wait for the 16-bit weights of the round before, and
update k - 1 sub-groups; their weights are sent behind the last of them, from page-locked buffers. The GPU's sub-group
is waited for, and updated while the CPUs go on. DeepSpeed itself has no key for it, so no plan is made of it.

The paper chooses k by a performance model; here every k is tried, the steps above laid out by clocks: one for the
process and its CPUs, one for each direction of the link, one for the GPU. The link does the copies of a direction in
the order in which they were asked for. Copies also take the host's memory that bounds the updates beside them: a round
takes longer by what its copies' bytes take of that memory alone. The fork leaves the last sub-group of the GPU there
until a round behind it; here its way back counts with the step.

Gradients of the GPU's sub-groups stay there, in the format in which they are added up, from the last backward pass on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.offloading.drive_step import Price
from planner.offloading.states import FP32_BYTES, sharded_step
from planner.requests.workload import TrainWorkload
from profiles.ops import HostCopy, HostPass

SUB_GROUP_ELEMENTS = 100_000_000
"""Elements of a sub-group, as in the scripts of the authors' artifact (github.com/DataStates/artifacts)."""

STATES = 3
"""fp32 parameter and two moments."""

ROOT = 1
"""fp32 square roots of the second moments, while a sub-group is updated (`torch.optim.AdamW`, foreach)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSeconds:
    """What one sub-group takes, each alone.

    Args:
        update: On the CPUs, cast of its weights included.
        on_gpu: On the GPU.
        down: One of its states to the host.
        up: One of its states to the GPU.
        weights: Its 16-bit weights to the GPU.
        states_beside: What all its states, once each way, take of the host's memory.
        weights_beside: What its 16-bit weights do.
    """

    update: float
    on_gpu: float
    down: float
    up: float
    weights: float
    states_beside: float
    weights_beside: float


def is_on_gpu(index: int, stride: int) -> bool:
    """Return whether the GPU updates the sub-group of this number, from 0."""
    return (index + 1) % stride == 0


def interleaved_seconds(groups: Sequence[TurnSeconds], *, stride: int) -> float:
    """Return what the updates of all sub-groups take, by the clocks of the module's docstring.

    Args:
        groups: The sub-groups in order.
        stride: k, at least 2; more than there are sub-groups leaves all to the CPUs.
    """
    process = down = up = gpu = fetched = sent = 0.0
    last: TurnSeconds | None = None
    unsent: list[TurnSeconds] = []
    for first in range(0, len(groups), stride):
        turn = groups[first : first + stride]
        coming = turn[-1] if len(turn) == stride else None
        asked = process
        for _ in range(STATES):
            free = asked
            if last is not None:
                free = down = max(down, asked, gpu) + last.down
            if coming is not None:
                fetched = up = max(up, free) + coming.up
        process = max(process, sent)
        process += sum(group.states_beside / 2 for group in (last, coming) if group is not None)
        process += sum(group.weights_beside for group in unsent)
        by_cpus = turn if coming is None else turn[:-1]
        process += sum(group.update for group in by_cpus)
        for group in by_cpus:
            sent = up = max(up, process) + group.weights
        unsent, last = list(by_cpus), coming
        if coming is not None:
            process = max(process, fetched)
            gpu = max(gpu, process) + coming.on_gpu
    if last is not None:
        down = max(down, gpu) + STATES * last.down
    return max(process, down, up, gpu)


def turn_seconds(elements: int, workload: TrainWorkload, price: Price) -> TurnSeconds:
    """Return what a sub-group of so many elements takes.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    on_host = sharded_step(updated=elements, workload=workload)
    on_gpu = sharded_step(updated=elements, workload=workload, fraction=0.0)
    weights = elements * workload.precision.parameter_dtype.num_bytes
    state = price(HostCopy(num_bytes=elements * FP32_BYTES, pinned=True)).seconds

    def beside(num_bytes: int) -> float:
        return price(HostPass(name="copies beside updates", num_bytes=num_bytes)).seconds

    return TurnSeconds(
        update=price(on_host.update).seconds,
        on_gpu=price(on_gpu.kept).seconds,
        down=state,
        up=state,
        weights=price(HostCopy(num_bytes=weights, pinned=True)).seconds,
        states_beside=beside(2 * STATES * elements * FP32_BYTES),
        weights_beside=beside(weights),
    )


def sub_groups(elements: int) -> Iterator[int]:
    """Yield the elements of each sub-group of so many."""
    whole, rest = divmod(elements, SUB_GROUP_ELEMENTS)
    yield from (SUB_GROUP_ELEMENTS,) * whole
    if rest:
        yield rest


def gpu_elements(elements: int, *, stride: int) -> int:
    """Return how many of so many elements the GPU updates."""
    return sum(group for index, group in enumerate(sub_groups(elements)) if is_on_gpu(index, stride))


def buffer_bytes(elements: int) -> int:
    """Return what the sub-group that the GPU updates takes there: its states, fp32 gradients, and roots."""
    return (STATES + 1 + ROOT) * FP32_BYTES * max(sub_groups(elements), default=0)


def best_stride(strides: Iterable[int], seconds_of: Callable[[int], float]) -> tuple[int, float] | None:
    """Return the stride that takes least with what it takes; of equal ones the largest, which moves least.

    Args:
        strides: Those that may be.
        seconds_of: Gives what the updates take at a stride.
    """
    found = [(seconds_of(stride), -stride) for stride in strides]
    if not found:
        return None
    seconds, stride = min(found)
    return -stride, seconds
