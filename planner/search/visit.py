"""Visit the points of a space in the order of their bounds, and prove what the best of them is.

Points are priced exactly until no bound is left that could still enter the list of the best. Of each, one split of the
layers is priced. Then, of the plain pipelines that are still open, every split that might beat the best plan is
simulated (`planner.search.splits.settle`); the bound holds for every one of them. Interleaved points stand for the
split that is as even as the layers allow; others are looked for from there (`planner.search.splits.uneven`), and
bounded apart, those of points whose even split does not fit among them, and that nothing fits is proved of all splits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.arrays import BoolArray, FloatArray
from planner.errors import NotExpressibleError
from planner.layout import Layout
from planner.search.bounds.costs import Bounds, CostTable
from planner.search.found import Refused, Watch, insert
from planner.search.space.enumeration import Space
from planner.search.space.points import Points, Scope
from planner.search.splits.candidates import Candidate, PointBound, Pricer, Rejected, has_single_split, layout_at
from planner.search.splits.interleaved import Interleaved, least_of_all
from planner.search.splits.neighbours import best_neighbour
from planner.search.splits.offload_prices import settle_point
from planner.search.unevenly import place_unevenly

MAX_VISITED = 5_000
"""Points looked at exactly before the search stops with what it has; a count, so that equal inputs give equal plans.

A choice: plans of the examples need at most 23; one that stops early says its gap.
"""

BEYOND_HOST = "host memory: what is offloaded exceeds the memory of a node"
OUTBID = "bound: cannot beat the plans found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What came of visiting the points: candidates by merit, the bound that was proved, and the account of points.

    `unsettled` counts points of which it is not known whether some split fits. `refusal` is what the target has against
    the first layout that fits and that it has no words for. `uneven_bound_seconds` holds for all splits of interleaved
    points, None where none of them can beat the best candidate. `thumb` is the rule-of-thumb layout of a search without
    constraints, where it fits. `offloaded_considered` and `offloaded_legal` count points with something on the hosts,
    before and after all rules; `states_considered`, `parameters_considered`, `activations_considered` and
    `modules_considered` tell what was among it.
    """

    candidates: tuple[Candidate, ...]
    bound_seconds: float
    pruned: dict[str, int]
    simulated: int
    unsettled: int
    refusal: NotExpressibleError | None = None
    uneven_bound_seconds: float | None = None
    thumb: Layout | None = None
    offloaded_considered: int = 0
    offloaded_legal: int = 0
    states_considered: bool = False
    parameters_considered: bool = False
    drives_considered: bool = False
    parameter_drives_considered: bool = False
    activations_considered: bool = False
    modules_considered: bool = False

    @property
    def any_split_bound_seconds(self) -> float:
        """Return what no layout undercuts."""
        uneven = self.uneven_bound_seconds
        return self.bound_seconds if uneven is None else min(self.bound_seconds, uneven)


