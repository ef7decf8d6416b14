"""A layout with everything that a report says of it, priced by the independent evaluator."""

from planner.capabilities import CAPABILITIES
from planner.evaluate import Evaluation, evaluate, model_flops_utilisation
from planner.graph import ModelGraph
from planner.layers import build_graph
from planner.layout import Layout
from planner.placement import PlacedModel, place
from planner.plan import Plan, PlannedLayout
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.planned import cost_model_on


def evaluation_of(plan: Plan, layout: Layout) -> Evaluation:
    """Return a layout of a plan evaluated again, from the plan's own inputs.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    capabilities, workload = CAPABILITIES[plan.target], plan.request.workload
    graph = build_graph(plan.model, workload, eager=capabilities.eager)
    placed = place(plan.model, graph, layout, workload, capabilities)
    return evaluate(placed, cost_model_on(plan.cluster, capabilities.software))


def planned_layout(  # noqa: PLR0913 - each is a different fact of the report
    placed: PlacedModel,
    *,
    cost_model: CostModel,
    graph: ModelGraph,
    cluster: Cluster,
    limit_bytes: int,
    searched_seconds: float | None = None,
    bound_seconds: float | None = None,
) -> PlannedLayout:
    """Return a layout with its price, sharded and evaluated apart from any search's tables.

    Args:
        placed: The model under the layout.
        cost_model: Prices operations.
        graph: Its operators.
        cluster: Where it runs.
        limit_bytes: What each GPU may use.
        searched_seconds: Step time by a search; None where the layout was given, and the evaluator's stands for it.
        bound_seconds: No split of its layers takes less, by that search; None likewise.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    evaluation = evaluate(placed, cost_model)
    seconds, workload = evaluation.step_seconds, placed.workload
    return PlannedLayout(
        layout=placed.layout,
        step_seconds=seconds if searched_seconds is None else searched_seconds,
        reevaluated_step_seconds=seconds,
        tokens_per_second_per_gpu=workload.useful_tokens_per_step / (seconds * cluster.world_size),
        mfu=model_flops_utilisation(placed, graph, cluster, step_seconds=seconds),
        peak_memory_bytes=evaluation.peak_memory_bytes,
        memory_limit_bytes=limit_bytes,
        memory=evaluation.memory,
        time=evaluation.time,
        assumptions=evaluation.assumptions,
        lower_bound_seconds=seconds if bound_seconds is None else bound_seconds,
    )
