"""What each framework cannot say of a layout, and what the nearest plan that it can say costs.

For every framework of `planner.targets.registry` its files are written of the layout, and where that is refused the
refusal is kept: words that the framework does not have, or memory that it needs beyond the GPU's. And the same run is
searched once more under that framework, with the same constraints.
"""

from dataclasses import dataclass, replace

from planner.errors import NotExpressibleError
from planner.plans.plan import Plan, PlannedLayout
from planner.requests.request import Target
from planner.search.search import search
from planner.targets.launch import launch_files
from planner.targets.registry import FRAMEWORKS, Framework
from solvers.errors import SolverError


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDifference:
    """One framework beside a layout.

    Args:
        target: The framework.
        title: Its name with the version that was checked.
        refusal: Why it cannot say the layout; None where it can.
        nearest: The best layout that it can say; None where none was found.
        why_none: Why there is none, or why none was found.
        is_open: The search found none and did not prove that there is none.
    """

    target: Target
    title: str
    refusal: str | None
    nearest: PlannedLayout | None
    why_none: str = ""
    is_open: bool = False

    def cost_fraction(self, step_seconds: float) -> float | None:
        """Return how much longer a step of the nearest plan takes than `step_seconds`, as a share of it."""
        return None if self.nearest is None else self.nearest.step_seconds / step_seconds - 1.0


def target_differences(plan: Plan, *, index: int = 0) -> tuple[TargetDifference, ...]:
    """Return every framework beside the layout at `index` of a plan."""
    return tuple(_difference(plan, index, target, framework) for target, framework in FRAMEWORKS.items())


def _difference(plan: Plan, index: int, target: Target, framework: Framework) -> TargetDifference:
    refusal = None
    try:
        launch_files(plan, index=index, target=target)
    except NotExpressibleError as error:
        refusal = error.message
    said = TargetDifference(target=target, title=framework.title, refusal=refusal, nearest=None)
    try:
        found = search(plan.model, plan.cluster, replace(plan.request, target=target), top=1)
    except NotExpressibleError as error:
        return replace(said, why_none=error.message)
    except SolverError as error:
        return replace(said, why_none=str(error), is_open=True)
    if found.infeasible is not None:
        return replace(said, why_none=found.infeasible.binding)
    return replace(said, nearest=found.best)
