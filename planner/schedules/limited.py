"""The least bubble that split backward passes reach within a memory limit, one stage a rank.

Each rank runs some forward passes ahead, then input gradients and forward passes in turn; gradients of weights fill the
waits, or make room where memory is full. What is sought is how far each rank runs ahead: starts are the most that a
rank can run before its first gradient comes back, parts of that, and slopes that memory allows; from the best of them
ranks are moved by one, alone or with all behind them, while that shortens the span. A heuristic, with the bound of
`planner.schedules.split_bounds`; it ends where it meets that. How far ranks run ahead does not depend on the number of
micro-batches once the pipeline is full, so of a long step only as many as `TUNED_ON` for each rank are searched with.

The event loop gives an order; its time is that of `planner.schedules.passes.run`. Arrays name their axes:

    R  ranks, each with the stage of its number
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from planner.schedules.improved import MOST_OPERATIONS, improved
from planner.schedules.passes import Pass, PassKind, PassOrder, PassTimes, run
from planner.schedules.split_bounds import Memory, lower_bound_seconds

NAME = "zero-bubble within memory"

PATIENCE = (0.6, 0.9, 0.3, 0.05, 1.0)
"""Parts of a weight gradient that a wait must last to be filled with one, which then delays what comes next."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Parts of the most that ranks can run ahead, as starts."""

MOST_TRIALS, MOST_PASSES = 1_000, 300_000
"""Orders that are tried at most, and the passes of all of them, so that equal inputs give equal orders."""

