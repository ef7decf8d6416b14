"""Exact dynamic programme for problems in which every rank runs one stage.

Sets: stages S, layers, options O, and segments (s, j, n): the n layers before layer j on stage s. Arrays name their
axes S, O, L as `solvers.problem` does, and

    J  layers that the stages up to some stage hold, 0 to L
    N  layers of a segment, 0 to the longest

Stages meet only at their boundaries, and the objective never falls when a stage gets slower. So a segment needs one
number, its least seconds within its stage's memory (constraints 3 and 5 of `solvers.mip`):

    cost_SJN[s, j, n] = fixed seconds + min over options of the layers' seconds                    _costs_SJN
        subject to  fixed bytes + sum of (static + in flight * activation bytes) <= capacity      _FrontTree

The inner minimum keeps the Pareto set of (bytes, seconds), in exact integers, layer by layer. Where the fastest options
fit, or the smallest ones do not, no set is needed. Over the segments, with paths from 0 to L layers through all stages
(constraints 1 and 2):

    least bottleneck  mu = min over paths of the largest cost                                     _least_bottleneck
    least total under a limit on the bottleneck  sum(limit) = min over paths of the summed cost   _least_total

`_best_limit` walks down the Pareto front of (bottleneck, total) by lowering the limit to just below the last path's
bottleneck, and stops once no lower bottleneck can win: every path not seen is worse than one that was. Of equally good
paths `_most_even_path` takes the one with the least sum of squared stage seconds, then the shortest last segments.

Long segments are rarely of use. `solve` starts with short ones and doubles their length until a longer one, at its
fastest, could no longer be part of a better path.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from solvers.errors import SolverError
from solvers.problem import FloatArray, IntArray, Limits, Problem
from solvers.solution import Solution, Status, infeasible, objective_of

NAME = "dp"

_Number = TypeVar("_Number", np.float64, np.int64)

# Equal sums of seconds, added in another order, differ by less than this share.
_ROUNDING = 1e-12


def solve(problem: Problem, limits: Limits) -> Solution:
    """Return the best choice, or the proof that there is none.

    Raises:
        ValueError: A rank runs more than one stage.
        SolverError: The Pareto sets grew beyond the limit.

    """
    if problem.shares_ranks:
        raise ValueError("the dynamic programme needs a rank of its own for every stage; use a MIP solver")
    most_layers = min(problem.num_layers, int(problem.max_layers_S.max()))
    longest = min(most_layers, 2 * -(-problem.num_layers // problem.num_stages) + 2)
    while True:
        cost_SJN = _costs_SJN(problem, longest, limits)
        least_bottleneck = _least_bottleneck(cost_SJN)
        if np.isfinite(least_bottleneck):
            limit, objective = _best_limit(problem, cost_SJN, least_bottleneck)
            if longest == most_layers or objective <= _bound_with_segment_of(problem, longest + 1):
                return _read_back(problem, _most_even_path(cost_SJN, limit))
        elif longest == most_layers:
            return infeasible(solver=NAME, proof="no path through the segments that fit reaches the last layer")
        longest = min(most_layers, 2 * longest)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peaks:
    """What each stage of a choice is worth, of which the largest counts.

        extra_seconds_S + own_weight_S * (seconds of the stage) + (seconds of the stages behind it).

    The stages behind are counted at the fastest options of their layers, and on the fastest stage, so a value is exact
    where a layer has one option and stages do not differ, and a bound else. Stages with a weight below 1 do not count.

    Args:
        problem: The problem; every stage has a rank of its own.
        own_weight_S: Weight of a stage's own seconds.
        extra_seconds_S: What is added to each.
    """

    problem: Problem
    own_weight_S: FloatArray
    extra_seconds_S: FloatArray

    def __post_init__(self) -> None:
        """Check that no stages share a rank."""
        if self.problem.shares_ranks:
            raise ValueError("the dynamic programme needs a rank of its own for every stage")

    def least(self) -> float:
        """Return what no choice within memory undercuts; infinite where none fits.

        Raises:
            SolverError: The Pareto sets grew beyond the limit.
        """
        problem = self.problem
        fastest_L = problem.seconds_LO.min(axis=1)
        most_layers = self._most_layers
        longest = min(most_layers, 2 * -(-problem.num_layers // problem.num_stages) + 2)
        while True:
            found = _least_bottleneck(self._values_SJN(longest))
            if longest == most_layers:
                return found
            # A longer segment weighs at least this, wherever it lies.
            segment = float(sliding_window_view(fastest_L, longest + 1).sum(axis=1).min())
            weights_S = self.own_weight_S
            if (weights_S >= 1.0).all() and found <= float((self.extra_seconds_S + weights_S * segment).min()):
                return found
            longest = min(most_layers, 2 * longest)

    def splits_below(self, limit: float, *, at_most: int) -> tuple[tuple[float, tuple[int, ...]], ...] | None:
        """Return every choice of boundaries worth less than `limit`: its value, and the layers of each stage.

        The least value comes first.

        None where there are more than `at_most`.

        Raises:
            SolverError: The Pareto sets grew beyond the limit.
        """
        value_SJN = self._values_SJN(self._most_layers)
        size = value_SJN.shape[1]
        # Ways from no layers to each end, in exact whole numbers; they may be more than any array holds.
        ways = [[1] + [0] * (size - 1)]
        segments: list[dict[int, list[int]]] = []
        for value_JN in value_SJN:
            end_K, count_K = np.nonzero(value_JN < limit)
            of_end: dict[int, list[int]] = {}
            for end, count in zip(end_K.tolist(), count_K.tolist(), strict=True):
                if count <= end and ways[-1][end - count]:
                    of_end.setdefault(end, []).append(count)
            segments.append(of_end)
            ways.append([sum(ways[-1][end - count] for count in of_end.get(end, ())) for end in range(size)])
        if ways[-1][-1] > at_most:
            return None
        found: list[tuple[int, float, tuple[int, ...]]] = [(size - 1, -np.inf, ())]
        for of_end, value_JN in zip(reversed(segments), reversed(value_SJN), strict=True):
            found = [
                (end - count, max(value, float(value_JN[end, count])), (count, *counts))
                for end, value, counts in found
                for count in of_end.get(end, ())
            ]
        return tuple(sorted((value, counts) for _, value, counts in found))

    @property
    def _most_layers(self) -> int:
        return min(self.problem.num_layers, int(self.problem.max_layers_S.max()))

    def _values_SJN(self, longest: int) -> FloatArray:
        """Return the value of every segment of up to `longest` layers; infinite where it does not fit."""
        problem = self.problem
        fastest_L = problem.seconds_LO.min(axis=1)
        behind_J = np.append(np.cumsum(fastest_L[::-1])[::-1], 0.0)
        ends_behind_S = np.append(np.cumsum(problem.fixed_seconds_S[::-1])[::-1][1:], 0.0)
        constant_SJ = (self.extra_seconds_S + ends_behind_S)[:, np.newaxis] + behind_J
        weight_S = np.maximum(self.own_weight_S, 1.0)
        cost_SJN = _costs_SJN(problem, longest, Limits())
        value_SJN: FloatArray = constant_SJ[:, :, np.newaxis] + weight_S[:, np.newaxis, np.newaxis] * cost_SJN
        uncounted_S = self.own_weight_S < 1.0
        value_SJN[uncounted_S] = np.where(np.isfinite(value_SJN[uncounted_S]), 0.0, np.inf)
        return value_SJN


def least_sum(problem: Problem, value_SJN: FloatArray) -> float:
    """Return the least, over all choices of boundaries within memory, of a sum over the stages.

    Args:
        problem: The problem; every stage has a rank of its own.
        value_SJN: What the n layers before layer j are worth on each stage, for any number of layers.

    Raises:
        SolverError: The Pareto sets grew beyond the limit.
    """
    fits_SJN = np.isfinite(_costs_SJN(problem, value_SJN.shape[2] - 1, Limits()))
    return _least_total(np.where(fits_SJN, value_SJN, np.inf), np.inf)[0]


def _bound_with_segment_of(problem: Problem, num_layers: int) -> float:
    """Return a bound on every choice that has a stage of at least so many layers."""
    fastest_L = problem.seconds_LO.min(axis=1)
    fastest_segment = float(sliding_window_view(fastest_L, num_layers).sum(axis=1).min())
    total = float(fastest_L.sum() + problem.fixed_seconds_S.sum())
    bottleneck = fastest_segment + float(problem.fixed_seconds_S.min())
    return problem.weighted(bottleneck_seconds=bottleneck, total_seconds=total)


def _read_back(problem: Problem, boundaries: list[int]) -> Solution:
    """Return the solution with these boundaries."""
    stage_of_layer_L: list[int] = []
    option_of_layer_L: list[int] = []
    for stage, (begin, end) in enumerate(pairwise(boundaries)):
        stage_of_layer_L += [stage] * (end - begin)
        option_of_layer_L += _options_of_segment(problem, stage, range(begin, end))
    objective = objective_of(problem, stage_of_layer_L=stage_of_layer_L, option_of_layer_L=option_of_layer_L)
    return Solution(
        solver=NAME,
        status=Status.OPTIMAL,
        stage_of_layer_L=tuple(stage_of_layer_L),
        option_of_layer_L=tuple(option_of_layer_L),
        objective=objective,
        bound=objective,
        proof="every path that was not looked at has a higher bottleneck, a higher total, or both",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Front:
    """The Pareto set of a run of layers on one stage: bytes rise and seconds fall along it.

    Args:
        num_bytes: Bytes of each point.
        seconds: Seconds of each point.
        origin: Option of the last layer times the points of the front before, plus the point it came from.
    """

    num_bytes: IntArray
    seconds: FloatArray
    origin: NDArray[np.intp]

    def extended(self, option_bytes: IntArray, option_seconds: FloatArray, room_bytes: int) -> "_Front":
        """Return the front with one more layer, within `room_bytes`."""
        num_bytes = (option_bytes[:, np.newaxis] + self.num_bytes).ravel()
        seconds = (option_seconds[:, np.newaxis] + self.seconds).ravel()
        origin = np.lexsort((seconds, num_bytes))
        sorted_seconds = seconds[origin]
        better = np.ones(len(origin), dtype=np.bool_)
        better[1:] = sorted_seconds[1:] < np.minimum.accumulate(sorted_seconds)[:-1]
        origin = origin[better & (num_bytes[origin] <= room_bytes)]
        return _Front(num_bytes=num_bytes[origin], seconds=seconds[origin], origin=origin)


_EMPTY = _Front(num_bytes=np.zeros(1, np.int64), seconds=np.zeros(1), origin=np.zeros(1, np.intp))


@dataclass(slots=True, kw_only=True, eq=False)
class _FrontTree:
    """The fronts of one stage; runs of equal layers share theirs.

    Args:
        problem: The problem.
        seconds_LO: Seconds of each option on this stage.
        demand_LO: Bytes of each option on this stage.
        room_bytes: Capacity left for layers.
        max_states: Points that all stages together may create.
        num_states: Points created so far.
        fronts: The front of each node.
        children: Node and kind of the next layer to the node with that layer added.
    """

    problem: Problem
    seconds_LO: FloatArray
    demand_LO: IntArray
    room_bytes: int
    max_states: int
    num_states: int
    fronts: list[_Front] = field(default_factory=lambda: [_EMPTY])
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def child(self, node: int, layer: int) -> int:
        """Return the node of a run with one more layer."""
        key = (node, self.problem.kind_L[layer])
        if key not in self.children:
            front = self.fronts[node].extended(self.demand_LO[layer], self.seconds_LO[layer], self.room_bytes)
            self.num_states += len(front.seconds)
            if self.num_states > self.max_states:
                raise SolverError(solver=NAME, status="too many Pareto points", limit=f"max_states = {self.max_states}")
            self.children[key] = len(self.fronts)
            self.fronts.append(front)
        return self.children[key]


@lru_cache(maxsize=2)
def _costs_SJN(problem: Problem, longest: int, limits: Limits) -> FloatArray:
    """Return the least seconds of every segment of up to `longest` layers; infinite where it does not fit.

    A problem that is bounded and then solved has them twice.
    """
    demand_SLO = problem.static_bytes_LO + problem.in_flight_S[:, np.newaxis, np.newaxis] * problem.activation_bytes_LO
    seconds_SLO = problem.seconds_LO[np.newaxis] if problem.seconds_SLO is None else problem.seconds_SLO
    is_fastest_SLO = seconds_SLO == seconds_SLO.min(axis=2, keepdims=True)
    fastest_bytes_SL = np.where(is_fastest_SLO, demand_SLO, np.iinfo(np.int64).max).min(axis=2)
    least_bytes_SL = demand_SLO.min(axis=2)
    seconds_SJN = _segment_sums_JN(seconds_SLO.min(axis=2), longest)
    fastest_bytes_SJN = _segment_sums_JN(fastest_bytes_SL, longest)
    least_bytes_SJN = fastest_bytes_SJN
    if (least_bytes_SL < fastest_bytes_SL).any():
        least_bytes_SJN = _segment_sums_JN(least_bytes_SL, longest)

    room_bytes_S = problem.capacity_bytes_R[problem.rank_of_stage_S] - problem.fixed_bytes_S
    room_bytes_SJN = room_bytes_S[:, np.newaxis, np.newaxis]
    count_N = np.arange(longest + 1)
    exists_JN = count_N <= np.arange(problem.num_layers + 1)[:, np.newaxis]
    allowed_SN = (count_N >= problem.min_layers_S[:, np.newaxis]) & (count_N <= problem.max_layers_S[:, np.newaxis])
    allowed_SJN = exists_JN & allowed_SN[:, np.newaxis, :]
    fast_SJN = allowed_SJN & (fastest_bytes_SJN <= room_bytes_SJN)
    tight_SJN = allowed_SJN & ~fast_SJN & (least_bytes_SJN <= room_bytes_SJN)

    cost_SJN = np.where(fast_SJN, seconds_SJN, np.inf)
    num_states = 0
    for stage in np.flatnonzero(tight_SJN.any(axis=(1, 2))).tolist():
        tree = _FrontTree(
            problem=problem,
            seconds_LO=problem.stage_seconds_LO(stage),
            demand_LO=demand_SLO[stage],
            room_bytes=int(room_bytes_S[stage]),
            max_states=limits.max_states,
            num_states=num_states,
        )
        _fill_tight(cost_SJN[stage], tight_SJN[stage], tree)
        num_states = tree.num_states
    cost_SJN += problem.fixed_seconds_S[:, np.newaxis, np.newaxis]
    cost_SJN.setflags(write=False)
    return cost_SJN


def _fill_tight(cost_JN: FloatArray, tight_JN: NDArray[np.bool_], tree: _FrontTree) -> None:
    """Fill in the segments in which some layer cannot have its fastest option."""
    end_JN, count_JN = np.nonzero(tight_JN)
    longest_from: dict[int, int] = {}
    for end, count in zip(end_JN.tolist(), count_JN.tolist(), strict=True):
        longest_from[end - count] = max(longest_from.get(end - count, 0), count)
    kind_L = tree.problem.kind_L
    walked: list[tuple[tuple[int, ...], FloatArray]] = []
    for begin in sorted(longest_from, key=lambda begin: (-longest_from[begin], begin)):
        kinds = kind_L[begin : begin + longest_from[begin]]
        least_N = next((least_N for other, least_N in walked if other[: len(kinds)] == kinds), None)
        if least_N is None:
            least_N = _least_of_runs(begin, len(kinds), tree)
            walked.append((kinds, least_N))
        count_K = np.arange(1, len(kinds) + 1)
        count_K = count_K[tight_JN[begin + count_K, count_K]]
        cost_JN[begin + count_K, count_K] = least_N[count_K]


def _least_of_runs(begin: int, longest: int, tree: _FrontTree) -> FloatArray:
    """Return the least seconds of the layers from `begin` on, by how many there are; infinite where they do not fit."""
    least_N = np.zeros(longest + 1)
    node = 0
    for count in range(1, longest + 1):
        node = tree.child(node, begin + count - 1)
        seconds = tree.fronts[node].seconds
        least_N[count] = seconds[-1] if len(seconds) else np.inf
    return least_N


def _segment_sums_JN(values_L: NDArray[_Number], longest: int) -> NDArray[_Number]:
    """Return the sums over the n layers before layer j; meaningless where n > j. Axes before L are kept."""
    num_layers = values_L.shape[-1]
    sums_J = np.zeros((*values_L.shape[:-1], num_layers + 1), dtype=values_L.dtype)
    np.cumsum(values_L, axis=-1, out=sums_J[..., 1:])
    begin_JN = np.maximum(np.arange(num_layers + 1)[:, np.newaxis] - np.arange(longest + 1), 0)
    sums_JN: NDArray[_Number] = sums_J[..., np.newaxis] - sums_J[..., begin_JN]
    return sums_JN


def _before_JN(values_J: FloatArray, longest: int) -> FloatArray:
    """Return the value n layers before j; infinite where n > j."""
    padded = np.concatenate((np.full(longest, np.inf), values_J))
    before_JN: FloatArray = padded[_index_before_JN(len(values_J), longest)]
    return before_JN


@lru_cache(maxsize=64)
def _index_before_JN(size: int, longest: int) -> NDArray[np.intp]:
    """Return where the value n layers before j stands behind `longest` entries of padding."""
    index_JN: NDArray[np.intp] = np.arange(size)[:, np.newaxis] + longest - np.arange(longest + 1)
    index_JN.setflags(write=False)
    return index_JN


def _start_J(num_layers: int) -> FloatArray:
    """Return a total of 0 for no layers; nothing else can be reached before the first stage."""
    start_J = np.full(num_layers + 1, np.inf)
    start_J[0] = 0.0
    return start_J


def _path(count_SJ: NDArray[np.intp]) -> list[int]:
    """Return the boundaries of the path that ends with all layers, given the last segment of the path to each end."""
    boundaries = [count_SJ.shape[1] - 1]
    for count_J in count_SJ[::-1]:
        boundaries.append(boundaries[-1] - int(count_J[boundaries[-1]]))
    return boundaries[::-1]


def _least_bottleneck(cost_SJN: FloatArray) -> float:
    """Return the least, over all paths, of the largest cost; infinite when there is no path."""
    longest = cost_SJN.shape[2] - 1
    reach_J = _start_J(cost_SJN.shape[1] - 1)
    for cost_JN in cost_SJN:
        reach_J = np.maximum(_before_JN(reach_J, longest), cost_JN).min(axis=1)
    return float(reach_J[-1])


def _least_total(cost_SJN: FloatArray, limit: float) -> tuple[float, float]:
    """Return the least total of all paths whose costs keep the limit, and such a path's bottleneck."""
    num_stages, size, width = cost_SJN.shape
    within_SJN = np.where(cost_SJN <= limit, cost_SJN, np.inf)
    total_J = _start_J(size - 1)
    count_SJ = np.empty((num_stages, size), dtype=np.intp)
    ends = np.arange(size)
    for stage in range(num_stages):
        through_JN = _before_JN(total_J, width - 1) + within_SJN[stage]
        count_SJ[stage] = through_JN.argmin(axis=1)
        total_J = through_JN[ends, count_SJ[stage]]
    boundaries = np.array(_path(count_SJ))
    costs_S = cost_SJN[np.arange(num_stages), boundaries[1:], np.diff(boundaries)]
    return float(total_J[-1]), float(costs_S.max())


