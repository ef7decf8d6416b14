"""What a product and a collective, or a copy, lose beside one another.

Products run one after the other on one stream, and what runs beside them on another, each side for about as long as the
other. Each side is timed alone and beside the other: the product's loss for each second of the other is what the
planner calls slow-down. On a CPU the collective runs in gloo's own threads while the products run in this one.
"""

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist

from profiles.measure.points import Point
from profiles.measure.suites.collectives import agreed, collective
from profiles.measure.suites.context import Context, wide_dtype
from profiles.measure.timing import NotMeasurableError

ROUNDS = 7
LEAST_ROUNDS = 3
"""Rounds where one takes longer than all samples of a point may."""

SIDE_SECONDS = 5e-3
"""Each side lasts at least so long."""

LEAST_AHEAD, MOST_AHEAD = 1e-3, 0.1
"""Seconds that the device waits for the host to start everything."""

FASTEST_CLOCK = 2.5e9
"""Cycles a second that no GPU exceeds: waiting is counted in cycles."""

Side = Callable[[], object]


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what both sides take, alone and beside one another; all ranks call it together.

    Raises:
        NotMeasurableError: There is nothing to run beside a product here.
    """
    size, num_bytes = point.sizes
    dtype = wide_dtype(point)

    def made() -> tuple[torch.Tensor, torch.Tensor, Side]:
        left, right = (torch.randn(size, size, dtype=dtype, device=context.device) for _ in range(2))
        return left, right, _other(point.word("beside"), num_bytes, context)

    left, right, other = agreed(context, made, local=True)[0]

    def product() -> object:
        return torch.mm(left, right)

    counts, lasting = context.ranks.shared(_counts(product, other, context))
    ahead = _head_start(product, other, counts, context)
    rounds = ROUNDS if lasting < context.bench.effort.seconds else LEAST_ROUNDS
    found: dict[str, list[float]] = {"alone": [], "other_alone": [], "beside": [], "other_beside": []}
    for _ in range(rounds):
        alone, _ = _both(product, counts[0], other, 0, context, ahead=ahead)
        _, other_alone = _both(product, 0, other, counts[1], context, ahead=ahead)
        beside, other_beside = _both(product, counts[0], other, counts[1], context, ahead=ahead)
        for name, seconds in zip(found, (alone, other_alone, beside, other_beside), strict=True):
            found[name].append(seconds)
    medians = {name: float(np.median(samples)) for name, samples in found.items()}
    return {
        **medians,
        "seconds": medians["beside"],
        "samples": rounds,
        "products": counts[0],
        "others": counts[1],
        "mode": "events" if context.is_cuda else "clock",
        "kernel": context.ranks.backend if point.word("beside") in ("all_reduce", "send_recv") else "copy",
    }


def _other(beside: str, num_bytes: int, context: Context) -> Side:
    """Return what runs beside the products."""
    ranks = context.ranks
    if beside in ("to_device", "to_host"):
        if not context.is_cuda:
            raise NotMeasurableError("a CPU has no link to itself")
        of_host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        of_device = torch.empty(num_bytes, dtype=torch.uint8, device=context.device)
        if beside == "to_device":
            return lambda: of_device.copy_(of_host, non_blocking=True)
        return lambda: of_host.copy_(of_device, non_blocking=True)
    if ranks.world_size < 2 or (beside == "send_recv" and ranks.world_size % 2):
        raise NotMeasurableError(f"{ranks.world_size} ranks have no {beside}")
    group, members = ranks.group(2 if beside == "send_recv" else ranks.world_size, 1)
    if not context.is_cuda:
        return _in_threads(beside, num_bytes, context, group, members)
    return collective(beside, num_bytes, context, group, members)


def _in_threads(
    beside: str, num_bytes: int, context: Context, group: dist.ProcessGroup, members: tuple[int, ...]
) -> Side:
    """Return what starts a collective of gloo's and goes on; the result is waited for."""
    buffer = torch.zeros(num_bytes // 4, dtype=torch.float32)
    if beside == "all_reduce":
        return lambda: dist.all_reduce(buffer, group=group, async_op=True)
    if context.ranks.rank == members[0]:
        return lambda: dist.isend(buffer, dst=members[1], group=group)
    return lambda: dist.irecv(buffer, src=members[0], group=group)


def _counts(product: Side, other: Side, context: Context) -> tuple[tuple[int, int], float]:
    """Return how often each side runs, so that they last about equally long, and how long that is."""
    _both(product, 1, other, 1, context)
    product_seconds, _ = _both(product, 1, other, 0, context)
    _, other_seconds = _both(product, 0, other, 1, context)
    lasting = max(SIDE_SECONDS, product_seconds, other_seconds)
    counts = (math.ceil(lasting / max(product_seconds, 1e-7)), math.ceil(lasting / max(other_seconds, 1e-7)))
    return counts, lasting


def _head_start(product: Side, other: Side, counts: tuple[int, int], context: Context) -> float:
    """Return how long the device waits for the host to start both sides, so that neither is ahead of the other."""
    if not context.is_cuda:
        return LEAST_AHEAD
    context.bench.machine.synchronize()
    begun = time.perf_counter()
    for _ in range(counts[1]):
        other()
    for _ in range(counts[0]):
        product()
    started = time.perf_counter() - begun
    context.bench.machine.synchronize()
    return max(context.ranks.gathered(min(MOST_AHEAD, max(LEAST_AHEAD, 2 * started))))


def _both(  # noqa: PLR0913 - two sides, how often, and where
    product: Side, products: int, other: Side, others: int, context: Context, *, ahead: float = LEAST_AHEAD
) -> tuple[float, float]:
    """Return the seconds of both sides, run at once; a side that runs not at all has 0.

    Args:
        product: One side.
        products: How often it runs.
        other: The other side.
        others: How often that runs.
        context: Where.
        ahead: Seconds that the device waits before both begin.
    """
    context.ranks.barrier()
    if not context.is_cuda:
        return _both_on_cpu(product, products, other, others)
    main, beside = torch.cuda.current_stream(), torch.cuda.Stream()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
    torch.cuda.synchronize()
    # Ranks leave the meeting one after the other; behind what runs beside the products they are together again.
    with torch.cuda.stream(beside):
        if others:
            other()
    main.wait_stream(beside)
    # Both sides wait for the same moment, so that neither is ahead by the host's launches.
    gate = torch.cuda.Event()
    torch.cuda._sleep(int(ahead * FASTEST_CLOCK))
    gate.record(main)
    beside.wait_event(gate)
    with torch.cuda.stream(beside):
        marks[2].record(beside)
        for _ in range(others):
            other()
        marks[3].record(beside)
    marks[0].record(main)
    for _ in range(products):
        product()
    marks[1].record(main)
    torch.cuda.synchronize()
    first, second = marks[0].elapsed_time(marks[1]), marks[2].elapsed_time(marks[3])
    return (1e-3 * first if products else 0.0), (1e-3 * second if others else 0.0)


def _both_on_cpu(product: Side, products: int, other: Side, others: int) -> tuple[float, float]:
    begun = time.perf_counter()
    pending = [other() for _ in range(others)]
    for _ in range(products):
        product()
    first = time.perf_counter() - begun
    for work in pending:
        assert isinstance(work, dist.Work), "gloo's collectives are started without waiting"
        work.wait()
    second = time.perf_counter() - begun
    return (first if products else 0.0), (second if others else 0.0)
