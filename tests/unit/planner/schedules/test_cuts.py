"""Cuts that even out the work of ranks."""

from collections import defaultdict
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import even_counts
from planner.schedules.cuts import even_work


def loads(
    seconds_L: list[float], ranks: tuple[int, ...], counts: tuple[int, ...], *, first: float, last: float
) -> list[float]:
    """Return the work of each rank."""
    done = list(accumulate(seconds_L, initial=0.0))
    found: defaultdict[int, float] = defaultdict(float)
    start = 0
    for rank, count in zip(ranks, counts, strict=True):
        found[rank] += done[start + count] - done[start]
        start += count
    found[ranks[0]] += first
    found[ranks[-1]] += last
    return [found[rank] for rank in sorted(found)]


@pytest.mark.parametrize(
    ("ranks", "last", "expected"),
    [
        ((0, 1, 2, 3), 0.0, (4, 4, 4, 4)),
        # The last rank has three layers' work beside its layers.
        ((0, 1, 2, 3), 3.0, (5, 5, 4, 2)),
        # In a V it is the first rank's.
        ((0, 1, 1, 0), 4.0, (3, 5, 5, 3)),
    ],
)
def test_small_cuts_by_hand(ranks: tuple[int, ...], last: float, expected: tuple[int, ...]) -> None:
    found = even_work([1.0] * 16, ranks, last_stage_seconds=last)
    assert sorted(loads([1.0] * 16, ranks, found, first=0.0, last=last)) == sorted(
        loads([1.0] * 16, ranks, expected, first=0.0, last=last)
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_every_layer_is_in_one_stage_and_no_rank_has_more_than_in_an_even_cut(data: st.DataObject) -> None:
    pp = data.draw(st.integers(2, 4))
    ranks = data.draw(st.sampled_from([tuple(range(pp)), tuple(range(pp)) * 2, (*range(pp), *reversed(range(pp)))]))
    seconds = data.draw(st.lists(st.floats(0.1, 4.0), min_size=len(ranks), max_size=4 * len(ranks)))
    first, last = data.draw(st.floats(0.0, 5.0)), data.draw(st.floats(0.0, 5.0))
    found = even_work(seconds, ranks, first_stage_seconds=first, last_stage_seconds=last)
    assert sum(found) == len(seconds)
    assert min(found) >= 1
    even = even_counts(len(seconds), len(ranks))
    assert max(loads(seconds, ranks, found, first=first, last=last)) <= max(
        loads(seconds, ranks, even, first=first, last=last)
    ) * (1 + 1e-12)
