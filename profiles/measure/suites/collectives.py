"""Collectives of every group shape, as nccl-tests times them: many back to back, the time of one, the slowest rank.

Ranks leave a meeting up to a hundred microseconds apart, so each sample begins behind one collective that is not timed:
on the device it ends everywhere at once.

Group shapes are (size, stride): members stand `stride` ranks apart. Alone, only the group of rank 0 works while the
others wait; concurrent, all groups of the shape work at once, as they do in training. In graph mode the calls are
captured in a CUDA graph. Buffers are those of `profiles.ops.Collective.buffer_bytes`: the full tensor for all_reduce,
all_gather and reduce_scatter, what one rank sends in all for all_to_all, what is moved for send_recv.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.distributed as dist

from profiles.measure.points import Point
from profiles.measure.suites.context import Context
from profiles.measure.timing import LostError, NotMeasurableError, Timing, as_result, captured, first_line, summarised

ELEMENT = torch.bfloat16

SAMPLE_SECONDS = 2e-3
"""Calls of so much time make one sample."""

MOST_CALLS = 200
# Their names since torch 2.13, and before.
_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

ROUNDS = 10
"""Samples taken, each behind a meeting of all ranks."""

WARM_UP = 3
ESTIMATED_FROM = 5
"""Calls whose mean says how many make a sample: a single one is mostly the wait for the last rank."""

LEAST_ROUNDS = 3
"""Samples where one takes longer than all of a point may."""


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what one collective takes on this rank; all ranks call it together.

    Raises:
        NotMeasurableError: The job has no such group, or its library no such collective.
    """
    size, stride, num_bytes = point.sizes
    ranks = context.ranks
    if ranks.world_size % (size * stride) or size < 2:
        raise NotMeasurableError(f"{ranks.world_size} ranks have no groups of {size} ranks {stride} apart")
    if point.word("kind") == "send_recv" and size > 2:
        raise NotMeasurableError("send_recv is measured between two ranks")
    if point.word("mode") == "graph" and not context.is_cuda:
        raise NotMeasurableError("only a GPU has graphs")
    group, members = ranks.group(size, stride)
    works = point.word("beside") == "concurrent" or members[0] == 0
    call = agreed(context, lambda: collective(point.word("kind"), num_bytes, context, group, members), local=True)[0]
    timing = _timed(call, context, graph=point.word("mode") == "graph", works=works)
    return as_result(timing, kernel=ranks.backend, more={"idle": not works})


def collective(
    kind: str, num_bytes: int, context: Context, group: dist.ProcessGroup, members: tuple[int, ...]
) -> Callable[[], object]:
    """Return what runs one collective on this rank.

    Raises:
        NotMeasurableError: The buffer cannot be cut into equal parts.
    """
    size = len(members)
    elements = num_bytes // ELEMENT.itemsize
    part = elements // size
    if part == 0:
        raise NotMeasurableError(f"{num_bytes} bytes are less than an element for each of {size} ranks")

    def random(count: int) -> torch.Tensor:
        return torch.randn(count, dtype=torch.float32, device=context.device).to(ELEMENT)

    if kind == "send_recv":
        first, second = members
        moved = random(elements)
        if context.ranks.rank == first:
            return lambda: dist.send(moved, dst=second, group=group)
        return lambda: dist.recv(moved, src=first, group=group)
    if kind == "all_reduce":
        # The mean stays in range however often it is taken; gloo has sums alone, of zeros then.
        buffer = random(elements) if context.is_cuda else torch.zeros(elements, dtype=ELEMENT)
        summed = dist.ReduceOp.AVG if context.is_cuda else dist.ReduceOp.SUM
        return lambda: dist.all_reduce(buffer, op=summed, group=group)
    own, whole, other = random(part), random(part * size), random(part * size)
    calls: Mapping[str, Callable[[], object]] = {
        "all_gather": lambda: _GATHER(whole, own, group=group),
        "reduce_scatter": lambda: _SCATTER(own, whole, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
    }
    return calls[kind]


def _timed(call: Callable[[], object], context: Context, *, graph: bool, works: bool) -> Timing:
    """Return the time of one of many calls back to back; a rank that only waits takes part in the meetings."""
    ranks = context.ranks
    single = max(agreed(context, lambda: _estimate(call, context) if works else 0.0))
    inner = max(1, min(MOST_CALLS, math.ceil(SAMPLE_SECONDS / max(single, 1e-7))))
    repeated = agreed(context, lambda: _captured(call, inner) if graph and works else None, local=True)[0]
    samples = []
    for _ in range(ROUNDS if inner * single < context.bench.effort.seconds else LEAST_ROUNDS):
        ranks.barrier()
        begun = time.perf_counter()
        if works:
            samples.append(_sample(call, context, inner, repeated) / inner)
        else:
            samples.append(max(time.perf_counter() - begun, 1e-9))
    mode = "graph" if graph else "events" if context.is_cuda else "clock"
    return summarised(samples, mode)


T = TypeVar("T")


def agreed(context: Context, work: Callable[[], T], *, local: bool = False) -> list[T]:
    """Return what every rank finds, or this rank's own finding alone.

    Where one cannot do its work, memory for one, none goes on: the others would wait for it.

    Raises:
        NotMeasurableError: One could not.
        LostError: One's process is lost by it.
    """
    found: list[T] = []
    reason, lost = "", False
    try:
        found.append(work())
    except LostError as error:
        reason, lost = str(error), True
    except RuntimeError as error:  # torch's for what a library refuses
        reason = first_line(error)
    reasons = [(text, ends) for text, ends in context.ranks.gathered((reason, lost)) if text]
    if any(ends for _, ends in reasons):
        raise LostError(next(text for text, ends in reasons if ends))
    if reasons:
        raise NotMeasurableError(reasons[0][0])
    return found if local else context.ranks.gathered(found[0])


def _estimate(call: Callable[[], object], context: Context) -> float:
    for _ in range(WARM_UP):
        call()
    context.bench.machine.synchronize()
    begun = time.perf_counter()
    for _ in range(ESTIMATED_FROM):
        call()
    context.bench.machine.synchronize()
    return (time.perf_counter() - begun) / ESTIMATED_FROM


def _captured(call: Callable[[], object], inner: int) -> "torch.cuda.CUDAGraph":
    """Return a graph of so many calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)

    def run() -> None:
        for _ in range(inner):
            call()

    return captured(run)


def _sample(call: Callable[[], object], context: Context, inner: int, repeated: "torch.cuda.CUDAGraph | None") -> float:
    """Return the time of so many calls, behind one that all ranks leave together."""
    call()
    if not context.is_cuda:
        begun = time.perf_counter()
        for _ in range(inner):
            call()
        return time.perf_counter() - begun
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    if repeated is not None:
        repeated.replay()
    else:
        for _ in range(inner):
            call()
    end.record()
    torch.cuda.synchronize()
    return 1e-3 * float(begin.elapsed_time(end))
