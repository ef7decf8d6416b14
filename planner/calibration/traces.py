"""Reads a torch profiler's chrome trace: what kernels took, sorted into classes by their names.

Kernels are events of category `kernel` with `dur` in microseconds; steps are the annotations `ProfilerStep#N` of
`torch.profiler.profile(schedule=...)` with `profiler.step()`. `distributedInfo` names the rank.

A collective's kernel waits for its slowest rank, so its time in one rank's trace is no transfer. Of collectives alike
(same kernel, name and bytes, as `args` say since torch 2.4) the fastest waited least, and stands for all; sends and
receives wait for another stage's work and are left out. Copies between host and GPU say nothing of kernels.
"""

import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from planner.errors import InputError, Location
from profiles.slowed import OperationClass

LARGEST_TRACE = 2 << 30
STEP = re.compile(r"ProfilerStep#(\d+)")
_COLLECTIVE = re.compile(r"nccl|rccl", re.IGNORECASE)
_KINDS = (
    (OperationClass.ATTENTION, re.compile(r"flash|fmha|attention|sdpa|\bmha|fused_attn", re.IGNORECASE)),
    (OperationClass.PRODUCTS, re.compile(r"gemm|gemv|cutlass|cublas|nvjet|splitk|^cijk_|xmma", re.IGNORECASE)),
)
"""Names of kernels of cuBLAS, CUTLASS, Transformer Engine, cuDNN, FlashAttention and Tensile; the first that fits."""

_MESSAGE = ("Collective name", "In msg nelems", "Out msg nelems", "Group size", "dtype")
_PAIRWISE = re.compile(r"send|recv|coalesced", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReading:
    """What a trace says of one rank.

    Args:
        file: The file.
        rank: The rank; None where the trace does not say it.
        num_steps: Steps that it holds.
        step_seconds: Their median, with what the profiler adds.
        kernel_seconds: Of one step, by class; of collectives what they take without waiting, as far as that is known.
        unknown: Names of the longest kernels that were taken to be memory-bound.
        has_messages: Collectives say what they move.
    """

    file: str
    rank: int | None
    num_steps: int
    step_seconds: float
    kernel_seconds: Mapping[OperationClass, float]
    unknown: tuple[str, ...]
    has_messages: bool


def read_trace(path: Path) -> TraceReading:
    """Return what a chrome trace says; it may be packed with gzip.

    Raises:
        InputError: It is none, holds no step, or no kernel.
    """
    data = _loaded(path)
    events = data.get("traceEvents")
    if not isinstance(events, list):
        raise _refused(path, "There is no list of traceEvents.", "Give what prof.export_chrome_trace wrote.")
    steps: dict[int, float] = {}
    kernels: list[tuple[str, float, Mapping[str, object]]] = []
    for event in events:
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        name, seconds = str(event.get("name", "")), _seconds(event.get("dur"))
        step = STEP.fullmatch(name)
        if step is not None and len(step[1]) < 10:
            steps[int(step[1])] = max(seconds, steps.get(int(step[1]), 0.0))
        elif event.get("cat") == "kernel":
            arguments = event.get("args")
            kernels.append((name, seconds, arguments if isinstance(arguments, dict) else {}))
    if not steps:
        raise _refused(
            path, "There is no ProfilerStep in it.", "Record with a schedule, and call profiler.step() after each step."
        )
    if not kernels:
        raise _refused(path, "There is no kernel in it.", "Record with ProfilerActivity.CUDA.")
    return _reading(path, data, steps, kernels)


def _refused(path: Path, message: str, hint: str) -> InputError:
    return InputError(message, location=Location(file=str(path)), hint=hint)


def _loaded(path: Path) -> Mapping[str, object]:
    try:
        if path.is_dir():
            raise _refused(path, "This is a directory.", "Give the path of a file.")
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            raw = stream.read(LARGEST_TRACE + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _refused(path, f"The file cannot be read: {error}.", "Check the path, and that it is whole.") from None
    if len(raw) > LARGEST_TRACE:
        raise _refused(path, f"The trace is larger than {LARGEST_TRACE >> 30} GiB.", "Record fewer steps.")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        place = Location(file=str(path), line=error.lineno if isinstance(error, json.JSONDecodeError) else None)
        raise InputError(f"This is no JSON: {error}.", location=place, hint="Give a whole trace.") from None
    if not isinstance(data, dict):
        raise _refused(path, "There is no list of traceEvents.", "Give what prof.export_chrome_trace wrote.")
    return data


def _seconds(microseconds: object) -> float:
    """Return a duration; 0 for what is none."""
    if isinstance(microseconds, bool) or not isinstance(microseconds, int | float):
        return 0.0
    return microseconds * 1e-6 if 0 <= microseconds < 1e15 else 0.0


def _reading(
    path: Path,
    data: Mapping[str, object],
    steps: Mapping[int, float],
    kernels: Sequence[tuple[str, float, Mapping[str, object]]],
) -> TraceReading:
    totals: defaultdict[OperationClass, float] = defaultdict(float)
    others: defaultdict[str, float] = defaultdict(float)
    messages: defaultdict[tuple[str, ...], list[float]] = defaultdict(list)
    for name, seconds, arguments in kernels:
        if _COLLECTIVE.search(name):
            if "In msg nelems" in arguments and not _PAIRWISE.search(str(arguments.get("Collective name", ""))):
                messages[name, *(str(arguments.get(key, "")) for key in _MESSAGE)].append(seconds)
            continue
        kind = next((kind for kind, pattern in _KINDS if pattern.search(name)), OperationClass.MEMORY_BOUND)
        totals[kind] += seconds
        if kind is OperationClass.MEMORY_BOUND:
            others[name] += seconds
    for alike in messages.values():
        totals[OperationClass.INSIDE] += min(alike) * len(alike)
    described = data.get("distributedInfo")
    rank = described.get("rank") if isinstance(described, dict) else None
    return TraceReading(
        file=str(path),
        rank=rank if isinstance(rank, int) and not isinstance(rank, bool) else None,
        num_steps=len(steps),
        step_seconds=median(steps.values()),
        kernel_seconds={kind: seconds / len(steps) for kind, seconds in sorted(totals.items()) if seconds > 0},
        unknown=tuple(sorted(others, key=lambda name: (-others[name], name))[:3]),
        has_messages=bool(messages),
    )
