"""How a kernel is timed.

- Many samples are taken and the median is kept, with the 10th and 90th percentile and the best. What disturbs a kernel
  only adds to its time, so samples far above the median are dropped and counted: beyond five scaled median absolute
  deviations (Leys et al., Journal of Experimental Social Psychology 49(4), 2013) and 5 % of the median.
- Operands are random and there are as many sets of them as twice the last cache holds, used in turn: a kernel finds
  nothing of its last call in the cache, as in training, and no bit pattern makes it cheap.
- On a GPU the calls are captured in a CUDA graph, some milliseconds of them, and replays are timed between two events,
  so that the host's launches cost nothing (the method of `triton.testing.do_bench_cudagraph`). How many calls that are
  is learned from a first graph: one call alone takes as long as its launch where that is longer. A capture that fails
  leaves allocator and generators in the middle of it, so it ends the process (`LostError`). What is never captured is
  timed call by call between events, behind a write to a buffer twice the size of the L2 cache, which also lets the host
  run ahead (`triton.testing.do_bench`).
- On a CPU calls are timed with the host's clock, several at once where one is too short for it.
- Before anything is timed it runs `WARM_UP` times, and once on every set of operands: kernels are chosen and loaded
  then, an optimizer makes its states, and clocks rise.

The card's settings are left as they are; `profiles.measure.provenance` records what the clocks were.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from profiles.measure.gpus import socket_of

Call = Callable[[], object]

WARM_UP = 3
LEAST_LONG = 3
"""Samples of what takes long, at least."""

MOST_SETS = 256
"""Sets of operands at most, whatever the cache."""

GRAPH_SECONDS = 4e-3
"""Calls of so much time make one graph: long beside the tens of microseconds that starting a graph takes."""

MOST_CALLS = 512
"""Calls of one graph, or of one sample on a CPU, at most."""

CPU_SAMPLE_SECONDS = 2e-4
"""A sample on a CPU takes at least so long: a thousand times the resolution of its clock."""

DEVIATIONS = 5.0
SCALED = 1.4826
"""A median absolute deviation of normal samples times this is their standard deviation."""

LEAST_EXCESS = 0.05
"""A sample is never dropped that is above the median by less than this part."""


@dataclass(frozen=True)
class Effort:
    """How long one point is measured.

    Args:
        seconds: Time that samples may take.
        least: Samples at least; of what takes longer than all of the time `LEAST_LONG`.
        most: Samples at most.
    """

    seconds: float = 0.25
    least: int = 5
    most: int = 200

    def samples(self, expected: float) -> int:
        """Return how many samples of so many seconds each are taken."""
        least = self.least if expected < self.seconds else LEAST_LONG
        return max(least, min(self.most, int(self.seconds / max(expected, 1e-9))))


@dataclass(frozen=True)
class Timing:
    """What samples say.

    Args:
        seconds: Their median.
        p10: 10th percentile.
        p90: 90th percentile.
        best: The least.
        samples: How many were kept.
        dropped: How many were not.
        mode: "graph", "events" or "clock".
    """

    seconds: float
    p10: float
    p90: float
    best: float
    samples: int
    dropped: int
    mode: str

    def as_json(self) -> dict[str, object]:
        """Return it as a result of the journal."""
        return {
            "seconds": self.seconds,
            "p10": self.p10,
            "p90": self.p90,
            "best": self.best,
            "samples": self.samples,
            "dropped": self.dropped,
            "mode": self.mode,
        }


def summarised(samples: Sequence[float], mode: str) -> Timing:
    """Return what samples say, those that were disturbed left out."""
    seconds = np.array(samples, dtype=np.float64)
    median = float(np.median(seconds))
    spread = SCALED * float(np.median(np.abs(seconds - median)))
    kept = seconds[seconds <= median + max(DEVIATIONS * spread, LEAST_EXCESS * median)]
    p10, middle, p90 = (float(value) for value in np.quantile(kept, (0.1, 0.5, 0.9)))
    return Timing(
        seconds=middle,
        p10=p10,
        p90=p90,
        best=float(kept.min()),
        samples=len(kept),
        dropped=len(seconds) - len(kept),
        mode=mode,
    )


class Machine:
    """The GPU, or the CPU, that kernels run on.

    Args:
        kind: "cuda" or "cpu".
        index: Which of the node's GPUs.
    """

    def __init__(self, kind: str, index: int = 0) -> None:
        self.is_cuda = kind == "cuda"
        self.device = torch.device(kind, index) if self.is_cuda else torch.device("cpu")
        if self.is_cuda:
            torch.cuda.set_device(self.device)
        self.cache_bytes = _cuda_cache_bytes(self.device) if self.is_cuda else _cpu_cache_bytes()
        self._flush: torch.Tensor | None = None

    def flush(self) -> None:
        """Write over the last cache."""
        if self._flush is None:
            self._flush = torch.empty(2 * self.cache_bytes, dtype=torch.int8, device=self.device)
        self._flush.zero_()

    def synchronize(self) -> None:
        """Wait until everything that was started has ended."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def is_well(self) -> bool:
        """Return whether it takes work after an error; what is not used is given back.

        Some errors of a kernel end every later one of the process too.
        """
        try:
            self.synchronize()
            self.release()
        except RuntimeError:
            return False
        return True

    def release(self) -> None:
        """Give back what is not used."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    @property
    def address(self) -> str | None:
        """Return where the GPU hangs, as "0000:1b:00.0"; None for a CPU, and where torch does not say it."""
        if not self.is_cuda:
            return None
        properties = torch.cuda.get_device_properties(self.device)
        try:
            domain, bus, number = properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
        except AttributeError:  # a torch that does not tell them yet
            return None
        return f"{domain:04x}:{bus:02x}:{number:02x}.0"

    @property
    def socket(self) -> int | None:
        """Return on which of the node's sockets the GPU hangs; None where that is not known."""
        address = self.address
        return None if address is None else socket_of(address)

    @property
    def free_bytes(self) -> int:
        """Return the memory that can still be had."""
        if self.is_cuda:
            free, _ = torch.cuda.mem_get_info(self.device)
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            return int(free) + int(cached)
        return _free_host_bytes()


