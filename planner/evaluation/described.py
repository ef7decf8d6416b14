"""A layout with everything that a report says of it, priced by the independent evaluator."""

from dataclasses import replace

from planner.evaluation.evaluate import Evaluation, evaluate, model_flops_utilisation, simulated_step_seconds
from planner.evaluation.node_costs import node_order_of, pipeline_rank_limits
from planner.frameworks.capabilities import capabilities_of
from planner.frameworks.profile_remarks import profile_remarks
from planner.layout import Layout
from planner.memory.host import ASSUMED_HOST_SOURCES, drive_memory, host_memory
from planner.models.graph import ModelGraph
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import ExpertsInOrder, HostMemory, OnNodes, Plan, PlannedLayout
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.ranks.placement import PlacedModel, place
from planner.requests.request import PlanRequest
from planner.units import GIB
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from profiles.slowed import OperationClass
from profiles.software import Software
from profiles.uses import Use


def evaluation_of(plan: Plan, layout: Layout) -> Evaluation:
    """Return a layout of a plan evaluated again, from the plan's own inputs.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    placed, _, cost_model = _priced_alone(layout, plan.model, plan.cluster, plan.request)
    return evaluate(placed, cost_model)


def given_layout(layout: Layout, model: ModelSpec, cluster: Cluster, request: PlanRequest) -> PlannedLayout:
    """Return a layout that no search has found with its price.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    placed, graph, cost_model = _priced_alone(layout, model, cluster, request)
    return planned_layout(
        placed,
        cost_model=cost_model,
        graph=graph,
        cluster=cluster,
        headroom=request.memory_headroom,
    )


def _priced_alone(
    layout: Layout, model: ModelSpec, cluster: Cluster, request: PlanRequest
) -> tuple[PlacedModel, ModelGraph, CostModel]:
    """Return what the evaluator prices of one layout, and with what."""
    capabilities = capabilities_of(cluster, request.target)
    graph = build_graph(model, request.workload, eager=capabilities.eager)
    placed = place(model, graph, layout, request.workload, capabilities)
    return placed, graph, cost_model_on(cluster, capabilities.software)


def placed_alone(
    layout: Layout, model: ModelSpec, cluster: Cluster, request: PlanRequest
) -> tuple[PlacedModel, CostModel]:
    """Return one layout of a model placed, and what prices it."""
    placed, _, cost_model = _priced_alone(layout, model, cluster, request)
    return placed, cost_model


def planned_layout(  # noqa: PLR0913 - each is a different fact of the report
    placed: PlacedModel,
    *,
    cost_model: CostModel,
    graph: ModelGraph,
    cluster: Cluster,
    headroom: float,
    searched_seconds: float | None = None,
    bound_seconds: float | None = None,
) -> PlannedLayout:
    """Return a layout with its price, sharded and evaluated apart from any search's tables.

    Args:
        placed: The model under the layout.
        cost_model: Prices operations.
        graph: Its operators.
        cluster: Where it runs.
        headroom: Fraction of each GPU's memory that stays free.
        searched_seconds: Step time by a search; None where the layout was given, and the evaluator's stands for it.
        bound_seconds: No split of its layers takes less, by that search; None likewise.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    evaluation = evaluate(placed, cost_model)
    seconds, workload, layout = evaluation.step_seconds, placed.workload, placed.layout
    limits_R = pipeline_rank_limits(layout, cluster, headroom=headroom)
    ranks = memory_by_rank(evaluation.memory, limit_bytes=limits_R)
    tightest = heaviest_rank(ranks)
    on_nodes = None
    if cluster.unequal is not None:
        listed = replace(placed, layout=replace(layout, node_order=()))
        on_nodes = OnNodes(
            order=node_order_of(layout, cluster.unequal),
            listed_step_seconds=simulated_step_seconds(listed, cost_model) if layout.node_order else seconds,
            memory_limit_bytes_R=limits_R,
        )
    hosted = host_memory(placed, cluster)
    return PlannedLayout(
        layout=layout,
        step_seconds=seconds if searched_seconds is None else searched_seconds,
        reevaluated_step_seconds=seconds,
        tokens_per_second_per_gpu=workload.useful_tokens_per_step / (seconds * cluster.world_size),
        mfu=model_flops_utilisation(placed, graph, cluster, step_seconds=seconds),
        peak_memory_bytes=tightest.peak_bytes,
        memory_limit_bytes=tightest.limit_bytes,
        memory=evaluation.memory,
        time=evaluation.time,
        assumptions=(
            *evaluation.assumptions,
            *_host_assumptions(hosted),
            *_remarks(cluster, placed.capabilities.software),
        ),
        host_memory=hosted,
        drive_memory=drive_memory(placed, cluster),
        lower_bound_seconds=seconds if bound_seconds is None else bound_seconds,
        on_nodes=on_nodes,
        source_fractions=(
            None
            if cluster.profile is None
            else {source.value: fraction for source, fraction in evaluation.source_fractions.items()}
        ),
        experts_in_order=_experts_in_order(placed, cost_model, graph=graph, limits_R=limits_R),
    )


def _experts_in_order(
    placed: PlacedModel, cost_model: CostModel, *, graph: ModelGraph, limits_R: int | tuple[int, ...]
) -> ExpertsInOrder | None:
    """Return what the layout would be with experts in the checkpoint's order; None where they are."""
    routing = placed.workload.routing
    if routing is None or not routing.reorders(placed.layout.ep):
        return None
    workload = replace(placed.workload, routing=routing.in_order)
    before = evaluate(place(placed.model, graph, placed.layout, workload, placed.capabilities), cost_model)
    return ExpertsInOrder(
        step_seconds=before.step_seconds,
        peak_memory_bytes=heaviest_rank(memory_by_rank(before.memory, limit_bytes=limits_R)).peak_bytes,
    )


def _remarks(cluster: Cluster, software: Software) -> tuple[str, ...]:
    """Return what stands behind prices beside operations: a profile's faults, a calibration."""
    calibration = cluster.calibration
    faults = profile_remarks(cluster, use=Use.TRAINING, launch_seconds=software.launch_seconds.value)
    if calibration is None:
        return faults
    by_factor: dict[str, list[str]] = {}
    for name, factor in calibration.factors:
        by_factor.setdefault(f"{factor:.4g}", []).append(name)
    told = [
        f"{'all classes' if len(names) == len(OperationClass) else ', '.join(names)} x {factor}"
        for factor, names in by_factor.items()
    ]
    if calibration.memory is not None:
        lost, fixed = calibration.memory.lost_fraction, calibration.memory.fixed_bytes
        told.append(
            f"{100 * lost:.3g} % lost beside activations and temporaries, {fixed / GIB:.2f} GiB beside what stays"
        )
    return (*faults, f"calibrated by {calibration.source}: {'; '.join(told)}")


def _host_assumptions(hosted: HostMemory | None) -> tuple[str, ...]:
    """Return what is assumed of a node's memory."""
    lines = () if hosted is None else hosted.lines
    return tuple(f"host memory, {line.term}: {line.source}" for line in lines if line.source in ASSUMED_HOST_SOURCES)
