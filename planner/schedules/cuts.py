"""Cuts of a chain of layers into stages that even out the work of ranks with several stages each."""

from collections.abc import Sequence
from itertools import accumulate

from planner.layout import even_counts


def even_work(
    seconds_L: Sequence[float],
    rank_of_stage_V: Sequence[int],
    *,
    first_stage_seconds: float = 0.0,
    last_stage_seconds: float = 0.0,
) -> tuple[int, ...]:
    """Return how many layers each stage gets, at least one.

    From stages as even as possible a stage of the busiest rank hands one layer to another stage, those between them
    moving along, while that makes the ranks' work more even: the largest less, or at equals the next. A heuristic.

    Args:
        seconds_L: Work of each layer.
        rank_of_stage_V: The rank of each stage, in model order.
        first_stage_seconds: Work of the first stage beside its layers.
        last_stage_seconds: Work of the last stage beside its layers.
    """
    counts = list(even_counts(len(seconds_L), len(rank_of_stage_V)))
    done_L = list(accumulate(seconds_L, initial=0.0))

    def loads(counts_V: Sequence[int]) -> list[float]:
        loads_R = [0.0] * (max(rank_of_stage_V) + 1)
        loads_R[rank_of_stage_V[0]] += first_stage_seconds
        loads_R[rank_of_stage_V[-1]] += last_stage_seconds
        first = 0
        for rank, count in zip(rank_of_stage_V, counts_V, strict=True):
            loads_R[rank] += done_L[first + count] - done_L[first]
            first += count
        return loads_R

    now = loads(counts)
    while True:
        busiest = now.index(max(now))
        best = (sorted(now, reverse=True), counts)
        for giver, rank in enumerate(rank_of_stage_V):
            if rank != busiest or counts[giver] == 1:
                continue
            for taker in range(len(counts)):
                moved = [count - (index == giver) + (index == taker) for index, count in enumerate(counts)]
                best = min(best, (sorted(loads(moved), reverse=True), moved))
        if best[1] == counts or best[0] >= sorted(now, reverse=True):
            return tuple(counts)
        counts = best[1]
        now = loads(counts)
