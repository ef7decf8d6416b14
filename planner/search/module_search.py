"""Search the points with modules of all layers on the hosts, where nothing fits into the GPUs, or on request.

What copies take is assumed (`profiles.host`), as with whole layers there (`planner.search.activation_search`); of all
that is searched in host memory the fastest is the plan. Each set of modules is a space of its own, those that move less
first: the sets that follow are only looked at as far as their bounds, which leave out what copies keep waiting, beat
what was found.
"""

import math
from dataclasses import replace
from functools import partial

from planner.search.beside import Beside
from planner.search.bounds.costs import CostTable
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.module_rules import searched_modules
from planner.search.space.points import Scope
from planner.search.splits.candidates import Pricer
from planner.search.visit import Visit, merged


def visit_modules(search: Beside, before: Visit) -> Visit:
    """Return what was visited before, and what came of the points with modules on the hosts, if there are any."""
    for modules in searched_modules(search.scope):
        search.watch(f"enumerating layouts with {', '.join(modules)} on the hosts", 0, 1)
        own = search.table.with_modules(modules)
        space = _space(search.scope, own, limit_bytes=search.limit_bytes)
        pricer = Pricer(own, limit_bytes=search.limit_bytes, cluster=search.cluster)
        seen = search.visited(space, pricer, before=before, table=own)
        before = merged(before, replace(seen, modules_considered=True))
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