def _cuda_cache_bytes(device: torch.device) -> int:
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "L2_cache_size", 0)) or 64 << 20


def _cpu_cache_bytes() -> int:
    """Return the size of the last cache of the first CPU; 32 MiB where the system does not say."""
    found = 0
    for size in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = size.read_text(encoding="ascii").strip()
        factor = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        found = max(found, int(text.rstrip("KM")) * factor)
    return found or 32 << 20


def _free_host_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 30


class NotMeasurableError(Exception):
    """A point that this machine cannot measure: the message says why."""


class LostError(Exception):
    """What leaves a process unfit to measure anything else: the message says why."""


def captured(calls: Callable[[], object], stream: torch.cuda.Stream | None = None) -> torch.cuda.CUDAGraph:
    """Return a graph of what some calls start.

    Other threads may go on with what a capture forbids, as those that watch over NCCL do.

    Args:
        calls: Makes the calls.
        stream: Where they are captured; None for one of torch's own.

    Raises:
        LostError: They cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            calls()
    except RuntimeError as error:  # torch's error for everything that a stream cannot capture
        raise LostError(f"it cannot be captured in a graph: {first_line(error)}") from None
    return graph


def first_line(error: Exception) -> str:
    """Return what an error says, cut to one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:LONGEST_LINE]


LONGEST_LINE = 160
"""Characters of an error that are kept."""


