"""Plans with three layouts to verify."""

from dataclasses import replace

from planner.plans.certainty import certainty_of
from planner.plans.plan import Plan
from tests.builders import tiny_plan
from tests.unit.cli.samples import sample_plan


def one_node_plan() -> Plan:
    """Return a plan for four GPUs whose steps take 200, 250 and 260 ms."""
    plan = sample_plan()
    best, second = plan.plans
    third = replace(second, step_seconds=0.26, reevaluated_step_seconds=0.26)
    return replace(plan, plans=(best, second, third), certainty=certainty_of(plan.model, plan.cluster))


def two_node_plan() -> Plan:
    """Return a plan for eight GPUs on two nodes with two layouts."""
    return tiny_plan()
