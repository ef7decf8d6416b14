"""The general simulator of passes against hand computation, and against the vectorised one of 1F1B."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Schedule
from planner.schedules.orders import operation_order
from planner.schedules.passes import (
    Pass,
    PassKind,
    PassOrder,
    PassTimes,
    peak_bytes_R,
    run,
)
from planner.schedules.published import one_f_one_b
from planner.schedules.simulate import StageTimes, simulate
from tests.pass_orders import check_complete

F, BW, B, W = PassKind.FORWARD, PassKind.BACKWARD, PassKind.INPUT_GRADIENT, PassKind.WEIGHT_GRADIENT


def two_ranks(*blocks_R: tuple[tuple[Pass, ...], ...]) -> PassOrder:
    return PassOrder(
        name="test",
        rank_of_stage_V=(0, 1),
        chains=((0, 1),),
        microbatches_of_chain=(1,),
        blocks_R=blocks_R,
    )


SPLIT = two_ranks(
    ((Pass(F, 0, 0),), (Pass(B, 0, 0),), (Pass(W, 0, 0),)),
    ((Pass(F, 1, 0),), (Pass(B, 1, 0),), (Pass(W, 1, 0),)),
)
TIMES = PassTimes(
    forward_seconds_V=(1.0, 2.0),
    input_gradient_seconds_V=(3.0, 4.0),
    weight_gradient_seconds_V=(5.0, 6.0),
    transfer_seconds_V=(0.5, 0.0),
)


def test_the_stage_before_waits_for_the_gradient_of_the_input_only() -> None:
    timeline = run(SPLIT, TIMES)
    # Forward ends at 1, arrives at 1.5, ends at 3.5; B of stage 1 at 7.5 arrives at 8; its W ends at 13.5.
    assert timeline.end_seconds_R == ((1.0, 11.0, 16.0), (3.5, 7.5, 13.5))
    assert timeline.start_seconds_R == ((0.0, 8.0, 11.0), (1.5, 3.5, 7.5))
    assert timeline.span_seconds_R == (16.0, 12.0)
    assert timeline.end_seconds == 16.0
    assert timeline.busy_seconds_R == (9.0, 12.0)
    assert timeline.bubble_fraction == pytest.approx(1 - 9 / 16)
    assert SPLIT.text(1) == "F1.0 B1.0 W1.0"


def test_extras_lengthen_the_first_forward_pass_and_follow_the_last_gradient_of_weights() -> None:
    with_extras = replace(TIMES, first_forward_extra_seconds_V=(0.25, 0.0), last_gradient_extra_seconds_V=(0.0, 20.0))
    timeline = run(SPLIT, with_extras)
    assert timeline.end_seconds_R == ((1.25, 11.25, 16.25), (3.75, 7.75, 13.75))
    # The gradient of stage 1's input has left before its rank is busy.
    assert timeline.rank_end_seconds_R == (16.25, 33.75)
    assert timeline.span_seconds == 32.0


def test_a_backward_pass_in_one_has_a_time_of_its_own() -> None:
    whole = two_ranks(
        ((Pass(F, 0, 0),), (Pass(BW, 0, 0),)),
        ((Pass(F, 1, 0),), (Pass(BW, 1, 0),)),
    )
    assert run(whole, TIMES).end_seconds == 1.0 + 0.5 + 2.0 + 10.0 + 0.5 + 8.0
    assert run(whole, replace(TIMES, backward_seconds_V=(7.0, 9.0))).end_seconds == 1.0 + 0.5 + 2.0 + 9.0 + 0.5 + 7.0


def test_a_block_waits_for_all_its_passes_and_may_take_less_than_their_sum() -> None:
    joined = PassOrder(
        name="joined",
        rank_of_stage_V=(0, 0),
        chains=((0,), (1,)),
        microbatches_of_chain=(1, 1),
        blocks_R=(((Pass(F, 0, 0),), (Pass(F, 1, 1), Pass(BW, 0, 0)), (Pass(BW, 1, 1),)),),
    )
    check_complete(joined)
    times = PassTimes(
        forward_seconds_V=(1.0, 2.0),
        input_gradient_seconds_V=(3.0, 4.0),
        weight_gradient_seconds_V=(5.0, 6.0),
        transfer_seconds_V=(9.0, 9.0),
        joint_fraction=0.8,
    )
    assert run(joined, times).end_seconds_R == ((1.0, 1.0 + 0.8 * 10.0, 9.0 + 10.0),)
    # In a block the forward pass comes first.
    assert peak_bytes_R(joined, activation_bytes_V=(8, 4), weight_gradient_bytes_V=(0, 0)) == (12,)


def test_gradients_of_weights_keep_a_part_until_they_run() -> None:
    assert peak_bytes_R(SPLIT, activation_bytes_V=(8, 8), weight_gradient_bytes_V=(3, 3)) == (8, 8)
    late = two_ranks(
        ((Pass(F, 0, 0),), (Pass(B, 0, 0),), (Pass(F, 0, 1),), (Pass(B, 0, 1),), (Pass(W, 0, 0),), (Pass(W, 0, 1),)),
        (),
    )
    assert peak_bytes_R(late, activation_bytes_V=(8, 8), weight_gradient_bytes_V=(3, 3))[0] == 11


@pytest.mark.parametrize(
    ("blocks_R", "message"),
    [
        ((((Pass(F, 0, 0),),), ((Pass(F, 1, 0),), (Pass(BW, 1, 0),))), "stage 0 and micro-batch 0 have"),
        ((((Pass(F, 0, 0),), (Pass(BW, 0, 0),)), ((Pass(F, 0, 0),),)), "stage 0 runs on rank 1, not on its own"),
        (
            (((Pass(F, 0, 0),), (Pass(BW, 0, 0),)), ((Pass(F, 1, 0),), (Pass(BW, 1, 0),), (Pass(F, 1, 1),))),
            "stage 1 and micro-batch 1 have",
        ),
    ],
)
def test_an_order_that_leaves_out_or_repeats_a_pass_is_refused(
    blocks_R: tuple[tuple[tuple[Pass, ...], ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_complete(two_ranks(*blocks_R))


def test_ranks_that_wait_for_one_another_are_an_error() -> None:
    stuck = two_ranks(
        ((Pass(BW, 0, 0),), (Pass(F, 0, 0),)),
        ((Pass(F, 1, 0),), (Pass(BW, 1, 0),)),
    )
    with pytest.raises(ValueError, match="the ranks of test wait for one another"):
        run(stuck, TIMES)


def test_times_for_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="times for 3 stages given, the order has 2"):
        run(SPLIT, PassTimes.uniform(3, forward=1, input_gradient=1, weight_gradient=1))
    with pytest.raises(ValueError, match="a time is negative or not finite"):
        PassTimes.uniform(2, forward=-1, input_gradient=1, weight_gradient=1)
    with pytest.raises(ValueError, match="not all for as many stages"):
        PassTimes(
            forward_seconds_V=(1.0,),
            input_gradient_seconds_V=(),
            weight_gradient_seconds_V=(1.0,),
            transfer_seconds_V=(0.0,),
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_both_simulators_agree_on_what_megatron_runs(data: st.DataObject) -> None:
    pp, vpp = data.draw(st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (2, 3)]))
    microbatches = pp * data.draw(st.integers(1, 3))
    seconds = st.floats(1e-3, 3.0)
    stages = pp * vpp
    forward, gradient, weights, first, last = (
        tuple(data.draw(st.lists(seconds, min_size=stages, max_size=stages))) for _ in range(5)
    )
    transfers = tuple(data.draw(st.lists(seconds, min_size=stages - 1, max_size=stages - 1)))
    schedule = Schedule.NO_PIPELINE if pp == 1 else Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    vectorised = simulate(
        operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=microbatches),
        StageTimes(
            forward_seconds_V=forward,
            backward_seconds_V=tuple(one + other for one, other in zip(gradient, weights, strict=True)),
            transfer_seconds_E=transfers if pp > 1 else (),
            first_forward_extra_seconds_V=first,
            last_backward_extra_seconds_V=last,
        ),
    )
    general = run(
        one_f_one_b(pp, microbatches, vpp=vpp),
        PassTimes(
            forward_seconds_V=forward,
            input_gradient_seconds_V=gradient,
            weight_gradient_seconds_V=weights,
            transfer_seconds_V=(*transfers, 0.0),
            first_forward_extra_seconds_V=first,
            last_gradient_extra_seconds_V=last,
        ),
    )
    assert general.end_seconds == pytest.approx(float(vectorised.rank_end_seconds_R.max()), rel=1e-12)
    assert general.span_seconds_R == pytest.approx(vectorised.span_seconds_R.tolist(), rel=1e-12)
