"""What one change of a running layout would gain: for each part of the layout, the best value of it with the rest kept.

A part is a group of settings that only make sense together: a change of tp changes dp too, as the GPUs are given. Each
is searched exactly, the settings of the other parts pinned to the layout's own, so a gain is what the planner's own
search finds and what its evaluator confirms. How the layers are split and which communication is hidden is chosen
anew in each; with everything pinned that is the first part by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.errors import NotExpressibleError
from planner.inputs.load import Inputs
from planner.layout import Layout
from planner.plans.comparison import WORTH_SAYING
from planner.plans.plan import Plan, PlannedLayout
from planner.requests.request import Bounds, Constraints
from planner.search.search import search
from solvers.errors import SolverError

PINNED = ("tp", "pp", "vpp", "cp", "ep", "etp", "zero_stage", "micro_batch_size")

PARTS: Mapping[str, tuple[str, ...]] = {
    "layers per stage, recomputed layers and overlap": (),
    "recompute": ("recompute",),
    "micro-batch": ("micro_batch_size",),
    "virtual stages": ("vpp",),
    "ZeRO stage": ("zero_stage",),
    "tensor parallelism": ("tp", "sequence_parallel"),
    "pipeline parallelism": ("pp", "vpp"),
    "context parallelism": ("cp", "cp_kind"),
    "expert parallelism": ("ep", "etp"),
}
"""What each part leaves free, dp always following from the number of GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One change that helps.

    Args:
        part: The part of the layout that changes.
        planned: The layout with it.
        saved_fraction: The share of the step that it saves.
    """

    part: str
    planned: PlannedLayout
    saved_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleChanges:
    """What changes of one part would save.

    Args:
        helping: Those that are worth saying, the largest saving first.
        open: Each part of which the search found nothing and proved nothing, and why.
    """

    helping: tuple[Advice, ...]
    open: Mapping[str, str]


def best_of_all(inputs: Inputs) -> Plan:
    """Return the best layout with nothing pinned."""
    return search(inputs.model, inputs.cluster, replace(inputs.request, constraints=Constraints()), top=1)


def single_changes(planned: PlannedLayout, inputs: Inputs) -> SingleChanges:
    """Return the changes of one part that save time; of equal layouts the first part's."""
    found: dict[Layout, Advice] = {}
    still_open: dict[str, str] = {}
    for part, free in PARTS.items():
        request = replace(inputs.request, constraints=_pinned(planned.layout, free))
        try:
            plan = search(inputs.model, inputs.cluster, request, top=1)
        except NotExpressibleError:
            # The target can say nothing else of this part, which is no advice.
            continue
        except SolverError as error:
            still_open[part] = str(error)
            continue
        if plan.plans:
            saved = 1.0 - plan.best.step_seconds / planned.step_seconds
            if saved >= WORTH_SAYING:
                found.setdefault(plan.best.layout, Advice(part=part, planned=plan.best, saved_fraction=saved))
    order = list(PARTS)
    helping = sorted(found.values(), key=lambda advice: (-advice.saved_fraction, order.index(advice.part)))
    return SingleChanges(helping=tuple(helping), open=still_open)


def _pinned(layout: Layout, free: tuple[str, ...]) -> Constraints:
    degrees = {name: Bounds(allowed=(getattr(layout, name),)) for name in PINNED if name not in free}
    kind = layout.cp_kind
    return Constraints(
        degrees=degrees,
        recompute=None if "recompute" in free else (layout.recompute.granularity.value,),
        sequence_parallel=None if "sequence_parallel" in free else layout.sequence_parallel,
        cp_kind=None if "cp_kind" in free or kind is None else (kind.value,),
    )
