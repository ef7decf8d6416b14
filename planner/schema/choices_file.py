"""The pydantic mirror of what a plan file says beside its layouts.

Which numbers of nodes were looked at, the front of memory and time, what is left when nodes are lost, how the layouts
do where some operations are slower, and what other pipeline schedules and divided tokens would make of them.
"""

from dataclasses import fields
from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from planner.plans.choices import (
    Degraded,
    Front,
    FrontPoint,
    KeptLayout,
    Loss,
    NodeChoice,
    NodeCount,
    NodeVerdict,
    Robustness,
    SlowCase,
    Spare,
    SwappedTokens,
    TokenSwapping,
)
from planner.plans.plan import OtherSchedules, PricedSchedule
from planner.schema.layout_file import LayoutFile
from planner.schema.strict import Strict
from planner.schema.translate import complaint

Count = Annotated[int, Field(ge=0)]


class NodeCountFile(Strict):
    """One number of nodes; days, cost and joules follow from its step."""

    num_nodes: Annotated[int, Field(ge=1)]
    verdict: NodeVerdict
    step_seconds: float | None
    bound_seconds: float | None
    days_to_train: float | None
    cost_to_train: float | None
    joules_to_train: float | None

    def to_count(self) -> NodeCount:
        """Return the number."""
        return NodeCount(**{field.name: getattr(self, field.name) for field in fields(NodeCount)})


class NodeChoiceFile(Strict):
    """How the number of nodes was chosen."""

    num_offered: Annotated[int, Field(ge=1)]
    proven: bool
    counts: tuple[NodeCountFile, ...]

    def to_choice(self) -> NodeChoice:
        """Return the choice."""
        counts = tuple(count.to_count() for count in self.counts)
        return NodeChoice(num_offered=self.num_offered, counts=counts, proven=self.proven)


class FrontPointFile(Strict):
    """One point of memory and time; `gap` follows from its bound."""

    layout: LayoutFile
    step_seconds: Annotated[float, Field(gt=0)]
    peak_memory_bytes: Count
    limit_bytes: Count
    bound_seconds: float
    gap: float

    def to_point(self) -> FrontPoint:
        """Return the point."""
        return FrontPoint(
            layout=self.layout.to_layout(),
            step_seconds=self.step_seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            limit_bytes=self.limit_bytes,
            bound_seconds=self.bound_seconds,
        )


