import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Schedule
from planner.schedules import span
from planner.schedules.orders import OperationOrder, operation_order
from planner.schedules.simulate import StageTimes, Timeline, simulate
from tests.examples import examples


@st.composite
def steps(draw: st.DrawFn) -> tuple[Schedule, OperationOrder, StageTimes]:
    """Return a schedule of many micro-batches; stages of whole layers often tie, any other times hardly ever do."""
    pp, vpp = draw(st.sampled_from([(1, 1), (2, 1), (5, 1), (8, 1), (2, 2), (3, 2), (4, 3)]))
    schedule = Schedule.NO_PIPELINE if pp == 1 else Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    groups = draw(st.integers(1, 40))
    order = operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=groups * pp if vpp > 1 else groups)
    seconds = draw(st.sampled_from([st.integers(1, 3).map(float), st.floats(0.0, 3.0)]))

    def times(length: int) -> st.SearchStrategy[tuple[float, ...]]:
        return st.lists(seconds, min_size=length, max_size=length).map(tuple)

    stages = order.num_stages
    return (
        schedule,
        order,
        StageTimes(
            forward_seconds_V=draw(times(stages)),
            backward_seconds_V=draw(times(stages)),
            transfer_seconds_E=draw(st.one_of(st.just(()), times(stages - 1))),
            blocking_transfers=draw(st.booleans()),
            first_forward_extra_seconds_V=draw(st.one_of(st.just(()), times(stages))),
            last_backward_extra_seconds_V=draw(st.one_of(st.just(()), times(stages))),
        ),
    )


@settings(max_examples=examples(few=100, many=300), deadline=None)
@given(step=steps())
def test_the_span_is_that_of_the_whole_step(step: tuple[Schedule, OperationOrder, StageTimes]) -> None:
    schedule, order, times = step
    found = span.span_seconds(
        schedule, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, times=times
    )
    assert found == pytest.approx(float(simulate(order, times).rank_end_seconds_R.max()), rel=1e-11, abs=1e-300)


def test_of_a_long_step_only_a_few_periods_are_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated: list[int] = []

    def watched(order: OperationOrder, times: StageTimes) -> Timeline:
        simulated.append(order.num_microbatches)
        return simulate(order, times)

    monkeypatch.setattr(span, "simulate", watched)
    times = StageTimes(forward_seconds_V=(1.0, 1.1, 1.2, 1.0), backward_seconds_V=(2.0, 2.2, 2.4, 2.0))
    span.span_seconds(Schedule.ONE_F_ONE_B, pp=4, vpp=1, num_microbatches=4096, times=times)
    assert sum(simulated) < 64


def test_a_stage_that_falls_behind_slowly_is_followed_to_the_end() -> None:
    # Rank 1 is hardly slower than rank 0, and rank 0 hides it for long: the first periods repeat another time.
    times = StageTimes(forward_seconds_V=(1.0, 1.0001), backward_seconds_V=(1.0, 1.0), transfer_seconds_E=(0.05,))
    found = span.span_seconds(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=3000, times=times)
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=3000)
    assert found == pytest.approx(simulate(order, times).span_seconds, rel=1e-12)
