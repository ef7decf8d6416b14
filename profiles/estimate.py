"""What a price is: seconds, and where they come from."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from profiles.ops import Collective, ComputeOp
from profiles.software import TensorParallelOverlap


class Source(StrEnum):
    """Where a figure comes from, best first."""

    MEASURED = "measured"
    INTERPOLATED = "interpolated"
    EXTRAPOLATED = "extrapolated"
    ANALYTIC = "analytic"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The time of one operation.

    Args:
        seconds: Its duration when nothing else runs.
        source: Where the figure comes from.
        note: The tables, formulas or assumptions behind it, one phrase each.
    """

    seconds: float
    source: Source
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """The part of a rate or a bandwidth that is reached.

    Args:
        fraction: That part.
        source: Where it comes from.
        assumed: It was carried over from other hardware, or nothing published gives it.
    """

    fraction: float
    source: str
    assumed: bool


class CostModel(Protocol):
    """Prices operations on one cluster."""

    def compute(self, operation: ComputeOp) -> Estimate:
        """Return the time of one operation on one GPU."""
        ...

    def collective(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part."""
        ...

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch: a pass over a layer takes no less than all of its launches."""
        ...

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        ...

    @property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        ...

    @property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it."""
        ...

    @property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second that a copy to or from the host runs beside it.

        None where it was not measured: nothing published gives it.
        """
        ...
