"""What every suite is given, and the formats that they share."""

from dataclasses import dataclass
from pathlib import Path

import torch

from profiles.measure.points import Point
from profiles.measure.ranks import Ranks
from profiles.measure.timing import Bench, NotMeasurableError


@dataclass(frozen=True)
class Context:
    """Where a suite measures.

    Args:
        bench: Times calls.
        ranks: The job.
        scratch: Directory on the drive that is measured.
    """

    bench: Bench
    ranks: Ranks
    scratch: Path

    @property
    def device(self) -> torch.device:
        """Return what kernels run on."""
        return self.bench.machine.device

    @property
    def is_cuda(self) -> bool:
        """Return whether that is a GPU."""
        return self.bench.machine.is_cuda


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Formats that every operation takes."""


def wide_dtype(point: Point) -> torch.dtype:
    """Return a point's format, where it must be one of 16 bit or more.

    Raises:
        NotMeasurableError: It is narrower.
    """
    name = point.word("dtype")
    if name not in DTYPES:
        raise NotMeasurableError(f"{point.suite} is not measured in {name}")
    return DTYPES[name]
