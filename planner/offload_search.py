"""Search the points with a part of the optimizer's states in host memory, behind those that keep all on the GPUs.

What the host takes is priced by assumptions alone (`profiles.host`), so unless the user asks for offload by name it is
searched only where nothing fits without. Where plans are known that keep everything on the GPUs, only points whose
bound beats them are looked at: whatever memory a point frees, it takes no less than its work without any split's
memory, and its slower optimizer step. Which meshes may fit is asked with as much offloaded as may be: no smaller part
needs less. The account counts each enumerated point once for every part that is searched.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np

from planner.candidates import Pricer
from planner.communication import num_moments
from planner.costs import CostTable
from planner.host_memory import least_node_bytes
from planner.points import BoolArray, Points, Scope, joined
from planner.space import Space, enumerate_layouts, offload_percents
from planner.visit import BEYOND_HOST, OUTBID, Refused, Visit, Watch, added, visit
from profiles.hardware import Cluster


def visit_hosted(  # noqa: PLR0913 - what is searched, where, and what is known of it
    scope: Scope,
    table: CostTable,
    pricer: Pricer,
    cluster: Cluster,
    *,
    before: Visit,
    top: int,
    watch: Watch,
    refused: Refused,
) -> Visit:
    """Return what was visited before, and what came of the points with offloaded states."""
    percents = offload_percents(scope)
    asked = scope.constraints.optimizer_offload is not None
    if not percents or (before.candidates and not asked):
        return before
    watch("enumerating layouts with offloaded states", 0, 1)
    ceiling = before.candidates[top - 1].step_seconds if len(before.candidates) >= top else math.inf
    space, searched, pruned = _searched(scope, table, pricer, cluster, ceiling_seconds=ceiling)
    seen = visit(
        searched,
        table,
        pricer,
        scope=scope,
        start=None,
        top=top,
        watch=watch,
        refused=refused,
        rivals=before.candidates,
    )
    return _merged(
        before,
        replace(
            seen,
            pruned=added(pruned, seen.pruned),
            offloaded_considered=space.considered * len(percents),
            offloaded_legal=(len(space.points) + space.unfit) * len(percents),
        ),
    )


def least_hosted_seconds(scope: Scope, table: CostTable, pricer: Pricer, cluster: Cluster) -> float:
    """Return a time that no layout with offloaded states undercuts; infinite where none fits."""
    if not offload_percents(scope):
        return math.inf
    _, searched, _ = _searched(scope, table, pricer, cluster, ceiling_seconds=math.inf)
    least = math.inf
    for points in (searched.points, searched.unsimulated):
        fitting = points.where(table.fits_X(points, limit_bytes=pricer.limit_bytes))
        if len(fitting):
            least = min(least, float(table.least_seconds_X(fitting).min()))
    return least


def _searched(
    scope: Scope, table: CostTable, pricer: Pricer, cluster: Cluster, *, ceiling_seconds: float
) -> tuple[Space, Space, dict[str, int]]:
    """Return the space with as much offloaded as may be, its promising points with every part, and the others' account.

    Args:
        scope: What is enumerated.
        table: Costs.
        pricer: Knows what each GPU may use.
        cluster: Knows what each node has.
        ceiling_seconds: A step this long is of no interest.
    """
    percents = offload_percents(scope)
    may_fit = partial(table.fits_X, limit_bytes=pricer.limit_bytes)
    space = enumerate_layouts(scope, may_fit=may_fit, offload_percent=max(percents))
    pruned = {reason: count * len(percents) for reason, count in space.pruned.items()}
    points, unsimulated = (space.points.where(np.zeros(0, dtype=np.int64)),) * 2
    for percent in percents:
        part = _with_percent(space.points, percent)
        promising_X, held_X = _promising_X(part, table, ceiling_seconds), _held_X(part, table, cluster)
        _add(pruned, OUTBID, int((~promising_X).sum()))
        _add(pruned, BEYOND_HOST, int((promising_X & ~held_X).sum()))
        points = joined(points, part.where(promising_X & held_X))
        long = _with_percent(space.unsimulated, percent)
        held_X = _held_X(long, table, cluster) & _promising_X(long, table, ceiling_seconds)
        unsimulated = joined(unsimulated, long.where(held_X))
    searched = replace(space, points=points, unsimulated=unsimulated, unfit=space.unfit * len(percents))
    return space, searched, pruned


def _with_percent(points: Points, percent: int) -> Points:
    return replace(points, optimizer_offload_X=np.full(len(points), percent, dtype=np.int64))


def _promising_X(points: Points, table: CostTable, ceiling_seconds: float) -> BoolArray:
    """Return which points may take less than the plans that are known."""
    if math.isinf(ceiling_seconds) or not len(points):
        return np.ones(len(points), dtype=np.bool_)
    promising_X: BoolArray = table.least_seconds_X(points) < ceiling_seconds
    return promising_X


def _held_X(points: Points, table: CostTable, cluster: Cluster) -> BoolArray:
    """Return which points may leave every node enough memory: False is proven, of whatever split."""
    if not len(points):
        return np.ones(0, dtype=np.bool_)
    offloaded_X = table.mean_updated_X(points) * (points.optimizer_offload_X / 100)
    needed_X = least_node_bytes(offloaded_X, num_moments=num_moments(table.workload), cluster=cluster)
    held_X: BoolArray = needed_X <= cluster.host_memory_bytes
    return held_X


def _add(pruned: dict[str, int], reason: str, number: int) -> None:
    if number:
        pruned[reason] = pruned.get(reason, 0) + number


def _merged(before: Visit, seen: Visit) -> Visit:
    """Return two visits as one, the second having begun with the candidates of the first."""
    best = seen.candidates[0].step_seconds if seen.candidates else math.inf
    uneven = (before.uneven_bound_seconds, seen.uneven_bound_seconds)
    return Visit(
        candidates=seen.candidates,
        bound_seconds=min(before.bound_seconds, seen.bound_seconds),
        pruned=added(before.pruned, seen.pruned),
        simulated=before.simulated + seen.simulated,
        unsettled=before.unsettled + seen.unsettled,
        refusal=before.refusal or seen.refusal,
        uneven_bound_seconds=min((bound for bound in uneven if bound is not None and bound < best), default=None),
        thumb=before.thumb,
        offloaded_considered=seen.offloaded_considered,
        offloaded_legal=seen.offloaded_legal,
    )
