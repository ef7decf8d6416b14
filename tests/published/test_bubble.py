"""The pipeline bubble against Narayanan et al., arXiv 2104.04473, section 2.2.

The paper gives the bubble as a share of the ideal time, for stages of equal length and free transfers: (p - 1) / m for
1F1B and (p - 1) / (v m) for the interleaved schedule. Simulation must give the same up to rounding (1e-9).
"""

import pytest

from planner.layout import Schedule
from planner.schedules.orders import operation_order
from planner.schedules.simulate import StageTimes, simulate


@pytest.mark.parametrize(("p", "m"), [(2, 2), (4, 8), (8, 64), (12, 30), (16, 192)])
def test_the_1f1b_bubble_is_p_minus_1_over_m(p: int, m: int) -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=p, vpp=1, num_microbatches=m)
    timeline = simulate(order, StageTimes(forward_seconds_V=(1.0,) * p, backward_seconds_V=(2.0,) * p))
    ideal_seconds = m * 3.0
    assert timeline.span_seconds / ideal_seconds - 1.0 == pytest.approx((p - 1) / m, rel=1e-9)
    assert timeline.bubble_fraction == pytest.approx((p - 1) / (m + p - 1), rel=1e-9)


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 2), (4, 2, 8), (8, 4, 64), (12, 8, 24), (16, 3, 192)])
def test_the_interleaved_bubble_is_p_minus_1_over_v_m(p: int, v: int, m: int) -> None:
    order = operation_order(Schedule.INTERLEAVED, pp=p, vpp=v, num_microbatches=m)
    timeline = simulate(order, StageTimes(forward_seconds_V=(1.0,) * (p * v), backward_seconds_V=(2.0,) * (p * v)))
    ideal_seconds = m * v * 3.0
    assert timeline.span_seconds / ideal_seconds - 1.0 == pytest.approx((p - 1) / (v * m), rel=1e-9)
