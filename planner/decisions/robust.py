"""The layout that loses least, whichever class of operations is slower than predicted.

Cases S: everything as predicted, and for each class of operations (`profiles.slowed`) that class alone slower by its
band. So at most one class is off, a budget of one in the sense of Bertsimas and Sim (Operations Research 52(1), 2004):
were all off at once, every layout would be slower and little would change between them. Which class is off is not
known; how far the record says it may be, is.

With T_s(x) the simulated step of layout x in case s and T*_s the least of them, the objective is the largest relative
regret (Kouvelis and Yu, Robust Discrete Optimization and Its Applications, 1997)

    R(x) = max over s of T_s(x) / T*_s - 1,

and not the largest T_s(x): that would nearly always be the case of slower matrix products, which no layout avoids.

Every case is searched by itself, on the same points and in the same memory, which gives T*_s: the best that was found,
which each case says beside what is proved of it. Then, with b_s(p) a bound of all splits of point p in case s,

    R(x) >= max over s of b_s(p) / T*_s - 1    for every split x of p,

so points are priced in the order of that bound until it passes the least R that is known: of each, the best split of
every case, in all cases. Of plain pipelines that are still open every split is then looked at that may lose less, as
`planner.search.splits.settle` does for one case. What is left open gives the gap: interleaved stages stand for their
most even split, as in every search, and where each layer is recomputed in its own way, the best choice of each case was
tried.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from planner.arrays import FloatArray
from planner.layout import Layout, stages_from_counts
from planner.models.specs import ModelSpec
from planner.plans.choices import Robustness, SlowCase
from planner.plans.plan import Plan, Status
from planner.requests.request import PlanRequest
from planner.search.bounds.costs import Bounds, CostTable
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, prepare
from planner.search.infeasible import PriceOn
from planner.search.search import conclude
from planner.search.space.points import Points
from planner.search.splits.candidates import Candidate, PointBound, Pricer, Rejected, layout_at, unplaced
from planner.search.splits.layer_choices import LayerChooser
from planner.search.splits.settle import MOST_SPLITS
from planner.search.splits.uneven import least_seconds
from planner.search.visit import MAX_VISITED
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from profiles.slowed import OperationClass, SlowedCostModel, classes_on
from solvers.solution import OPTIMALITY_TOLERANCE

AS_PREDICTED = 0
"""The first case."""


def plan_robust(  # noqa: PLR0913 - what is planned, and how
    model: ModelSpec,
    cluster: Cluster,
    request: PlanRequest,
    *,
    top: int = 5,
    watch: Watch | None = None,
    price_on: PriceOn = cost_model_on,
) -> Plan:
    """Return the layouts that lose least in their worst case, or why nothing fits.

    The account of points is that of the search as predicted.

    Args:
        model: The model.
        cluster: Equal nodes.
        request: The workload and what is asked of the plan.
        top: Layouts to return at most.
        watch: Called with (activity, done, of how many) as the search goes on.
        price_on: Gives the cost model of a cluster as predicted.

    Raises:
        solvers.errors.SolverError: Nothing was found, and that nothing can be is not proved.
        profiles.errors.CoverageError: An operation has no cost.
        planner.errors.NotExpressibleError: The target has no way to say the model, the workload, or any layout found.
    """
    assert cluster.unequal is None, "robust plans are for equal nodes"
    watch = watch or ignore
    watch("enumerating layouts", 0, 1)
    ground = prepare(model, cluster, request, price_on=price_on)
    seen = ground.visit(top=top, watch=watch)
    if not seen.candidates:
        return conclude(ground, seen, watch=watch)
    slow = classes_on(cluster)
    search = _Search([ground, *(slowed(ground, kind) for kind in slow)])
    search.take(AS_PREDICTED, seen.candidates, bound_seconds=seen.any_split_bound_seconds)
    for case, kind in enumerate(slow, start=1):
        watch(f"{kind} slower", case - 1, len(slow))
        of_case = search.grounds[case].visit(top=top, watch=ignore)
        search.take(case, of_case.candidates, bound_seconds=of_case.any_split_bound_seconds)
    least, uneven_least = search.look(watch=watch)
    chosen = search.ranked()[:top]
    plan = conclude(
        ground,
        replace(
            seen,
            candidates=tuple(search.candidate(layout) for layout in chosen),
            uneven_bound_seconds=None,
        ),
        watch=watch,
    )
    worst = search.worst(chosen[0])
    least = min(least, worst)
    gap = (worst - least) / worst
    return replace(
        plan,
        status=Status.OPTIMAL if gap <= OPTIMALITY_TOLERANCE else Status.FEASIBLE,
        bound=least - 1.0,
        gap=gap,
        robustness=Robustness(
            fastest=search.fastest,
            cases=tuple(search.case(index, kind, chosen) for index, kind in enumerate((None, *slow))),
            least_loss=least - 1.0,
            uneven_least_loss=uneven_least - 1.0 if uneven_least < worst else None,
        ),
    )


def slowed(ground: Ground, kind: OperationClass) -> Ground:
    """Return the same points with one class of operations slower."""
    software, table = ground.scope.capabilities.software, ground.table
    cost_model: CostModel = SlowedCostModel(ground.cost_model, cluster=ground.cluster, software=software, slow=kind)
    return replace(
        ground,
        cost_model=cost_model,
        table=CostTable(
            model=ground.model,
            graph=ground.scope.graph,
            workload=ground.request.workload,
            cost_model=cost_model,
            recomputes=table.recomputes,
            capabilities=table.capabilities,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A point of which not every split was looked at.

    Args:
        least: No split of it loses less; one more than the loss.
        point: The point.
        bounds_S: What is known of it in each case.
    """

    least: float
    point: Layout
    bounds_S: tuple[PointBound, ...]