def _best_limit(problem: Problem, cost_SJN: FloatArray, least_bottleneck: float) -> tuple[float, float]:
    """Return the bottleneck of a best path, and its objective."""
    total, bottleneck = _least_total(cost_SJN, np.inf)
    best = problem.weighted(bottleneck_seconds=bottleneck, total_seconds=total), bottleneck
    if bottleneck > least_bottleneck:
        narrow_total, narrow = _least_total(cost_SJN, least_bottleneck)
        best = min(best, (problem.weighted(bottleneck_seconds=narrow, total_seconds=narrow_total), narrow))
    while bottleneck > least_bottleneck:
        # Paths below the last bottleneck have at least its total, so only a low enough bottleneck can still win.
        limit = bottleneck * (1.0 - _ROUNDING)
        if problem.bottleneck_weight > 0.0:
            winning = (best[0] * (1.0 - _ROUNDING) - problem.total_weight * total) / problem.bottleneck_weight
            limit = min(limit, winning)
        if limit < least_bottleneck:
            break
        total, bottleneck = _least_total(cost_SJN, limit)
        best = min(best, (problem.weighted(bottleneck_seconds=bottleneck, total_seconds=total), bottleneck))
    return best[1], best[0]


def _most_even_path(cost_SJN: FloatArray, limit: float) -> list[int]:
    """Return the boundaries of the path with the least total under the limit, the most even of equals."""
    num_stages, size, width = cost_SJN.shape
    within_SJN = np.where(cost_SJN <= limit * (1.0 + _ROUNDING), cost_SJN, np.inf)
    before_J = _start_J(size - 1)
    totals = []
    for stage in range(num_stages):
        through_JN = _before_JN(before_J, width - 1) + within_SJN[stage]
        totals.append(through_JN)
        before_J = through_JN.min(axis=1)
    best_total = before_J[-1] * (1.0 + _ROUNDING)

    # A segment lies on a path of least total if the best ways to it and from it add up to that total.
    after_J = _start_J(size - 1)[::-1]
    begin_JN = np.arange(size)[:, np.newaxis] - np.arange(width)
    exists_JN = begin_JN >= 0
    begin_K = begin_JN[exists_JN]
    squares: list[FloatArray] = []
    for stage in reversed(range(num_stages)):
        on_best_JN = totals[stage] + after_J[:, np.newaxis] <= best_total
        squares.append(np.where(on_best_JN, within_SJN[stage] ** 2, np.inf))
        from_here_JN = within_SJN[stage] + after_J[:, np.newaxis]
        after_J = np.full(size, np.inf)
        np.minimum.at(after_J, begin_K, from_here_JN[exists_JN])

    square_J = _start_J(size - 1)
    count_SJ = np.empty((num_stages, size), dtype=np.intp)
    for stage, square_JN in enumerate(reversed(squares)):
        through_JN = _before_JN(square_J, width - 1) + square_JN
        count_SJ[stage] = through_JN.argmin(axis=1)
        square_J = through_JN.min(axis=1)
    return _path(count_SJ)


