"""From a model, a cluster and a request to a plan: the main path.

Every legal point gets a lower bound; points are priced exactly in the order of their bounds until no bound is left
that could still enter the list of the best. Of each, one split of the layers is priced; then, of the points that are
still open, every split that might beat the best plan is simulated. The bound that is reported holds for every point and
every split (interleaved: every split as even as the layer count allows), and is met where none was left open.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from planner.baseline import baseline_layout
from planner.candidates import Candidate, PointBound, Pricer, Rejected, has_single_split, layout_at
from planner.capabilities import CAPABILITIES
from planner.certainty import certainty_of
from planner.costs import CostTable, FloatArray
from planner.described import planned_layout
from planner.errors import BrokenPromiseError, NotExpressibleError
from planner.infeasible import PriceOn, explain_infeasible
from planner.layers import build_graph
from planner.layout import Layout
from planner.memory import memory_limit_bytes
from planner.placement import place
from planner.plan import Plan, PlannedLayout, SearchSummary, Status
from planner.points import Points, Scope
from planner.request import Constraints, Objective, PlanRequest
from planner.settle import settle
from planner.space import Space, dimensions, enumerate_layouts, recompute_choices
from planner.specs import ModelSpec
from planner.targets import framework_of
from planner.validate import violations
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from solvers.errors import SolverError

Watch = Callable[[str, int, int], None]

MAX_VISITED = 5_000
"""Points looked at exactly before the search stops with what it has; a count, so that equal inputs give equal plans."""

OPTIMALITY_GAP = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """What came of visiting the points: candidates by merit, the bound that was proved, and the account of points.

    `unsettled` counts points of which it is not known whether some split fits. `refusal` is what the target has against
    the first layout that fits and that it has no words for.
    """

    candidates: tuple[Candidate, ...]
    bound_seconds: float
    pruned: dict[str, int]
    simulated: int
    unsettled: int
    refusal: NotExpressibleError | None = None


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
    visit = _visit(space, table, pricer, start=start, top=top, watch=watch, refused=refused)
    summary = SearchSummary(
        considered=space.considered,
        legal=len(space.points) + space.unfit,
        pruned={**space.pruned, **visit.pruned},
        simulated=visit.simulated,
        dimensions=dimensions(graph),
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

    if not visit.candidates:
        _require_proof_that_nothing_fits(visit)
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
    watch("checking the best plans", 0, len(visit.candidates))
    plans = tuple(
        planned(
            candidate.layout,
            step_seconds=candidate.step_seconds,
            bound_seconds=candidate.lower_bound_seconds,
        )
        for candidate in visit.candidates
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
    gap = max(0.0, (best - visit.bound_seconds) / best)
    return Plan(
        model=model,
        cluster=cluster,
        request=request,
        target=request.target,
        status=Status.OPTIMAL if gap <= OPTIMALITY_GAP else Status.FEASIBLE,
        objective=request.objective,
        bound=_objective_value(visit.bound_seconds, cluster, request),
        gap=gap,
        search=summary,
        plans=plans,
        baseline=baseline,
        infeasible=None,
        certainty=certainty_of(model, cluster.device),
    )


def _require_proof_that_nothing_fits(visit: _Visit) -> None:
    """Raise for a search without a plan where something was left open, or fits and was refused."""
    if visit.unsettled:
        raise SolverError(
            solver="layout search",
            status="nothing found and nothing proved",
            limit=f"{visit.unsettled} layouts that may fit: too long to simulate, or no split found",
        )
    if visit.refusal is not None:
        raise _planned_for_any(visit.refusal)


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


def _visit(  # noqa: PLR0913 - what is visited, how, and who may refuse
    space: Space,
    table: CostTable,
    pricer: Pricer,
    *,
    start: Layout | None,
    top: int,
    watch: Watch,
    refused: Callable[[Layout], NotExpressibleError | None],
) -> _Visit:
    """Price the points in the order of their bounds, beginning with a placed layout of the space where one is known."""
    fits_X = table.fits_X(space.points, limit_bytes=pricer.limit_bytes)
    points = space.points.where(fits_X)
    pruned: dict[str, int] = {}
    _count(pruned, "memory: no split of the layers fits", int((~fits_X).sum()) + space.unfit)
    too_long = space.unsimulated.where(table.fits_X(space.unsimulated, limit_bytes=pricer.limit_bytes))
    if not len(points):
        return _Visit(candidates=(), bound_seconds=float("inf"), pruned=pruned, simulated=0, unsettled=len(too_long))
    watch("bounding layouts", 0, 1)
    bounds = table.bounds(points, limit_bytes=pricer.limit_bytes)
    bound_X = bounds.step_seconds_X
    found: list[Candidate] = (
        [] if start is None else [pricer.candidate(start, lower_bound_seconds=float(bound_X.min()))]
    )
    open_bound = (
        float(table.bounds(too_long, limit_bytes=pricer.limit_bytes).step_seconds_X.min())
        if len(too_long)
        else float("inf")
    )
    several: list[_SeveralSplits] = []
    visited = simulated = exceeded = outbid = 0
    unsettled = len(too_long)
    first_refusal: NotExpressibleError | None = None
    for index in _bound_order(points, bound_X):
        bound = float(bound_X[index])
        settled = len(found) >= top and bound >= found[top - 1].step_seconds
        if settled or (found and visited >= MAX_VISITED):  # that nothing fits must be proved of every point
            open_bound = min(open_bound, bound)
            break
        watch("pricing layouts", visited, min(len(points), MAX_VISITED))
        visited += 1
        layout = layout_at(points, int(index), table)
        ceiling = found[top - 1].step_seconds if len(found) >= top else float("inf")
        known = PointBound(
            pipeline_seconds=float(bounds.pipeline_seconds_X[index]), tail_seconds=float(bounds.tail_seconds_X[index])
        )
        outcome = pricer.price(layout, bound=known, ceiling_seconds=ceiling)
        if isinstance(outcome, Rejected) and not outcome.fits:
            exceeded += 1
            unsettled += math.isfinite(outcome.bound_seconds)
            open_bound = min(open_bound, outcome.bound_seconds)
            continue
        refusal = None if isinstance(outcome, Rejected) else refused(outcome.layout)
        if refusal is not None:
            first_refusal = first_refusal or refusal
            reason = f"{refusal.target}: {refusal.message}"
            _count(pruned, reason, pruned.get(reason, 0) + 1)
            continue
        if not has_single_split(layout):
            proved = outcome.bound_seconds if isinstance(outcome, Rejected) else outcome.lower_bound_seconds
            several.append(_SeveralSplits(proved_seconds=proved, layout=layout, bound=known))
        if isinstance(outcome, Rejected):
            outbid += 1
            continue
        simulated += 1
        _insert(found, outcome)
    open_bound = min(open_bound, _settled(several, pricer, found, refused=refused, watch=watch))
    _count(pruned, "memory: exact bytes exceed the limit", exceeded)
    _count(pruned, "bound: cannot beat the plans found", len(points) - visited + outbid)
    best = found[0].step_seconds if found else float("inf")
    return _Visit(
        candidates=tuple(found[:top]),
        bound_seconds=min(best, open_bound),
        pruned=pruned,
        simulated=simulated,
        unsettled=unsettled,
        refusal=first_refusal,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeveralSplits:
    """A point that was visited, of whose splits one was priced.

    Args:
        proved_seconds: No split of it that fits takes less.
        layout: The point.
        bound: What the space knows of it.
    """

    proved_seconds: float
    layout: Layout
    bound: PointBound


def _settled(
    several: Sequence[_SeveralSplits],
    pricer: Pricer,
    found: list[Candidate],
    *,
    refused: Callable[[Layout], NotExpressibleError | None],
    watch: Watch,
) -> float:
    """Look at every split that may beat the best plan; return what is proved of the points that have too many.

    Args:
        several: Points whose splits were not all looked at.
        pricer: Prices them.
        found: Candidates by merit; what beats the best is added.
        refused: Returns why the target has no words for a layout, if it has none.
        watch: Called as the points are looked at.
    """
    open_seconds = math.inf
    for index, point in enumerate(sorted(several, key=lambda entry: entry.proved_seconds)):
        watch("closing the gap", index, len(several))
        if not found or point.proved_seconds >= found[0].step_seconds:
            open_seconds = min(open_seconds, point.proved_seconds)
            continue
        best_seconds = found[0].step_seconds
        settled = settle(pricer, point.layout, bound=point.bound, best_seconds=best_seconds)
        if settled.better is None:
            open_seconds = min(open_seconds, max(point.proved_seconds, settled.bound_seconds))
        elif refused(settled.better.layout) is not None:
            open_seconds = min(open_seconds, point.proved_seconds)
        else:
            _insert(found, settled.better)
    return open_seconds


def _insert(found: list[Candidate], candidate: Candidate) -> None:
    """Add a candidate at its place; of two that are the same point, the better one stays, with the sharper bound."""
    same = next((entry for entry in found if entry.point == candidate.point), None)
    if same is not None:
        found.remove(same)
        better = min(same, candidate, key=lambda entry: entry.merit)
        sharper = max(same.lower_bound_seconds, candidate.lower_bound_seconds)
        candidate = replace(better, lower_bound_seconds=min(sharper, better.step_seconds))
    found.append(candidate)
    found.sort(key=lambda entry: entry.merit)


def _count(pruned: dict[str, int], reason: str, number: int) -> None:
    if number:
        pruned[reason] = number


def _bound_order(points: Points, bound_X: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return the points by bound; equal bounds by simplicity, so that the order never depends on the machine."""
    return np.lexsort(
        (
            points.recompute_X,
            points.zero_stage_X,
            points.micro_batch_size_X,
            -points.sequence_parallel_X,
            points.vpp_X,
            points.secondary_shard_X,
            points.state_replicas_X,
            points.etp_X,
            points.ep_X,
            points.ulysses_X,
            points.cp_X,
            points.tp_X,
            points.pp_X,
            bound_X,
        )
    )
