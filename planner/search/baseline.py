"""The rule of thumb that every plan is compared with.

Experts spread over one fast domain; the least CP, a ring if there is one; the smallest TP inside the fast domain that
fits, with as much PP as it needs; micro-batch 1, sequence parallelism with TP, the distributed optimizer, layers split
evenly; recomputation only when nothing fits without it; fewer micro-batches than stages only when nothing else fits.
The user's constraints do not bind it.
"""

from dataclasses import replace
from functools import partial

import numpy as np

from planner.arrays import IntArray
from planner.layout import Layout, even_counts, stages_from_counts
from planner.requests.request import Bounds, Constraints
from planner.search.space.enumeration import enumerate_layouts
from planner.search.space.points import Points, Scope, distinct_columns
from planner.search.splits.candidates import Pricer, layout_at
from profiles.hardware import Cluster


def _fewest_exchanged_X(points: Points) -> IntArray:
    """Return 1 (a ring) for meshes that have one, else all of cp (Ulysses), by (tp, cp, pp)."""
    keys = np.stack([points.tp_X, points.cp_X, points.pp_X, points.ep_X])
    _, mesh_X = distinct_columns(keys)
    fewest = np.full(int(mesh_X.max(initial=0)) + 1, np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(fewest, mesh_X, points.ulysses_X)
    fewest_X: IntArray = fewest[mesh_X]
    return fewest_X


def baseline_layout(pricer: Pricer, cluster: Cluster, *, unpinned: Points | None = None) -> Layout | None:
    """Return the rule-of-thumb layout, its layers placed; None when it does not fit at any degree.

    Args:
        pricer: Knows the model and the limit.
        cluster: The cluster.
        unpinned: The legal points without any constraint, where they are known; else they are enumerated here.
    """
    points = _thumb_points(pricer, cluster) if unpinned is None else unpinned
    points = points.where((points.vpp_X == 1) & (points.micro_batch_size_X == 1) & (points.etp_X == 1))
    table = pricer.table
    optimizer_stage = 1 if (points.zero_stage_X == 1).any() else 0
    replicas_X = points.dp_X * points.cp_X
    if table.graph.has_experts:
        replicas_X = np.maximum(replicas_X, points.edp_X)
    sharded_X = (points.zero_stage_X == optimizer_stage) | (replicas_X == 1)
    points = points.where(
        (points.recompute_layers_X == 0)
        & ~np.array([choice.is_per_layer for choice in table.recomputes])[points.recompute_X]
        & (points.tp_X <= cluster.fast_domain_size)
        & ((points.sequence_parallel_X == 1) | (points.tp_X == 1) | (not table.capabilities.sequence_parallel))
        & (points.replicas_outermost_X == 0)
        & (points.state_replicas_X == 1)
        & (points.secondary_shard_X == 1)
        & (points.ulysses_X == _fewest_exchanged_X(points))
        & sharded_X
    )
    points = points.where(table.fits_X(points, limit_bytes=pricer.limit_bytes))
    starved_X = points.num_microbatches_X < points.pp_X
    # Experts are spread before anything else is cut more, over one fast domain at most.
    far_X = np.abs(points.ep_X - np.minimum(cluster.fast_domain_size, points.ep_X.max(initial=1)))
    order = (points.pp_X, points.tp_X, points.cp_X, far_X, points.recompute_X, starved_X)
    for index in np.lexsort(order):
        layout = layout_at(points, int(index), table)
        layout = replace(layout, stages=stages_from_counts(even_counts(table.model.num_layers, layout.pp)))
        if pricer.prices(layout).peak_bytes(layout) <= pricer.limit_bytes:
            return layout
    return None


def _thumb_points(pricer: Pricer, cluster: Cluster) -> Points:
    """Return the legal points of the rule's degrees, whatever the user pins."""
    table = pricer.table
    scope = Scope(
        model=table.model,
        graph=table.graph,
        num_gpus=cluster.world_size,
        fast_domain_size=cluster.fast_domain_size,
        workload=table.workload,
        constraints=Constraints(
            degrees={"vpp": Bounds(allowed=(1,)), "micro_batch_size": Bounds(allowed=(1,)), "etp": Bounds(allowed=(1,))}
        ),
        capabilities=table.capabilities,
    )
    may_fit = partial(table.fits_X, limit_bytes=pricer.limit_bytes)
    return enumerate_layouts(scope, may_fit=may_fit).points
