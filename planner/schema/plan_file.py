"""The pydantic mirror of a plan file, key by key: what is in it is the contract with its readers."""

import math
from dataclasses import fields
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from planner.choices import (
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
)
from planner.layout import ContextKind, Granularity, Layout, Offload, Overlap, Recompute, Schedule, Stage
from planner.plan import (
    SCHEMA_VERSION,
    Certainty,
    HostMemory,
    Infeasible,
    MemoryLine,
    OnNodes,
    OtherSchedules,
    Phase,
    Plan,
    PlannedLayout,
    PricedSchedule,
    Relaxation,
    SearchSummary,
    Status,
    TimeLine,
)
from planner.request import MAX_DEGREE, Objective, PlanRequest, Target
from planner.schema.field_types import DIMENSIONS
from planner.schema.translate import complaint, shown
from planner.specs import ModelSpec
from profiles.hardware import Cluster

Terms = Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1)]
Phases = Annotated[dict[Phase, Terms], Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Rank = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


def _known_version(value: object) -> object:
    if isinstance(value, bool) or value != SCHEMA_VERSION:
        raise complaint(
            f"`schema_version` = {shown(value)} is not known.",
            f"This version reads plan files of schema_version {SCHEMA_VERSION}; plan again.",
        )
    return value


class _Mapping(BaseModel):
    """What every mapping of a plan file has in common: no other keys, no silent conversions.

    The frozen dataclasses of the inputs are validated as they are; pydantic hands this configuration down to them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class LayersFile(_Mapping):
    """A run of decoder layers that are recomputed alike."""

    count: Annotated[int, Field(ge=1, le=MAX_DEGREE)]
    granularity: Granularity
    modules: tuple[str, ...]


class RecomputeFile(_Mapping):
    """What is recomputed; `layers` is there only where each layer has a choice of its own."""

    granularity: Granularity
    modules: tuple[str, ...]
    num_layers: int | None
    layers: tuple[LayersFile, ...] = ()

    @model_validator(mode="after")
    def _is_a_choice(self) -> "RecomputeFile":
        self.to_recompute()
        return self

    @property
    def named_layers(self) -> int:
        """Return how many layers have a choice of their own."""
        return sum(run.count for run in self.layers)

    def to_recompute(self) -> Recompute:
        """Return what is recomputed."""
        runs = [(Recompute(granularity=run.granularity, modules=run.modules), run.count) for run in self.layers]
        return Recompute(
            granularity=self.granularity,
            modules=self.modules,
            num_layers=self.num_layers,
            layers=tuple(choice for choice, count in runs for _ in range(count)),
        )


class LayoutFile(_Mapping):
    """One layout; `cp_kind` and `edp` follow from the rest."""

    tp: int
    sequence_parallel: bool
    pp: int
    vpp: int
    cp: int
    ulysses: int
    cp_kind: ContextKind | None
    state_exchange: bool
    ep: int
    etp: int
    edp: int
    dp: int
    zero_stage: int
    state_replicas: int
    secondary_shard: int
    micro_batch_size: int
    num_microbatches: int
    schedule: Schedule
    recompute: RecomputeFile
    offload: Offload | None
    overlap: Overlap
    rank_order: str
    node_order: tuple[int, ...] = ()
    stages: tuple[Stage, ...]

    @model_validator(mode="after")
    def _is_a_layout(self) -> "LayoutFile":
        layout = self.to_layout()
        placed = sum(stage.num_layers for stage in self.stages)
        if self.recompute.granularity is Granularity.PER_LAYER and self.recompute.named_layers != placed:
            raise complaint(
                f"`recompute` names {self.recompute.named_layers} layers, and the stages hold {placed}.",
                "Plan again; a plan file is not edited by hand.",
                field="recompute",
            )
        for name, factors in (("cp_kind", ("cp", "ulysses")), ("edp", ("tp", "cp", "dp", "ep", "etp"))):
            stored, derived = getattr(self, name), getattr(layout, name)
            if stored != derived:
                given = ", ".join(f"{factor} {getattr(self, factor)}" for factor in factors)
                raise complaint(
                    f"`{name}` = {shown(stored)} does not follow from {given}, which give {shown(derived)}.",
                    "Plan again; a plan file is not edited by hand.",
                    field=name,
                )
        return self

    def to_layout(self) -> Layout:
        """Return the layout."""
        said = {field.name: getattr(self, field.name) for field in fields(Layout)}
        return Layout(**{**said, "recompute": self.recompute.to_recompute()})


class BandFile(_Mapping):
    """The ends of the band around a step time; they follow from it and from `certainty`."""

    low_seconds: float
    high_seconds: float


class CertaintyFile(_Mapping):
    """How far step times may be off; `could_swap` follows from the plans."""

    half_width: Annotated[float, Field(ge=0)]
    source: str
    ratio_half_width: Annotated[float, Field(ge=0)]
    ratio_source: str
    could_swap: tuple[int, ...]

    def to_certainty(self) -> Certainty:
        """Return the certainty."""
        return Certainty(**self.model_dump(exclude={"could_swap"}))


class PlannedLayoutFile(_Mapping):
    """One layout with its price; `memory` is rank -> phase -> term -> bytes, `time` is term -> seconds."""

    layout: LayoutFile
    step_seconds: float
    reevaluated_step_seconds: float
    lower_bound_seconds: float
    tokens_per_second_per_gpu: float
    mfu: float
    peak_memory_bytes: int
    memory_limit_bytes: int
    memory: Annotated[dict[Rank, Phases], Field(min_length=1)]
    host_memory: HostMemory | None = None
    time: Annotated[dict[str, float], Field(min_length=1)]
    sources: dict[str, str]
    assumptions: tuple[str, ...]
    band: BandFile | None
    on_nodes: OnNodes | None = None

    @model_validator(mode="after")
    def _every_term_has_a_source(self) -> "PlannedLayoutFile":
        self.to_planned_layout()
        return self

    def to_planned_layout(self) -> PlannedLayout:
        """Return the layout with its price."""
        limits = 0 if self.on_nodes is None else len(self.on_nodes.memory_limit_bytes_R)
        if self.on_nodes is not None and limits != len(self.memory):
            raise complaint(
                f"`memory_limit_bytes_R` has {limits} numbers, `memory` {len(self.memory)} ranks.",
                "Plan again; a plan file is not edited by hand.",
                field="on_nodes",
            )
        memory = tuple(
            MemoryLine(
                rank=int(rank),
                phase=phase,
                term=term,
                num_bytes=num_bytes,
                source=self._memory_source(rank, phase, term),
            )
            for rank, phases in self.memory.items()
            for phase, terms in phases.items()
            for term, num_bytes in terms.items()
        )
        time = tuple(
            TimeLine(term=term, seconds=seconds, source=self._source(f"time.{term}"))
            for term, seconds in self.time.items()
        )
        return PlannedLayout(
            layout=self.layout.to_layout(),
            step_seconds=self.step_seconds,
            reevaluated_step_seconds=self.reevaluated_step_seconds,
            tokens_per_second_per_gpu=self.tokens_per_second_per_gpu,
            mfu=self.mfu,
            peak_memory_bytes=self.peak_memory_bytes,
            memory_limit_bytes=self.memory_limit_bytes,
            on_nodes=self.on_nodes,
            memory=memory,
            time=time,
            assumptions=self.assumptions,
            lower_bound_seconds=self.lower_bound_seconds,
            host_memory=self.host_memory,
        )

    def _memory_source(self, rank: str, phase: Phase, term: str) -> str:
        special = self.sources.get(f"memory.{rank}.{phase}.{term}")
        return special if special is not None else self._source(f"memory.{term}")

    def _source(self, key: str) -> str:
        if key not in self.sources:
            raise complaint(f"`{key}` has no source.", f"Add `{key}` to sources.", field="sources")
        return self.sources[key]


class SearchFile(_Mapping):
    """What the search saw."""

    considered: Count
    legal: Count
    pruned: dict[str, Count]
    simulated: Count
    dimensions: tuple[str, ...]
    uneven_bound_seconds: float | None = None

    def to_summary(self) -> SearchSummary:
        """Return the summary."""
        return SearchSummary(**dict(self))


class InfeasibleFile(_Mapping):
    """Why nothing fits."""

    binding: str
    shortfall_bytes: Count
    nearest: PlannedLayoutFile | None
    relaxations: tuple[Relaxation, ...]

    def to_infeasible(self) -> Infeasible:
        """Return the reasons."""
        return Infeasible(
            binding=self.binding,
            shortfall_bytes=self.shortfall_bytes,
            nearest=self.nearest.to_planned_layout() if self.nearest else None,
            relaxations=self.relaxations,
        )


class NodeCountFile(_Mapping):
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


class NodeChoiceFile(_Mapping):
    """How the number of nodes was chosen."""

    num_offered: Annotated[int, Field(ge=1)]
    proven: bool
    counts: tuple[NodeCountFile, ...]

    def to_choice(self) -> NodeChoice:
        """Return the choice."""
        counts = tuple(count.to_count() for count in self.counts)
        return NodeChoice(num_offered=self.num_offered, counts=counts, proven=self.proven)


class FrontPointFile(_Mapping):
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


class FrontFile(_Mapping):
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


class DegradedFile(_Mapping):
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


class KeptLayoutFile(_Mapping):
    """One of the plan's layouts with fewer replicas."""

    index: Count
    degraded: DegradedFile | None
    reason: str

    def to_kept(self) -> KeptLayout:
        """Return the layout."""
        degraded = self.degraded.to_degraded() if self.degraded else None
        return KeptLayout(index=self.index, degraded=degraded, reason=self.reason)


class LossFile(_Mapping):
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


class SpareFile(_Mapping):
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


class SlowCaseFile(_Mapping):
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


class RobustFile(_Mapping):
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


class SchedulesFile(_Mapping):
    """What other pipeline schedules would make of the plans."""

    priced: tuple[PricedSchedule, ...]
    left_out: dict[str, str]

    def to_schedules(self) -> OtherSchedules:
        """Return the schedules."""
        return OtherSchedules(**dict(self))


class InputsFile(_Mapping):
    """What was planned, where, and for which run."""

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest

    @model_validator(mode="after")
    def _constrains_what_a_layout_has(self) -> "InputsFile":
        unknown = sorted(set(self.request.constraints.degrees) - set(DIMENSIONS))
        if unknown:
            raise complaint(
                f"`constraints` bounds {shown(unknown[0])}, which is no dimension of a layout.",
                f"Known: {', '.join(DIMENSIONS)}.",
                field="request",
            )
        return self


class PlanFile(_Mapping):
    """A whole plan."""

    schema_version: Annotated[int, BeforeValidator(_known_version)]
    target: Target
    status: Status
    objective: Objective
    bound: float | None
    gap: float | None
    search: SearchFile
    plans: tuple[PlannedLayoutFile, ...]
    baseline: PlannedLayoutFile | None
    infeasible: InfeasibleFile | None
    certainty: CertaintyFile | None = None
    days_to_train: float | None
    cost_to_train: float | None
    joules_to_train: float | None = None
    node_choice: NodeChoiceFile | None = None
    pareto: FrontFile | None = None
    spare: SpareFile | None = None
    schedules: SchedulesFile | None = None
    robust: RobustFile | None = None
    inputs: InputsFile

    @model_validator(mode="after")
    def _schedules_are_of_its_layouts(self) -> "PlanFile":
        for entry in self.schedules.priced if self.schedules is not None else ():
            if not 0 <= entry.index < len(self.plans):
                raise complaint(
                    f"`schedules` prices layout {entry.index}, but the file holds {len(self.plans)} plans.",
                    "Plan again; a plan file is not edited by hand.",
                    field="schedules",
                )
        return self

    @model_validator(mode="after")
    def _cases_are_of_its_layouts(self) -> "PlanFile":
        for case in self.robust.cases if self.robust is not None else ():
            if len(case.step_seconds) != len(self.plans):
                raise complaint(
                    f"`robust` prices {len(case.step_seconds)} layouts, but the file holds {len(self.plans)} plans.",
                    "Plan again; a plan file is not edited by hand.",
                    field="robust",
                )
        return self

    @model_validator(mode="after")
    def _status_agrees(self) -> "PlanFile":
        infeasible = self.status is Status.INFEASIBLE
        if infeasible != (not self.plans):
            raise complaint(
                f"`status` = {self.status}, but the file holds {len(self.plans)} plans.",
                "An infeasible result holds none, every other at least one.",
                field="status",
            )
        if infeasible != (self.infeasible is not None):
            raise complaint(
                f"`status` = {self.status}, but `infeasible` says otherwise.",
                "The reasons are given exactly when nothing fits.",
                field="infeasible",
            )
        return self

    @model_validator(mode="after")
    def _certainty_agrees(self) -> "PlanFile":
        certainty = self.certainty.to_certainty() if self.certainty is not None else None
        nearest = self.infeasible.nearest if self.infeasible is not None else None
        for file in (*self.plans, self.baseline, nearest):
            if file is None:
                continue
            band = None if certainty is None else certainty.band_seconds(file.to_planned_layout())
            stored = None if file.band is None else (file.band.low_seconds, file.band.high_seconds)
            if (band is None) != (stored is None) or not all(
                math.isclose(old, new, rel_tol=1e-9) for old, new in zip(stored or (), band or (), strict=True)
            ):
                raise complaint(
                    f"`band` = {shown(stored)} does not follow from the step time and `certainty`, which give"
                    f" {shown(band)}.",
                    "Plan again; a plan file is not edited by hand.",
                    field="certainty",
                )
        if self.certainty is not None and certainty is not None:
            swaps = certainty.could_swap([file.to_planned_layout() for file in self.plans])
            if self.certainty.could_swap != swaps:
                raise complaint(
                    f"`could_swap` = {list(self.certainty.could_swap)} does not follow from the step times, which give"
                    f" {list(swaps)}.",
                    "Plan again; a plan file is not edited by hand.",
                    field="certainty",
                )
        return self

    def to_plan(self) -> Plan:
        """Return the plan."""
        return Plan(
            model=self.inputs.model,
            cluster=self.inputs.cluster,
            request=self.inputs.request,
            target=self.target,
            status=self.status,
            objective=self.objective,
            bound=self.bound,
            gap=self.gap,
            search=self.search.to_summary(),
            plans=tuple(plan.to_planned_layout() for plan in self.plans),
            baseline=self.baseline.to_planned_layout() if self.baseline else None,
            infeasible=self.infeasible.to_infeasible() if self.infeasible else None,
            certainty=self.certainty.to_certainty() if self.certainty else None,
            node_choice=self.node_choice.to_choice() if self.node_choice else None,
            front=self.pareto.to_front() if self.pareto else None,
            spare=self.spare.to_spare() if self.spare else None,
            schedules=self.schedules.to_schedules() if self.schedules else None,
            robustness=self.robust.to_robustness() if self.robust else None,
        )
