from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.layout import Schedule
from planner.schedules.bounds import any_split_bound_seconds, split_bound_seconds
from planner.schedules.orders import (
    OperationOrder,
    in_flight,
    operation_order,
    peak_activation_bytes,
    repeating_microbatches,
)
from planner.schedules.simulate import StageTimes, Timeline, simulate
from tests.examples import examples

ORDERS = [
    operation_order(Schedule.NO_PIPELINE, pp=1, vpp=1, num_microbatches=3),
    *(
        operation_order(Schedule.ONE_F_ONE_B, pp=pp, vpp=1, num_microbatches=m)
        for pp in (1, 2, 3, 5)
        for m in (1, 2, 4, 5, 9)
    ),
    *(
        operation_order(Schedule.INTERLEAVED, pp=pp, vpp=vpp, num_microbatches=pp * groups)
        for pp in (2, 3, 4)
        for vpp in (2, 3)
        for groups in (1, 2, 3)
    ),
]


def schedule_of(order: OperationOrder) -> Schedule:
    return Schedule.INTERLEAVED if order.vpp > 1 else Schedule.ONE_F_ONE_B


def spelled(order: OperationOrder, rank: int) -> str:
    """Return a rank's order as text, `F0.2` being the forward pass of micro-batch 2 on chunk 0."""
    return " ".join(
        f"{'B' if backward else 'F'}{chunk}.{microbatch}"
        for backward, chunk, microbatch in zip(
            order.is_backward_RK[rank], order.chunk_RK[rank], order.microbatch_RK[rank], strict=True
        )
    )


def uniform(order: OperationOrder, *, forward: float, backward: float, transfer: float = 0.0) -> StageTimes:
    return StageTimes(
        forward_seconds_V=(forward,) * order.num_stages,
        backward_seconds_V=(backward,) * order.num_stages,
        transfer_seconds_E=(transfer,) * (order.num_stages - 1),
    )


@st.composite
def orders_with_times(draw: st.DrawFn) -> tuple[OperationOrder, StageTimes]:
    order = draw(st.sampled_from(ORDERS))
    seconds = st.one_of(st.just(0.0), st.floats(1e-3, 3.0))
    stages = order.num_stages

    def times(length: int) -> st.SearchStrategy[tuple[float, ...]]:
        return st.lists(seconds, min_size=length, max_size=length).map(tuple)

    return order, StageTimes(
        forward_seconds_V=draw(times(stages)),
        backward_seconds_V=draw(times(stages)),
        transfer_seconds_E=draw(st.one_of(st.just(()), times(stages - 1))),
        blocking_transfers=draw(st.booleans()),
        first_forward_extra_seconds_V=draw(st.one_of(st.just(()), times(stages))),
        last_backward_extra_seconds_V=draw(st.one_of(st.just(()), times(stages))),
    )


def test_without_a_pipeline_forward_and_backward_alternate() -> None:
    order = operation_order(Schedule.NO_PIPELINE, pp=1, vpp=1, num_microbatches=3)
    assert spelled(order, 0) == "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2"


def test_1f1b_warms_up_by_the_ranks_behind_it() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=3, vpp=1, num_microbatches=4)
    assert spelled(order, 0) == "F0.0 F0.1 F0.2 B0.0 F0.3 B0.1 B0.2 B0.3"
    assert spelled(order, 1) == "F0.0 F0.1 B0.0 F0.2 B0.1 F0.3 B0.2 B0.3"
    assert spelled(order, 2) == "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2 F0.3 B0.3"


def test_1f1b_with_few_microbatches_runs_all_forwards_first() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=4, vpp=1, num_microbatches=2)
    assert spelled(order, 0) == "F0.0 F0.1 B0.0 B0.1"


def test_the_interleaved_schedule_goes_through_chunks_in_groups_and_back_in_reverse() -> None:
    order = operation_order(Schedule.INTERLEAVED, pp=2, vpp=2, num_microbatches=4)
    assert spelled(order, 0) == ("F0.0 F0.1 F1.0 F1.1 F0.2 B1.0 F0.3 B1.1 F1.2 B0.0 F1.3 B0.1 B1.2 B1.3 B0.2 B0.3")
    assert spelled(order, 1) == ("F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0 F0.3 B0.1 F1.2 B1.2 F1.3 B1.3 B0.2 B0.3")