TUNED_ON = 4
"""Micro-batches for each rank with which is searched."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """The best order that was found.

    Args:
        order: The order.
        span_seconds: Its longest span over the ranks.
        bound_seconds: No order with one stage a rank has a shorter one.
        in_turn_bound_seconds: Nor has one that takes micro-batches in turn; as far as a solver has proved.
    """

    order: PassOrder
    span_seconds: float
    bound_seconds: float
    in_turn_bound_seconds: float


def limited(times: PassTimes, memory: Memory, num_microbatches: int, *, improve: bool = False) -> Limited | None:
    """Return the best order found within memory; None where a rank has no room for one micro-batch.

    Args:
        times: What passes take, a stage for each rank.
        memory: What they keep.
        num_microbatches: Micro-batches of the step.
        improve: Where that leaves the bound open, and the passes are few enough, have a solver look for a better order.
    """
    search = _Search(times, memory, num_microbatches)
    if min(search.most_R) < 1:
        return None
    found = search.best()
    is_small = 3 * search.pp * num_microbatches <= MOST_OPERATIONS
    if found is None or not improve or not is_small or found.span_seconds <= found.bound_seconds * (1.0 + _ROUNDING):
        return found
    order, bound_seconds = improved(found.order, times, memory)
    return replace(
        found,
        order=order,
        span_seconds=run(order, times).span_seconds,
        in_turn_bound_seconds=max(found.bound_seconds, bound_seconds),
    )


@dataclass(slots=True)
class _Rank:
    """Where one rank stands in the event loop."""

    main: list[tuple[PassKind, int]]
    position: int = 0
    first_seconds: float = 0.0
    free_seconds: float = 0.0
    used_bytes: int = 0
    weights: list[int] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)


class _Search:
    """Tries how far ranks run ahead.

    Args:
        times: What passes take.
        memory: What they keep.
        num_microbatches: Micro-batches of the step.
    """

    def __init__(self, times: PassTimes, memory: Memory, num_microbatches: int) -> None:
        self.times = times
        self.memory = memory
        self.num_microbatches = num_microbatches
        self.pp = len(times.forward_seconds_V)
        self.searched_with = min(num_microbatches, TUNED_ON * self.pp)
        self.most_trials = min(MOST_TRIALS, MOST_PASSES // (3 * self.pp * self.searched_with))
        self.bound_seconds = lower_bound_seconds(times, memory, self.searched_with) * (1.0 + _ROUNDING)
        self.most_R = [memory.most_ahead(rank, self.searched_with) for rank in range(self.pp)]
        self._spans: dict[tuple[tuple[int, ...], float], float] = {}

    def best(self) -> Limited | None:
        """Return the best order of all that are tried."""
        found: tuple[float, tuple[int, ...], float] = (math.inf, (), 0.0)
        for patience, start in product(PATIENCE, self._starts()):
            found = min(found, (self._span(start, patience), start, patience))
            if found[0] <= self.bound_seconds or len(self._spans) >= self.most_trials:
                break
        if math.isinf(found[0]):
            return None
        moved = True
        while moved and found[0] > self.bound_seconds:
            moved = False
            for ahead in self._neighbours(found[1]):
                if len(self._spans) >= self.most_trials:
                    break
                span = self._span(ahead, found[2])
                if span < found[0] * (1.0 - _ROUNDING):
                    found = (span, ahead, found[2])
                    moved = True
        loop = self._ended(found[1], found[2], self.num_microbatches)
        if loop is None:
            return None
        order = PassOrder(
            name=NAME,
            rank_of_stage_V=tuple(range(self.pp)),
            chains=(tuple(range(self.pp)),),
            microbatches_of_chain=(self.num_microbatches,),
            blocks_R=tuple(tuple((entry,) for entry in rank.passes) for rank in loop.ranks),
        )
        bound_seconds = lower_bound_seconds(self.times, self.memory, self.num_microbatches)
        return Limited(
            order=order,
            span_seconds=run(order, self.times).span_seconds,
            bound_seconds=bound_seconds,
            in_turn_bound_seconds=bound_seconds,
        )

    def _starts(self) -> list[tuple[int, ...]]:
        """Return how far ranks may run ahead at first."""
        times = self.times
        natural_R = [0.0] * self.pp
        away = 0.0
        for rank in reversed(range(self.pp - 1)):
            away += times.forward_seconds_V[rank + 1] + times.input_gradient_seconds_V[rank + 1]
            away += 2 * times.transfer_seconds_V[rank]
            natural_R[rank] = away / max(times.forward_seconds_V[rank], 1e-30)
        slope = natural_R[0] / max(1, self.pp - 1)
        starts: set[tuple[int, ...]] = set()
        for share in SHARES:
            step = 1.0 + share * max(0.0, slope - 1.0)
            for rounded in (math.floor, math.ceil):
                by_time = [
                    1 + rounded(min(natural, step * (self.pp - 1 - rank))) for rank, natural in enumerate(natural_R)
                ]
                by_memory = [rounded(most - step * rank) for rank, most in enumerate(self.most_R)]
                starts |= {self._allowed(by_time), self._allowed(by_memory)}
        return sorted(starts)

    def _allowed(self, ahead_R: Sequence[int]) -> tuple[int, ...]:
        return tuple(max(1, min(most, ahead)) for most, ahead in zip(self.most_R, ahead_R, strict=True))

    def _neighbours(self, ahead_R: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return what differs by one on a rank, or on it and all behind it."""
        found: list[tuple[int, ...]] = []
        for first in range(self.pp):
            for last in (first, self.pp - 1):
                for step in (1, -1):
                    moved = self._allowed(
                        [ahead + step * (first <= rank <= last) for rank, ahead in enumerate(ahead_R)]
                    )
                    if moved != ahead_R and list(moved) == sorted(moved, reverse=True):
                        found.append(moved)
        return found

    def _span(self, ahead_R: tuple[int, ...], patience: float) -> float:
        """Return the longest span with ranks so far ahead; infinite where memory does not let it run."""
        key = (ahead_R, patience)
        if key not in self._spans:
            loop = self._ended(ahead_R, patience, self.searched_with)
            self._spans[key] = math.inf if loop is None else loop.span_seconds
        return self._spans[key]

    def _ended(self, ahead_R: tuple[int, ...], patience: float, num_microbatches: int) -> "_EventLoop | None":
        """Return the event loop at the end of a step; None if it cannot get there."""
        loop = _EventLoop(
            self.times,
            self.memory,
            [_Rank(main=_main(ahead, num_microbatches)) for ahead in ahead_R],
            patience=patience,
        )
        while loop.remaining:
            if not loop.step():
                return None
        return loop


def _main(ahead: int, num_microbatches: int) -> list[tuple[PassKind, int]]:
    """Return forward passes and input gradients of one rank, in order."""
    main = [(PassKind.FORWARD, index) for index in range(ahead)]
    for index in range(num_microbatches):
        main.append((PassKind.INPUT_GRADIENT, index))
        if ahead + index < num_microbatches:
            main.append((PassKind.FORWARD, ahead + index))
    return main


