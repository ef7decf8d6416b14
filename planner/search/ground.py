"""What a search stands on: the legal points of one cluster under one request, and what prices them.

A ground is made once and searched as often as there are questions about it: with less memory, or not at all where its
bound already answers.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from planner.errors import NotExpressibleError
from planner.evaluation.described import planned_layout
from planner.frameworks.capabilities import capabilities_on
from planner.layout import Layout
from planner.memory.ledger import memory_limit_bytes
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import PlannedLayout
from planner.ranks.placement import place
from planner.requests.request import Constraints, PlanRequest
from planner.search.activation_search import least_activation_seconds, visit_activations
from planner.search.baseline import baseline_layout
from planner.search.beside import Beside
from planner.search.bounds.costs import CostTable
from planner.search.found import Watch
from planner.search.infeasible import PriceOn
from planner.search.module_search import least_module_seconds, visit_modules
from planner.search.offload_search import least_hosted_seconds, visit_hosted
from planner.search.space.dimensions import recompute_choices
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.points import Scope
from planner.search.splits.candidates import Pricer
from planner.search.splits.rank_map import pricer_on
from planner.search.visit import Visit, visit
from planner.targets.registry import framework_of
from profiles.drives import has_drives
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.planned import cost_model_on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """The points of a search and their prices.

    Args:
        model: The model.
        cluster: The cluster.
        request: The workload and what is asked of the plan.
        scope: What the points come from.
        space: The points; those that cannot fit into `limit_bytes` may have been left out.
        table: Their costs.
        cost_model: Prices operations.
        limit_bytes: What each GPU may use.
        price_on: Gives the cost model of a cluster and of what runs on it.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest
    scope: Scope
    space: Space
    table: CostTable
    cost_model: CostModel
    limit_bytes: int
    price_on: PriceOn

    @property
    def is_free(self) -> bool:
        """Return whether the user pins nothing."""
        return self.request.constraints == Constraints()

    def refused(self, layout: Layout) -> NotExpressibleError | None:
        """Return why the target has no words for a layout, if it has none."""
        framework = framework_of(self.request.target)
        try:
            if framework is not None:
                framework.require_expressible(self.model, self.request.workload, layout, self.cluster)
        except NotExpressibleError as error:
            return error
        return None

    def lower_bound_seconds(self) -> float:
        """Return a time that no layout undercuts, however its layers are split; infinite where no point fits."""
        least = math.inf
        for points in (self.space.points, self.space.unsimulated):
            fitting = points.where(self.table.fits_X(points, limit_bytes=self.limit_bytes, any_split=True))
            bounds = self.table.bounds(fitting, limit_bytes=self.limit_bytes)
            any_split_X = bounds.any_split_seconds_X + bounds.tail_seconds_X
            bound_X = np.where(fitting.vpp_X > 1, any_split_X, bounds.step_seconds_X)
            least = min(least, float(bound_X.min(initial=math.inf)))
        pricer = self.pricer()
        thumb = baseline_layout(pricer, self.cluster, unpinned=self.space.points) if self.is_free else None
        asked = self.scope.constraints.asks_hosts
        if asked or thumb is None or self.refused(thumb) is not None:  # else everything stays on the GPUs
            hosted = least_hosted_seconds(self.scope, self.table, self.cluster, limit_bytes=self.limit_bytes)
            least = min(least, hosted, least_activation_seconds(self.scope, self.table, limit_bytes=self.limit_bytes))
            least = min(least, least_module_seconds(self.scope, self.table, limit_bytes=self.limit_bytes))
        return least

    def pricer(self, limit_bytes: int | None = None) -> Pricer:
        """Return what prices the points, within less than the ground's own memory where `limit_bytes` says so.

        That is of the GPU with most memory; of any other GPU it is the same share of its own.
        """
        if limit_bytes is None or self.cluster.has_one_memory:
            limit_bytes = self.limit_bytes if limit_bytes is None else limit_bytes
            return pricer_on(self.cluster, self.table, headroom=self.request.memory_headroom, limit_bytes=limit_bytes)
        share = limit_bytes / self.cluster.most_memory_bytes
        return pricer_on(self.cluster, self.table, headroom=1.0 - share, limit_bytes=limit_bytes)

    def visit(self, *, top: int, watch: Watch, limit_bytes: int | None = None) -> Visit:
        """Return the best layouts, and what is proved of the others.

        Args:
            top: Layouts to keep at most.
            watch: Called as the search goes on.
            limit_bytes: What the GPU with most memory may use, and every other one in proportion, no more than the
                ground's own; None for that. Anything goes to the hosts for less memory only where the user asks for it.
        """
        pricer = self.pricer(limit_bytes)
        thumb = baseline_layout(pricer, self.cluster, unpinned=self.space.points) if self.is_free else None
        start = thumb if thumb is not None and self.refused(thumb) is None else None
        seen = visit(
            self.space,
            self.table,
            pricer,
            scope=self.scope,
            start=start,
            top=top,
            watch=watch,
            refused=self.refused,
        )
        asked = self.scope.constraints.asks_hosts
        is_legal = len(self.space.points) + len(self.space.unsimulated) + self.space.unfit > 0
        if asked or (limit_bytes is None and is_legal):
            constraints, nothing = self.scope.constraints, not seen.candidates
            beside = Beside(
                scope=self.scope,
                table=self.table,
                cluster=self.cluster,
                limit_bytes=pricer.limit_bytes,
                top=top,
                watch=watch,
                refused=self.refused,
            )
            for look, is_wanted in (
                (visit_hosted, True),  # which says itself what of it is wanted
                (visit_activations, constraints.asks_activations or nothing),
                (visit_modules, constraints.asks_modules or nothing),
            ):
                if is_wanted:
                    seen = look(beside, seen)
        return replace(seen, thumb=thumb)

    def planned(self, layout: Layout, *, step_seconds: float, bound_seconds: float) -> PlannedLayout:
        """Return a layout with its price, by the independent evaluator."""
        return planned_layout(
            place(self.model, self.scope.graph, layout, self.request.workload, self.scope.capabilities),
            cost_model=self.cost_model,
            graph=self.scope.graph,
            cluster=self.cluster,
            headroom=self.request.memory_headroom,
            searched_seconds=step_seconds,
            bound_seconds=bound_seconds,
        )


