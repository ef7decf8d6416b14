"""The rule of thumb that every plan is compared with.

The smallest TP inside the fast domain that fits, with as much PP as it needs; micro-batch 1, sequence parallelism with
TP, the distributed optimizer, layers split evenly; recomputation only when nothing fits without it; fewer micro-batches
than stages only when nothing else fits. The user's constraints do not bind it.
"""

from dataclasses import replace

import numpy as np

from planner.candidates import Pricer, layout_at
from planner.layout import Layout, even_counts, stages_from_counts
from planner.memory import memory_ledger, peak_memory_bytes
from planner.request import Constraints
from planner.space import enumerate_layouts
from profiles.hardware import Cluster


def baseline_layout(pricer: Pricer, cluster: Cluster) -> Layout | None:
    """Return the rule-of-thumb layout, its layers placed; None when it does not fit at any degree."""
    table = pricer.table
    points = enumerate_layouts(table.model, cluster, table.workload, Constraints()).points
    optimizer_stage = 1 if (points.zero_stage_X == 1).any() else 0
    sharded_X = (points.zero_stage_X == optimizer_stage) | (points.dp_X == 1)
    points = points.where(
        (points.micro_batch_size_X == 1)
        & (points.vpp_X == 1)
        & (points.recompute_layers_X == 0)
        & (points.tp_X <= cluster.fast_domain_size)
        & (points.sequence_parallel_X == (points.tp_X > 1))
        & sharded_X
    )
    points = points.where(table.fits_X(points, limit_bytes=pricer.limit_bytes))
    starved_X = points.num_microbatches_X < points.pp_X
    for index in np.lexsort((points.pp_X, points.tp_X, points.recompute_X, starved_X)):
        layout = layout_at(points, int(index), table)
        layout = replace(layout, stages=stages_from_counts(even_counts(table.model.num_layers, layout.pp)))
        if peak_memory_bytes(memory_ledger(pricer.place(layout))) <= pricer.limit_bytes:
            return layout
    return None
