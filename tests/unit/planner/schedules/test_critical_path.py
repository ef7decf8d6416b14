import numpy as np
import pytest
from hypothesis import given, settings

from planner.layout import Schedule
from planner.schedules.critical_path import critical_path
from planner.schedules.orders import OperationOrder
from planner.schedules.simulate import StageTimes
from tests.examples import examples
from tests.unit.planner.schedules.test_span import steps


@settings(max_examples=examples(few=60, many=150), deadline=None)
@given(step=steps())
def test_the_chain_of_passes_alone_is_as_long_as_the_step(step: tuple[Schedule, OperationOrder, StageTimes]) -> None:
    schedule, order, full = step
    times = StageTimes(forward_seconds_V=full.forward_seconds_V, backward_seconds_V=full.backward_seconds_V)
    found = critical_path(schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, times=times)
    passes = found.forward_V @ np.array(times.forward_seconds_V) + found.backward_V @ np.array(times.backward_seconds_V)
    assert passes == pytest.approx(found.span_seconds, rel=1e-9, abs=1e-12)


@settings(max_examples=examples(few=60, many=150), deadline=None)
@given(step=steps())
def test_what_is_not_passes_on_the_chain_is_never_negative(step: tuple[Schedule, OperationOrder, StageTimes]) -> None:
    schedule, order, times = step
    found = critical_path(schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, times=times)
    passes = found.forward_V @ np.array(times.forward_seconds_V) + found.backward_V @ np.array(times.backward_seconds_V)
    assert passes <= found.span_seconds * (1 + 1e-9) + 1e-12


def test_the_busiest_stage_of_a_long_step_is_on_it_for_every_micro_batch() -> None:
    times = StageTimes(forward_seconds_V=(1.0, 1.5, 1.0), backward_seconds_V=(2.0, 3.0, 2.0))
    found = critical_path(Schedule.ONE_F_ONE_B, pp=3, vpp=1, num_microbatches=500, times=times)
    assert min(found.forward_V[1], found.backward_V[1]) >= 499  # a first or last pass may tie with its neighbours'
    assert found.forward_V.sum() + found.backward_V.sum() <= 1004
