"""Search the points with modules of all layers on the hosts, where nothing fits into the GPUs, or on request.

What copies take is assumed (`profiles.host`), as with whole layers there (`planner.search.activation_search`); of all
that is searched in host memory the fastest is the plan. Each set of modules is a space of its own, those that move less
first: the sets that follow are only looked at as far as their bounds, which leave out what copies keep waiting, beat
what was found.
"""

import math
from dataclasses import replace
from functools import partial

from planner.search.bounds.costs import CostTable
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.module_rules import searched_modules
from planner.search.space.points import Scope
from planner.search.splits.candidates import Pricer
from planner.search.visit import Refused, Visit, Watch, added, merged, visit
from profiles.hardware import Cluster


def visit_modules(  # noqa: PLR0913 - what is searched, where, and what is known of it
    scope: Scope,
    table: CostTable,
    cluster: Cluster,
    *,
    limit_bytes: int,
    before: Visit,
    top: int,
    watch: Watch,
    refused: Refused,
) -> Visit:
    """Return what was visited before, and what came of the points with modules on the hosts, if there are any."""
    for modules in searched_modules(scope):
        watch(f"enumerating layouts with {', '.join(modules)} on the hosts", 0, 1)
        own = table.with_modules(modules)
        space = _space(scope, own, limit_bytes=limit_bytes)
        seen = visit(
            space,
            own,
            Pricer(own, limit_bytes=limit_bytes, cluster=cluster),
            scope=scope,
            start=None,
            top=top,
            watch=watch,
            refused=refused,
            rivals=before.candidates,
        )
        seen = replace(
            seen,
            pruned=added(space.pruned, seen.pruned),
            offloaded_considered=space.considered,
            offloaded_legal=len(space.points) + space.unfit,
            modules_considered=True,
        )
        before = merged(before, seen)
    return before


def least_module_seconds(scope: Scope, table: CostTable, *, limit_bytes: int) -> float:
    """Return a time that no layout with modules on the hosts undercuts; infinite where none fits."""
    least = math.inf
    for modules in searched_modules(scope):
        own = table.with_modules(modules)
        space = _space(scope, own, limit_bytes=limit_bytes)
        for points in (space.points, space.unsimulated):
            fitting = points.where(own.fits_X(points, limit_bytes=limit_bytes, any_split=True))
            if len(fitting):
                least = min(least, float(own.least_seconds_X(fitting).min()))
    return least


def _space(scope: Scope, own: CostTable, *, limit_bytes: int) -> Space:
    may_fit = partial(own.fits_X, limit_bytes=limit_bytes, any_split=True)
    return enumerate_layouts(scope, may_fit=may_fit, modules=own.modules)