class FrontFile(Strict):
    """Memory against time."""

    step_bytes: Annotated[int, Field(ge=1)]
    open_below_bytes: Count | None
    of_bytes: Annotated[int, Field(ge=1)] | None = None
    points: Annotated[tuple[FrontPointFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_a_front(self) -> "FrontFile":
        for first, second in pairwise(self.points):
            if second.step_seconds <= first.step_seconds or second.peak_memory_bytes >= first.peak_memory_bytes:
                raise complaint(
                    "`points` are no front: each has to need less memory than the last, and to take longer.",
                    "Plan again; a plan file is not edited by hand.",
                    field="points",
                )
        return self

    def to_front(self) -> Front:
        """Return the front."""
        return Front(
            points=tuple(point.to_point() for point in self.points),
            step_bytes=self.step_bytes,
            open_below_bytes=self.open_below_bytes,
            of_bytes=self.of_bytes,
        )


class DegradedFile(Strict):
    """A run after nodes were lost."""

    num_nodes: Annotated[int, Field(ge=1)]
    layout: LayoutFile
    step_seconds: Annotated[float, Field(gt=0)]
    lost_fraction: float

    def to_degraded(self) -> Degraded:
        """Return the run."""
        return Degraded(
            num_nodes=self.num_nodes,
            layout=self.layout.to_layout(),
            step_seconds=self.step_seconds,
            lost_fraction=self.lost_fraction,
        )


class KeptLayoutFile(Strict):
    """One of the plan's layouts with fewer replicas."""

    index: Count
    degraded: DegradedFile | None
    reason: str

    def to_kept(self) -> KeptLayout:
        """Return the layout."""
        degraded = self.degraded.to_degraded() if self.degraded else None
        return KeptLayout(index=self.index, degraded=degraded, reason=self.reason)


class LossFile(Strict):
    """Some nodes that are lost, where it matters which."""

    nodes: Annotated[tuple[Count, ...], Field(min_length=1)]
    num_alike: Annotated[int, Field(ge=1)]
    left: tuple[Count, ...]
    replanned: DegradedFile | None
    reason: str
    proven: bool

    def to_loss(self) -> Loss:
        """Return the loss."""
        return Loss(
            nodes=self.nodes,
            num_alike=self.num_alike,
            left=self.left,
            replanned=self.replanned.to_degraded() if self.replanned else None,
            reason=self.reason,
            proven=self.proven,
        )


class SpareFile(Strict):
    """What is left when nodes are lost; where nodes differ, of the worst loss."""

    num_lost: Annotated[int, Field(ge=1)]
    replanned: DegradedFile | None
    reason: str
    proven: bool
    kept: tuple[KeptLayoutFile, ...]
    losses: tuple[LossFile, ...] = ()

    def to_spare(self) -> Spare:
        """Return what is left."""
        return Spare(
            num_lost=self.num_lost,
            replanned=self.replanned.to_degraded() if self.replanned else None,
            reason=self.reason,
            proven=self.proven,
            kept=tuple(entry.to_kept() for entry in self.kept),
            losses=tuple(loss.to_loss() for loss in self.losses),
        )


class SlowCaseFile(Strict):
    """One class of operations slower than predicted; losses follow from the step times."""

    slow: str
    factor: Annotated[float, Field(ge=1)]
    source: str
    best_seconds: Annotated[float, Field(gt=0)]
    bound_seconds: float
    fastest_seconds: float
    fastest_loss: float
    step_seconds: Annotated[tuple[float, ...], Field(min_length=1)]
    losses: tuple[float, ...]

    def to_case(self) -> SlowCase:
        """Return the case."""
        return SlowCase(
            slow=self.slow,
            factor=self.factor,
            source=self.source,
            best_seconds=self.best_seconds,
            bound_seconds=self.bound_seconds,
            fastest_seconds=self.fastest_seconds,
            seconds_P=self.step_seconds,
        )


class RobustFile(Strict):
    """How the plans do where some operations are slower than predicted; the worst loss follows from the cases."""

    fastest: LayoutFile
    worst_loss: float
    least_loss: float
    uneven_least_loss: float | None
    cases: Annotated[tuple[SlowCaseFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _the_bound_is_below_what_is_lost(self) -> "RobustFile":
        worst = max(case.step_seconds[0] / case.best_seconds - 1.0 for case in self.cases)
        if self.least_loss > worst:
            raise complaint(
                f"`least_loss` = {self.least_loss} is more than the first layout loses in its worst case, {worst}.",
                "Plan again; a plan file is not edited by hand.",
                field="least_loss",
            )
        return self

    def to_robustness(self) -> Robustness:
        """Return how they do."""
        return Robustness(
            fastest=self.fastest.to_layout(),
            cases=tuple(case.to_case() for case in self.cases),
            least_loss=self.least_loss,
            uneven_least_loss=self.uneven_least_loss,
        )


class TokenSwapsFile(Strict):
    """What dividing the tokens of activations would make of the plans."""

    priced: tuple[SwappedTokens, ...]
    left_out: dict[str, str]
    assumptions: tuple[str, ...]

    def to_swapping(self) -> TokenSwapping:
        """Return it."""
        return TokenSwapping(**dict(self))


class SchedulesFile(Strict):
    """What other pipeline schedules would make of the plans."""

    priced: tuple[PricedSchedule, ...]
    left_out: dict[str, str]

    def to_schedules(self) -> OtherSchedules:
        """Return the schedules."""
        return OtherSchedules(**dict(self))
