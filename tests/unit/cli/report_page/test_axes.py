"""Axes have round figures inside their range."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.report_page.axes import Scale, decimals_of, ticks


@given(
    low=st.floats(-1e6, 1e6),
    length=st.floats(1e-3, 1e7),
    at_most=st.integers(2, 20),
)
def test_figures_are_in_range_evenly_apart_and_no_more_than_asked_for(low: float, length: float, at_most: int) -> None:
    high = low + length
    values = ticks(low, high, at_most=at_most)
    assert len(values) <= at_most
    slack = 1e-6 * max(abs(low), abs(high))
    assert all(low - slack <= value <= high + slack for value in values)
    steps = [after - before for before, after in pairwise(values)]
    assert steps == pytest.approx([steps[0]] * len(steps) if steps else [])


def test_steps_are_round() -> None:
    assert ticks(0.0, 80.0, at_most=5) == (0.0, 20.0, 40.0, 60.0, 80.0)
    assert ticks(0.0, 1.0, at_most=4) == (0.0, 0.5, 1.0)
    assert ticks(60_794.7, 83_829.5, at_most=4) == (70_000.0, 80_000.0)
    assert ticks(5.0, 5.0, at_most=4) == (5.0,)


def test_figures_have_the_decimals_of_their_step() -> None:
    assert decimals_of((0.0, 20.0)) == 0
    assert decimals_of((0.0, 0.25, 0.5)) == 2
    assert decimals_of((1.0,)) == 1


def test_a_scale_maps_its_ends() -> None:
    upwards = Scale(low=10.0, high=20.0, start=100.0, end=0.0)
    assert (upwards(10.0), upwards(15.0), upwards(20.0)) == (100.0, 50.0, 0.0)
