"""Reads what a training program prints: seconds of each step, the allocator's peak, whether memory ran out.

Megatron-LM at megatron-core 0.19.2, with `--log-interval 1`:

- `training_log` prints a line for each iteration on the last rank. The first iteration is printed without resetting
  the timer, so that the line of the second holds the mean of both; later lines hold one iteration each.
- `report_memory` prints after the first two iterations on the ranks that stand first in data parallelism. Its "MB"
  are MiB, and its "max allocated" is `torch.cuda.max_memory_allocated`, the second step and optimizer states included.
- Iterations that the loss scaler skips run no optimizer step; the line counts them.

The shipped DeepSpeed program prints a line for each step on rank 0, with the peak over all ranks. Every number is
matched with what stands behind it, so that a line that a killed program left half written is no line.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.units import GIB, MIB

MEGATRON_STEP = re.compile(
    r"iteration +(?P<step>\d+)/ *\d+ \|[^\n]*? elapsed time per iteration \(ms\): (?P<ms>\d+\.\d) \|"
    r"(?:[^\n]*? number of skipped iterations: +(?P<skipped>\d+) \|)?"
)
MEGATRON_SAMPLES = re.compile(r"iteration +(?P<step>\d+)/ *\d+ \|[^\n]*? consumed samples: +(?P<samples>\d+) \|")
MEGATRON_PEAK = re.compile(r"memory \(MB\) \|[^\n]*? max allocated: (?P<mib>\d+\.\d\d) \|")
DEEPSPEED_STEP = re.compile(r"\bstep (?P<step>\d+)/\d+ loss [^\n]*? seconds (?P<seconds>\d+\.\d{3}) ")
DEEPSPEED_PEAK = re.compile(r"\bstep \d+/\d+ loss [^\n]*? peak_memory_gib (?P<gib>\d+\.\d{3})\b")

OUT_OF_MEMORY = r"(CUDA|HIP) (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|failure [0-9]* ?'out of memory'"
"""What PyTorch, the CUDA runtime, cuBLAS and NCCL print when a GPU's memory runs out; an expression of grep -E too."""

LONGEST_LINE = 160
"""Characters of the last line that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLog:
    """What the log of a run says.

    Args:
        step_seconds: Seconds by number of the step.
        num_skipped: Steps left out of it, because the loss scaler skipped their optimizer step.
        peak_bytes: Largest peak of the allocator on any rank; None where none was printed.
        out_of_memory: A GPU's memory ran out.
        last_line: The last line that says something, shortened.
    """

    step_seconds: Mapping[int, float]
    num_skipped: int
    peak_bytes: int | None
    out_of_memory: bool
    last_line: str


def read_log(text: str) -> RunLog:
    """Return what one log says; text of any other kind says nothing."""
    steps: dict[int, float] = {}
    skipped: set[int] = set()
    for match in MEGATRON_STEP.finditer(text):
        number = int(match["step"])
        if int(match["skipped"] or 0):
            skipped.add(number)
        elif float(match["ms"]) > 0:
            steps[number] = float(match["ms"]) / 1e3
    if not steps:
        found = {int(match["step"]): float(match["seconds"]) for match in DEEPSPEED_STEP.finditer(text)}
        steps = {number: seconds for number, seconds in found.items() if seconds > 0}
    peaks = [round(float(match["mib"]) * MIB) for match in MEGATRON_PEAK.finditer(text)]
    peaks += [round(float(match["gib"]) * GIB) for match in DEEPSPEED_PEAK.finditer(text)]
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return RunLog(
        step_seconds=dict(sorted(steps.items())),
        num_skipped=len(skipped),
        peak_bytes=max(peaks, default=None),
        out_of_memory=re.search(OUT_OF_MEMORY, text) is not None,
        last_line=last if len(last) <= LONGEST_LINE else f"{last[:LONGEST_LINE]}...",
    )


def samples_per_step(text: str) -> int | None:
    """Return the sequences of one step by a log of Megatron-LM, which counts those consumed; None where that varies."""
    consumed = {int(match["step"]): int(match["samples"]) for match in MEGATRON_SAMPLES.finditer(text)}
    found = {samples - consumed[step - 1] for step, samples in consumed.items() if step - 1 in consumed}
    return found.pop() if len(found) == 1 else None


def merged(logs: Iterable[RunLog]) -> RunLog:
    """Return what the logs of a run's nodes say together; only one of them holds the steps."""
    found = tuple(logs)
    peaks = [log.peak_bytes for log in found if log.peak_bytes is not None]
    return RunLog(
        step_seconds=max((log.step_seconds for log in found), key=len, default={}),
        num_skipped=max((log.num_skipped for log in found), default=0),
        peak_bytes=max(peaks, default=None),
        out_of_memory=any(log.out_of_memory for log in found),
        last_line=next((log.last_line for log in found if log.last_line), ""),
    )