class _EventLoop:
    """Runs ranks whose forward passes and input gradients have an order, and fills in the gradients of weights.

    Args:
        times: What passes take.
        memory: What they keep.
        ranks: Where each stands.
        patience: Part of a weight gradient that a wait must last to be filled with one.
    """

    def __init__(self, times: PassTimes, memory: Memory, ranks: Sequence[_Rank], *, patience: float) -> None:
        self.times = times
        self.memory = memory
        self.ranks = ranks
        self.patience = patience
        self.remaining = sum(len(rank.main) for rank in ranks) * 3 // 2
        # What each rank runs next: when, whether a gradient of weights, which rank; changes with its neighbours only.
        self._next_R: list[tuple[float, bool, int]] = []
        self._ends: dict[tuple[PassKind, int, int], float] = {}

    def step(self) -> bool:
        """Run the pass that can start first; return whether there was one."""
        if not self._next_R:
            self._next_R = [self._next(index) for index in range(len(self.ranks))]
        start, is_weights, index = min(self._next_R)
        if math.isinf(start):
            return False
        self._run(index, start, is_weights=is_weights)
        self.remaining -= 1
        for near in range(max(0, index - 1), min(len(self.ranks), index + 2)):
            self._next_R[near] = self._next(near)
        return True

    @property
    def span_seconds(self) -> float:
        """Return the longest time between a rank's first start and its last end."""
        return max(rank.free_seconds - rank.first_seconds for rank in self.ranks)

    def _next(self, index: int) -> tuple[float, bool, int]:
        """Return when a rank can run something (infinite: not yet), whether that is a gradient of weights, the rank."""
        rank = self.ranks[index]
        arrival: float | None = None
        full = False
        if rank.position < len(rank.main):
            kind, microbatch = rank.main[rank.position]
            arrival = self._arrival(index, kind, microbatch)
            needed = self._needed_bytes(index, kind)
            full = rank.used_bytes + needed > self.memory.limit_bytes_R[index]
        now = rank.free_seconds
        if arrival is not None and not full and arrival <= now + _ROUNDING * max(1.0, now):
            return now, False, index
        wait = self.patience * self.times.weight_gradient_seconds_V[index]
        if rank.weights and (full or arrival is None or arrival - now >= wait):
            return now, True, index
        return math.inf if arrival is None or full else arrival, False, index

    def _needed_bytes(self, index: int, kind: PassKind) -> int:
        """Return by how much a pass fills its rank's memory; an input gradient may leave more than it frees."""
        whole, kept = self.memory.activation_bytes_R[index], self.memory.weight_gradient_bytes_R[index]
        return whole if kind is PassKind.FORWARD else kept - whole

    def _arrival(self, index: int, kind: PassKind, microbatch: int) -> float | None:
        """Return when what a pass needs is on the rank; None while it is not on its way."""
        times = self.times
        if kind is PassKind.FORWARD:
            if index == 0:
                return 0.0
            sent = self._ends.get((kind, index - 1, microbatch))
            return None if sent is None else sent + times.transfer_seconds_V[index - 1]
        if index == len(self.ranks) - 1:
            return self._ends.get((PassKind.FORWARD, index, microbatch))
        sent = self._ends.get((kind, index + 1, microbatch))
        return None if sent is None else sent + times.transfer_seconds_V[index]

    def _run(self, index: int, start: float, *, is_weights: bool) -> None:
        rank = self.ranks[index]
        if is_weights:
            entry = Pass(PassKind.WEIGHT_GRADIENT, index, rank.weights.pop(0))
            rank.used_bytes -= self.memory.weight_gradient_bytes_R[index]
        else:
            kind, microbatch = rank.main[rank.position]
            rank.position += 1
            entry = Pass(kind, index, microbatch)
            rank.used_bytes += self._needed_bytes(index, kind)
            if kind is not PassKind.FORWARD:
                rank.weights.append(microbatch)
        if not rank.passes:
            rank.first_seconds = start
        rank.free_seconds = max(start, rank.free_seconds) + self.times.seconds(entry)
        rank.passes.append(entry)
        self._ends[entry.kind, index, entry.microbatch] = rank.free_seconds
