"""Search the points with optimizer states or weights in host memory, behind those that keep all on the GPUs.

What the host takes is priced by assumptions alone (`profiles.host`), so unless the user asks for offload by name it is
searched only where nothing fits without: points with a part of the states on the host, and those with all states and
the weights there, as far as their bounds beat the others'. A node's drives come last, where none of these fits: states
on them, both ways in which drives take part and with the weights on the GPUs or the hosts alike, and the weights, with
the states on the hosts or on drives. What they save of host memory they cost in time, and where the hosts hold states
and weights the same layout is faster without them. Which part is
offloaded is chosen point by point (`planner.search.splits.offload_prices`). Here each point is given the largest part
that its nodes may hold and the least that its GPUs may need, both by bounds: more on the hosts never takes more of a
GPU, nor less of a node. Where plans are known that keep everything on the GPUs, only points whose bound beats them are
looked at.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from planner.arrays import BoolArray, FloatArray, IntArray
from planner.layout import DRIVE_WEIGHTS, HOST_WEIGHTS, ON_HOSTS
from planner.memory.host import host_bytes_of_element, least_buffer_bytes, least_drive_bytes, least_node_bytes
from planner.offloading.states import SHARDED_WEIGHTS
from planner.ranks.communication import num_moments
from planner.search.beside import Beside
from planner.search.bounds.costs import CostTable
from planner.search.space.dimensions import Tier, offload_percents, tiers
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.points import Points, Scope
from planner.search.splits.offload_prices import OffloadPricer
from planner.search.visit import BEYOND_HOST, OUTBID, Visit, merged
from profiles.hardware import Cluster


def visit_hosted(search: Beside, before: Visit) -> Visit:
    """Return what was visited before, and what came of the points with offloaded states."""
    constraints = search.scope.constraints
    for drives, group in groupby(tiers(search.scope), key=lambda tier: tier.uses_drives):
        nothing_yet = not before.candidates
        for tier in group:
            if tier.parameters == DRIVE_WEIGHTS:
                asked = constraints.parameter_drives is True
            elif drives:
                asked = constraints.drive_offload is True
            elif tier.parameters:
                asked = constraints.parameter_offload is True
            else:
                asked = constraints.optimizer_offload is not None
            # Who names the states' part has said what goes to the hosts: weights then only where nothing else fits.
            beside_states = nothing_yet and (drives or constraints.optimizer_offload is None)
            if asked or beside_states or not before.candidates:
                before = _with_hosted(search, before, tier)
    return before


def _with_hosted(search: Beside, before: Visit, tier: Tier) -> Visit:
    """Return what was visited before, and what came of the points of a tier."""
    place = " on drives" if tier.uses_drives else ""
    search.watch(f"enumerating layouts with offloaded {'weights' if tier.parameters else 'states'}{place}", 0, 1)
    has_enough = len(before.candidates) >= search.top
    ceiling = before.candidates[search.top - 1].step_seconds if has_enough else math.inf
    scope, table, cluster, limit_bytes = search.scope, search.table, search.cluster, search.limit_bytes
    space, searched = _searched(scope, table, cluster, limit_bytes=limit_bytes, tier=tier, ceiling_seconds=ceiling)
    pricer = OffloadPricer(table, limit_bytes=limit_bytes, cluster=cluster, percents=offload_percents(scope))
    seen = search.visited(searched, pricer, before=before)
    return merged(
        before,
        replace(
            seen,
            offloaded_legal=len(space.points) + space.unfit,
            states_considered=space.considered > 0,
            parameters_considered=tier.parameters == HOST_WEIGHTS,
            drives_considered=tier.drives != ON_HOSTS,
            parameter_drives_considered=tier.parameters == DRIVE_WEIGHTS,
        ),
    )


def least_hosted_seconds(scope: Scope, table: CostTable, cluster: Cluster, *, limit_bytes: int) -> float:
    """Return a time that no layout with offloaded states undercuts; infinite where none fits."""
    least = math.inf
    for tier in tiers(scope):
        _, searched = _searched(scope, table, cluster, limit_bytes=limit_bytes, tier=tier, ceiling_seconds=math.inf)
        for points in (searched.points, searched.unsimulated):
            fitting = points.where(table.fits_X(points, limit_bytes=limit_bytes, any_split=True))
            if len(fitting):
                least = min(least, float(table.least_seconds_X(fitting).min()))
    return least


def _searched(  # noqa: PLR0913 - what is searched and where
    scope: Scope, table: CostTable, cluster: Cluster, *, limit_bytes: int, tier: Tier, ceiling_seconds: float
) -> tuple[Space, Space]:
    """Return the space with as much offloaded as may be, and its promising points with the account of the others.

    Args:
        scope: What is enumerated.
        table: Costs.
        cluster: Knows what each node has.
        limit_bytes: What each GPU may use.
        tier: Where weights are, and whether drives hold the states.
        ceiling_seconds: A step this long is of no interest.
    """
    narrow = partial(_narrowed, table=table, cluster=cluster, limit_bytes=limit_bytes, percents=offload_percents(scope))
    may_fit = partial(table.fits_X, limit_bytes=limit_bytes, any_split=True)
    percent = offload_percents(scope)[-1]
    space = enumerate_layouts(
        scope, may_fit=may_fit, offload_percent=percent, parameters=tier.parameters, drives=tier.drives
    )
    pruned = dict(space.pruned)
    points, held_X = narrow(space.points)
    _add(pruned, BEYOND_HOST, int((~held_X).sum()))
    points = points.where(held_X)
    promising_X = _promising_X(points, table, ceiling_seconds)
    _add(pruned, OUTBID, int((~promising_X).sum()))
    long, long_held_X = narrow(space.unsimulated)
    long = long.where(long_held_X)
    searched = replace(
        space,
        points=points.where(promising_X),
        unsimulated=long.where(_promising_X(long, table, ceiling_seconds)),
        pruned=pruned,
    )
    return space, searched


def _narrowed(
    points: Points, *, table: CostTable, cluster: Cluster, limit_bytes: int, percents: tuple[int, ...]
) -> tuple[Points, BoolArray]:
    """Return points with the parts that they may have, and which have any; those that fit into no GPU keep them all."""
    if not len(points):
        return points, np.ones(0, dtype=np.bool_)
    updated_X = table.mean_updated_X(points)
    (drives,) = np.unique(points.drive_offload_X).tolist()
    node_bytes = least_node_bytes_by_part(points, updated_X, table=table, cluster=cluster)

    def held_X(percent_X: IntArray) -> BoolArray:
        held_X: BoolArray = node_bytes(percent_X) <= cluster.host_memory_bytes
        if drives != ON_HOSTS:
            driven_X = updated_X * (percent_X / 100)
            held_X &= least_drive_bytes(driven_X, cluster=cluster) <= (cluster.nvme_bytes or 0)
        return held_X

    def fits_X(percent_X: IntArray) -> BoolArray:
        part = replace(points, optimizer_offload_X=percent_X)
        return table.fits_X(part, limit_bytes=limit_bytes, any_split=True)

    fitting_X = fits_X(points.optimizer_offload_X)
    too_many_X = _first_X(lambda percent_X: ~held_X(percent_X), percents, len(points))
    most_X = np.array((percents[0], *percents))[too_many_X]
    least_index_X = _first_X(fits_X, percents, len(points))
    least_X = np.array((*percents, percents[-1]))[least_index_X]
    least_X = np.where(points.goes_whole_X, percents[-1], least_X)
    kept_X = ~fitting_X | ((too_many_X > 0) & (least_X <= most_X))
    narrowed = replace(
        points,
        optimizer_offload_X=np.where(fitting_X, most_X, points.optimizer_offload_X),
        least_offload_X=np.where(fitting_X, np.minimum(least_X, most_X), percents[0]),
    )
    return narrowed, kept_X


def least_node_bytes_by_part(
    points: Points, updated_X: IntArray, *, table: CostTable, cluster: Cluster
) -> Callable[[IntArray], FloatArray]:
    """Return what says, by the percent of the states there, what the node that keeps most keeps at least.

    Args:
        points: Points whose states go to the same place.
        updated_X: Elements of which a rank keeps the states, wherever, on average.
        table: Costs.
        cluster: Knows what each node has.
    """
    (drives,) = np.unique(points.drive_offload_X).tolist()
    of_element = host_bytes_of_element(drives, num_moments=num_moments(table.workload))
    sharded_X = least_buffer_bytes(
        updated_X,
        pipelined_X=points.pp_X > 1,
        has_weights_X=points.parameter_offload_X == HOST_WEIGHTS,
        workload=table.workload,
    )
    buffers_X = np.where(points.zero_stage_X == SHARDED_WEIGHTS, sharded_X, 0.0)

    def node_bytes(percent_X: IntArray) -> FloatArray:
        offloaded_X = updated_X * (percent_X / 100)
        return least_node_bytes(offloaded_X, of_element=of_element, buffers_X=buffers_X, cluster=cluster)

    return node_bytes


def _first_X(test: Callable[[IntArray], BoolArray], percents: tuple[int, ...], count: int) -> IntArray:
    """Return the index of the first part that passes a test, for each point; behind the last where none does.

    What passes does with every larger part.
    """
    known = np.array(percents)
    low_X, high_X = np.zeros(count, dtype=np.int64), np.full(count, len(percents), dtype=np.int64)
    while (low_X < high_X).any():
        middle_X = (low_X + high_X) // 2
        passes_X = test(known[np.minimum(middle_X, len(percents) - 1)])
        open_X = low_X < high_X
        high_X = np.where(open_X & passes_X, middle_X, high_X)
        low_X = np.where(open_X & ~passes_X, middle_X + 1, low_X)
    return high_X


def _promising_X(points: Points, table: CostTable, ceiling_seconds: float) -> BoolArray:
    """Return which points may take less than the plans that are known."""
    if math.isinf(ceiling_seconds) or not len(points):
        return np.ones(len(points), dtype=np.bool_)
    promising_X: BoolArray = table.least_seconds_X(points) < ceiling_seconds
    return promising_X


def _add(pruned: dict[str, int], reason: str, number: int) -> None:
    if number:
        pruned[reason] = pruned.get(reason, 0) + number
