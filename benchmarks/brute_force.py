"""Every legal point and every split of its layers, priced one by one by the independent evaluator.

The points are those of `benchmarks.points`, bytes are the ledger's, times the evaluator's: nothing of the search.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb

from benchmarks.points import Run, interleaved_split, legal_points
from planner.capabilities import CAPABILITIES
from planner.errors import NotExpressibleError
from planner.evaluate import simulated_step_seconds
from planner.layers import build_graph
from planner.layout import Layout, stages_from_counts
from planner.memory import memory_ledger, memory_limit_bytes, peak_memory_bytes
from planner.placement import place
from planner.targets import framework_of
from profiles.planned import cost_model_on


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhausted:
    """What came of looking at every layout.

    Args:
        best: The fastest layout that fits and that the target can say; None where there is none.
        step_seconds: Its step; None likewise.
        num_layouts: Layouts looked at.
        num_fitting: Those of them that fit into memory.
        seconds: What it took.
    """

    best: Layout | None
    step_seconds: float | None
    num_layouts: int
    num_fitting: int
    seconds: float


def num_splits(layout: Layout, num_layers: int) -> int:
    """Return how many splits of a point there are: a stage at either end of a plain pipeline may hold no layer."""
    if layout.pp == 1 or layout.vpp > 1:
        return 1
    fewest = layout.recompute.num_layers or 0
    if fewest:
        return comb(num_layers - layout.pp * fewest + layout.pp - 1, layout.pp - 1)
    return comb(num_layers + 1, layout.pp - 1)


def splits(layout: Layout, num_layers: int) -> Iterator[Layout]:
    """Yield a point with its layers placed in every way that the search stands for."""
    num_stages, fewest = layout.pp * layout.vpp, layout.recompute.num_layers or 0
    if num_stages == 1 or layout.vpp > 1:
        yield replace(layout, stages=stages_from_counts(interleaved_split(num_layers, num_stages)))
        return
    for cuts in combinations(range(num_layers + 1), num_stages - 1):
        ends = (0, *cuts, num_layers)
        counts = tuple(ends[stage + 1] - ends[stage] for stage in range(num_stages))
        if min(counts) >= fewest:
            yield replace(layout, stages=stages_from_counts(counts))


def count_layouts(run: Run, *, at_most: int) -> int | None:
    """Return how many layouts there are to look at; None for more than `at_most`."""
    total = 0
    for layout in legal_points(run):
        total += num_splits(layout, run.model.num_layers)
        if total > at_most:
            return None
    return total


def brute_force(run: Run) -> Exhausted:
    """Return the best of all layouts of a run."""
    began = time.perf_counter()
    capabilities, workload = CAPABILITIES[run.request.target], run.workload
    graph = build_graph(run.model, workload, eager=capabilities.eager)
    cost_model = cost_model_on(run.cluster, capabilities.software)
    limit = memory_limit_bytes(run.cluster.device.memory_bytes, run.request.memory_headroom)
    num_layouts = num_fitting = 0
    best: Layout | None = None
    best_seconds: float | None = None
    for layout in legal_points(run):
        for split in splits(layout, run.model.num_layers):
            num_layouts += 1
            placed = place(run.model, graph, split, workload, capabilities)
            if peak_memory_bytes(memory_ledger(placed)) > limit:
                continue
            num_fitting += 1
            seconds = simulated_step_seconds(placed, cost_model)
            if (best_seconds is None or seconds < best_seconds) and can_say(split, run):
                best, best_seconds = split, seconds
    return Exhausted(
        best=best,
        step_seconds=best_seconds,
        num_layouts=num_layouts,
        num_fitting=num_fitting,
        seconds=time.perf_counter() - began,
    )


def can_say(layout: Layout, run: Run) -> bool:
    """Return whether the target has words for a layout."""
    framework = framework_of(run.request.target)
    if framework is None:
        return True
    try:
        framework.require_expressible(run.model, run.workload, layout, run.cluster)
    except NotExpressibleError:
        return False
    return True
