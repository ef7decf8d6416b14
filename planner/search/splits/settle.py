"""Close the gap of plain pipelines: every split of a point that may beat the best plan is simulated."""

from dataclasses import dataclass, replace

import numpy as np

from planner.layout import Granularity, Layout, Recompute, Stage, stages_from_counts
from planner.schedules.bounds import ROUNDING
from planner.search.splits.candidates import Candidate, PointBound, Pricer, unplaced
from planner.search.splits.layer_choices import LayerChooser
from planner.search.splits.point_prices import PointPrices
from solvers.dp import least_sum
from solvers.problem import FloatArray, Problem

MOST_SPLITS = 2_000
"""Splits of one point that are looked at to close its gap. A choice: where there are more, the plan keeps its gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What came of looking at the splits of a point.

    Args:
        bound_seconds: No split takes less; those that `better` stands for aside.
        better: The best split, where one beats what was known before.
    """

    bound_seconds: float
    better: Candidate | None = None


def settle(pricer: Pricer, point: Layout, *, bound: PointBound, best_seconds: float) -> Settled:
    """Return the best split of a point that beats `best_seconds`, all that might having been simulated.

    On the longest path of a split lie the first forward passes of all stages and the last backward pass of the first
    one, with what data-parallel collectives add to them; the least that any split has of that counts for all.

    Where each layer has a recompute choice of its own, a split is simulated with the fastest choice within exact bytes,
    and its path counts the least within bytes rounded down.

    Args:
        pricer: Prices splits.
        point: A point with a plain pipeline.
        bound: What the space knows of it.
        best_seconds: What a step takes that is known.
    """
    prices = pricer.prices(point)
    problem = pricer.problem(prices, generous=True)
    path = pricer.longest_path(problem, prices)

    def limit(seconds: float) -> float:
        """Return the path's value at which no split beats a step of so many seconds."""
        return path.value_at(seconds, tail_seconds=bound.tail_seconds)

    least_extra = 0.0
    splits = path.peaks.splits_below(limit(best_seconds), at_most=MOST_SPLITS)
    if splits is None and prices.stages_are_alike:
        least_extra = least_sum(problem, _extras_SJN(problem, prices))
        splits = path.peaks.splits_below(limit(best_seconds) - least_extra, at_most=MOST_SPLITS)
    if splits is None:
        return Settled(bound_seconds=path.least_seconds() + least_extra * (1.0 - ROUNDING) + bound.tail_seconds)
    better: Candidate | None = None
    ceiling = best_seconds
    chooser = LayerChooser(prices, limit_bytes=pricer.limit_bytes)
    for value, counts in splits:
        if value + least_extra >= limit(ceiling):
            break
        placed = replace(point, stages=stages_from_counts(counts))
        split = chooser.chosen(placed) if point.recompute.is_per_layer else placed
        if split is None:
            continue
        stages = prices.stages(split)
        extras = sum(stage.first_forward_extra for stage in stages) + stages[0].last_backward_extra
        if value + extras >= limit(ceiling):
            continue
        seconds = prices.step_seconds(split)
        if seconds >= ceiling:
            continue
        peak_bytes = prices.peak_bytes(split)
        if peak_bytes > pricer.limit_bytes or not pricer.hosts_hold(prices, split):
            continue
        ceiling = seconds
        better = Candidate(
            layout=split,
            step_seconds=seconds,
            peak_memory_bytes=peak_bytes,
            lower_bound_seconds=seconds,
            point=unplaced(split),
        )
    return Settled(bound_seconds=ceiling, better=better)


def _extras_SJN(problem: Problem, prices: PointPrices) -> FloatArray:
    """Return what data-parallel collectives add to the longest path if a stage holds the n layers before layer j.

    At least: the longer a backward pass, the less of a reduction is left behind it.
    """
    recompute = prices.point.recompute
    if recompute.is_per_layer:
        recompute = Recompute(granularity=Granularity.FULL)
    num_stages, num_layers = problem.num_stages, problem.num_layers
    extras_SJN = np.full((num_stages, num_layers + 1, num_layers + 1), np.inf)
    for end in range(num_layers + 1):
        for count in range(end + 1):
            for stages, first, last in (
                (slice(0, 1), True, False),
                (slice(1, num_stages - 1), False, False),
                (slice(num_stages - 1, num_stages), False, True),
            ):
                held = Stage(first_layer=end - count, num_layers=count, has_embedding=first, has_head=last)
                seconds = prices.stage(held, recompute)
                extras_SJN[stages, end, count] = seconds.first_forward_extra + first * seconds.last_backward_extra
    return extras_SJN
