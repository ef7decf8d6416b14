"""Prices points with a part of the optimizer's states on the hosts: how large a part, together with the layers' split.

A point says which part may be offloaded at most; every smaller one of `percents` is a choice, but where the weights go
too, drives hold the states, or sharded weights meet a pipeline, which takes all of them. Branch and bound over runs of
parts. Of those from a to b percent

- none leaves the GPUs more room than b does,
- none takes less of the nodes' memory than a does,
- none has a shorter optimizer step than one in which the hosts do what they do of a, and the GPUs what b leaves to them
  (each operation takes longer, the more elements it has),

so a point that is priced with all three at once (`_RunPrices`) takes no longer than any part of the run, under any
split. The split that it finds is then placed with the least part under which it fits, by exact bytes; that one is a
real candidate, and the run is cut there. With a single split of the layers nothing below that part fits, and nothing
above it has another pipeline: what is left is the optimizer step, and larger parts only have a shorter one as long as
the GPU's own update outlasts the host's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import numpy as np

from planner.layout import Layout, Offload
from planner.offloading.states import goes_whole, hosted_seconds, hosted_step_of
from planner.ranks.shard import Elements
from planner.search.bounds.costs import CostTable
from planner.search.space.points import point_of_layout
from planner.search.splits.candidates import Candidate, PointBound, Pricer, Rejected, has_single_split, unplaced
from planner.search.splits.point_prices import PointPrices
from planner.search.splits.rank_map import settle_point as settle_without_runs
from planner.search.splits.settle import Settled, settle
from profiles.hardware import Cluster

MOST_RUNS = 12
"""Runs of a point with several splits that are priced before others are looked at: a choice, the rest keep bounds."""

MOST_SETTLED_RUNS = 400
"""Runs of a point whose splits are all looked at; no more can come of 100 parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What came of pricing a run.

    Args:
        bound_seconds: No part of the run takes less, under any split that fits.
        candidate: The best split, priced as the run is.
        outbid: Something may fit that is too slow.
        by_host: A split fits into the GPUs, and not into the memory of a node.
    """

    bound_seconds: float
    candidate: Candidate | None
    outbid: bool = False
    by_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What came of all runs of a point.

    Args:
        bound_seconds: No part takes less under any split that fits, what `better` stands for aside.
        better: The best candidate below the ceiling.
        outbid: Something may fit that is too slow.
        by_host: A split fits into the GPUs, and not into the memory of a node.
    """

    bound_seconds: float
    better: Candidate | None
    outbid: bool
    by_host: bool


class _RunPrices(PointPrices):
    """Prices splits of a point as no part of a run undercuts.

    Args:
        table: Costs of the space.
        point: The point, with the largest part of the run.
        least: The smallest part of the run.
    """

    def __init__(self, table: CostTable, point: Layout, *, least: Offload) -> None:
        super().__init__(table, point)
        self._least = least

    def _optimizer_seconds(self, elements: Elements) -> float:
        assert self.point.offload is not None, "a run is one of offloaded parts"
        step = hosted_step_of(elements, self.point, self.point.offload, self.table.workload, least=self._least)
        return sum(hosted_seconds(step, self.table.cost_model.compute))


class _RunPricer(Pricer):
    """Prices points as no part of a run undercuts.

    Args:
        table: Costs of the space.
        limit_bytes: What each GPU may use.
        cluster: Whose nodes must hold what is offloaded; None asks no node.
        least: The smallest part of the run; points say the largest.
    """

    def __init__(self, table: CostTable, *, limit_bytes: int, cluster: Cluster | None, least: Offload) -> None:
        super().__init__(table, limit_bytes=limit_bytes, cluster=cluster)
        self._least = least

    def prices(self, point: Layout) -> PointPrices:
        """Return what prices splits of a point."""
        return _RunPrices(self.table, point, least=self._least)

    def hosts_hold(self, prices: PointPrices, split: Layout) -> bool:
        """Return whether every node has the memory for the smallest part."""
        return super().hosts_hold(prices, with_percent(split, round(100 * self._least.optimizer_fraction)))


_Looker = Callable[[Pricer, Layout, PointBound, float], _Look]


