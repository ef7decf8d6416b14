"""Moves of layers from one virtual stage of an interleaved split to another, and what known paths say they bring.

The chain of passes that is the longest under one split is a path under every other, and lasts at least as long as its
passes take there: a step is no shorter than the longest of all paths that are known. A move between stages far apart
shifts the layers between them, so that layers stay in order. What two moves change of a path is added up, which is
exact where layers are alike.

Arrays name their axes: V virtual stages, P passes (forward, backward), J and K the stages that gain and lose a layer,
Z paths, M moves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from planner.arrays import BoolArray, FloatArray
from planner.layout import Layout, Stage, stage_of
from planner.schedules.critical_path import critical_path
from planner.search.splits.point_prices import PointPrices

Counts = tuple[int, ...]
"""Layers of each virtual stage."""

MOST_PAIRED = 256
"""Moves of which any two are looked at together: some ten thousand pairs, in about a hundredth of a second."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Path:
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
    def of(cls, prices: PointPrices, split: Layout) -> "Path":
        """Return the longest chain of a split."""
        times = prices.times(split)
        found = critical_path(
            split.schedule, pp=split.pp, vpp=split.vpp, num_microbatches=split.num_microbatches, times=times
        )
        weight_PV = np.stack([found.forward_V, found.backward_V])
        passes = float((weight_PV * [times.forward_seconds_V, times.backward_seconds_V]).sum())
        return cls(span_seconds=found.span_seconds, beside_seconds=found.span_seconds - passes, weight_PV=weight_PV)

    def seconds(self, times_PV: FloatArray) -> float:
        """Return what the chain takes where the passes take other times."""
        return self.beside_seconds + float((self.weight_PV * times_PV).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two layers go from one virtual stage to another each.

    Args:
        counts: Layers of each stage then.
        targets: The stages that gain.
    """

    counts: Counts
    targets: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A layer goes from one virtual stage to another.

    Args:
        counts: Layers of each stage then.
        target: The stage that gains.
        origin: The stage that loses.
    """

    counts: Counts
    target: int
    origin: int


class StageChanges:
    """What both passes of a stage take more where its boundaries move, each answer remembered for other splits."""

    def __init__(self, prices: PointPrices) -> None:
        self._prices = prices
        self._known: dict[tuple[Stage, int, int, int], tuple[float, float]] = {}

    def seconds(self, split: Layout, index: int, begin: int, end: int) -> tuple[float, float]:
        """Return what both passes take more if a stage's first layer and the one behind its last move so far.

        Infinite where it cannot.
        """
        key = (split.stages[index], index % split.pp, begin, end)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._more_seconds(split, *key)
        return found

    def _more_seconds(self, split: Layout, stage: Stage, rank: int, begin: int, end: int) -> tuple[float, float]:
        fewest = max(split.recompute.num_layers or 0, 1)
        first_layer, num_layers = stage.first_layer + begin, stage.num_layers + end - begin
        last_layer = self._prices.table.model.num_layers
        if num_layers < fewest or first_layer < 0 or first_layer + num_layers > last_layer:
            return np.inf, np.inf
        now = self._prices.stage_on(stage, rank)
        moved = stage_of(first_layer, num_layers, stage.has_embedding, stage.has_head)
        then = self._prices.stage_on(moved, rank)
        return then.forward - now.forward, then.backward - now.backward


class Moves:
    """The moves of single layers from one split, each with the bound that known paths give it.

    Args:
        prices: Prices splits of the point.
        split: Where the layers are now.
        paths: Longest chains of this split and of others.
        changes: What stages of the point take more where boundaries move.
    """

    def __init__(self, prices: PointPrices, split: Layout, paths: list[Path], changes: StageChanges) -> None:
        self._split = split
        self._counts: Counts = tuple(stage.num_layers for stage in split.stages)
        times = prices.times(split)
        self._now_PV = np.array([times.forward_seconds_V, times.backward_seconds_V])
        self._changes = tuple(_Changes.of(changes, split, towards_end=towards_end) for towards_end in (True, False))
        self._least_JK = np.full((len(split.stages),) * 2, -np.inf)
        self._of_paths: list[tuple[float, FloatArray]] = []
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Raise the bounds to what one more path says."""
        towards_end, towards_begin = (change.bounds_JK(path, self._now_PV) for change in self._changes)
        moved_JK = np.minimum(towards_end, towards_begin)
        self._of_paths.append((path.seconds(self._now_PV), moved_JK))
        self._least_JK = np.maximum(self._least_JK, moved_JK)

    def bar(self, move: Move) -> None:
        """Leave out what is taken to fit no better than a move that does not: its target on a full rank, whoever gives.

        Stages of the same rank may still give to it.
        """
        num_stages, pp = len(self._split.stages), self._split.pp
        others_K = np.arange(num_stages) % pp != move.target % pp
        if others_K[move.origin]:
            self._least_JK[move.target, others_K] = np.inf

    def most_promising(self, tried: set[Counts], *, pipeline_ceiling: float) -> Move | None:
        """Return the move with the least bound; None where none that was not tried has one below the ceiling."""
        num_stages = len(self._split.stages)
        while True:
            target, origin = divmod(int(self._least_JK.argmin()), num_stages)
            if self._least_JK[target, origin] >= pipeline_ceiling:
                return None
            counts = self._moved((target, origin))
            if counts not in tried:
                return Move(counts=counts, target=target, origin=origin)
            self._least_JK[target, origin] = np.inf

    def pairs(self, tried: set[Counts], *, pipeline_ceiling: float, is_full: Callable[[int], bool]) -> Iterator[Pair]:
        """Yield pairs of moves by the bound that the paths give them, those below the ceiling that were not tried.

        Moves that lead to the least bounds alone are paired, `MOST_PAIRED` of them. What gains a layer on a rank that
        is full is paired with what takes one from there.
        """
        num_stages, fewest = len(self._counts), max(self._split.recompute.num_layers or 0, 1)
        moved_ZM = np.stack([moved_JK.ravel() for _, moved_JK in self._of_paths])
        least_M = moved_ZM.max(axis=0)
        chosen = np.argsort(least_M, kind="stable")[:MOST_PAIRED]
        chosen = chosen[np.isfinite(least_M[chosen])]
        if not len(chosen):
            return
        now_Z = np.array([now for now, _ in self._of_paths])
        change_ZM = moved_ZM[:, chosen] - now_Z[:, np.newaxis]
        target_M, origin_M = np.divmod(chosen, num_stages)
        full_M = np.array([is_full(target) for target in range(num_stages)])[target_M]
        relieved_MM = target_M[:, np.newaxis] % self._split.pp == origin_M % self._split.pp
        open_MM = (~full_M[:, np.newaxis] | relieved_MM) & (~full_M | relieved_MM.T)
        first_N, second_N = np.nonzero(np.triu(open_MM))
        least_N = np.full(len(first_N), -np.inf)
        # The longest paths first: they leave few pairs for the others.
        for path in np.argsort(-now_Z, kind="stable"):
            least_N = np.maximum(least_N, now_Z[path] + change_ZM[path, first_N] + change_ZM[path, second_N])
            left_N = least_N < pipeline_ceiling
            first_N, second_N, least_N = first_N[left_N], second_N[left_N], least_N[left_N]
        for pair in np.argsort(least_N, kind="stable"):
            moves = [divmod(int(chosen[move]), num_stages) for move in (first_N[pair], second_N[pair])]
            later = self._of_paths[len(now_Z) :]
            if any(sum(moved_JK[move] for move in moves) - now >= pipeline_ceiling for now, moved_JK in later):
                continue
            counts = self._moved(*moves)
            if min(counts) >= fewest and counts not in tried:
                yield Pair(counts=counts, targets=(moves[0][0], moves[1][0]))

    def _moved(self, *moves: tuple[int, int]) -> Counts:
        """Return the layers of each stage after moves, each a target and an origin."""
        counts = list(self._counts)
        for target, origin in moves:
            counts[origin] -= 1
            counts[target] += 1
        return tuple(counts)


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
    def of(cls, changes: StageChanges, split: Layout, *, towards_end: bool) -> "_Changes":
        """Return the changes of one direction."""
        if towards_end:
            lost, between, gained = (0, -1), (-1, -1), (-1, 0)
        else:
            lost, between, gained = (1, 0), (1, 1), (0, 1)

        def more_PV(begin: int, end: int) -> FloatArray:
            """Return what passes take more, by stage, if each one's boundaries move so; infinite where it cannot."""
            stages = range(len(split.stages))
            return np.array([changes.seconds(split, stage, begin, end) for stage in stages]).T

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

    def bounds_JK(self, path: Path, now_PV: FloatArray) -> FloatArray:
        """Return what a path takes after each move from stage k to stage j; infinite where there is none."""
        lost_V, between_V, gained_V = (
            (path.weight_PV * more_PV).sum(axis=0) for more_PV in (self.lost_PV, self.between_PV, self.gained_PV)
        )
        passed_V = np.cumsum(between_V)
        if self.towards_end:
            shifted_JK = (passed_V - between_V)[:, np.newaxis] - passed_V
        else:
            shifted_JK = (passed_V - between_V) - passed_V[:, np.newaxis]
        moved_JK = path.seconds(now_PV) + gained_V[:, np.newaxis] + lost_V + shifted_JK
        return np.where(self.barred_JK, np.inf, moved_JK)
