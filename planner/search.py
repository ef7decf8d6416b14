"""From a model, a cluster and a request to a plan: the main path.

The bound that is reported holds for every point and every split (interleaved: every split as even as the layer count
allows), and is met where `planner.visit` left none open.
"""

from dataclasses import replace
from functools import partial

from planner.baseline import baseline_layout
from planner.candidates import Pricer
from planner.capabilities import CAPABILITIES
from planner.certainty import certainty_of
from planner.costs import CostTable
from planner.described import planned_layout
from planner.errors import BrokenPromiseError, NotExpressibleError
from planner.infeasible import PriceOn, explain_infeasible
from planner.layers import build_graph
from planner.layout import Layout
from planner.memory import memory_limit_bytes
from planner.placement import place
from planner.plan import Plan, PlannedLayout, SearchSummary, Status
from planner.points import Scope
from planner.request import Constraints, Objective, PlanRequest
from planner.space import dimensions, enumerate_layouts, recompute_choices
from planner.specs import ModelSpec
from planner.targets import framework_of
from planner.validate import violations
from planner.visit import Visit, Watch, visit
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from solvers.errors import SolverError

OPTIMALITY_GAP = 1e-6


def search(  # noqa: PLR0913 - what is planned, and how
    model: ModelSpec,
    cluster: Cluster,
    request: PlanRequest,
    *,
    top: int = 5,
    watch: Watch | None = None,
    price_on: PriceOn = cost_model_on,
) -> Plan:
    """Return the best plans for `request`, or why there is none.

    Args:
        model: The model.
        cluster: The cluster.
        request: The workload and what is asked of the plan.
        top: Plans to return at most.
        watch: Called with (activity, done, of how many) as the search goes on.
        price_on: Gives the cost model of a cluster and of what runs on it.

    Raises:
        solvers.errors.SolverError: Nothing was found, and some layout was too long to simulate or to settle.
        profiles.errors.CoverageError: An operation has no cost on this cluster.
        planner.errors.NotExpressibleError: The target has no way to say the model or the workload, whatever the layout,
            or no way to say any layout that fits.
    """
    watch = watch or _ignore
    _require_expressible(model, cluster, request)
    capabilities = CAPABILITIES[request.target]
    workload = request.workload
    watch("enumerating layouts", 0, 1)
    graph = build_graph(model, workload, eager=capabilities.eager)
    cost_model = price_on(cluster, capabilities.software)
    limit = memory_limit_bytes(cluster.device.memory_bytes, request.memory_headroom)
    scope = Scope(
        model=model,
        graph=graph,
        num_gpus=cluster.world_size,
        fast_domain_size=cluster.fast_domain_size,
        workload=workload,
        constraints=request.constraints,
        capabilities=capabilities,
    )
    table = CostTable(
        model=model,
        graph=graph,
        workload=workload,
        cost_model=cost_model,
        recomputes=recompute_choices(graph, workload, capabilities),
        capabilities=capabilities,
    )
    space = enumerate_layouts(scope, may_fit=partial(table.fits_X, limit_bytes=limit))
    pricer = Pricer(table, limit_bytes=limit)
    framework = framework_of(request.target)

    def refused(layout: Layout) -> NotExpressibleError | None:
        """Return why the target has no words for a layout, if it has none."""
        try:
            if framework is not None:
                framework.require_expressible(model, workload, layout, cluster)
        except NotExpressibleError as error:
            return error
        return None

    free = request.constraints == Constraints()
    thumb = baseline_layout(pricer, cluster, unpinned=space.points) if free else None
    start = thumb if thumb is not None and refused(thumb) is None else None
    seen = visit(space, table, pricer, start=start, top=top, watch=watch, refused=refused)
    summary = SearchSummary(
        considered=space.considered,
        legal=len(space.points) + space.unfit,
        pruned={**space.pruned, **seen.pruned},
        simulated=seen.simulated,
        dimensions=dimensions(graph),
        uneven_bound_seconds=seen.uneven_bound_seconds,
    )

    def planned(layout: Layout, *, step_seconds: float, bound_seconds: float) -> PlannedLayout:
        return planned_layout(
            place(model, graph, layout, workload, capabilities),
            cost_model=cost_model,
            graph=graph,
            cluster=cluster,
            limit_bytes=memory_limit_bytes(cluster.device.memory_bytes, request.memory_headroom),
            searched_seconds=step_seconds,
            bound_seconds=bound_seconds,
        )

    if not seen.candidates:
        _require_proof_that_nothing_fits(seen)
        return Plan(
            model=model,
            cluster=cluster,
            request=request,
            target=request.target,
            status=Status.INFEASIBLE,
            objective=request.objective,
            bound=None,
            gap=None,
            search=summary,
            plans=(),
            baseline=None,
            infeasible=explain_infeasible(
                model, cluster, request, space=enumerate_layouts(scope), planned=planned, price_on=price_on
            ),
            certainty=certainty_of(model, cluster.device),
        )
    watch("checking the best plans", 0, len(seen.candidates))
    plans = tuple(
        planned(
            candidate.layout,
            step_seconds=candidate.step_seconds,
            bound_seconds=candidate.lower_bound_seconds,
        )
        for candidate in seen.candidates
    )
    for entry in plans:
        _require_sound(entry, model, cluster, request)
    if not free:
        thumb = baseline_layout(pricer, cluster)
    baseline = None
    if thumb is not None:
        seconds = pricer.prices(thumb).step_seconds(thumb)
        baseline = planned(thumb, step_seconds=seconds, bound_seconds=seconds)
        _require_sound(baseline, model, cluster, replace(request, constraints=Constraints()))
    best = plans[0].step_seconds
    gap = max(0.0, (best - seen.bound_seconds) / best)
    return Plan(
        model=model,
        cluster=cluster,
        request=request,
        target=request.target,
        status=Status.OPTIMAL if gap <= OPTIMALITY_GAP else Status.FEASIBLE,
        objective=request.objective,
        bound=_objective_value(seen.bound_seconds, cluster, request),
        gap=gap,
        search=summary,
        plans=plans,
        baseline=baseline,
        infeasible=None,
        certainty=certainty_of(model, cluster.device),
    )


