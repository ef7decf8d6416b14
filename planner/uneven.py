"""Better splits of interleaved stages than the even one: layers move from one virtual stage to another.

Chunks of one rank share its memory and its time, and no dynamic programme over stages knows both; the search proves
its answer for the split that is as even as the layers allow. From there `improved` moves single layers, from any
virtual stage to any other, as long as the simulated step gets shorter and fits. With n a split,

    path_j(n)  time of the chain of passes that was the longest under split j, which lasts at least as long under n
    bound(n)   max over j of path_j(n)

Of all moves the one with the least bound is simulated, which gives another path; once no bound is below the best step,
no single move helps. A move between stages far apart shifts the layers between them, so that layers stay in order.

`least_seconds` bounds all splits of a point, even or not: with T_r the work of rank r, t_j that of virtual stage j and
m micro-batches, inequality (2) of `planner.schedules.bounds.any_split_bound_seconds` for the first chunks says

    X >= m T_r + sum of t_j over j < r, and the transfers on that way,

so that a step of X leaves every rank room for so much work, hence for so many whole layers, and its memory for no more
than `CostTable.layer_rooms` says; all must find room.

Where the even split does not fit, `fitted` moves layers from ranks that hold too much to others, into the last chunk,
of which fewest micro-batches are in flight. That none is found proves nothing: that no split fits is proved by
`planner.memory_bound`.

Arrays name their axes: R ranks, D kinds of layers, V virtual stages, P passes (forward, backward), J and K the stages
that gain and lose a layer.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from planner.candidates import Candidate, PointBound, Pricer
from planner.costs import Rooms
from planner.layout import Layout, Stage, stages_from_counts
from planner.point_prices import PointPrices
from planner.points import BoolArray
from planner.schedules.bounds import ROUNDING
from planner.schedules.critical_path import critical_path
from planner.schedules.simulate import FloatArray
from planner.space import interleaved_counts

MOST_SIMULATED = 2_048
"""Virtual stages of one point that are simulated at most: 256 splits of 8 stages, or 64 of 32 in the same time."""

PATIENCE = 256
"""Virtual stages simulated in a row without gain after which a point that is slower than the best is given up."""

LEAST_GAIN = 1e-6
"""By which share a move must shorten a step to be made."""

_HALVINGS = 50
"""Of the interval that the least step of a point is sought in."""


def least_seconds(
    pricer: Pricer, point: Layout, *, bound: PointBound, ceiling_seconds: float, rooms: Rooms | None = None
) -> float:
    """Return a step time that no split of an interleaved point undercuts that fits; `ceiling_seconds` at most.

    Where layers differ, every kind must find room in whole layers, and all kinds together in seconds.

    Args:
        pricer: Prices splits.
        point: The point.
        bound: What the space knows of it.
        ceiling_seconds: A longer step is of no interest.
        rooms: What its ranks can hold by memory; None leaves that aside.
    """
    prices = pricer.least_prices(point)
    costs, micro = prices.costs, point.num_microbatches
    choice = costs.choice_of(point.recompute)
    seconds_D = costs.layer_seconds_DR[:, choice]
    counts_D = np.array(costs.counts_D, dtype=np.float64)
    ends_R = np.zeros(point.pp)
    embedding = costs.embedding.forward_seconds + costs.embedding.backward_seconds_R[choice]
    ends_R[0] += embedding
    ends_R[-1] += costs.head.forward_seconds + costs.head.backward_seconds_R[choice]
    again = (point.recompute.num_layers or 0) * costs.whole_layer_seconds
    beside_R = np.array(prices.beside_seconds_V).reshape(point.vpp, point.pp).sum(axis=0)
    fixed_R = ends_R + point.vpp * again + 2 * beside_R
    stage_seconds = float(seconds_D.min()) + again
    ahead_R = np.arange(point.pp) * stage_seconds + np.where(np.arange(point.pp) > 0, embedding, 0.0)
    ahead_R[1:] += 2 * np.cumsum(prices.transfer_seconds_E[: point.pp - 1])
    work = float(counts_D @ seconds_D)
    most_R, most_RD = np.full(point.pp, np.inf), np.full((point.pp, 1), np.inf)
    if rooms is not None:
        most_R, most_RD = rooms.seconds_RX[:, 0] * (1.0 + ROUNDING), rooms.layers_RDX[:, :, 0]

    def has_room(pipeline_seconds: float) -> bool:
        rooms_R = ((pipeline_seconds - ahead_R) / micro - fixed_R).clip(min=0.0) * (1.0 + ROUNDING)
        whole_RD = np.floor(rooms_R[:, np.newaxis] / seconds_D + ROUNDING)
        whole_D = np.minimum(whole_RD, most_RD).sum(axis=0)
        return float(np.minimum(rooms_R, most_R).sum()) >= work and bool((whole_D >= counts_D).all())

    low, high = 0.0, max(ceiling_seconds - bound.tail_seconds, 0.0)
    if not has_room(high):
        return ceiling_seconds
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if has_room(middle) else (middle, high)
    return low + bound.tail_seconds


def improved(pricer: Pricer, candidate: Candidate, *, rival_seconds: float = math.inf) -> Candidate:
    """Return the best split of an interleaved point that moves of single layers lead to from the candidate's.

    Args:
        pricer: Prices splits.
        candidate: Where the moves begin.
        rival_seconds: The best step so far. A point that is slower is given up after some moves in vain (`PATIENCE`);
            one that is faster is followed to where no single move helps.
    """
    num_stages = len(candidate.layout.stages)
    prices, best = pricer.prices(candidate.layout), candidate
    paths = [_Path.of(prices, best.layout)]
    moves = _Moves(prices, best.layout, paths)
    tried, in_vain = {best.layout.stages}, 0
    for _ in range(MOST_SIMULATED // num_stages):
        if in_vain * num_stages >= PATIENCE and best.step_seconds >= rival_seconds:
            break
        ceiling = best.step_seconds * (1.0 - LEAST_GAIN)
        move = moves.most_promising(tried, pipeline_ceiling=ceiling)
        if move is None:
            break
        split = move.split
        tried.add(split.stages)
        peak_bytes = _peak_if_it_fits(pricer, prices, split, gaining_rank=move.target % split.pp)
        if peak_bytes is None:
            moves.bar(move)
            continue
        paths.append(_Path.of(prices, split))
        step_seconds = paths[-1].span_seconds + prices.tail_seconds(split)
        if step_seconds < ceiling:
            best = replace(best, layout=split, step_seconds=step_seconds, peak_memory_bytes=peak_bytes)
            moves, in_vain = _Moves(prices, split, paths), 0
        else:
            moves.add(paths[-1])
            in_vain += 1
    return replace(best, lower_bound_seconds=min(best.lower_bound_seconds, best.step_seconds))


def _peak_if_it_fits(pricer: Pricer, prices: PointPrices, split: Layout, *, gaining_rank: int) -> int | None:
    """Return the exact peak of a split that GPUs and hosts hold; the rank that gains a layer is looked at first."""
    if prices.rank_peak_bytes(split, gaining_rank) > pricer.limit_bytes:
        return None
    peak_bytes = prices.peak_bytes(split)
    return peak_bytes if peak_bytes <= pricer.limit_bytes and pricer.hosts_hold(prices, split) else None


def fitted(pricer: Pricer, point: Layout) -> Layout | None:
    """Return a split of an interleaved point that fits by exact bytes; None where single moves lead to none.

    Each move takes a layer from the fullest rank, out of the first chunk that can spare one, and leaves fewer bytes too
    many.
    """
    prices, limit = pricer.prices(point), pricer.limit_bytes
    counts = interleaved_counts(pricer.table.model.num_layers, point.pp * point.vpp)
    fewest = max(point.recompute.num_layers or 0, 1)
    assert counts is not None, "the space holds only interleaved stages that all get a layer"
    peaks_R = np.array(prices.peaks_R(replace(point, stages=stages_from_counts(counts))))
    for _ in range(pricer.table.model.num_layers):
        if peaks_R.max() <= limit:
            return replace(point, stages=stages_from_counts(counts))
        giver = int(peaks_R.argmax())
        spare = (stage for stage in range(giver, len(counts), point.pp) if counts[stage] > fewest)
        origin = next(spare, None)
        if origin is None:
            return None
        excess = np.maximum(peaks_R - limit, 0).sum()
        for taker in np.argsort(peaks_R, kind="stable").tolist():
            moved = list(counts)
            moved[origin] -= 1
            moved[(point.vpp - 1) * point.pp + taker] += 1
            moved_R = np.array(prices.peaks_R(replace(point, stages=stages_from_counts(tuple(moved)))))
            if np.maximum(moved_R - limit, 0).sum() < excess:
                counts, peaks_R = tuple(moved), moved_R
                break
        else:
            return None
    return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
    """The longest chain of passes of one split.

    Args:
        span_seconds: The pipeline of that split.
        beside_seconds: What is on the chain beside passes.
        weight_PV: How often the forward and the backward pass of each virtual stage are on it.
    """

    span_seconds: float
    beside_seconds: float
    weight_PV: FloatArray

    @classmethod
    def of(cls, prices: PointPrices, split: Layout) -> "_Path":
        """Return the longest chain of a split."""
        times = prices.times(split)
        found = critical_path(
            split.schedule, pp=split.pp, vpp=split.vpp, num_microbatches=split.num_microbatches, times=times
        )
        weight_PV = np.stack([found.forward_V, found.backward_V])
        passes = float((weight_PV * [times.forward_seconds_V, times.backward_seconds_V]).sum())
        return cls(span_seconds=found.span_seconds, beside_seconds=found.span_seconds - passes, weight_PV=weight_PV)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """A layer goes from one virtual stage to another.

    Args:
        split: What comes of it.
        target: The stage that gains.
        origin: The stage that loses.
    """

    split: Layout
    target: int
    origin: int


class _Moves:
    """The moves of single layers from one split, each with the bound that known paths give it.

    Args:
        prices: Prices splits of the point.
        split: Where the layers are now.
        paths: Longest chains of this split and of others.
    """

    def __init__(self, prices: PointPrices, split: Layout, paths: list[_Path]) -> None:
        self._split = split
        times = prices.times(split)
        self._now_PV = np.array([times.forward_seconds_V, times.backward_seconds_V])
        self._changes = tuple(_Changes.of(prices, split, towards_end=towards_end) for towards_end in (True, False))
        self._least_JK = np.full((len(split.stages),) * 2, -np.inf)
        for path in paths:
            self.add(path)

    def add(self, path: _Path) -> None:
        """Raise the bounds to what one more path says."""
        towards_end, towards_begin = (change.bounds_JK(path, self._now_PV) for change in self._changes)
        self._least_JK = np.maximum(self._least_JK, np.minimum(towards_end, towards_begin))

    def bar(self, move: "_Move") -> None:
        """Leave out what is taken to fit no better than a move that does not: its target on a full rank, whoever gives.

        Stages of the same rank may still give to it.
        """
        num_stages, pp = len(self._split.stages), self._split.pp
        others_K = np.arange(num_stages) % pp != move.target % pp
        if others_K[move.origin]:
            self._least_JK[move.target, others_K] = np.inf

    def most_promising(self, tried: set[tuple[Stage, ...]], *, pipeline_ceiling: float) -> "_Move | None":
        """Return the move with the least bound; None where none that was not tried has one below the ceiling."""
        num_stages = len(self._split.stages)
        for flat in np.argsort(self._least_JK, axis=None, kind="stable"):
            target, origin = divmod(int(flat), num_stages)
            if self._least_JK[target, origin] >= pipeline_ceiling:
                return None
            counts = [stage.num_layers for stage in self._split.stages]
            counts[origin] -= 1
            counts[target] += 1
            stages = stages_from_counts(tuple(counts))
            if stages not in tried:
                return _Move(split=replace(self._split, stages=stages), target=target, origin=origin)
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Changes:
    """What the passes of each virtual stage take more where layers move one way along the chain.

    Towards the end a stage that loses a layer loses its last one, those between shift by one to the front of the
    chain, and the one that gains a layer gains one in front; towards the beginning the other way round.
    """

    towards_end: bool
    lost_PV: FloatArray
    between_PV: FloatArray
    gained_PV: FloatArray
    barred_JK: BoolArray

    @classmethod
    def of(cls, prices: PointPrices, split: Layout, *, towards_end: bool) -> "_Changes":
        """Return the changes of one direction."""
        if towards_end:
            lost, between, gained = (0, -1), (-1, -1), (-1, 0)
        else:
            lost, between, gained = (1, 0), (1, 1), (0, 1)

        def more_PV(begin: int, end: int) -> FloatArray:
            """Return what passes take more, by stage, if each one's boundaries move so; infinite where it cannot."""
            stages = range(len(split.stages))
            return np.array([_more_seconds(prices, split, stage, begin, end) for stage in stages]).T

        lost_PV, gained_PV, between_PV = more_PV(*lost), more_PV(*gained), more_PV(*between)
        between_PV[:, [0, -1]] = 0.0  # never between two stages
        to_behind_JK = np.tri(len(split.stages), k=-1, dtype=np.bool_)
        barred_JK = ~(to_behind_JK if towards_end else to_behind_JK.T)
        barred_JK |= np.isinf(lost_PV[0]) | np.isinf(gained_PV[0])[:, np.newaxis]
        return cls(
            towards_end=towards_end,
            lost_PV=np.where(np.isinf(lost_PV), 0.0, lost_PV),
            between_PV=between_PV,
            gained_PV=np.where(np.isinf(gained_PV), 0.0, gained_PV),
            barred_JK=barred_JK,
        )

    def bounds_JK(self, path: "_Path", now_PV: FloatArray) -> FloatArray:
        """Return what a path takes after each move from stage k to stage j; infinite where there is none."""
        lost_V, between_V, gained_V = (
            (path.weight_PV * more_PV).sum(axis=0) for more_PV in (self.lost_PV, self.between_PV, self.gained_PV)
        )
        passed_V = np.cumsum(between_V)
        if self.towards_end:
            shifted_JK = (passed_V - between_V)[:, np.newaxis] - passed_V
        else:
            shifted_JK = (passed_V - between_V) - passed_V[:, np.newaxis]
        value = path.beside_seconds + float((path.weight_PV * now_PV).sum())
        moved_JK = value + gained_V[:, np.newaxis] + lost_V + shifted_JK
        return np.where(self.barred_JK, np.inf, moved_JK)


def _more_seconds(prices: PointPrices, split: Layout, index: int, begin: int, end: int) -> tuple[float, float]:
    """Return what both passes of a stage take more if its first layer and the one behind its last move so far."""
    fewest = max(split.recompute.num_layers or 0, 1)
    stage, rank = split.stages[index], index % split.pp
    first_layer, num_layers = stage.first_layer + begin, stage.num_layers + end - begin
    last_layer = prices.table.model.num_layers
    if num_layers < fewest or first_layer < 0 or first_layer + num_layers > last_layer:
        return np.inf, np.inf
    now = prices.stage_on(stage, rank)
    then = prices.stage_on(replace(stage, first_layer=first_layer, num_layers=num_layers), rank)
    return then.forward - now.forward, then.backward - now.backward