class Bench:
    """Times calls on a machine.

    Args:
        machine: The machine.
        effort: How long one point is measured.
    """

    def __init__(self, machine: Machine, effort: Effort) -> None:
        self.machine = machine
        self.effort = effort
        # Backward passes run on the stream of their forward pass, so operands are made on the stream that is captured.
        self._stream = torch.cuda.Stream(machine.device) if machine.is_cuda else None

    def sets(self, make: Callable[[], Call], num_bytes: int) -> list[Call]:
        """Return calls on sets of operands of their own, as many as it takes to overflow the cache twice.

        Args:
            make: Returns a call with operands of its own.
            num_bytes: What one such set takes up.

        Raises:
            NotMeasurableError: There is not memory enough for one.
        """
        free = self.machine.free_bytes
        if num_bytes > 0.9 * free:
            raise NotMeasurableError(f"operands of {num_bytes} bytes do not fit into {free} free ones")
        count = math.ceil(2 * self.machine.cache_bytes / max(num_bytes, 1))
        count = max(1, min(count, MOST_SETS, int(0.5 * free / max(num_bytes, 1))))
        return [make() for _ in range(count)]

    def time(self, make: Callable[[], Call], num_bytes: int, *, graph: bool = True) -> Timing:
        """Return the time of one call.

        Args:
            make: Returns a call with operands of its own.
            num_bytes: What one set of operands takes up.
            graph: Calls may be captured in a CUDA graph.

        Raises:
            NotMeasurableError: There is not memory enough.
            LostError: They cannot be captured.
        """
        if self._stream is None:
            return summarised(self.clocked(self.sets(make, num_bytes)), "clock")
        self.machine.synchronize()
        with torch.cuda.stream(self._stream):
            calls = self.sets(make, num_bytes)
            if not graph:
                return summarised(self._events(calls), "events")
            replay, inner = self._graph_of(calls, self._stream)
            return summarised([seconds / inner for seconds in self._replays(replay)], "graph")

    def clocked(self, calls: Sequence[Call]) -> list[float]:
        """Return samples of the host's clock, the device waited for at the end of each."""
        single = self._warmed(calls)
        inner = max(1, min(MOST_CALLS, math.ceil(CPU_SAMPLE_SECONDS / single)))
        position = 0

        def sample() -> float:
            nonlocal position
            begun = time.perf_counter()
            for _ in range(inner):
                calls[position % len(calls)]()
                position += 1
            self.machine.synchronize()
            return (time.perf_counter() - begun) / inner

        return self._samples(sample, single * inner)

    def _warmed(self, calls: Sequence[Call]) -> float:
        """Return about what a call takes, after it has run often enough."""
        for index in range(max(WARM_UP, len(calls))):
            calls[index % len(calls)]()
        self.machine.synchronize()
        begun = time.perf_counter()
        calls[0]()
        self.machine.synchronize()
        return max(time.perf_counter() - begun, 1e-9)

    def _samples(self, sample: Callable[[], float], expected: float) -> list[float]:
        """Return as many samples as the effort allows."""
        return [sample() for _ in range(self.effort.samples(expected))]

    def _events(self, calls: Sequence[Call]) -> list[float]:
        """Return samples of single calls between events, behind a write over the cache."""
        count = self.effort.samples(self._warmed(calls))
        begins = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(count)]
        for index, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            self.machine.flush()
            begin.record()
            calls[index % len(calls)]()
            end.record()
        self.machine.synchronize()
        return [1e-3 * begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)]

    def _graph_of(self, calls: Sequence[Call], stream: torch.cuda.Stream) -> "tuple[torch.cuda.CUDAGraph, int]":
        """Return a graph of some milliseconds of calls, and how many they are."""
        inner = self._calls_for(self._warmed(calls), len(calls))
        graph = self._captured(calls, inner, stream)
        # A call alone takes its launch at least, so the first graph may be too short; replayed, it says by how much.
        replayed = self._replayed_seconds(graph)
        more = self._calls_for(replayed / inner, len(calls))
        if replayed > GRAPH_SECONDS / 2 or more <= inner:
            return graph, inner
        graph.reset()
        return self._captured(calls, more, stream), more

    @staticmethod
    def _calls_for(single: float, num_sets: int) -> int:
        """Return how many calls of so many seconds make a graph: equally many of each set of operands."""
        inner = max(1, min(MOST_CALLS, math.ceil(GRAPH_SECONDS / single)))
        return math.ceil(inner / num_sets) * num_sets

    @staticmethod
    def _captured(calls: Sequence[Call], inner: int, stream: torch.cuda.Stream) -> "torch.cuda.CUDAGraph":
        def run() -> None:
            for index in range(inner):
                calls[index % len(calls)]()

        return captured(run, stream)

    def _replayed_seconds(self, graph: "torch.cuda.CUDAGraph") -> float:
        """Return what a replay takes on the device, the first one left out, which is loaded there."""
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        self.machine.synchronize()
        return max(1e-3 * float(begin.elapsed_time(end)), 1e-9)

    def _replays(self, graph: "torch.cuda.CUDAGraph") -> list[float]:
        """Return samples of whole replays, all queued before the first is waited for."""
        count = self.effort.samples(self._replayed_seconds(graph))
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        self.machine.synchronize()
        return [1e-3 * begin.elapsed_time(end) for begin, end in pairwise(marks)]


def as_result(timing: Timing, *, kernel: str, more: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return a timing as a result of the journal, with what ran."""
    return {**timing.as_json(), "kernel": kernel, **(more or {})}
