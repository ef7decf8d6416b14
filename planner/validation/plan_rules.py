"""The layouts of a whole plan, each held against every rule that it must obey."""

from collections.abc import Iterator
from dataclasses import replace

from planner.evaluation.validate import violations
from planner.evaluation.violation import Violation
from planner.plans.plan import Plan
from planner.requests.request import Constraints

Path = tuple[str | int, ...]


def broken_rules(plan: Plan) -> Iterator[tuple[Path, Violation]]:
    """Yield every rule that a layout of a plan breaks, as edited files do, with the layout's place in the file."""
    # The baseline ignores the user's constraints, and what came closest when nothing fits does not fit.
    free = replace(plan.request, constraints=Constraints())
    nearest = plan.infeasible.nearest if plan.infeasible is not None else None
    for index, planned in enumerate(plan.plans):
        for violation in violations(planned, plan.model, plan.cluster, plan.request):
            yield ("plans", index), violation
    if plan.baseline is not None:
        for violation in violations(plan.baseline, plan.model, plan.cluster, free):
            yield ("baseline",), violation
    if nearest is not None:
        for violation in violations(nearest, plan.model, plan.cluster, plan.request):
            if violation.rule != "memory":
                yield ("infeasible", "nearest"), violation
