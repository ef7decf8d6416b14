"""From a model, a cluster and a request to a plan with all that was asked beside it.

The number of nodes and the deadline are the request's; the front of memory and time, and what lost nodes cost, are
questions about the plan that was found.
"""

from collections.abc import Callable
from dataclasses import replace

from planner.decisions.front import front_of
from planner.decisions.nodes import plan_nodes
from planner.decisions.robust import plan_robust
from planner.decisions.spare import spare_of
from planner.errors import InputError
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.requests.request import Objective, PlanRequest
from planner.search.found import Watch
from planner.search.ground import ignore
from planner.search.search import search
from profiles.hardware import Cluster


def _planner_of(request: PlanRequest) -> Callable[..., Plan]:
    """Return what plans such a request."""
    if request.objective is Objective.ROBUST:
        return plan_robust
    return plan_nodes if request.chooses_nodes or request.deadline_days is not None else search


def decide(  # noqa: PLR0913 - what is planned, how, and what is asked beside
    model: ModelSpec,
    cluster: Cluster,
    request: PlanRequest,
    *,
    top: int = 5,
    front_steps: int | None = None,
    lost_nodes: int | None = None,
    watch: Watch | None = None,
) -> Plan:
    """Return the best plans for `request`, or why there is none.

    Args:
        model: The model.
        cluster: The cluster, all of it or the most of it that may be taken.
        request: The workload and what is asked of the plan.
        top: Layouts to return at most.
        front_steps: Also the front of memory and time, in so many steps of memory.
        lost_nodes: Also what is left when so many nodes of the plan are lost.
        watch: Called with (activity, done, of how many) as the search goes on.

    Raises:
        planner.errors.InputError: More nodes are to be lost than can be spared, or in too many ways; or a front is
            asked of a robust plan.
        solvers.errors.SolverError: Nothing was found, and that nothing can be is not proved.
        profiles.errors.CoverageError: An operation has no cost.
        planner.errors.NotExpressibleError: The target has no way to say the model, the workload, or any layout found.
    """
    watch = watch or ignore
    if lost_nodes is not None and lost_nodes >= cluster.num_nodes:
        raise InputError(
            f"--spare {lost_nodes}: no node is left of the {cluster.num_nodes} of the cluster.",
            hint="Give fewer nodes than the cluster has.",
        )
    if front_steps is not None and request.objective is Objective.ROBUST:
        raise InputError(
            "--pareto: the front weighs memory against the predicted step, and robust plans are not chosen by that.",
            hint="Leave --pareto out, or plan by step-time.",
        )
    plan = _planner_of(request)(model, cluster, request, top=top, watch=watch)
    if not plan.plans:
        return plan
    if front_steps is not None:
        plan = replace(plan, front=front_of(plan, num_steps=front_steps, watch=watch))
    if lost_nodes is not None:
        plan = replace(plan, spare=spare_of(plan, num_lost=lost_nodes, watch=watch))
    return plan
