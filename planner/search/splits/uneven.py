"""Better splits of interleaved stages than the even one: layers move from one virtual stage to another.

Chunks of one rank share its memory and its time, and no dynamic programme over stages knows both; the search proves
its answer for the split that is as even as the layers allow. From there `improved` moves single layers, from any
virtual stage to any other, as long as the simulated step gets shorter and fits. With n a split,

    path_j(n)  time of the chain of passes that was the longest under split j, which lasts at least as long under n
    bound(n)   max over j of path_j(n)

Of all moves the one with the least bound is simulated, which gives another path; once no bound is below the best step,
no single move helps. Then two at once may, and pairs are simulated in the order of their bound
(`planner.search.splits.layer_moves`).

`least_seconds` bounds all splits of a point, even or not: with T_r the work of rank r, t_j that of virtual stage j and
m micro-batches, inequality (2) of `planner.schedules.bounds.any_split_bound_seconds` for the first chunks says

    X >= m T_r + sum of t_j over j < r, and the transfers on that way,

so that a step of X leaves every rank room for so much work, hence for so many whole layers, and its memory for no more
than `CostTable.layer_rooms` says; all must find room.

Where the even split does not fit, `fitted` moves layers from ranks that hold too much to others, into the last chunk,
of which fewest micro-batches are in flight. That none is found proves nothing: that no split fits is proved by
`planner.search.bounds.memory_bound`.

Arrays name their axes: R ranks, D kinds of layers.
"""

import math
from dataclasses import replace
from enum import Enum, auto

import numpy as np

from planner.layout import Layout, stages_from_counts
from planner.schedules.bounds import ROUNDING
from planner.search.bounds.costs import Rooms
from planner.search.space.dimensions import interleaved_counts
from planner.search.splits.candidates import Candidate, PointBound, Pricer
from planner.search.splits.layer_moves import Counts, Moves, Path, StageChanges

MOST_OPERATIONS = 100_000
"""Operations of one point that are simulated in vain at most: 32 splits of 8 ranks with four chunks each."""

OPERATIONS = 12
"""Of each virtual stage and rank that a simulation takes, about (`planner.schedules.span`)."""

LEAST_SIMULATIONS = 16
"""Splits that may be simulated in vain, however long that takes."""

MISFITS_PER_SIMULATION = 8
"""Splits that may turn out not to fit for each that may be simulated; to look at one rank's memory is as much less."""

PATIENCE = 256
"""Virtual stages simulated in a row without gain after which a point that is slower than the best is given up."""