def visit(  # noqa: PLR0913 - what is visited, how, and who may refuse
    space: Space,
    table: CostTable,
    pricer: Pricer,
    *,
    scope: Scope,
    start: Layout | None,
    top: int,
    watch: Watch,
    refused: Refused,
    rivals: Sequence[Candidate] = (),
) -> Visit:
    """Price the points in the order of their bounds, beginning with a placed layout of the space where one is known.

    Around the best one, what the space of `scope` leaves out is tried as well.

    Args:
        space: The points.
        table: Their costs.
        pricer: Prices them.
        scope: What the points come from.
        start: A placed layout of the space that fits, if one is known.
        top: Candidates to return at most.
        watch: Called as the points are looked at.
        refused: Returns why the target has no words for a layout, if it has none.
        rivals: Candidates of another space, by merit, that these have to beat.
    """
    fits_X = table.fits_X(space.points, limit_bytes=pricer.limit_bytes)
    may_fit_X = _may_fit_X(space.points, table, fits_X, limit_bytes=pricer.limit_bytes)
    points = space.points.where(fits_X)
    pruned: dict[str, int] = {}
    _count(pruned, "memory: no split of the layers fits", int((~may_fit_X).sum()) + space.unfit)
    too_long = space.unsimulated.where(table.fits_X(space.unsimulated, limit_bytes=pricer.limit_bytes, any_split=True))
    if not may_fit_X.any():
        return Visit(
            candidates=tuple(rivals), bound_seconds=math.inf, pruned=pruned, simulated=0, unsettled=len(too_long)
        )
    watch("bounding layouts", 0, 1)
    bounds = pricer.bounds(points)
    found = list(rivals)
    if start is not None:
        found.append(pricer.candidate(start, lower_bound_seconds=float(bounds.step_seconds_X.min())))
    priced = _priced(points, bounds, pricer, found, top=top, refused=refused, watch=watch)
    pruned |= priced.refused
    closed = _settled(priced.several, pricer, found, refused=refused, watch=watch)
    crowded_X = may_fit_X & ~fits_X
    crowded_X[np.flatnonzero(fits_X)[priced.crowded]] = True
    even_X = (points.vpp_X > 1) & ~crowded_X[fits_X]
    even = Interleaved(points=points.where(even_X), bounds=bounds.where(even_X))
    some = space.points.where(crowded_X)
    crowded = Interleaved(points=some, bounds=pricer.bounds(some))
    unevenly = place_unevenly(even, crowded, pricer, found, beside_rivals=bool(rivals), refused=refused, watch=watch)
    _look_beside(found, pricer, scope, refused=refused)
    best_seconds = found[0].step_seconds if found else math.inf
    uneven_seconds = least_of_all((even, crowded), pricer, ceiling_seconds=best_seconds) if found else math.inf
    _count(pruned, "memory: at most uneven interleaved stages fit", len(some) - unevenly.placed)
    _count(pruned, "memory: exact bytes exceed the limit", priced.exceeded - closed.placed + closed.placed_by_host)
    _count(pruned, BEYOND_HOST, priced.beyond_host - closed.placed_by_host)
    _count(pruned, OUTBID, len(points) - priced.visited + priced.outbid)
    return Visit(
        candidates=tuple(found[:top]),
        bound_seconds=min(
            _least_of_all_splits(too_long, pricer), priced.open_seconds, closed.open_seconds, best_seconds
        ),
        pruned=pruned,
        simulated=priced.simulated + closed.placed + unevenly.placed,
        unsettled=len(too_long) + closed.unsettled + (0 if found else len(some)),
        refusal=priced.refusal or closed.refusal or unevenly.refusal,
        uneven_bound_seconds=uneven_seconds if uneven_seconds < best_seconds else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """What came of pricing the points one by one, of each one split of the layers.

    Args:
        open_seconds: No point that was not visited takes less.
        several: Points of which not all splits are known.
        visited: Points that were visited.
        simulated: Those that were priced.
        exceeded: Those of which no split was found that fits, interleaved ones aside.
        beyond_host: Those of which a split fits into the GPUs alone, interleaved ones aside.
        crowded: Positions of interleaved ones whose even split does not fit.
        outbid: Those that fit but cannot be among the best.
        refused: Those that the target has no words for, by reason.
        refusal: The first reason.
    """

    open_seconds: float
    several: "list[_SeveralSplits]"
    visited: int
    simulated: int
    exceeded: int
    beyond_host: int
    crowded: list[int]
    outbid: int
    refused: dict[str, int]
    refusal: NotExpressibleError | None


def _priced(  # noqa: PLR0913 - what is visited, how, and who may refuse
    points: Points,
    bounds: Bounds,
    pricer: Pricer,
    found: list[Candidate],
    *,
    top: int,
    refused: Refused,
    watch: Watch,
) -> _Priced:
    """Price points in the order of their bounds until none is left that may enter the best; these are added."""
    bound_X = bounds.step_seconds_X
    open_seconds = math.inf
    several: list[_SeveralSplits] = []
    crowded: list[int] = []
    visited, simulated, exceeded, beyond_host, outbid = 0, 0, 0, 0, 0
    reasons: dict[str, int] = {}
    first_refusal: NotExpressibleError | None = None
    for index in _bound_order(points, bound_X):
        bound = float(bound_X[index])
        ceiling = found[top - 1].step_seconds if len(found) >= top else math.inf
        if bound >= ceiling or (found and visited >= MAX_VISITED):  # that nothing fits must be proved of every point
            open_seconds = bound
            break
        watch("pricing layouts", visited, min(len(points), MAX_VISITED))
        visited += 1
        layout = layout_at(points, int(index), pricer.table)
        known = PointBound(
            pipeline_seconds=float(bounds.pipeline_seconds_X[index]), tail_seconds=float(bounds.tail_seconds_X[index])
        )
        outcome = pricer.price(layout, bound=known, ceiling_seconds=ceiling)
        if isinstance(outcome, Rejected) and not outcome.fits:
            if layout.vpp > 1:
                crowded.append(int(index))
            else:
                exceeded += not outcome.by_host
                beyond_host += outcome.by_host
            if math.isfinite(outcome.bound_seconds):
                several.append(
                    _SeveralSplits(
                        proved_seconds=outcome.bound_seconds,
                        layout=layout,
                        bound=known,
                        is_placed=False,
                        by_host=outcome.by_host,
                    )
                )
            continue
        refusal = None if isinstance(outcome, Rejected) else refused(outcome.layout)
        if refusal is not None:
            first_refusal = first_refusal or refusal
            reason = f"{refusal.target}: {refusal.message}"
            reasons[reason] = reasons.get(reason, 0) + 1
            continue
        if not pricer.is_settled(layout):
            proved = outcome.bound_seconds if isinstance(outcome, Rejected) else outcome.lower_bound_seconds
            several.append(_SeveralSplits(proved_seconds=proved, layout=layout, bound=known, is_placed=True))
        if isinstance(outcome, Rejected):
            outbid += 1
            continue
        simulated += 1
        insert(found, outcome)
    return _Priced(
        open_seconds=open_seconds,
        several=several,
        visited=visited,
        simulated=simulated,
        exceeded=exceeded,
        beyond_host=beyond_host,
        crowded=crowded,
        outbid=outbid,
        refused=reasons,
        refusal=first_refusal,
    )


def _may_fit_X(points: Points, table: CostTable, fits_X: BoolArray, *, limit_bytes: int) -> BoolArray:
    """Return which points some split may fit of, where `fits_X` says it of the split that is searched."""
    may_fit_X = fits_X.copy()
    crowded = np.flatnonzero(~fits_X & (points.vpp_X > 1))
    may_fit_X[crowded] = table.fits_X(points.where(crowded), limit_bytes=limit_bytes, any_split=True)
    return may_fit_X


def _least_of_all_splits(points: Points, pricer: Pricer) -> float:
    """Return a step time that no split of some points undercuts, even or not."""
    bounds = pricer.bounds(points)
    any_split_X = bounds.any_split_seconds_X + bounds.tail_seconds_X
    return float(np.where(points.vpp_X > 1, any_split_X, bounds.step_seconds_X).min(initial=math.inf))


@dataclass(frozen=True, slots=True, kw_only=True)
class _SeveralSplits:
    """A point that was visited, of whose splits at most one was priced.

    Args:
        proved_seconds: No split of it that fits takes less.
        layout: The point.
        bound: What the space knows of it.
        is_placed: A split of it is known that fits.
        by_host: The split that was priced fits into the GPUs, and not into the memory of a node.
    """

    proved_seconds: float
    layout: Layout
    bound: PointBound
    is_placed: bool
    by_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Closed:
    """What is left open when every split that might beat the best plan was looked at, where there are not too many.

    Args:
        open_seconds: No split that was not looked at takes less.
        placed: Points of which a first split was found that fits.
        placed_by_host: Those of them whose split that was priced did not fit into the memory of a node.
        unsettled: Points of which it is not known whether some split fits.
        refusal: What the target has against the first split that is better and that it has no words for.
    """

    open_seconds: float
    placed: int
    placed_by_host: int
    unsettled: int
    refusal: NotExpressibleError | None


def _settled(
    several: Sequence[_SeveralSplits],
    pricer: Pricer,
    found: list[Candidate],
    *,
    refused: Refused,
    watch: Watch,
) -> _Closed:
    """Look at every split that may beat the best plan, or at all while there is none.

    Args:
        several: Points whose splits were not all looked at.
        pricer: Prices them.
        found: Candidates by merit; what beats the best is added.
        refused: Returns why the target has no words for a layout, if it has none.
        watch: Called as the points are looked at.
    """
    open_seconds, placed, placed_by_host, unsettled = math.inf, 0, 0, 0
    first_refusal: NotExpressibleError | None = None
    for index, point in enumerate(sorted(several, key=lambda entry: entry.proved_seconds)):
        watch("closing the gap", index, len(several))
        best_seconds = found[0].step_seconds if found else math.inf
        nothing_left = not point.is_placed and has_single_split(point.layout)
        if point.proved_seconds >= best_seconds or nothing_left:
            unsettled += math.isinf(best_seconds)
            open_seconds = min(open_seconds, point.proved_seconds)
            continue
        settled = settle_point(pricer, point.layout, bound=point.bound, best_seconds=best_seconds)
        if settled.better is None:
            proved = max(point.proved_seconds, settled.bound_seconds)
            unsettled += math.isinf(best_seconds) and math.isfinite(proved)
            open_seconds = min(open_seconds, proved)
            continue
        refusal = refused(settled.better.layout)
        if refusal is not None:
            first_refusal = first_refusal or refusal
            open_seconds = min(open_seconds, point.proved_seconds)
            continue
        placed += not point.is_placed
        placed_by_host += not point.is_placed and point.by_host
        insert(found, settled.better)
        open_seconds = min(open_seconds, settled.bound_seconds)
    return _Closed(
        open_seconds=open_seconds,
        placed=placed,
        placed_by_host=placed_by_host,
        unsettled=unsettled,
        refusal=first_refusal,
    )


def _look_beside(found: list[Candidate], pricer: Pricer, scope: Scope, *, refused: Refused) -> None:
    """Add the best layout that lies beside the best one and outside the space, where there is one."""
    beside = best_neighbour(pricer, found[0], scope) if found else None
    if beside is not None and beside is not found[0] and refused(beside.layout) is None:
        insert(found, beside)


def added(*accounts: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of several accounts of points, added up by reason."""
    total: dict[str, int] = {}
    for account in accounts:
        for reason, number in account.items():
            total[reason] = total.get(reason, 0) + number
    return total


def merged(before: Visit, seen: Visit) -> Visit:
    """Return two visits as one, the second having begun with the candidates of the first."""
    best = seen.candidates[0].step_seconds if seen.candidates else math.inf
    uneven = (before.uneven_bound_seconds, seen.uneven_bound_seconds)
    return Visit(
        candidates=seen.candidates,
        bound_seconds=min(before.bound_seconds, seen.bound_seconds),
        pruned=added(before.pruned, seen.pruned),
        simulated=before.simulated + seen.simulated,
        unsettled=before.unsettled + seen.unsettled,
        refusal=before.refusal or seen.refusal,
        uneven_bound_seconds=min((bound for bound in uneven if bound is not None and bound < best), default=None),
        thumb=before.thumb,
        offloaded_considered=before.offloaded_considered + seen.offloaded_considered,
        offloaded_legal=before.offloaded_legal + seen.offloaded_legal,
        states_considered=before.states_considered or seen.states_considered,
        parameters_considered=before.parameters_considered or seen.parameters_considered,
        drives_considered=before.drives_considered or seen.drives_considered,
        parameter_drives_considered=before.parameter_drives_considered or seen.parameter_drives_considered,
        activations_considered=before.activations_considered or seen.activations_considered,
        modules_considered=before.modules_considered or seen.modules_considered,
    )


def _count(pruned: dict[str, int], reason: str, number: int) -> None:
    if number:
        pruned[reason] = number


def _bound_order(points: Points, bound_X: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return the points by bound; equal bounds by simplicity, so that the order never depends on the machine."""
    return np.lexsort(
        (
            points.recompute_X,
            points.offloaded_layers_X,
            points.drive_offload_X,
            points.parameter_offload_X,
            points.optimizer_offload_X,
            points.zero_stage_X,
            points.micro_batch_size_X,
            -points.sequence_parallel_X,
            points.vpp_X,
            points.replicas_outermost_X,
            points.secondary_shard_X,
            points.state_replicas_X,
            points.etp_X,
            points.ep_X,
            points.ulysses_X,
            points.cp_X,
            points.tp_X,
            points.pp_X,
            bound_X,
        )
    )