@pytest.mark.parametrize("order", ORDERS)
def test_every_rank_runs_each_pass_once_and_backward_after_forward(order: OperationOrder) -> None:
    expected = {(chunk, microbatch) for chunk in range(order.vpp) for microbatch in range(order.num_microbatches)}
    for rank in range(order.pp):
        done: set[tuple[int, int]] = set()
        alive: set[tuple[int, int]] = set()
        for backward, chunk, microbatch in zip(
            order.is_backward_RK[rank], order.chunk_RK[rank], order.microbatch_RK[rank], strict=True
        ):
            pair = (int(chunk), int(microbatch))
            if backward:
                alive.remove(pair)
                done.add(pair)
            else:
                assert pair not in alive | done
                alive.add(pair)
        assert done == expected
        assert not alive


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp", "num_microbatches", "message"),
    [
        (Schedule.NO_PIPELINE, 2, 1, 4, "a run without a pipeline has one pipeline rank, not pp = 2"),
        (Schedule.ONE_F_ONE_B, 2, 2, 4, "vpp = 2 needs the interleaved schedule"),
        (
            Schedule.INTERLEAVED,
            4,
            1,
            4,
            "the interleaved schedule needs pp and vpp of at least 2, not pp = 4, vpp = 1",
        ),
        (Schedule.INTERLEAVED, 4, 2, 6, "the interleaved schedule needs a multiple of pp = 4 micro-batches, not 6"),
        (Schedule.ONE_F_ONE_B, 2, 1, 0, "pp = 2, vpp = 1 and num_microbatches = 0 must be at least 1"),
    ],
)
def test_degrees_that_megatron_refuses_have_no_order(
    schedule: Schedule, pp: int, vpp: int, num_microbatches: int, message: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=num_microbatches)
    assert str(caught.value) == message


@pytest.mark.parametrize("order", ORDERS)
def test_the_closed_form_of_what_is_in_flight_equals_the_count(order: OperationOrder) -> None:
    counted = peak_activation_bytes(order, np.ones((order.pp, order.vpp), dtype=np.int64))
    closed = tuple(
        in_flight(schedule_of(order), pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches, rank=rank)
        for rank in range(order.pp)
    )
    assert counted == closed


def test_1f1b_keeps_as_many_microbatches_as_there_are_ranks_from_here_on() -> None:
    closed = [in_flight(Schedule.ONE_F_ONE_B, pp=4, vpp=1, num_microbatches=3, rank=rank) for rank in range(4)]
    assert closed == [3, 3, 2, 1]


def test_chunks_of_different_size_peak_when_their_sum_does() -> None:
    order = operation_order(Schedule.INTERLEAVED, pp=2, vpp=2, num_microbatches=4)
    # Rank 0 holds F0.0 F0.1 F1.0 F1.1 F0.2 at first, and F0.0 to F0.3 beside F1.1 once B1.0 and F0.3 have run.
    assert peak_activation_bytes(order, np.array([[10, 1], [10, 1]])) == (41, 30)
    assert peak_activation_bytes(order, np.array([[1, 10], [1, 10]])) == (23, 12)


@given(
    st.sampled_from([(2, 2), (4, 2), (3, 3), (4, 5), (8, 2), (1, 1), (2, 1), (7, 1)]),
    st.integers(1, 9),
    st.data(),
)
def test_one_period_of_the_steady_phase_holds_as_much_as_a_long_step(
    degrees: tuple[int, int], groups: int, data: st.DataObject
) -> None:
    pp, vpp = degrees
    schedule = Schedule.INTERLEAVED if vpp > 1 else Schedule.ONE_F_ONE_B
    few = repeating_microbatches(schedule, pp=pp, vpp=vpp)
    sizes = data.draw(st.lists(st.integers(0, 1000), min_size=pp * vpp, max_size=pp * vpp))
    bytes_RC = np.array(sizes).reshape(pp, vpp)
    num_microbatches = groups * (pp if vpp > 1 else 1)
    whole, short = (
        peak_activation_bytes(operation_order(schedule, pp=pp, vpp=vpp, num_microbatches=number), bytes_RC)
        for number in (num_microbatches, min(num_microbatches, few))
    )
    assert short == whole