def _options_of_segment(problem: Problem, stage: int, layers: range) -> list[int]:
    """Return the options that give a segment its least seconds."""
    if problem.num_options == 1:
        return [0] * len(layers)
    demand_LO, seconds_LO = problem.bytes_LO(stage), problem.stage_seconds_LO(stage)
    room_bytes = int(problem.capacity_bytes_R[problem.rank_of_stage_S[stage]] - problem.fixed_bytes_S[stage])
    is_fastest_LO = seconds_LO == seconds_LO.min(axis=1, keepdims=True)
    fastest_L = np.where(is_fastest_LO, demand_LO, np.iinfo(np.int64).max).argmin(axis=1).tolist()
    if sum(int(demand_LO[layer, fastest_L[layer]]) for layer in layers) <= room_bytes:
        return [fastest_L[layer] for layer in layers]
    fronts = [_EMPTY]
    for layer in layers:
        fronts.append(fronts[-1].extended(demand_LO[layer], seconds_LO[layer], room_bytes))
    options: list[int] = []
    point = len(fronts[-1].seconds) - 1
    for front, before in zip(reversed(fronts[1:]), reversed(fronts[:-1]), strict=True):
        option, point = divmod(int(front.origin[point]), len(before.seconds))
        options.append(option)
    return options[::-1]
