"""The pydantic mirror of a plan file, key by key: what is in it is the contract with its readers."""

import math
from typing import Annotated

from pydantic import model_validator

from planner.models.specs import ModelSpec
from planner.plans.plan import SCHEMA_VERSION, Infeasible, Plan, Relaxation, SearchSummary, Status
from planner.requests.request import Objective, PlanRequest, Target
from planner.requests.routing import RankLoads, Routing
from planner.schema.choices_file import (
    Count,
    FrontFile,
    NodeChoiceFile,
    RobustFile,
    SchedulesFile,
    SpareFile,
    TokenSwapsFile,
)
from planner.schema.field_types import DIMENSIONS
from planner.schema.layout_file import CertaintyFile, PlannedLayoutFile
from planner.schema.strict import Strict, known_version
from planner.schema.translate import complaint, shown
from profiles.hardware import Cluster


class SearchFile(Strict):
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


class InfeasibleFile(Strict):
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


class InputsFile(Strict):
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


class PlanFile(Strict):
    """A whole plan."""

    schema_version: Annotated[int, known_version(SCHEMA_VERSION, "plan files")]
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
    token_swaps: TokenSwapsFile | None = None
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
    def _token_swaps_are_of_its_layouts(self) -> "PlanFile":
        for entry in self.token_swaps.priced if self.token_swaps is not None else ():
            if not 0 <= entry.index < len(self.plans):
                raise complaint(
                    f"`token_swaps` prices layout {entry.index}, but the file holds {len(self.plans)} plans.",
                    "Plan again; a plan file is not edited by hand.",
                    field="token_swaps",
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

    @model_validator(mode="after")
    def _loads_agree(self) -> "PlanFile":
        routing = self.inputs.request.workload.routing
        nearest = self.infeasible.nearest if self.infeasible is not None else None
        for file in (*self.plans, self.baseline, nearest):
            if file is None:
                continue
            for name, derived in _loads_at(routing, file.layout.ep).items():
                if getattr(file, name) != derived:
                    raise complaint(
                        f"`{name}` does not follow from the routing and ep.",
                        "Plan again; a plan file is not edited by hand.",
                        field="plans",
                    )
            if (file.experts_in_order is None) != (file.expert_loads_in_order is None):
                raise complaint(
                    "`experts_in_order` is there exactly where experts are reordered.",
                    "Plan again; a plan file is not edited by hand.",
                    field="plans",
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
            token_swapping=self.token_swaps.to_swapping() if self.token_swaps else None,
            robustness=self.robust.to_robustness() if self.robust else None,
        )


def _loads_at(routing: Routing | None, ep: int) -> dict[str, RankLoads | None]:
    """Return the loads that a plan file says of a layout, by key; None for those that it does not have."""
    if routing is None:
        return dict.fromkeys(("expert_loads", "least_expert_loads", "expert_loads_in_order"))
    return {
        "expert_loads": routing.loads(ep),
        "least_expert_loads": routing.least_loads(ep),
        "expert_loads_in_order": routing.in_order.loads(ep) if routing.reorders(ep) else None,
    }
