"""The front of throughput and speed: output tokens a second of a GPU against those of a user, in closed form.

Points are engines at batches; of a split plan a prefill engine for every so many decode engines, in any ratio, as the
front speaks of large fleets. A point is on the front if no other is as good in both. The target for the first token
holds; the one for tokens behind it is the axis.
"""

import math
from collections.abc import Iterable, Iterator

from planner.serving_plans.layout import Role
from planner.serving_plans.plan import ParetoPoint
from planner.serving_plans.request import Splits
from planner.serving_search.candidates import Candidate
from planner.serving_search.closed_form import state_at
from planner.serving_search.options import WAITED_STEPS, Option
from planner.serving_search.passing import connector_of, pair_refusal, split_refusal

MOST_POINTS = 12
"""Points that are shown: of each of so many equal steps of the logarithm of speed the best."""


def pareto_front(candidates: list[Candidate], options: Iterable[Option]) -> tuple[ParetoPoint, ...]:
    """Return the front, the fastest first.

    Args:
        candidates: Engines that fit.
        options: What compositions choose from; a split point takes the best prefill engine among them.
    """
    if not candidates:
        return ()
    constraints = candidates[0].ground.request.constraints
    usual = _usual(candidates)
    points: list[ParetoPoint] = []
    if constraints.split is not Splits.ONLY:
        points += [point for candidate in usual for point in _alone(candidate)]
    prefills = [option for option in options if option.point.role is Role.PREFILL]
    if prefills and constraints.split is not Splits.NEVER:
        best_first = sorted(prefills, key=lambda option: -option.point.per_gpu)
        points += [point for candidate in usual for point in _behind(candidate, best_first)]
    return _thinned(_front(points))


def _usual(candidates: list[Candidate]) -> list[Candidate]:
    """Return of each shape the candidate with the budget nearest to the engine's own: means hardly differ."""
    chosen: dict[tuple[int, str], Candidate] = {}
    for candidate in candidates:
        key = (candidate.ground.index, candidate.words)
        known = chosen.get(key)
        if known is None or _distance(candidate) < _distance(known):
            chosen[key] = candidate
    return list(chosen.values())


def _distance(candidate: Candidate) -> int:
    return abs(candidate.budget - candidate.ground.engine.default_batched_tokens)


def _batches(most: int) -> Iterator[int]:
    """Yield 1, 2, 3, 4, 6, 8, 12 and so on up to `most`."""
    batch = 1
    while batch <= most:
        yield batch
        if batch > 1 and batch * 3 // 2 <= most:
            yield batch * 3 // 2
        batch *= 2


def _alone(candidate: Candidate) -> Iterator[ParetoPoint]:
    ground, shape = candidate.ground, candidate.shape
    room = ground.request.workload.targets.ttft_seconds or math.inf
    for batch in _batches(candidate.most_seqs):
        state = state_at(candidate, float(batch))
        if state.ttft_seconds <= room and not state.saturated and state.tpot_seconds > 0:
            yield ParetoPoint(
                tokens_per_second_per_user=1 / state.tpot_seconds,
                tokens_per_second_per_gpu=state.requests_per_second * shape.dp * ground.mean.output / shape.num_gpus,
                ttft_seconds=state.ttft_seconds,
                gpu=ground.prices.cluster.device.name,
                words=candidate.words,
                batch=batch,
                split=False,
            )


def _behind(candidate: Candidate, best_first: list[Option]) -> Iterator[ParetoPoint]:
    """Yield what a candidate does as a decode engine behind enough of the best prefill engines that it works with."""
    if split_refusal(candidate, Role.DECODE) is not None:
        return
    prefill = next((option for option in best_first if _works(option.point.candidate, candidate)), None)
    if prefill is None:
        return
    ground, shape = candidate.ground, candidate.shape
    load = ground.mean.load
    context = load.prompt + load.cached + load.output / 2
    for batch in _batches(candidate.most_seqs):
        step = candidate.costs.seconds(decodes=batch, context=context)
        gain = candidate.costs.answering.gain
        rate = batch * shape.dp * gain / (max(load.output - 1, 1.0) * step)
        per_gpu = 1 / (shape.num_gpus / rate + 1 / prefill.point.per_gpu)
        yield ParetoPoint(
            tokens_per_second_per_user=gain / step,
            tokens_per_second_per_gpu=per_gpu * ground.mean.output,
            ttft_seconds=prefill.point.ttft_seconds + WAITED_STEPS * step,
            gpu=ground.prices.cluster.device.name,
            words=f"{candidate.words} behind prefill {prefill.point.candidate.words}",
            batch=batch,
            split=True,
        )


def _works(first: Candidate, second: Candidate) -> bool:
    return pair_refusal(first, second, connector_of([first])) is None


def _front(points: list[ParetoPoint]) -> list[ParetoPoint]:
    points.sort(
        key=lambda point: (-point.tokens_per_second_per_user, -point.tokens_per_second_per_gpu, point.gpu, point.words)
    )
    front: list[ParetoPoint] = []
    for point in points:
        if not front or point.tokens_per_second_per_gpu > front[-1].tokens_per_second_per_gpu:
            front.append(point)
    return front


def _thinned(front: list[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    if len(front) <= MOST_POINTS:
        return tuple(front)
    fastest, slowest = front[0].tokens_per_second_per_user, front[-1].tokens_per_second_per_user
    width = math.log(fastest / slowest) / (MOST_POINTS - 1)
    kept: dict[int, ParetoPoint] = {}
    for point in front:
        # Both ends stay: of a step the last point has most throughput, and the first step holds the fastest alone.
        step = math.ceil(math.log(fastest / point.tokens_per_second_per_user) / width - 1e-9)
        kept[step] = point
    return tuple(kept.values())