NEARLY = 1.003
"""How many times the best step a point may take then not to be given up: a choice, as those above."""

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
    """Return the best split of an interleaved point that moves of one layer, or of two at once, lead to.

    They are followed first until some in a row bring nothing (`PATIENCE`), then to where none does, or to the limit.

    Args:
        pricer: Prices splits.
        candidate: Where the moves begin.
        rival_seconds: The best step so far. A point that is clearly slower after the first moves is given up.
    """
    walk = _Walk(pricer, candidate)
    for most_in_vain in (PATIENCE // len(candidate.layout.stages), None):
        walk.move_one(most_in_vain=most_in_vain)
        while walk.best.step_seconds <= NEARLY * rival_seconds and walk.move_two(most_in_vain=most_in_vain):
            walk.move_one(most_in_vain=most_in_vain)
        if walk.best.step_seconds > NEARLY * rival_seconds:
            break
    return replace(walk.best, lower_bound_seconds=min(walk.best.lower_bound_seconds, walk.best.step_seconds))


class _Walk:
    """From split to split of one point, each better than the one before.

    Args:
        pricer: Prices splits.
        candidate: Where the walk begins.
    """

    def __init__(self, pricer: Pricer, candidate: Candidate) -> None:
        self.best = candidate
        self._pricer = pricer
        self._prices = pricer.prices(candidate.layout)
        self._paths = [Path.of(self._prices, candidate.layout)]
        self._changes = StageChanges(self._prices)
        self._moves = Moves(self._prices, candidate.layout, self._paths, self._changes)
        self._tried = {tuple(stage.num_layers for stage in candidate.layout.stages)}
        operations = OPERATIONS * candidate.layout.pp * len(candidate.layout.stages)
        self._simulations = max(MOST_OPERATIONS // operations, LEAST_SIMULATIONS)
        self._misfits = MISFITS_PER_SIMULATION * self._simulations

    @property
    def _may_go_on(self) -> bool:
        return self._simulations > 0 and self._misfits > 0

    @property
    def _ceiling_seconds(self) -> float:
        """Return what a step must undercut to be the best."""
        return self.best.step_seconds * (1.0 - LEAST_GAIN)

    def move_one(self, *, most_in_vain: int | None) -> None:
        """Move single layers for as long as that helps, or so many in a row do not."""
        in_vain = 0
        while self._may_go_on and (most_in_vain is None or in_vain < most_in_vain):
            move = self._moves.most_promising(self._tried, pipeline_ceiling=self._ceiling_seconds)
            if move is None:
                break
            outcome = self._try(move.counts, gaining=(move.target,))
            if outcome is _Outcome.TOO_LARGE:
                self._moves.bar(move)
            in_vain = 0 if outcome is _Outcome.BETTER else in_vain + (outcome is _Outcome.NO_BETTER)

    def move_two(self, *, most_in_vain: int | None) -> bool:
        """Move two layers at once where that helps, and return whether it did before so many pairs did not."""
        in_vain = 0
        pairs = self._moves.pairs(self._tried, pipeline_ceiling=self._ceiling_seconds, is_full=self._is_full)
        for pair in pairs:
            if not self._may_go_on or in_vain == most_in_vain:
                break
            outcome = self._try(pair.counts, gaining=pair.targets)
            if outcome is _Outcome.BETTER:
                return True
            in_vain += outcome is _Outcome.NO_BETTER
        return False

    def _try(self, counts: Counts, *, gaining: tuple[int, ...]) -> "_Outcome":
        """Price a split, those ranks first that gain a layer; what is better is where the walk goes on."""
        self._tried.add(counts)
        split = replace(self.best.layout, stages=stages_from_counts(counts))
        peak_bytes = self._peak_if_it_fits(split, gaining)
        if peak_bytes is None:
            self._misfits -= 1
            return _Outcome.TOO_LARGE
        self._paths.append(Path.of(self._prices, split))
        step_seconds = self._paths[-1].span_seconds + self._prices.tail_seconds(split)
        if step_seconds >= self._ceiling_seconds:
            self._simulations -= 1
            self._moves.add(self._paths[-1])
            return _Outcome.NO_BETTER
        self.best = replace(self.best, layout=split, step_seconds=step_seconds, peak_memory_bytes=peak_bytes)
        self._moves = Moves(self._prices, split, self._paths, self._changes)
        return _Outcome.BETTER

    def _is_full(self, target: int) -> bool:
        """Return whether a stage cannot gain a layer from another rank, whichever that is taken to be."""
        counts, pp = [stage.num_layers for stage in self.best.layout.stages], self.best.layout.pp
        origin = max((stage for stage in range(len(counts)) if (stage - target) % pp), key=counts.__getitem__)
        counts[origin] -= 1
        counts[target] += 1
        split = replace(self.best.layout, stages=stages_from_counts(tuple(counts)))
        return self._prices.rank_peak_bytes(split, target % pp) > self._pricer.limit_bytes

    def _peak_if_it_fits(self, split: Layout, gaining: tuple[int, ...]) -> int | None:
        """Return the exact peak of a split that GPUs and hosts hold."""
        prices, limit = self._prices, self._pricer.limit_bytes
        if any(prices.rank_peak_bytes(split, stage % split.pp) > limit for stage in gaining):
            return None
        peak_bytes = prices.peak_bytes(split)
        return peak_bytes if peak_bytes <= limit and self._pricer.hosts_hold(prices, split) else None


class _Outcome(Enum):
    """What came of a split that was tried."""

    BETTER = auto()
    NO_BETTER = auto()
    TOO_LARGE = auto()


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
