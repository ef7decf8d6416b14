"""Activations on the host against hand computation, closed forms, laws over all schedules, and every choice."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.schedules.bidirectional import bidirectional_interleaved
from planner.schedules.building_block import v_half, v_min
from planner.schedules.offload import (
    Copies,
    Moved,
    Offload,
    OffloadTimeline,
    Saved,
    device_bytes,
    host_bytes,
    least_peak_bytes_R,
    most_bytes,
    run_offloaded,
    saved,
)
from planner.schedules.offload_choice import PRESSURES, SHARES, Pressure, Sizes, pressed, unnoticed
from planner.schedules.passes import (
    Pass,
    PassKind,
    PassOrder,
    PassTimeline,
    PassTimes,
    joined,
    peak_bytes_R,
    run,
)
from planner.schedules.published import breadth_first, dual_pipe, gpipe, one_f_one_b, zb_h1, zb_h2, zb_v

F, BW = PassKind.FORWARD, PassKind.BACKWARD

ORDERS: dict[str, Callable[[int, int], PassOrder]] = {
    "GPipe": gpipe,
    "1F1B": one_f_one_b,
    "interleaved": lambda pp, num: one_f_one_b(pp, num, vpp=2),
    "breadth-first": lambda pp, num: breadth_first(pp, 2, num),
    "ZB-H1": zb_h1,
    "ZB-H2": zb_h2,
    "ZB-H2, joined": lambda pp, num: joined(zb_h2(pp, num)),
    "ZB-V": zb_v,
    "V-Half": v_half,
    "V-Min": v_min,
    "DualPipe": dual_pipe,
    "bidirectional": bidirectional_interleaved,
}


@cache
def order_of(name: str, pp: int) -> PassOrder:
    return ORDERS[name](pp, 2 * pp)


def peaks_R(timeline: OffloadTimeline, sizes: Sizes) -> tuple[int, ...]:
    return tuple(
        most_bytes(
            device_bytes(
                timeline.passes,
                rank,
                copies,
                activation_bytes_V=sizes.activation_bytes_V,
                weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
            )
        )
        for rank, copies in enumerate(timeline.copies_R)
    )


def kept(order: PassOrder, sizes: Sizes) -> tuple[int, ...]:
    return peak_bytes_R(
        order, activation_bytes_V=sizes.activation_bytes_V, weight_gradient_bytes_V=sizes.weight_gradient_bytes_V
    )


def least(order: PassOrder, sizes: Sizes) -> tuple[int, ...]:
    return least_peak_bytes_R(
        order, activation_bytes_V=sizes.activation_bytes_V, weight_gradient_bytes_V=sizes.weight_gradient_bytes_V
    )


def uniform(num_stages: int, *, forward: float, backward: float, copy: float) -> tuple[PassTimes, Sizes]:
    """Return stages that all keep 8 bytes, nothing of them for the gradients of weights."""
    times = PassTimes.uniform(num_stages, forward=forward, input_gradient=backward, weight_gradient=0.0)
    sizes = Sizes(
        activation_bytes_V=(8,) * num_stages,
        weight_gradient_bytes_V=(0,) * num_stages,
        copy_seconds_V=(copy,) * num_stages,
    )
    return times, sizes


ALONE = PassOrder(
    name="alone",
    rank_of_stage_V=(0,),
    chains=((0,),),
    microbatches_of_chain=(3,),
    blocks_R=(tuple((Pass(kind, 0, index),) for kind in (F, BW) for index in range(3)),),
)


def test_what_is_saved_knows_where_it_is_made_and_needed() -> None:
    assert saved(ALONE, 0) == (Saved(0, 0, 0, 3), Saved(0, 1, 1, 4), Saved(0, 2, 2, 5))


def test_copies_run_one_at_a_time_and_backward_passes_wait_for_theirs() -> None:
    times, _ = uniform(1, forward=2.0, backward=3.0, copy=0.0)
    first, second, _ = saved(ALONE, 0)
    offload = Offload(moved_R=((Moved(first, 0.5, 3), Moved(second, 1.0, 3)),), copy_seconds_V=(5.0,))
    timeline = run_offloaded(ALONE, times, offload)
    # Forward passes end at 2, 4, 6. Half of the first leaves from 2 to 4.5, the second from then to 9.5. Both are
    # released as the rank has run forward: the first is back from 6 to 8.5, the second from 9.5 to 14.5.
    copies = timeline.copies_R[0]
    assert [copy[1:] for copy in copies.to_host] == [(2.0, 4.5), (4.5, 9.5)]
    assert [copy[1:] for copy in copies.from_host] == [(6.0, 8.5), (9.5, 14.5)]
    assert timeline.passes.start_seconds_R == ((0.0, 2.0, 4.0, 8.5, 14.5, 17.5),)
    held = device_bytes(timeline.passes, 0, copies, activation_bytes_V=(8,), weight_gradient_bytes_V=(0,))
    assert held == (
        (0.0, 8),
        (2.0, 16),
        (4.0, 24),
        (4.5, 20),
        (6.0, 24),
        (9.5, 16),
        (9.5, 24),
        (11.5, 16),
        (17.5, 8),
        (20.5, 0),
    )
    assert host_bytes(copies, activation_bytes_V=(8,)) == ((2.0, 4), (4.5, 12), (8.5, 8), (14.5, 0))


def test_a_copy_back_waits_for_the_block_that_releases_it() -> None:
    times, _ = uniform(1, forward=2.0, backward=3.0, copy=0.0)
    _, second, _ = saved(ALONE, 0)
    early, late = (
        run_offloaded(ALONE, times, Offload(moved_R=((Moved(second, 1.0, released),),), copy_seconds_V=(1.0,)))
        for released in (2, 4)
    )
    assert early.copies_R[0].from_host[0].start_seconds == 5.0
    assert late.copies_R[0].from_host[0].start_seconds == 9.0
    assert early.passes.start_seconds_R[0][4] == 9.0
    assert late.passes.start_seconds_R[0][4] == 10.0


def test_a_paced_rank_lets_its_forward_passes_wait_for_copies() -> None:
    times, _ = uniform(1, forward=2.0, backward=3.0, copy=0.0)
    moved = tuple(Moved(entry, 1.0, entry.needed) for entry in saved(ALONE, 0))
    starts = {
        most: run_offloaded(
            ALONE,
            times,
            Offload(moved_R=(moved,), copy_seconds_V=(5.0,), most_under_way={} if most is None else {0: most}),
        ).passes.start_seconds_R[0][:3]
        for most in (None, 1, 0)
    }
    assert starts == {None: (0.0, 2.0, 4.0), 1: (0.0, 2.0, 7.0), 0: (0.0, 7.0, 14.0)}


@pytest.mark.parametrize("pp", [2, 3, 6])
@pytest.mark.parametrize(("forward", "backward"), [(2.0, 4.0), (3.0, 3.0), (4.0, 2.0)])
def test_1f1b_hides_every_copy_if_a_round_trip_fits_into_a_forward_and_a_backward_pass(
    pp: int, forward: float, backward: float
) -> None:
    order = one_f_one_b(pp, 3 * pp)
    for copy, all_hidden in (((forward + backward) / 2, True), ((forward + backward) / 2 + 0.125, False)):
        times, sizes = uniform(pp, forward=forward, backward=backward, copy=copy)
        without = run(order, times)
        offload = unnoticed(without, sizes)
        assert run_offloaded(order, times, offload).passes.end_seconds_R == without.end_seconds_R
        everything = Offload(
            moved_R=tuple(
                tuple(Moved(entry, 1.0, entry.made + 1) for entry in saved(order, rank)) for rank in range(pp)
            ),
            copy_seconds_V=sizes.copy_seconds_V,
        )
        hidden = replace(everything, moved_R=(*everything.moved_R[:-1], ()))
        ends = run_offloaded(order, times, hidden).passes.end_seconds_R
        assert (ends == without.end_seconds_R) == all_hidden
        assert run_offloaded(order, times, everything).passes.end_seconds > without.end_seconds


@pytest.mark.parametrize("pp", [2, 3, 8])
def test_1f1b_then_holds_two_micro_batches_however_many_are_in_flight(pp: int) -> None:
    order = one_f_one_b(pp, 3 * pp)
    times, sizes = uniform(pp, forward=2.0, backward=4.0, copy=2.0)
    timeline = run_offloaded(order, times, unnoticed(run(order, times), sizes))
    assert kept(order, sizes) == tuple(8 * (pp - rank) for rank in range(pp))
    assert peaks_R(timeline, sizes) == (*(16,) * (pp - 1), 8)


def test_gpipe_of_one_rank_hides_all_but_the_last_copy_and_holds_two_micro_batches() -> None:
    order = gpipe(1, 8)
    times, sizes = uniform(1, forward=2.0, backward=3.0, copy=2.0)
    without = run(order, times)
    offload = unnoticed(without, sizes)
    assert [moved.saved.microbatch for moved in offload.moved_R[0]] == list(range(7))
    timeline = run_offloaded(order, times, offload)
    assert timeline.passes.end_seconds == without.end_seconds
    assert kept(order, sizes) == (64,)
    assert peaks_R(timeline, sizes) == (16,)
    assert most_bytes(host_bytes(timeline.copies_R[0], activation_bytes_V=(8,))) == 56


@st.composite
def cases(draw: st.DrawFn) -> tuple[PassOrder, PassTimes, Sizes]:
    name = draw(st.sampled_from(sorted(ORDERS)))
    order = order_of(name, draw(st.sampled_from((2, 4))))
    stages = order.num_stages

    def column(low: float, high: float) -> tuple[float, ...]:
        return tuple(draw(st.lists(st.floats(low, high), min_size=stages, max_size=stages)))

    activations = tuple(draw(st.lists(st.integers(0, 40), min_size=stages, max_size=stages)))
    speed = draw(st.sampled_from((0.01, 0.1, 0.3, 1.0)))
    times = PassTimes(
        forward_seconds_V=column(0.5, 4.0),
        input_gradient_seconds_V=column(0.5, 4.0),
        weight_gradient_seconds_V=column(0.5, 4.0),
        transfer_seconds_V=column(0.0, 1.0),
    )
    return (
        order,
        times,
        Sizes(
            activation_bytes_V=activations,
            # With recomputation the gradient of the weights may keep more than the forward pass.
            weight_gradient_bytes_V=tuple(draw(st.integers(0, 2 * held)) for held in activations),
            copy_seconds_V=tuple(speed * held for held in activations),
        ),
    )


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_what_moves_unnoticed_costs_no_time_and_no_memory(case: tuple[PassOrder, PassTimes, Sizes]) -> None:
    order, times, sizes = case
    without = run(order, times)
    offload = unnoticed(without, sizes)
    timeline = run_offloaded(order, times, offload)
    for ends, before in zip(timeline.passes.end_seconds_R, without.end_seconds_R, strict=True):
        assert ends == pytest.approx(before, rel=1e-9)
    found, whole, floor = peaks_R(timeline, sizes), kept(order, sizes), least(order, sizes)
    assert all(low <= now <= before for low, now, before in zip(floor, found, whole, strict=True))
    # A rank moves nothing unless it then holds less.
    assert all(bool(moved) == (now < before) for moved, now, before in zip(offload.moved_R, found, whole, strict=True))


@settings(deadline=None, max_examples=40)
@given(case=cases())
def test_without_time_for_copies_a_rank_holds_the_least_and_without_a_way_nothing_moves(
    case: tuple[PassOrder, PassTimes, Sizes],
) -> None:
    order, times, sizes = case
    without = run(order, times)
    at_once = replace(sizes, copy_seconds_V=(0.0,) * order.num_stages)
    timeline = run_offloaded(order, times, unnoticed(without, at_once))
    assert timeline.passes == without
    assert peaks_R(timeline, sizes) == least(order, sizes)
    never = replace(sizes, copy_seconds_V=(float("inf"),) * order.num_stages)
    gentle = unnoticed(without, never)
    assert gentle.moved_R == ((),) * order.pp
    hard = pressed(without, never, gentle, ranks=range(order.pp), pressure=PRESSURES[0])
    assert hard.moved_R == ((),) * order.pp
    timeline = run_offloaded(order, times, hard)
    assert timeline.passes == without
    assert peaks_R(timeline, sizes) == kept(order, sizes)


@settings(deadline=None, max_examples=60)
@given(case=cases(), pressure=st.sampled_from(PRESSURES), data=st.data())
def test_pressed_ranks_take_no_less_time_and_hold_no_more(
    case: tuple[PassOrder, PassTimes, Sizes], pressure: Pressure, data: st.DataObject
) -> None:
    order, times, sizes = case
    without = run(order, times)
    ranks = data.draw(st.lists(st.integers(0, order.pp - 1), unique=True))
    offload = pressed(without, sizes, unnoticed(without, sizes), ranks=ranks, pressure=pressure)
    timeline = run_offloaded(order, times, offload)
    passes = timeline.passes
    for rank in range(order.pp):
        for now, before in zip(passes.end_seconds_R[rank], without.end_seconds_R[rank], strict=True):
            assert now >= before * (1 - 1e-9)
    assert all(
        low <= now <= before
        for low, now, before in zip(least(order, sizes), peaks_R(timeline, sizes), kept(order, sizes), strict=True)
    )
    for copies in timeline.copies_R:
        assert_one_at_a_time(copies, passes)


def assert_one_at_a_time(copies: Copies, passes: PassTimeline) -> None:
    """Check the streams of a rank from its copies alone."""
    for stream in (copies.to_host, copies.from_host):
        for before, after in pairwise(stream):
            assert before.end_seconds <= after.start_seconds
    away = {copy.moved.saved: copy for copy in copies.to_host}
    assert set(away) == {copy.moved.saved for copy in copies.from_host}
    for copy in copies.from_host:
        entry = copy.moved.saved
        rank = passes.order.rank_of_stage_V[entry.stage]
        assert passes.end_seconds_R[rank][entry.made] <= away[entry].start_seconds
        assert away[entry].end_seconds <= copy.start_seconds
        assert copy.end_seconds <= passes.start_seconds_R[rank][entry.needed]


def least_of_all_choices(order: PassOrder, times: PassTimes, sizes: Sizes, rank: int) -> int:
    """Return the least peak of a rank over every set and share that moves unnoticed, released as late as may be."""
    without = run(order, times)
    entries = saved(order, rank)
    ends = without.end_seconds_R[rank]
    found = kept(order, sizes)[rank]
    for share, chosen in product(SHARES, product((False, True), repeat=len(entries))):
        picked = [entry for entry, is_in in zip(entries, chosen, strict=True) if is_in]
        latest: dict[Saved, int] = {}
        behind = float("inf")
        for entry in sorted(picked, key=lambda entry: entry.needed, reverse=True):
            behind = (
                min(behind, without.start_seconds_R[rank][entry.needed]) - share * sizes.copy_seconds_V[entry.stage]
            )
            boundaries = [place + 1 for place, end in enumerate(ends) if end <= behind + 1e-9]
            latest[entry] = min(max([entry.made + 1, *boundaries]), entry.needed)
        moved = tuple(Moved(entry, share, latest[entry]) for entry in picked)
        offload = Offload(
            moved_R=tuple(moved if index == rank else () for index in range(order.pp)),
            copy_seconds_V=sizes.copy_seconds_V,
        )
        timeline = run_offloaded(order, times, offload)
        if timeline.passes.end_seconds_R[rank] == pytest.approx(ends, rel=1e-12):
            found = min(found, peaks_R(timeline, sizes)[rank])
    return found


@pytest.mark.parametrize("name", ["1F1B", "GPipe", "ZB-H2"])
@pytest.mark.parametrize("pp", [2, 3])
@pytest.mark.parametrize("copy", [0.5, 1.5, 2.5, 4.0])
def test_with_uniform_stages_longest_first_is_as_good_as_the_best_of_all_choices(
    name: str, pp: int, copy: float
) -> None:
    order = ORDERS[name](pp, 5)
    times = PassTimes.uniform(pp, forward=2.0, input_gradient=2.0, weight_gradient=2.0, transfer=0.5)
    sizes = Sizes(activation_bytes_V=(8,) * pp, weight_gradient_bytes_V=(4,) * pp, copy_seconds_V=(copy,) * pp)
    timeline = run_offloaded(order, times, unnoticed(run(order, times), sizes))
    assert peaks_R(timeline, sizes)[0] == least_of_all_choices(order, times, sizes, 0)


def test_stages_whose_activations_wait_longest_move_alone_where_not_all_can() -> None:
    # Two stages a rank, and copies that both streams have time for of one of them.
    order = v_half(4, 12)
    stages = order.num_stages
    times = PassTimes.uniform(stages, forward=6.0, input_gradient=6.0, weight_gradient=6.0)
    sizes = Sizes(
        activation_bytes_V=(60,) * stages,
        weight_gradient_bytes_V=(30,) * stages,
        copy_seconds_V=(24.0,) * stages,
    )
    moved = unnoticed(run(order, times), sizes).moved_R[0]
    assert {entry.saved.stage for entry in moved} == {0}
