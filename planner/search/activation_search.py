"""Search the points whose layers keep saved tensors on the hosts, where nothing fits into the GPUs, or on request.

What copies take is assumed (`profiles.host`), as with optimizer states there (`planner.search.offload_search`); the two
are not combined, and whichever is faster is the plan. How many layers are offloaded is chosen point by point
(`planner.search.splits.activation_prices`).
"""

import math
from dataclasses import replace

from planner.search.beside import Beside
from planner.search.bounds.costs import CostTable
from planner.search.space.dimensions import offloaded_layer_counts
from planner.search.space.enumeration import Space, enumerate_layouts
from planner.search.space.points import Scope
from planner.search.splits.activation_prices import ActivationPricer
from planner.search.visit import Visit, merged


def visit_activations(search: Beside, before: Visit) -> Visit:
    """Return what was visited before, and what came of the points with activations on the hosts, if there are any."""
    space = _space(search.scope)
    if space is None:
        return before
    search.watch("enumerating layouts with offloaded activations", 0, 1)
    pricer = ActivationPricer(
        search.table,
        limit_bytes=search.limit_bytes,
        cluster=search.cluster,
        counts=offloaded_layer_counts(search.scope),
    )
    seen = search.visited(space, pricer, before=before)
    return merged(before, replace(seen, activations_considered=True))


def least_activation_seconds(scope: Scope, table: CostTable, *, limit_bytes: int) -> float:
    """Return a time that no layout with activations on the hosts undercuts; infinite where none fits."""
    space = _space(scope)
    if space is None:
        return math.inf
    fitting = space.points.where(table.fits_X(space.points, limit_bytes=limit_bytes))
    return float(table.least_seconds_X(fitting).min()) if len(fitting) else math.inf


def _space(scope: Scope) -> Space | None:
    """Return the space of these points; None where no number of layers may be offloaded."""
    return enumerate_layouts(scope, activations=True) if offloaded_layer_counts(scope) else None
