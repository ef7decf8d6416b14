"""From a model, a cluster and a request to a plan: the main path.

The bound that is reported holds for every point and every split (interleaved: every split as even as the layer count
allows), and is met where `planner.search.visit` left none open.
"""

from dataclasses import replace

from planner.errors import BrokenPromiseError
from planner.evaluation.validate import violations
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, IN_TURN, ON_HOSTS
from planner.models.specs import ModelSpec
from planner.plans.certainty import certainty_of
from planner.plans.plan import Plan, PlannedLayout, SearchSummary, Status
from planner.requests.objectives import objective_value
from planner.requests.request import OFFLOADED_LAYERS, Constraints, PlanRequest
from planner.search.baseline import baseline_layout
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, planned_for_any, prepare
from planner.search.infeasible import PriceOn, explain_infeasible
from planner.search.space.dimensions import dimensions, least_offload_percent
from planner.search.space.enumeration import enumerate_layouts
from planner.search.visit import Visit, added
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from solvers.errors import SolverError
from solvers.solution import OPTIMALITY_TOLERANCE


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
    watch = watch or ignore
    watch("enumerating layouts", 0, 1)
    ground = prepare(model, cluster, request, price_on=price_on)
    return conclude(ground, ground.visit(top=top, watch=watch), watch=watch)


def conclude(ground: Ground, seen: Visit, *, watch: Watch) -> Plan:
    """Return the plan that a visit of all points gives, each layout checked, or why there is none."""
    model, cluster, request = ground.model, ground.cluster, ground.request
    space = ground.space
    summary = SearchSummary(
        considered=space.considered + seen.offloaded_considered,
        legal=len(space.points) + space.unfit + seen.offloaded_legal,
        pruned=added(space.pruned, seen.pruned),
        simulated=seen.simulated,
        dimensions=dimensions(
            ground.scope.graph,
            with_offload=seen.states_considered,
            with_parameters=seen.parameters_considered,
            with_drives=seen.drives_considered,
            with_parameter_drives=seen.parameter_drives_considered,
            with_activations=seen.activations_considered,
            with_modules=seen.modules_considered,
        ),
        uneven_bound_seconds=seen.uneven_bound_seconds,
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
                model,
                cluster,
                request,
                space=enumerate_layouts(
                    ground.scope,
                    offload_percent=least_offload_percent(ground.scope),
                    parameters=_asked_weights(request.constraints),
                    drives=IN_TURN if request.constraints.drive_offload else ON_HOSTS,
                    activations=not request.constraints.admits(OFFLOADED_LAYERS, 0),
                    modules=request.constraints.pinned_modules or (),
                ),
                planned=ground.planned,
                price_on=ground.price_on,
            ),
            certainty=certainty_of(model, cluster),
        )
    watch("checking the best plans", 0, len(seen.candidates))
    plans = tuple(
        ground.planned(
            candidate.layout,
            step_seconds=candidate.step_seconds,
            bound_seconds=candidate.lower_bound_seconds,
        )
        for candidate in seen.candidates
    )
    for entry in plans:
        _require_sound(entry, model, cluster, request)
    pricer = ground.pricer()
    thumb = seen.thumb if ground.is_free else baseline_layout(pricer, cluster)
    baseline = None
    if thumb is not None:
        seconds = pricer.prices(thumb).step_seconds(thumb)
        baseline = ground.planned(thumb, step_seconds=seconds, bound_seconds=seconds)
        _require_sound(baseline, model, cluster, replace(request, constraints=Constraints()))
    best = plans[0].step_seconds
    gap = max(0.0, (best - seen.bound_seconds) / best)
    return Plan(
        model=model,
        cluster=cluster,
        request=request,
        target=request.target,
        status=Status.OPTIMAL if gap <= OPTIMALITY_TOLERANCE else Status.FEASIBLE,
        objective=request.objective,
        bound=objective_value(request.objective, seen.bound_seconds, cluster, request.workload),
        gap=gap,
        search=summary,
        plans=plans,
        baseline=baseline,
        infeasible=None,
        certainty=certainty_of(model, cluster),
    )


def _asked_weights(constraints: Constraints) -> int:
    """Return where the user wants the weights; on the GPUs where that is open."""
    if constraints.parameter_drives:
        return DRIVE_WEIGHTS
    return HOST_WEIGHTS if constraints.parameter_offload else GPU_WEIGHTS


def _require_proof_that_nothing_fits(seen: Visit) -> None:
    """Raise for a search without a plan where something was left open, or fits and was refused."""
    if seen.unsettled:
        raise SolverError(
            solver="layout search",
            status="nothing found and nothing proved",
            limit=f"{seen.unsettled} layouts that may fit: too long to simulate, or no split found",
        )
    if seen.refusal is not None:
        raise planned_for_any(seen.refusal)


def _require_sound(planned: PlannedLayout, model: ModelSpec, cluster: Cluster, request: PlanRequest) -> None:
    """Raise `BrokenPromiseError` for a layout that the search should not have returned."""
    broken = violations(planned, model, cluster, request)
    if broken:
        raise BrokenPromiseError(f"the search returned a layout that breaks its own rules: {broken}")
