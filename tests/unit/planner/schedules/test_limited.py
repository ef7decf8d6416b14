"""The scheduler within memory: it keeps to it, never undercuts its bound, and meets the bound where that is known."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedules.improved import scheduling_problem
from planner.schedules.limited import TUNED_ON, limited
from planner.schedules.passes import PassTimes, joined, peak_bytes_R, run
from planner.schedules.published import one_f_one_b, zb_h1, zb_h2
from planner.schedules.split_bounds import Memory, lower_bound_seconds
from solvers.scheduling_registry import schedule
from tests.pass_orders import check_complete


def uniform_memory(pp: int, limit: int, *, activation: int = 2, kept: int = 1) -> Memory:
    return Memory(
        activation_bytes_R=(activation,) * pp, weight_gradient_bytes_R=(kept,) * pp, limit_bytes_R=(limit,) * pp
    )


def uniform_times(pp: int, *, transfer: float = 0.05) -> PassTimes:
    return PassTimes.uniform(pp, forward=1.0, input_gradient=1.0, weight_gradient=1.0, transfer=transfer)


@pytest.mark.parametrize(
    ("pp", "microbatches", "times_1f1b", "seconds"),
    [
        # A = 31.5: it waits 32.5 - 16 before its first gradient, and 31.5 - 30 behind its last forward pass.
        (16, 64, 1.0, 192.0 + 16.5 + 1.5),
        (16, 64, 1.5, 192.0 + 8.5),
        (8, 24, 1.0, 72.0 + 7.7 + 0.7),
        (8, 24, 1.5, 72.0 + 3.7),
        (8, 24, 2.0, 72.0),
        # As few as a rank has room for: both waits are one.
        (4, 4, 1.0, 12.0 + 6.3 + 1.0 - 4.0),
    ],
)
def test_the_bound_by_hand(pp: int, microbatches: int, times_1f1b: float, seconds: float) -> None:
    memory = uniform_memory(pp, int(2 * pp * times_1f1b))
    assert lower_bound_seconds(uniform_times(pp), memory, microbatches) == pytest.approx(seconds, rel=1e-12)


def test_one_micro_batch_takes_its_way_there_and_back() -> None:
    # Forward through four stages, back through four, the gradient of the weights, and six transfers.
    assert lower_bound_seconds(uniform_times(4), uniform_memory(4, 8), 1) == pytest.approx(9 + 6 * 0.05)


@pytest.mark.parametrize(("pp", "microbatches"), [(2, 4), (4, 12), (8, 24)])
@pytest.mark.parametrize("times_1f1b", [1.0, 1.5])
def test_uniform_stages_meet_the_bound(pp: int, microbatches: int, times_1f1b: float) -> None:
    found = limited(uniform_times(pp), uniform_memory(pp, int(2 * pp * times_1f1b)), microbatches)
    assert found is not None
    assert found.span_seconds == pytest.approx(found.bound_seconds, rel=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_unequal_stages_keep_to_their_memory_and_to_the_bound(data: st.DataObject) -> None:
    pp = data.draw(st.integers(1, 4))
    microbatches = data.draw(st.integers(1, 9))
    seconds = st.floats(0.1, 3.0)

    def column(of: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(data.draw(st.lists(of, min_size=pp, max_size=pp)))

    times = PassTimes(
        forward_seconds_V=column(seconds),
        input_gradient_seconds_V=column(seconds),
        weight_gradient_seconds_V=column(seconds),
        transfer_seconds_V=column(st.floats(0.0, 0.5)),
    )
    memory = Memory(
        activation_bytes_R=tuple(data.draw(st.integers(1, 9)) for _ in range(pp)),
        # The gradients of the weights may need more than the rest did.
        weight_gradient_bytes_R=tuple(data.draw(st.integers(0, 12)) for _ in range(pp)),
        limit_bytes_R=tuple(data.draw(st.integers(1, 60)) for _ in range(pp)),
    )
    found = limited(times, memory, microbatches)
    if found is None:
        return
    check_complete(found.order)
    peaks = peak_bytes_R(
        found.order,
        activation_bytes_V=memory.activation_bytes_R,
        weight_gradient_bytes_V=memory.weight_gradient_bytes_R,
    )
    assert all(peak <= limit for peak, limit in zip(peaks, memory.limit_bytes_R, strict=True))
    assert run(found.order, times).span_seconds == found.span_seconds >= found.bound_seconds * (1 - 1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_no_published_order_of_one_stage_a_rank_undercuts_the_bound_of_its_memory(data: st.DataObject) -> None:
    pp, microbatches = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 12))
    order = data.draw(st.sampled_from([one_f_one_b, zb_h1, zb_h2]))(pp, microbatches)
    seconds = st.floats(0.1, 3.0)
    columns = [tuple(data.draw(st.lists(seconds, min_size=pp, max_size=pp))) for _ in range(4)]
    times = PassTimes(
        forward_seconds_V=columns[0],
        input_gradient_seconds_V=columns[1],
        weight_gradient_seconds_V=columns[2],
        transfer_seconds_V=columns[3],
    )
    held, kept = (3,) * pp, (data.draw(st.integers(0, 3)),) * pp
    for tried in (order, joined(order)):
        peaks = peak_bytes_R(tried, activation_bytes_V=held, weight_gradient_bytes_V=kept)
        memory = Memory(activation_bytes_R=held, weight_gradient_bytes_R=kept, limit_bytes_R=peaks)
        bound = lower_bound_seconds(times, memory, microbatches)
        assert run(tried, times).span_seconds >= bound * (1 - 1e-12)


def test_a_rank_without_room_for_one_micro_batch_has_no_order() -> None:
    assert limited(uniform_times(2), uniform_memory(2, 1), 4) is None


def test_a_long_step_runs_as_a_short_one_was_tuned() -> None:
    times, memory = uniform_times(4), uniform_memory(4, 8)
    short, long = (limited(times, memory, count) for count in (TUNED_ON * 4, 10 * TUNED_ON * 4))
    assert short is not None
    assert long is not None
    check_complete(long.order)
    assert long.span_seconds - short.span_seconds == pytest.approx(9 * TUNED_ON * 4 * 3.0)
    assert long.span_seconds == pytest.approx(long.bound_seconds)


def test_gradients_one_after_the_other_are_joined() -> None:
    order = zb_h1(2, 3)
    assert order.text(0) == "F0.0 F0.1 B0.0 W0.0 F0.2 B0.1 W0.1 B0.2 W0.2"
    assert joined(order).text(0) == "F0.0 F0.1 BW0.0 F0.2 BW0.1 BW0.2"
    assert order.text(1) == "F1.0 B1.0 F1.1 B1.1 W1.0 F1.2 B1.2 W1.1 W1.2"
    assert joined(order).text(1) == order.text(1)
    check_complete(joined(order))


def unequal_times(seed: int, pp: int) -> PassTimes:
    """Return stages of different lengths."""
    draw = random.Random(seed)

    def column(low: float, high: float) -> tuple[float, ...]:
        return tuple(draw.uniform(low, high) for _ in range(pp))

    return PassTimes(
        forward_seconds_V=column(0.8, 1.3),
        input_gradient_seconds_V=column(0.9, 1.8),
        weight_gradient_seconds_V=column(0.5, 1.0),
        transfer_seconds_V=column(0.0, 0.1),
    )


@pytest.mark.parametrize(("seed", "pp", "microbatches"), [(1, 2, 4), (2, 3, 3), (3, 4, 4)])
def test_the_solver_makes_no_order_worse(seed: int, pp: int, microbatches: int) -> None:
    times, memory = unequal_times(seed, pp), uniform_memory(pp, 34 * pp, activation=34, kept=32)
    before, after = (limited(times, memory, microbatches, improve=improve) for improve in (False, True))
    assert before is not None
    assert after is not None
    check_complete(after.order)
    peaks = peak_bytes_R(after.order, activation_bytes_V=(34,) * pp, weight_gradient_bytes_V=(32,) * pp)
    assert max(peaks) <= 34 * pp
    assert after.bound_seconds * (1 - 1e-9) <= after.span_seconds <= before.span_seconds
    assert after.bound_seconds <= after.in_turn_bound_seconds <= after.span_seconds * (1 + 1e-9)
    assert run(after.order, times).span_seconds == after.span_seconds


@pytest.mark.parametrize("seed", range(4))
def test_no_order_of_a_tiny_pipeline_undercuts_the_bound(seed: int) -> None:
    times, memory = unequal_times(seed, 2), uniform_memory(2, 3 + seed)
    best = schedule(scheduling_problem(2, 2, times, memory), solver="exhaustive")
    found = limited(times, memory, 2, improve=True)
    assert found is not None
    assert best.span_seconds is not None
    assert lower_bound_seconds(times, memory, 2) <= best.span_seconds * (1 + 1e-12)
    assert best.span_seconds <= found.span_seconds * (1 + 1e-9)