class _Search:
    """Looks for the least loss. Losses are one more than `R`: step over the best step of a case.

    Args:
        grounds: Each case's; equal points, equal memory.
    """

    def __init__(self, grounds: list[Ground]) -> None:
        self.grounds = grounds
        self.pricers: list[Pricer] = [ground.pricer() for ground in grounds]
        self.best_S = [math.inf] * len(grounds)
        self.bound_S = [0.0] * len(grounds)
        self.seconds: dict[Layout, tuple[float, ...]] = {}
        """What every layout that was looked at takes in each case."""
        self._lower: dict[Layout, float] = {}
        """What no split of a point takes less than as predicted."""
        self._ceiling = math.inf

    @property
    def cases(self) -> range:
        return range(len(self.grounds))

    def take(self, case: int, candidates: tuple[Candidate, ...], *, bound_seconds: float) -> None:
        """Look at what is best in one case."""
        self.bound_S[case] = bound_seconds
        for candidate in candidates:
            if case == AS_PREDICTED:
                self._lower[candidate.point] = candidate.lower_bound_seconds
            self.consider(candidate.layout)

    def consider(self, layout: Layout) -> None:
        """Price a layout, its layers placed, in every case."""
        if layout in self.seconds:
            return
        found = tuple(pricer.prices(layout).step_seconds(layout) for pricer in self.pricers)
        self.seconds[layout] = found
        if all(known <= seconds for known, seconds in zip(self.best_S, found, strict=True)):
            self._ceiling = min(self._ceiling, self.worst(layout))
            return
        self.best_S = [min(known, seconds) for known, seconds in zip(self.best_S, found, strict=True)]
        self._ceiling = min(map(self.worst, self.seconds))

    def worst(self, layout: Layout) -> float:
        """Return the loss of a layout in its worst case."""
        return max(seconds / best for seconds, best in zip(self.seconds[layout], self.best_S, strict=True))

    @property
    def fastest(self) -> Layout:
        """Return the layout that is fastest as predicted."""
        return min(self.seconds, key=lambda layout: self.seconds[layout][AS_PREDICTED])

    def ranked(self) -> list[Layout]:
        """Return the layouts by loss, then by their time as predicted; of each point the best one."""
        order = sorted(self.seconds, key=lambda layout: (self.worst(layout), self.seconds[layout][AS_PREDICTED]))
        found: dict[Layout, Layout] = {}
        for layout in order:
            found.setdefault(unplaced(layout), layout)
        return list(found.values())

    def candidate(self, layout: Layout) -> Candidate:
        """Return a layout as predicted."""
        seconds = self.seconds[layout][AS_PREDICTED]
        point = unplaced(layout)
        return Candidate(
            layout=layout,
            step_seconds=seconds,
            peak_memory_bytes=self.pricers[AS_PREDICTED].prices(layout).peak_bytes(layout),
            lower_bound_seconds=min(self._lower.get(point, 0.0), seconds),
            point=point,
        )

    def case(self, index: int, kind: OperationClass | None, chosen: list[Layout]) -> SlowCase:
        """Return how the chosen layouts do in one case."""
        return SlowCase(
            slow="" if kind is None else kind.value,
            factor=1.0 if kind is None else 1.0 + kind.band.value,
            source="" if kind is None else kind.band.source,
            best_seconds=self.best_S[index],
            bound_seconds=min(self.bound_S[index], self.best_S[index]),
            fastest_seconds=self.seconds[self.fastest][index],
            seconds_P=tuple(self.seconds[layout][index] for layout in chosen),
        )

    def look(self, *, watch: Watch) -> tuple[float, float]:
        """Look at every point that may lose less than what is known.

        Returns:
            What no layout searched loses less than, and what no uneven split of interleaved stages does.
        """
        first = self.grounds[AS_PREDICTED]
        points = first.space.points.where(first.table.fits_X(first.space.points, limit_bytes=first.limit_bytes))
        bounds_S = [pricer.bounds(points) for pricer in self.pricers]
        open_least, several = self._visit(points, bounds_S, watch=watch)
        for index, entry in enumerate(sorted(several, key=lambda entry: entry.least)):
            watch("closing the gap", index, len(several))
            open_least = min(open_least, self._settled(entry))
        return min(open_least, self._unsimulated()), self._uneven(points, bounds_S)

    def _visit(self, points: Points, bounds_S: list[Bounds], *, watch: Watch) -> tuple[float, list[_Open]]:
        """Price points in the order of their bounds; return what bounds the rest, and those that are open still."""
        seconds_SX = np.stack([bounds.step_seconds_X for bounds in bounds_S])
        several: list[_Open] = []
        least_X = self._over_best(seconds_SX)
        for visited, index in enumerate(np.argsort(least_X, kind="stable").tolist()):
            if least_X[index] >= self._ceiling or visited >= MAX_VISITED:
                return float(least_X[index]), several
            watch("pricing layouts", visited, min(len(points), MAX_VISITED))
            point = layout_at(points, index, self.pricers[AS_PREDICTED].table)
            known_S = tuple(
                PointBound(
                    pipeline_seconds=float(bounds.pipeline_seconds_X[index]),
                    tail_seconds=float(bounds.tail_seconds_X[index]),
                )
                for bounds in bounds_S
            )
            least = self._priced(point, known_S)
            if least < self._ceiling and not self.pricers[AS_PREDICTED].is_settled(point):
                several.append(_Open(least=least, point=point, bounds_S=known_S))
        return math.inf, several

    def _priced(self, point: Layout, known_S: tuple[PointBound, ...]) -> float:
        """Look at the best split of a point in each case; return what no split of it loses less than."""
        least = 0.0
        for case in sorted(self.cases, key=lambda case: -known_S[case].step_seconds / self.best_S[case]):
            ceiling = self._ceiling * self.best_S[case]
            outcome = self.pricers[case].price(point, bound=known_S[case], ceiling_seconds=ceiling)
            if isinstance(outcome, Rejected):
                least = max(least, outcome.bound_seconds / self.best_S[case])
                if least >= self._ceiling:
                    break
                continue
            least = max(least, outcome.lower_bound_seconds / self.best_S[case])
            if case == AS_PREDICTED:
                self._lower[outcome.point] = outcome.lower_bound_seconds
            if self.grounds[AS_PREDICTED].refused(outcome.layout) is not None:
                return math.inf
            self.consider(outcome.layout)
        return least

    def _settled(self, entry: _Open) -> float:
        """Look at every split of a point that may lose less; return what is left open."""
        ceiling = self._ceiling
        if entry.least >= ceiling:
            return entry.least
        splits = self._open_splits(entry)
        if splits is None:
            return entry.least
        left = math.inf
        for counts in splits:
            placed = replace(entry.point, stages=stages_from_counts(counts))
            left = min(left, self._split(placed))
        return left

    def _open_splits(self, entry: _Open) -> list[tuple[int, ...]] | None:
        """Return the splits of a point that may lose less, by the case that leaves fewest; None if all leave many."""
        fewest: list[tuple[int, ...]] | None = None
        for case in self.cases:
            pricer = self.pricers[case]
            prices, bound = pricer.prices(entry.point), entry.bounds_S[case]
            path = pricer.longest_path(pricer.problem(prices, generous=True), prices)
            limit = path.value_at(self._ceiling * self.best_S[case], tail_seconds=bound.tail_seconds)
            found = path.peaks.splits_below(limit, at_most=MOST_SPLITS)
            if found is not None and (fewest is None or len(found) < len(fewest)):
                fewest = [counts for _, counts in found]
        return fewest

    def _split(self, placed: Layout) -> float:
        """Look at one split in every case; return what is left open of it.

        Nothing is, unless each layer has a recompute choice of its own: the fastest of each case is tried in all.
        """
        variants = dict.fromkeys(self._variants(placed))
        if None in variants:
            return math.inf
        least = 0.0
        for case in self.cases:
            pricer = self.pricers[case]
            fastest = min(pricer.prices(layout).step_seconds(layout) for layout in variants if layout is not None)
            least = max(least, fastest / self.best_S[case])
            if least >= self._ceiling:
                return least
        first = self.pricers[AS_PREDICTED]
        for layout in variants:
            assert layout is not None, "a split without a choice that fits was left out"
            if first.prices(layout).peak_bytes(layout) > first.limit_bytes:
                continue
            if self.grounds[AS_PREDICTED].refused(layout) is None:
                self.consider(layout)
        return least if placed.recompute.is_per_layer else math.inf

    def _variants(self, placed: Layout) -> Iterator[Layout | None]:
        """Yield a split as it is, or with the recompute choices that are fastest in each case; None where none fit."""
        if not placed.recompute.is_per_layer:
            yield placed
            return
        for pricer in self.pricers:
            yield LayerChooser(pricer.prices(unplaced(placed)), limit_bytes=pricer.limit_bytes).chosen(placed)

    def _unsimulated(self) -> float:
        """Return what no split of the points loses less than that are too long to simulate."""
        first = self.grounds[AS_PREDICTED]
        points = first.space.unsimulated
        points = points.where(first.table.fits_X(points, limit_bytes=first.limit_bytes))
        if not len(points):
            return math.inf
        found = []
        for pricer in self.pricers:
            bounds = pricer.bounds(points)
            any_split_X = bounds.any_split_seconds_X + bounds.tail_seconds_X
            found.append(np.where(points.vpp_X > 1, any_split_X, bounds.step_seconds_X))
        return float(self._over_best(np.stack(found)).min())

    def _uneven(self, points: Points, bounds_S: list[Bounds]) -> float:
        """Return what no split of the interleaved points loses less than, even or not."""
        any_SX = np.stack([bounds.any_split_seconds_X + bounds.tail_seconds_X for bounds in bounds_S])
        least_X = np.where(points.vpp_X > 1, self._over_best(any_SX), math.inf)
        found = math.inf
        for index in np.flatnonzero(least_X < self._ceiling).tolist():
            point = layout_at(points, index, self.pricers[AS_PREDICTED].table)
            least = float(least_X[index])
            for case, bounds in enumerate(bounds_S):
                known = PointBound(
                    pipeline_seconds=float(bounds.pipeline_seconds_X[index]),
                    tail_seconds=float(bounds.tail_seconds_X[index]),
                )
                ceiling = self._ceiling * self.best_S[case]
                seconds = least_seconds(self.pricers[case], point, bound=known, ceiling_seconds=ceiling)
                least = max(least, seconds / self.best_S[case])
                if least >= self._ceiling:
                    break
            found = min(found, least)
        return found

    def _over_best(self, seconds_SX: FloatArray) -> FloatArray:
        """Return the largest loss over the cases."""
        least_X: FloatArray = (seconds_SX / np.array(self.best_S)[:, np.newaxis]).max(axis=0)
        return least_X