@pytest.mark.parametrize("order", ORDERS)
def test_operations_of_one_kind_run_the_same_pass_behind_the_same_pass(order: OperationOrder) -> None:
    found: dict[int, set[tuple[int, int]]] = {}
    ends = (0, order.num_microbatches - 1)
    for rank, kinds in enumerate(order.kinds.kind_RK.tolist()):
        before = -1
        for position, kind in enumerate(kinds):
            backward, microbatch = order.is_backward_RK[rank, position], order.microbatch_RK[rank, position]
            own = int(4 * order.stage_RK[rank, position] + 2 * backward + (microbatch == ends[int(backward)]))
            found.setdefault(kind, set()).add((own, before))
            before = own
    pairs = zip(order.kinds.pass_O.tolist(), order.kinds.before_O.tolist(), strict=True)
    assert found == {kind: {pair} for kind, pair in enumerate(pairs)}


def test_activation_bytes_of_the_wrong_shape_are_refused() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=4)
    with pytest.raises(ValueError, match=r"^weights have shape \(1, 2\), not \(pp, vpp\) = \(2, 1\)$"):
        peak_activation_bytes(order, np.ones((1, 2), dtype=np.int64))


Operation = tuple[bool, int, int]


class Reference:
    """The recurrence as written in the docstrings, one dictionary entry an operation (backward, stage, micro-batch)."""

    def __init__(self, order: OperationOrder, times: StageTimes) -> None:
        self.order, self.times = order, times
        self.last = order.num_stages - 1
        self.transfer = times.transfer_seconds_E or (0.0,) * self.last
        self.ends: dict[Operation, float] = {}
        rows = [
            zip(
                order.is_backward_RK[rank].tolist(),
                order.stage_RK[rank].tolist(),
                order.microbatch_RK[rank].tolist(),
                strict=True,
            )
            for rank in range(order.pp)
        ]
        self.rows: list[list[Operation]] = [list(row) for row in rows]
        while len(self.ends) < order.is_backward_RK.size:
            for row in self.rows:
                self.run(row)

    def run(self, row: list[Operation]) -> None:
        """Run one rank from its start until an input is missing."""
        for before, operation in zip([None, *row], row, strict=False):
            source = self.source(operation)
            if source is not None and source not in self.ends:
                return
            arrival = self.ends[source] + self.receive(operation) if source else 0.0
            free = self.ends[before] + self.gap(before, operation) if before else 0.0
            self.ends[operation] = max(free, arrival) + self.seconds(operation)

    def source(self, operation: Operation) -> Operation | None:
        backward, stage, microbatch = operation
        if not backward:
            return (False, stage - 1, microbatch) if stage else None
        return (True, stage + 1, microbatch) if stage < self.last else (False, self.last, microbatch)

    def receive(self, operation: Operation) -> float:
        boundary = operation[1] if operation[0] else operation[1] - 1
        return self.transfer[boundary] if 0 <= boundary < self.last else 0.0

    def send(self, operation: Operation) -> float:
        boundary = operation[1] - 1 if operation[0] else operation[1]
        return self.transfer[boundary] if 0 <= boundary < self.last else 0.0

    def gap(self, before: Operation, operation: Operation) -> float:
        extra = self.times.last_backward_extra_seconds_V
        ends_stage = before[0] and before[2] == self.order.num_microbatches - 1
        blocked = max(self.send(before), self.receive(operation)) if self.times.blocking_transfers else 0.0
        return blocked + (extra[before[1]] if extra and ends_stage else 0.0)

    def seconds(self, operation: Operation) -> float:
        backward, stage, microbatch = operation
        if backward:
            return self.times.backward_seconds_V[stage]
        extra = self.times.first_forward_extra_seconds_V
        return self.times.forward_seconds_V[stage] + (extra[stage] if extra and microbatch == 0 else 0.0)


@settings(max_examples=40, deadline=None)
@given(orders_with_times())
def test_the_simulated_ends_equal_a_plain_relaxation(case: tuple[OperationOrder, StageTimes]) -> None:
    order, times = case
    timeline, expected = simulate(order, times), Reference(order, times).ends
    for (rank, position), end in np.ndenumerate(timeline.end_seconds_RK):
        operation = (
            bool(order.is_backward_RK[rank, position]),
            int(order.stage_RK[rank, position]),
            int(order.microbatch_RK[rank, position]),
        )
        assert end == pytest.approx(expected[operation], rel=1e-12, abs=1e-12)


