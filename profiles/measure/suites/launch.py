"""What the host takes to start kernels.

launch: the host's time for one of many launches of a kernel that does next to nothing, the device never waited for.
queue: from a launch to the end of its kernel, an empty queue before it. graph: one kernel of a captured graph. On a CPU
there is no queue: there the first is what PyTorch itself takes for an operation, and the others are not measured.
"""

import time
from collections.abc import Mapping

import torch

from profiles.measure.points import Point
from profiles.measure.suites.context import Context
from profiles.measure.timing import NotMeasurableError, Timing, as_result, captured, summarised

ROUNDS = 30


def measure(point: Point, context: Context) -> Mapping[str, object]:
    """Return the seconds of one kernel.

    Raises:
        NotMeasurableError: A CPU has no queue and no graphs.
    """
    kernels = point.size("kernels")
    tiny = torch.zeros(1, device=context.device)
    match point.word("term"):
        case "launch":
            timing = _launches(tiny, kernels, context, wait=False)
        case _ if not context.is_cuda:
            raise NotMeasurableError("a CPU has no queue and no graphs")
        case "queue":
            timing = _launches(tiny, kernels, context, wait=True)
        case _:
            timing = _graph(tiny, kernels, context)
    return as_result(timing, kernel="add")


def _launches(tiny: torch.Tensor, kernels: int, context: Context, *, wait: bool) -> Timing:
    machine = context.bench.machine
    samples = []
    for _ in range(ROUNDS):
        machine.synchronize()
        begun = time.perf_counter()
        for _ in range(kernels):
            tiny.add_(1.0)
        if wait:
            machine.synchronize()
        samples.append((time.perf_counter() - begun) / kernels)
    return summarised(samples, "clock")


def _graph(tiny: torch.Tensor, kernels: int, context: Context) -> Timing:
    # A kernel is loaded at its first launch, which a capture must not meet.
    tiny.add_(1.0)
    context.bench.machine.synchronize()

    def run() -> None:
        for _ in range(kernels):
            tiny.add_(1.0)

    graph = captured(run)
    samples = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        context.bench.machine.synchronize()
        samples.append(1e-3 * begin.elapsed_time(end) / kernels)
    return summarised(samples, "graph")
