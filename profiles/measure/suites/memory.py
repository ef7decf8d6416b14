"""What memory is taken beyond tensors: a process's context, one more communicator, and the allocator's rounding.

The context is that of a process of its own, which the driver's free memory (`torch.cuda.mem_get_info`) is watched
around: libraries that a first product loads belong to it. A communicator's is what free memory loses to a new group and
its first collective, on the rank that loses most. On a CPU it is resident memory, and there is no allocator to look
into.
"""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from profiles.measure.points import Point, allocator_sizes
from profiles.measure.suites.context import Context
from profiles.measure.timing import NotMeasurableError, first_line

_OTHER_PROCESS = """
import sys, torch
torch.cuda.set_device({index})
a = torch.ones(16, 16, device="cuda", dtype=torch.bfloat16)
torch.mm(a, a)
torch.cuda.synchronize()
print(torch.cuda.memory_reserved(), flush=True)
sys.stdin.readline()
"""


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return the bytes of one term; all ranks call it together.

    Raises:
        NotMeasurableError: There is no such term here, or something else gave memory back meanwhile.
    """
    match point.word("term"):
        case "context":
            num_bytes = _context(context)
        case "communicator":
            num_bytes = _communicator(point.size("count"), context)
        case _:
            num_bytes = _allocator(point.size("count"), context)
    if num_bytes < 0:
        raise NotMeasurableError(f"memory was given back meanwhile: {num_bytes} bytes are no figure")
    return {"bytes": num_bytes, "samples": 1, "mode": "driver" if context.is_cuda else "resident", "kernel": ""}


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _taken_bytes(context: Context) -> int:
    """Return what this GPU holds of anything, or this process of the host's memory."""
    if not context.is_cuda:
        return _resident_bytes()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info(context.device)
    return int(total) - int(free)


def _context(context: Context) -> int:
    if not context.is_cuda:
        return _resident_bytes()
    # One process a GPU at a time, or the neighbours' would be counted too.
    before = _taken_bytes(context)
    program = _OTHER_PROCESS.format(index=context.device.index or 0)
    told, why_not, after = _other_process(program, lambda: _taken_bytes(context))
    if not told.isdecimal():
        raise NotMeasurableError(f"a second process could not use the GPU: {why_not or 'it said nothing'}")
    return after - before - int(told)


def _other_process(program: str, while_it_waits: Callable[[], int]) -> tuple[str, str, int]:
    """Return the first line of a process, the last one of its errors, and what is found while it waits for a line."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        ) as other,
    ):
        assert other.stdout is not None, "the process's output is a pipe"
        told = other.stdout.readline().decode(errors="replace").strip()
        found = while_it_waits()
        other.communicate(b"\n")
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return told, first_line(RuntimeError(lines[-1])) if lines else "", found


def _communicator(count: int, context: Context) -> int:
    ranks = context.ranks
    if ranks.world_size < 2 or ranks.world_size % count or count < 2:
        raise NotMeasurableError(f"{ranks.world_size} ranks have no groups of {count}")
    gc.collect()
    context.bench.machine.release()
    buffer = torch.zeros(1 << 20, dtype=torch.float32, device=context.device)
    ranks.barrier()
    before = _taken_bytes(context)
    group = ranks.new_group(count, 1)
    dist.all_reduce(buffer, group=group)
    taken = _taken_bytes(context) - before
    ranks.barrier()
    dist.destroy_process_group(group)
    return max(ranks.gathered(taken))


def _allocator(count: int, context: Context) -> int:
    if not context.is_cuda:
        raise NotMeasurableError("the allocator of a CPU cannot be asked")
    context.bench.machine.release()
    before = torch.cuda.memory_reserved(context.device)
    sizes = allocator_sizes(count)
    held = [torch.empty(size, dtype=torch.uint8, device=context.device) for size in sizes]
    reserved = torch.cuda.memory_reserved(context.device) - before
    del held
    context.bench.machine.release()
    return int(reserved) - sum(sizes)