def two_stage_timeline(*, blocking: bool) -> Timeline:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=2)
    return simulate(
        order,
        StageTimes(
            forward_seconds_V=(1.0, 2.0),
            backward_seconds_V=(3.0, 4.0),
            transfer_seconds_E=(0.5,),
            blocking_transfers=blocking,
        ),
    )


def test_two_stages_by_hand_with_hidden_transfers() -> None:
    timeline = two_stage_timeline(blocking=False)
    assert timeline.start_seconds_RK.tolist() == [[0.0, 1.0, 8.0, 14.0], [1.5, 3.5, 7.5, 9.5]]
    assert timeline.end_seconds_RK.tolist() == [[1.0, 2.0, 11.0, 17.0], [3.5, 7.5, 9.5, 13.5]]
    assert timeline.span_seconds == 17.0
    assert timeline.span_seconds_R.tolist() == [17.0, 12.0]
    assert timeline.busy_seconds_R.tolist() == [8.0, 12.0]
    assert (timeline.critical_rank, timeline.busiest_rank) == (0, 1)
    assert timeline.bubble_fraction == pytest.approx(9 / 17)
    assert timeline.last_backward_end_seconds_RC.tolist() == [[17.0], [13.5]]


def test_two_stages_by_hand_with_blocking_transfers() -> None:
    # Rank 1: F.0 at 1.5; B.0 needs nothing sent; 0.5 to send its gradient while F.1 is received; then F.1.
    timeline = two_stage_timeline(blocking=True)
    assert timeline.start_seconds_RK.tolist() == [[0.0, 1.5, 8.0, 14.5], [1.5, 3.5, 8.0, 10.0]]
    assert timeline.span_seconds == 17.5


def test_a_parameter_gather_delays_everything_behind_it_and_a_gradient_reduction_only_its_rank() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=2)
    plain = simulate(order, uniform(order, forward=1.0, backward=2.0))
    times = StageTimes(
        forward_seconds_V=(1.0, 1.0),
        backward_seconds_V=(2.0, 2.0),
        first_forward_extra_seconds_V=(0.25, 0.0),
        last_backward_extra_seconds_V=(0.0, 5.0),
    )
    late = simulate(order, times)
    assert (late.end_seconds_RK - plain.end_seconds_RK).tolist() == [[0.25] * 4, [0.25] * 4]
    assert late.rank_end_seconds_R.tolist() == [9.25, 12.25]
    assert late.span_seconds_R.tolist() == [9.25, 11.0]
    assert late.critical_rank == 1


def test_chunks_report_when_their_gradients_are_complete() -> None:
    order = operation_order(Schedule.INTERLEAVED, pp=2, vpp=2, num_microbatches=2)
    timeline = simulate(order, uniform(order, forward=1.0, backward=1.0))
    ends_RC = timeline.last_backward_end_seconds_RC
    assert (ends_RC[:, 1] < ends_RC[:, 0]).all()
    assert ends_RC[:, 0].tolist() == timeline.end_seconds_RK[:, -1].tolist()


@settings(max_examples=40, deadline=None)
@given(orders_with_times(), st.floats(1.0, 4.0))
def test_slower_stages_never_shorten_a_step(case: tuple[OperationOrder, StageTimes], factor: float) -> None:
    order, times = case
    slower = StageTimes(
        forward_seconds_V=tuple(factor * seconds for seconds in times.forward_seconds_V),
        backward_seconds_V=times.backward_seconds_V,
        transfer_seconds_E=times.transfer_seconds_E,
        blocking_transfers=times.blocking_transfers,
    )
    plain = StageTimes(
        forward_seconds_V=times.forward_seconds_V,
        backward_seconds_V=times.backward_seconds_V,
        transfer_seconds_E=times.transfer_seconds_E,
    )
    assert simulate(order, slower).end_seconds_RK.max() >= simulate(order, plain).end_seconds_RK.max() * (1 - 1e-12)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            {"forward_seconds_V": (1.0, 1.0), "backward_seconds_V": (1.0,)},
            "backward_seconds_V has 1 entries, not 2",
        ),
        (
            {"forward_seconds_V": (1.0, -1.0), "backward_seconds_V": (1.0, 1.0)},
            "forward_seconds_V holds a time that is negative or not finite",
        ),
        (
            {"forward_seconds_V": (1.0, 1.0), "backward_seconds_V": (1.0, 1.0), "transfer_seconds_E": (1.0, 2.0)},
            "transfer_seconds_E has 2 entries, not 1",
        ),
    ],
)
def test_times_that_fit_no_chain_of_stages_are_refused(times: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        StageTimes(
            forward_seconds_V=times["forward_seconds_V"],
            backward_seconds_V=times["backward_seconds_V"],
            transfer_seconds_E=times.get("transfer_seconds_E", ()),
        )
    assert str(caught.value) == message


def test_times_for_another_number_of_stages_are_refused() -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=2)
    with pytest.raises(ValueError, match=r"^times for 1 stages given, the order has 2$"):
        simulate(order, StageTimes(forward_seconds_V=(1.0,), backward_seconds_V=(1.0,)))


