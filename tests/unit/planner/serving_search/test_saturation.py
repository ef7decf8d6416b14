"""The verdict of saturation: waits that grow as long as requests come, in any unit of time."""

import numpy as np
import pytest

from planner.serving_plans.request import Targets
from planner.serving_search.simulated import GROWTH, Times, served_of


def is_saturated(arrivals: np.ndarray, waits: np.ndarray) -> bool:
    times = Times(
        arrival_N=arrivals,
        ttft_N=waits,
        tpot_N=np.ones(len(waits)),
        e2e_N=waits + 1,
        requests_per_second=1.0,
        preempted=0.0,
        refused=0,
        mean_batch=1.0,
    )
    return served_of(times, Targets(), in_loop=False).saturated


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_waits_that_grow_faster_than_the_bound_saturate(unit: float) -> None:
    arrivals = np.arange(200) * unit
    assert is_saturated(arrivals, 2 * GROWTH * arrivals)
    assert not is_saturated(arrivals, 0.5 * GROWTH * arrivals)
    assert not is_saturated(arrivals, np.ones(200))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_requests_that_come_at_once_say_nothing_of_growth(count: int) -> None:
    assert not is_saturated(np.zeros(count), np.arange(count, dtype=float))
