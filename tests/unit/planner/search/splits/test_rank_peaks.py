"""Peaks of ranks that are remembered from split to split."""

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Layout
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from tests.agreement.test_prices import PricedSpace
from tests.examples import examples
from tests.unit.planner.search.splits.test_uneven import drawn_split, interleaved


@settings(max_examples=examples(few=15, many=40), deadline=None)
@given(drawn=interleaved(), data=st.data())
def test_one_split_after_another_has_the_peaks_of_its_own_ledger(
    drawn: tuple[PricedSpace, Layout], data: st.DataObject
) -> None:
    space, even = drawn
    prices = space.pricer.prices(even)
    for split in (even, *(drawn_split(even, data) for _ in range(4)), even):
        peaks = peaks_of_ranks(memory_ledger(prices.place(split)))
        asked = data.draw(st.integers(0, even.pp - 1))
        assert prices.rank_peak_bytes(split, asked) == peaks[asked]
        assert prices.peaks_R(split) == peaks