@pytest.mark.parametrize("order", ORDERS)
def test_uniform_stages_take_the_span_of_the_closed_form(order: OperationOrder) -> None:
    span = simulate(order, uniform(order, forward=1.0, backward=2.0)).span_seconds
    assert span == pytest.approx(3.0 * (order.num_microbatches * order.vpp + order.pp - 1), rel=1e-12)


def any_split_bound(order: OperationOrder, work_seconds: float) -> float:
    return float(
        any_split_bound_seconds(
            work_seconds_X=np.array([work_seconds]),
            pp_X=np.array([order.pp]),
            vpp_X=np.array([order.vpp]),
            num_microbatches_X=np.array([order.num_microbatches]),
        )[0]
    )


@settings(max_examples=80, deadline=None)
@given(orders_with_times())
def test_no_split_undercuts_the_bound_on_every_split(case: tuple[OperationOrder, StageTimes]) -> None:
    order, times = case
    work = sum(times.forward_seconds_V) + sum(times.backward_seconds_V)
    assert any_split_bound(order, work) <= simulate(order, times).span_seconds


def split_bound(order: OperationOrder, times: StageTimes) -> float:
    return split_bound_seconds(times, pp=order.pp, vpp=order.vpp, num_microbatches=order.num_microbatches)


@settings(max_examples=examples(few=60, many=200), deadline=None)
@given(orders_with_times())
def test_a_split_takes_no_less_than_the_work_of_its_ranks(case: tuple[OperationOrder, StageTimes]) -> None:
    order, times = case
    assert split_bound(order, times) <= simulate(order, times).rank_end_seconds_R.max()


@pytest.mark.parametrize("order", ORDERS)
def test_uniform_stages_take_just_the_work_of_their_ranks(order: OperationOrder) -> None:
    times = replace(
        uniform(order, forward=1.0, backward=2.0),
        last_backward_extra_seconds_V=(0.25, *(0.0,) * (order.num_stages - 1)),
    )
    ends_R = simulate(order, times).rank_end_seconds_R
    assert split_bound(order, times) == pytest.approx(float(ends_R.max()), rel=1e-10)


@pytest.mark.parametrize(("pp", "num_microbatches"), [(1, 1), (1, 7), (2, 3), (4, 5), (4, 64), (16, 17)])
def test_with_more_microbatches_than_ranks_uniform_stages_reach_the_bound_on_every_split(
    pp: int, num_microbatches: int
) -> None:
    order = operation_order(Schedule.ONE_F_ONE_B, pp=pp, vpp=1, num_microbatches=num_microbatches)
    span = simulate(order, uniform(order, forward=1.0, backward=2.0)).span_seconds
    assert any_split_bound(order, 3.0 * pp) == pytest.approx(span, rel=1e-10)


def test_with_few_microbatches_an_uneven_split_reaches_the_bound() -> None:
    # Two ranks, two micro-batches: a third of the work on the last rank is best.
    order = operation_order(Schedule.ONE_F_ONE_B, pp=2, vpp=1, num_microbatches=2)
    times = StageTimes(forward_seconds_V=(1.0, 0.5), backward_seconds_V=(1.0, 0.5))
    assert simulate(order, times).span_seconds == 4.0
    assert any_split_bound(order, 3.0) == pytest.approx(4.0, rel=1e-10)


@pytest.mark.parametrize("order", [order for order in ORDERS if order.vpp > 1])
def test_the_bound_on_every_interleaved_split_keeps_half_of_the_bubble(order: OperationOrder) -> None:
    work = 3.0 * order.num_stages
    ideal = work * order.num_microbatches / order.pp
    span = simulate(order, uniform(order, forward=1.0, backward=2.0)).span_seconds
    assert any_split_bound(order, work) >= ideal + (span - ideal) * 0.4
