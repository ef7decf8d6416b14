"""Copies between a GPU and its host, and between the host and a drive.

Concurrent: every GPU of the node copies at the same time, as they do when states are offloaded; the slowest counts.
Socket: those GPUs do that hang on the socket of the first one, whose memory and slots they share. Host memory is where
the system puts it for a process that is bound to no socket, as training's are unless their launcher binds them.
What goes to a drive is synchronised with it before the clock stops; what comes from it is first put out of the page
cache. A CPU has no link to itself: there only drives are measured.
"""

import os
import time
from collections.abc import Mapping

import torch

from profiles.measure.gpus import copying_ranks
from profiles.measure.points import Point
from profiles.measure.suites.context import Context
from profiles.measure.timing import Call, NotMeasurableError, as_result, summarised

CHUNK_BYTES = 1 << 24
"""What is written to or read from a drive in one call."""

DRIVE_SAMPLES = 5


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return what one copy takes on this rank; all ranks call it together.

    Raises:
        NotMeasurableError: There is no such link.
    """
    direction = point.word("direction")
    if direction in ("to_drive", "from_drive"):
        return _drive(point, context)
    if not context.is_cuda:
        raise NotMeasurableError("a CPU has no link to itself")
    try:
        copying = copying_ranks(context.ranks.sockets, per_node=context.ranks.per_node, beside=point.word("beside"))
    except ValueError as error:
        raise NotMeasurableError(str(error)) from None
    works = context.ranks.rank in copying
    (num_bytes,) = point.sizes
    context.ranks.barrier()
    if not works:
        return {"idle": True}

    def make() -> Call:
        of_host = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, pin_memory=point.word("memory") == "pinned")
        of_device = torch.empty(num_bytes, dtype=torch.uint8, device=context.device)
        if direction == "to_device":
            return lambda: of_device.copy_(of_host, non_blocking=True)
        return lambda: of_host.copy_(of_device, non_blocking=True)

    # Pageable memory goes through a buffer of the driver's, in turns with the host: nothing that a graph could hold.
    timing = context.bench.time(make, num_bytes, graph=False)
    return as_result(timing, kernel="copy")


def _drive(point: Point, context: Context) -> Mapping[str, object]:
    """Return what writing or reading one file takes, on the first rank of each node alone."""
    ranks = context.ranks
    if ranks.rank % ranks.per_node:
        return {"idle": True}
    (num_bytes,) = point.sizes
    path = context.scratch / f".measured-drive.{os.getpid()}"
    chunk = os.urandom(min(CHUNK_BYTES, num_bytes))
    writes = point.word("direction") == "to_drive"
    try:
        _written(path, chunk, num_bytes)
        samples = [
            _written(path, chunk, num_bytes) if writes else _read(path, len(chunk)) for _ in range(DRIVE_SAMPLES)
        ]
    except OSError as error:
        raise NotMeasurableError(f"{context.scratch} cannot be written: {error.strerror}") from None
    finally:
        path.unlink(missing_ok=True)
    return as_result(summarised(samples, "clock"), kernel="file")


def _written(path: os.PathLike[str], chunk: bytes, num_bytes: int) -> float:
    begun = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        left = num_bytes
        while left > 0:
            left -= os.write(descriptor, chunk[:left])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - begun


def _read(path: os.PathLike[str], chunk_bytes: int) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = time.perf_counter()
        while os.read(descriptor, chunk_bytes):
            pass
        return time.perf_counter() - begun
    finally:
        os.close(descriptor)