class OffloadPricer(Pricer):
    """Prices points of one space, each with the best part of the optimizer's states on the hosts.

    Args:
        table: Costs of the space.
        limit_bytes: What each GPU may use.
        cluster: Whose nodes must hold what is offloaded; None asks no node.
        percents: Parts that may be offloaded, ascending.
    """

    def __init__(
        self, table: CostTable, *, limit_bytes: int, cluster: Cluster | None, percents: tuple[int, ...]
    ) -> None:
        super().__init__(table, limit_bytes=limit_bytes, cluster=cluster)
        self._percents = percents

    def fitting(self, point: Layout) -> Layout | None:
        """Return a point with its layers placed and the least part that it needs; None when none was found that fits.

        The split is one that fits with the largest part.
        """
        if point.offload is None:
            return super().fitting(point)
        percents = self.percents_of(point)
        prices = self.prices(point)
        for split in self._splits(prices):
            if prices.peak_bytes(split) <= self.limit_bytes:
                placed = with_percent(split, percents[self.least_index(prices, split, percents)])
                if self.hosts_hold(prices, placed):
                    return placed
        return None

    def price(self, point: Layout, *, bound: PointBound, ceiling_seconds: float) -> Candidate | Rejected:
        """Return a point with its best part priced exactly, or why it is not worth it.

        Args:
            point: A point; its layers are placed here.
            bound: What the space knows of it.
            ceiling_seconds: A step this long is of no interest.
        """
        most = MOST_SETTLED_RUNS if has_single_split(point) else MOST_RUNS
        found = self._search(point, bound=bound, ceiling_seconds=ceiling_seconds, look=_priced, at_most=most)
        if found.better is None:
            return Rejected(fits=found.outbid, bound_seconds=found.bound_seconds, by_host=found.by_host)
        return found.better

    def settle(self, point: Layout, *, bound: PointBound, best_seconds: float) -> Settled:
        """Return the best part and split of a point that beat `best_seconds`, all that might having been simulated."""
        found = self._search(point, bound=bound, ceiling_seconds=best_seconds, look=_settled, at_most=MOST_SETTLED_RUNS)
        return Settled(bound_seconds=found.bound_seconds, better=found.better)

    def _search(
        self, point: Layout, *, bound: PointBound, ceiling_seconds: float, look: _Looker, at_most: int
    ) -> _Found:
        """Return the best part of a point below a ceiling, and what is proved of the others."""
        runs = _Runs(self, point, bound=bound)
        better: Candidate | None = None
        ceiling, proved, outbid, by_host = ceiling_seconds, math.inf, False, False
        for _ in range(at_most):
            if runs.least_seconds >= ceiling:
                break
            run = runs.pop()
            seen = look(*runs.question(run), ceiling)
            outbid, by_host = outbid or seen.outbid, by_host or seen.by_host
            run = replace(run, bound_seconds=max(run.bound_seconds, seen.bound_seconds))
            if seen.candidate is not None:
                index, real = runs.placed(run, seen.candidate.layout)
                by_host = by_host or real is None
                if real is not None and real.step_seconds < ceiling:
                    better, ceiling = real, real.step_seconds
                runs.cut(run, index, is_held=real is not None)
            elif seen.outbid and run.first < run.last:
                runs.halve(run)
            else:
                runs.close(run)
        outbid = outbid or math.isfinite(runs.least_seconds)
        proved = min(runs.least_seconds, runs.closed_seconds, *(() if better is None else (ceiling,)))
        if better is not None:
            better = replace(better, lower_bound_seconds=proved)
        return _Found(bound_seconds=proved, better=better, outbid=outbid, by_host=by_host)

    def placed(self, split: Layout, *, lower_bound_seconds: float) -> Candidate | None:
        """Return a split that fits with its part, placed with the least part that it needs; None likewise."""
        if split.offload is None:
            return super().placed(split, lower_bound_seconds=lower_bound_seconds)
        percents, prices = self.percents_of(split), self.prices(split)
        least = with_percent(split, percents[self.least_index(prices, split, percents)])
        found = super().placed(least, lower_bound_seconds=lower_bound_seconds)
        return None if found is None else replace(found, point=unplaced(split))

    def percents_of(self, point: Layout) -> tuple[int, ...]:
        """Return the parts that a point may have, ascending."""
        most = round(100 * point.offloaded_fraction)
        least = most if goes_whole(point) else 0
        return tuple(percent for percent in self._percents if least <= percent <= most)

    def least_index(self, prices: PointPrices, split: Layout, percents: tuple[int, ...]) -> int:
        """Return the index of the least part under which a split fits; it does with the last, and so with any above."""
        low, high = 0, len(percents) - 1
        while low < high:
            middle = (low + high) // 2
            if prices.peak_bytes(with_percent(split, percents[middle])) <= self.limit_bytes:
                high = middle
            else:
                low = middle + 1
        return high

    def of_run(self, least: int) -> Pricer:
        """Return what prices points as no part from `least` percent to theirs undercuts."""
        offload = Offload(optimizer_fraction=least / 100)
        return _RunPricer(self.table, limit_bytes=self.limit_bytes, cluster=self.cluster, least=offload)

    def tail_seconds(self, point: Layout, *, least: int, most: int) -> float:
        """Return what follows the pipeline of a point, at least, whatever the split and whichever part of a run."""
        of_run = replace(point_of_layout(with_percent(point, most)), least_offload_X=np.array([least]))
        return float(self.table.least_tail_seconds_X(of_run)[0])


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    """Parts in a row, by their indices, and a time that none of them undercuts."""

    bound_seconds: float
    first: int
    last: int


