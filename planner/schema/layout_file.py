"""The pydantic mirror of one layout of a plan file: its settings, its price, and how far that may be off."""

import math
from dataclasses import fields
from typing import Annotated

from pydantic import Field, model_validator

from planner.layout import (
    OFFLOADABLE,
    ContextKind,
    Granularity,
    Layout,
    Offload,
    Overlap,
    Recompute,
    Schedule,
    Stage,
)
from planner.plans.plan import (
    Certainty,
    ExpertsInOrder,
    HostMemory,
    MemoryLine,
    OnNodes,
    Phase,
    PlannedLayout,
    TimeLine,
)
from planner.requests.request import MAX_DEGREE
from planner.requests.routing import RankLoads
from planner.schema.strict import Strict
from planner.schema.translate import complaint, shown
from profiles.estimate import Source

Terms = Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1)]
Phases = Annotated[dict[Phase, Terms], Field(min_length=1)]
Rank = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class LayersFile(Strict):
    """A run of decoder layers that are recomputed alike."""

    count: Annotated[int, Field(ge=1, le=MAX_DEGREE)]
    granularity: Granularity
    modules: tuple[str, ...]


class RecomputeFile(Strict):
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


class LayoutFile(Strict):
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
    offloaded_layers: int = 0
    offloaded_modules: tuple[str, ...] = ()
    overlap: Overlap
    rank_order: str
    node_order: tuple[int, ...] = ()
    stages: tuple[Stage, ...]

    @model_validator(mode="after")
    def _offloads_what_can_be(self) -> "LayoutFile":
        if self.offloaded_modules != tuple(name for name in OFFLOADABLE if name in self.offloaded_modules):
            raise complaint(
                f"`offloaded_modules` = {shown(list(self.offloaded_modules))} are not modules that go to the host, in"
                " their order.",
                f"Name some of {', '.join(OFFLOADABLE)}.",
                field="offloaded_modules",
            )
        return self

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


class BandFile(Strict):
    """The ends of the band around a step time; they follow from it and from `certainty`."""

    low_seconds: float
    high_seconds: float


class CertaintyFile(Strict):
    """How far step times may be off; `could_swap` follows from the plans."""

    half_width: Annotated[float, Field(ge=0)]
    source: str
    ratio_half_width: Annotated[float, Field(ge=0)]
    ratio_source: str
    could_swap: tuple[int, ...]

    def to_certainty(self) -> Certainty:
        """Return the certainty."""
        return Certainty(**self.model_dump(exclude={"could_swap"}))


class PlannedLayoutFile(Strict):
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
    drive_memory: HostMemory | None = None
    time: Annotated[dict[str, float], Field(min_length=1)]
    sources: dict[str, str]
    assumptions: tuple[str, ...]
    band: BandFile | None
    on_nodes: OnNodes | None = None
    expert_loads: RankLoads | None = None
    least_expert_loads: RankLoads | None = None
    expert_loads_in_order: RankLoads | None = None
    experts_in_order: ExpertsInOrder | None = None
    source_fractions: dict[Source, Annotated[float, Field(ge=0, le=1)]] | None = None

    @model_validator(mode="after")
    def _sources_add_up(self) -> "PlannedLayoutFile":
        if self.source_fractions is not None and not math.isclose(sum(self.source_fractions.values()), 1, rel_tol=1e-9):
            raise complaint(
                f"`source_fractions` add up to {sum(self.source_fractions.values())}, not 1.",
                "Plan again; a plan file is not edited by hand.",
                field="source_fractions",
            )
        return self

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
            drive_memory=self.drive_memory,
            source_fractions=(
                None
                if self.source_fractions is None
                else {source.value: fraction for source, fraction in self.source_fractions.items()}
            ),
            experts_in_order=self.experts_in_order,
        )

    def _memory_source(self, rank: str, phase: Phase, term: str) -> str:
        special = self.sources.get(f"memory.{rank}.{phase}.{term}")
        return special if special is not None else self._source(f"memory.{term}")

    def _source(self, key: str) -> str:
        if key not in self.sources:
            raise complaint(f"`{key}` has no source.", f"Add `{key}` to sources.", field="sources")
        return self.sources[key]
