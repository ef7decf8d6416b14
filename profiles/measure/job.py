"""Measures one point on all ranks, and makes one result of theirs."""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path

from profiles.measure.points import Point
from profiles.measure.provenance import conditions_of, provenance
from profiles.measure.ranks import Ranks
from profiles.measure.session import Result
from profiles.measure.suites.context import Context
from profiles.measure.timing import Bench, Effort, LostError, NotMeasurableError

MODULES = {
    "gemm": "gemm",
    "experts": "gemm",
    "attention": "attention",
    "elementwise": "elementwise",
    "collectives": "collectives",
    "copies": "copies",
    "overlap": "overlap",
    "memory": "memory",
    "launch": "launch",
    "layer": "layer",
}
"""Module of each suite."""

LONGEST_REASON = 300


class TorchJob:
    """Measures with torch; a `profiles.measure.session.Job`.

    Args:
        ranks: The processes.
        effort: How long one point is measured.
        scratch: Directory on the drive that is measured.
        called: What the user calls the GPU.
    """

    def __init__(self, ranks: Ranks, *, effort: Effort, scratch: Path, called: str) -> None:
        self._ranks = ranks
        self._context = Context(bench=Bench(ranks.machine, effort), ranks=ranks, scratch=scratch)
        self._called = called
        self._suites: dict[str, Callable[[Point, Context], Result]] = {}
        self._lost = False

    @property
    def leads(self) -> bool:
        """Return whether this process decides and writes."""
        return self._ranks.leads

    def choice(self, index: int | None) -> int | None:
        """Return the first rank's choice on every rank."""
        return self._ranks.shared(index)

    def provenance(self) -> Mapping[str, object]:
        """Return what the run says of itself."""
        return provenance(self._ranks, called=self._called)

    def conditions(self) -> Mapping[str, object]:
        """Return clocks and temperature now."""
        return conditions_of(self._ranks)

    def measure(self, point: Point) -> Result | str:
        """Return what all ranks found together, or why the point cannot be measured."""
        return joined(self._ranks.gathered(self._alone(point)))

    def is_lost(self) -> bool:
        """Return whether some rank's GPU takes no more work; all ranks ask together."""
        return any(self._ranks.gathered(self._lost))

    def _alone(self, point: Point) -> Result | str:
        """Return what this rank finds.

        Memory that runs out, and kernels that refuse a shape, are facts about the point: torch raises RuntimeError for
        both (`torch.OutOfMemoryError` is one).
        """
        if point.suite not in self._suites:
            module = import_module(f"profiles.measure.suites.{MODULES[point.suite]}")
            self._suites[point.suite] = module.measure
        try:
            return self._suites[point.suite](point, self._context)
        except NotMeasurableError as error:
            return str(error)
        except LostError as error:
            self._lost = True
            return str(error)
        except (RuntimeError, NotImplementedError) as error:
            self._lost = not self._context.bench.machine.is_well()
            return f"{type(error).__name__}: {error}"[:LONGEST_REASON]


def joined(found: list[Result | str]) -> Result | str:
    """Return one result of all ranks': the slowest rank's, with the fastest's median; or the first reason.

    A reason that not all ranks have is said with its rank.
    """
    reasons = {rank: result for rank, result in enumerate(found) if isinstance(result, str)}
    if reasons:
        rank, reason = next(iter(reasons.items()))
        return reason if len(set(reasons.values())) == 1 and len(reasons) == len(found) else f"rank {rank}: {reason}"
    working = [result for result in found if not isinstance(result, str) and not result.get("idle")]
    if not working:
        return "no rank measures it"
    slowest: dict[str, object] = {**sorted(working, key=_figure_of)[-1]}
    slowest.pop("idle", None)
    if len(working) > 1 and "seconds" in slowest:
        slowest |= {"ranks": len(working), "fastest": min(_number(result["seconds"]) for result in working)}
    return slowest


def _figure_of(result: Result) -> float:
    return _number(result.get("seconds", result.get("bytes", 0)))


def _number(value: object) -> float:
    assert isinstance(value, int | float), f"{value!r} is a figure"
    return float(value)