class _Runs:
    """The runs of a point that are open.

    Args:
        pricer: Prices the point.
        point: The point, with the largest part that it may have.
        bound: What the space knows of it.
    """

    def __init__(self, pricer: OffloadPricer, point: Layout, *, bound: PointBound) -> None:
        self._pricer, self._point = pricer, point
        self._prices, self._percents = pricer.prices(point), pricer.percents_of(point)
        self._pipeline_seconds = bound.pipeline_seconds
        self._open = [_Run(bound.step_seconds, 0, len(self._percents) - 1)]
        self.closed_seconds = math.inf
        """What no run takes less of which nothing more will be known."""

    @property
    def least_seconds(self) -> float:
        """Return what no open run takes less."""
        return self._open[0].bound_seconds if self._open else math.inf

    def pop(self) -> _Run:
        """Return the run with the least bound, which is open no more."""
        return heappop(self._open)

    def question(self, run: _Run) -> tuple[Pricer, Layout, PointBound]:
        """Return what prices a run, the point that it prices, and what is known of it."""
        least, most = self._percents[run.first], self._percents[run.last]
        tail_seconds = self._pricer.tail_seconds(self._point, least=least, most=most)
        bound = PointBound(pipeline_seconds=self._pipeline_seconds, tail_seconds=tail_seconds)
        return self._pricer.of_run(least), with_percent(self._point, most), bound

    def placed(self, run: _Run, split: Layout) -> tuple[int, Candidate | None]:
        """Return the index of the least part of a run under which a split fits, and its price if the nodes hold it."""
        percents = self._percents[run.first : run.last + 1]
        index = run.first + self._pricer.least_index(self._prices, split, percents)
        layout = with_percent(split, self._percents[index])
        if not self._pricer.hosts_hold(self._prices, layout):
            return index, None
        return index, replace(self._pricer.candidate(layout, lower_bound_seconds=0.0), point=self._point)

    def cut(self, run: _Run, index: int, *, is_held: bool) -> None:
        """Cut a run at the part with which its best split is placed.

        With a single split nothing below that part fits, and the part itself is known; where the nodes do not hold it
        (`is_held`), they hold no larger one.
        """
        if has_single_split(self._point):
            if is_held:
                self._add(run, index + 1, run.last)
        elif run.first == run.last:
            self.close(run)
        elif index == run.last:
            self.halve(run)
        else:
            self._add(run, run.first, index - 1)
            self._add(run, index, index)
            self._add(run, index + 1, run.last)

    def halve(self, run: _Run) -> None:
        """Cut a run in its middle."""
        middle = (run.first + run.last) // 2
        self._add(run, run.first, middle)
        self._add(run, middle + 1, run.last)

    def close(self, run: _Run) -> None:
        """Leave a run with what is known of it."""
        self.closed_seconds = min(self.closed_seconds, run.bound_seconds)

    def _add(self, run: _Run, first: int, last: int) -> None:
        if first <= last:
            tail = self._pricer.tail_seconds(self._point, least=self._percents[first], most=self._percents[last])
            heappush(self._open, _Run(max(run.bound_seconds, self._pipeline_seconds + tail), first, last))


def with_percent(layout: Layout, percent: int) -> Layout:
    """Return a layout with another part of the optimizer's states on the host."""
    assert layout.offload is not None, "a point of this space has offloaded states"
    return replace(layout, offload=replace(layout.offload, optimizer_fraction=percent / 100))


def settle_point(pricer: Pricer, point: Layout, *, bound: PointBound, best_seconds: float) -> Settled:
    """Return the best split of a point that beats `best_seconds`, with its offloaded part or its node order.

    Args:
        pricer: Prices splits.
        point: A point of which not everything was looked at.
        bound: What the space knows of it.
        best_seconds: What a step takes that is known.
    """
    if isinstance(pricer, OffloadPricer):
        return pricer.settle(point, bound=bound, best_seconds=best_seconds)
    return settle_without_runs(pricer, point, bound=bound, best_seconds=best_seconds)


def _priced(pricer: Pricer, point: Layout, bound: PointBound, ceiling_seconds: float) -> _Look:
    """Return what comes of pricing one split of a run."""
    outcome = pricer.price(point, bound=bound, ceiling_seconds=ceiling_seconds)
    if isinstance(outcome, Candidate):
        return _Look(bound_seconds=outcome.lower_bound_seconds, candidate=outcome)
    proved = outcome.bound_seconds
    if outcome.fits and has_single_split(point):
        proved = max(proved, ceiling_seconds)
    return _Look(bound_seconds=proved, candidate=None, outbid=outcome.fits, by_host=outcome.by_host)


def _settled(pricer: Pricer, point: Layout, bound: PointBound, ceiling_seconds: float) -> _Look:
    """Return what comes of looking at every split of a run that may beat a ceiling."""
    found = settle(pricer, point, bound=bound, best_seconds=ceiling_seconds)
    return _Look(bound_seconds=found.bound_seconds, candidate=found.better, outbid=found.better is None)