def prepare(model: ModelSpec, cluster: Cluster, request: PlanRequest, *, price_on: PriceOn = cost_model_on) -> Ground:
    """Return what a search stands on.

    Raises:
        profiles.errors.CoverageError: An operation has no cost on this cluster.
        planner.errors.NotExpressibleError: The target has no way to say the model or the workload.
    """
    _require_expressible(model, cluster, request)
    capabilities = capabilities_on(cluster, request.target)
    workload = request.workload
    graph = build_graph(model, workload, eager=capabilities.eager)
    cost_model = price_on(cluster, capabilities.software)
    limit = memory_limit_bytes(cluster.most_memory_bytes, request.memory_headroom)
    scope = Scope(
        model=model,
        graph=graph,
        num_gpus=cluster.world_size,
        fast_domain_size=cluster.fast_domain_size,
        workload=workload,
        constraints=request.constraints,
        capabilities=capabilities,
        has_drives=has_drives(cluster),
    )
    table = CostTable(
        model=model,
        graph=graph,
        workload=workload,
        cost_model=cost_model,
        recomputes=recompute_choices(graph, workload, capabilities),
        capabilities=capabilities,
    )
    return Ground(
        model=model,
        cluster=cluster,
        request=request,
        scope=scope,
        space=enumerate_layouts(scope, may_fit=partial(table.fits_X, limit_bytes=limit, any_split=True)),
        table=table,
        cost_model=cost_model,
        limit_bytes=limit,
        price_on=price_on,
    )


def ignore(_activity: str, _done: int, _total: int) -> None:
    """Watch nothing."""


def planned_for_any(error: NotExpressibleError) -> NotExpressibleError:
    """Return a target's refusal with what plans nevertheless."""
    hint = error.hint
    if "target: any" not in hint:
        hint = f"{hint}\n`target: any` plans it as it is, without files to start from."
    return NotExpressibleError(error.message, target=error.target, hint=hint)


def _require_expressible(model: ModelSpec, cluster: Cluster, request: PlanRequest) -> None:
    """Raise `NotExpressibleError` for what the target cannot say, whatever the layout."""
    framework = framework_of(request.target)
    if framework is None:
        return
    try:
        framework.require_expressible(model, request.workload, None, cluster)
    except NotExpressibleError as error:
        raise planned_for_any(error) from error