def _require_proof_that_nothing_fits(seen: Visit) -> None:
    """Raise for a search without a plan where something was left open, or fits and was refused."""
    if seen.unsettled:
        raise SolverError(
            solver="layout search",
            status="nothing found and nothing proved",
            limit=f"{seen.unsettled} layouts that may fit: too long to simulate, or no split found",
        )
    if seen.refusal is not None:
        raise _planned_for_any(seen.refusal)


def _require_sound(planned: PlannedLayout, model: ModelSpec, cluster: Cluster, request: PlanRequest) -> None:
    """Raise `BrokenPromiseError` for a layout that the search should not have returned."""
    broken = violations(planned, model, cluster, request)
    if broken:
        raise BrokenPromiseError(f"the search returned a layout that breaks its own rules: {broken}")


def _require_expressible(model: ModelSpec, cluster: Cluster, request: PlanRequest) -> None:
    """Raise `NotExpressibleError` for what the target cannot say, whatever the layout."""
    framework = framework_of(request.target)
    if framework is None:
        return
    try:
        framework.require_expressible(model, request.workload, None, cluster)
    except NotExpressibleError as error:
        raise _planned_for_any(error) from error


def _planned_for_any(error: NotExpressibleError) -> NotExpressibleError:
    """Return a target's refusal with what plans nevertheless."""
    hint = error.hint
    if "target: any" not in hint:
        hint = f"{hint}\n`target: any` plans it as it is, without files to start from."
    return NotExpressibleError(error.message, target=error.target, hint=hint)


def _ignore(_activity: str, _done: int, _total: int) -> None:
    """Watch nothing."""


def _objective_value(step_seconds: float, cluster: Cluster, request: PlanRequest) -> float | None:
    """Return what a step of this length is worth: seconds, tokens a second and GPU, or its price.

    With the cluster and the batch given all three have the same best plan.
    """
    match request.objective:
        case Objective.STEP_TIME:
            return step_seconds
        case Objective.TOKENS_PER_GPU:
            return request.workload.useful_tokens_per_step / (step_seconds * cluster.world_size)
        case Objective.COST:
            price = cluster.price_per_gpu_hour
            return None if price is None else price * cluster.world_size * step_seconds / 3600
