"""Laws of optimizer states on the host: what they save and cost, and that search, checker and bounds agree on it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.layout import Layout, Offload
from planner.memory.host import host_memory
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.offloading.states import SHARDED_WEIGHTS
from planner.plans.plan import HostMemory, Phase
from planner.requests.request import Target
from planner.requests.workload import DType, Precision, TrainMethod
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, mixed_models, models, workloads

LAWS = settings(max_examples=examples(few=15, many=40), deadline=None, derandomize=True)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)


@st.composite
def offloaded_layouts(draw: st.DrawFn) -> tuple[SmallSpace, Layout, int]:
    """Return a space whose points have states on the host, a placed layout of it, and the index of its point."""
    workload = replace(
        draw(workloads(precisions=(Precision.BF16, Precision.FP8_DELAYED))),
        moment_dtype=DType.FP32,
        lora=None,
        method=TrainMethod.PRETRAIN,
    )
    space = SmallSpace(
        draw(st.one_of(models(), mixed_models())),
        workload,
        two_node_cluster(),
        target=draw(st.sampled_from((Target.ANY, Target.MEGATRON, Target.DEEPSPEED))),
        offload_percent=draw(st.sampled_from((25, 50, 100))),
    )
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    splits = list(space.splits(space.layout(index)))
    assume(splits)
    return space, draw(st.sampled_from(splits)), index


def with_fraction(layout: Layout, fraction: float, *, overlapped: bool = True) -> Layout:
    if not fraction:
        return replace(layout, offload=None)
    overlapped = overlapped and layout.zero_stage < SHARDED_WEIGHTS
    return replace(layout, offload=Offload(optimizer_fraction=fraction, overlapped=overlapped))


def parts_of(layout: Layout) -> tuple[float, ...]:
    """Return the parts that may lie on the host, ascending."""
    return FRACTIONS[-1:] if layout.zero_stage == SHARDED_WEIGHTS and layout.pp > 1 else FRACTIONS


def hosted(space: SmallSpace, layout: Layout) -> HostMemory:
    ledger = host_memory(space.place(layout), space.cluster)
    assert ledger is not None
    return ledger


@LAWS
@given(drawn=offloaded_layouts())
def test_more_on_the_host_never_takes_more_of_a_gpu_nor_less_of_a_node_nor_less_time(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    places = [space.place(with_fraction(layout, fraction)) for fraction in (0.0, *parts_of(layout))]
    held = [
        sum(line.num_bytes for line in memory_ledger(place) if line.phase is Phase.OPTIMIZER_STEP and line.rank == 0)
        for place in places
    ]
    peaks = [peak_memory_bytes(memory_ledger(place)) for place in places[1:]]
    seconds = [simulated_step_seconds(place, space.table.cost_model) for place in places]
    nodes = [hosted(space, with_fraction(layout, fraction)).num_bytes for fraction in parts_of(layout)]
    assert all(more <= less for less, more in pairwise(held))
    assert all(more <= less for less, more in pairwise(peaks))
    assert all(more >= less for less, more in pairwise(nodes))
    assert all(more >= less * (1.0 - 1e-12) for less, more in pairwise(seconds))
    assert held[-1] < held[0]


@LAWS
@given(drawn=offloaded_layouts(), fraction=st.sampled_from(FRACTIONS))
def test_copies_beside_updates_never_take_longer_than_in_turn(
    drawn: tuple[SmallSpace, Layout, int], fraction: float
) -> None:
    space, layout, _ = drawn
    assume(fraction in parts_of(layout))
    beside, in_turn = (
        simulated_step_seconds(
            space.place(with_fraction(layout, fraction, overlapped=overlapped)), space.table.cost_model
        )
        for overlapped in (True, False)
    )
    assert beside <= in_turn * (1.0 + 1e-12)
    if space.workload.gradient_dtype is DType.FP32 and layout.zero_stage < SHARDED_WEIGHTS:
        assert beside < in_turn


@LAWS
@given(drawn=offloaded_layouts())
def test_search_and_checker_agree_and_no_bound_is_above(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, index = drawn
    prices = space.pricer().prices(space.layout(index))
    searched = prices.step_seconds(layout)
    evaluated = simulated_step_seconds(space.place(layout), space.table.cost_model)
    assert abs(searched - evaluated) <= 1e-9 * evaluated
    point = space.points.where(np.array([index]))
    bounds = space.table.bounds(point, limit_bytes=NO_LIMIT_BYTES)
    assert float(bounds.step_seconds_X[0]) <= searched * (1.0 + 1e-9)
    assert float(space.table.least_seconds_X(point)[0]) <= searched * (1.0 + 1e-9)
    peak = prices.peak_bytes(layout)
    assert peak == peak_memory_bytes(memory_ledger(space.place(layout)))
    assert bool(space.table.fits_X(point, limit_bytes=peak)[0])


@LAWS
@given(drawn=offloaded_layouts())
def test_a_node_that_just_holds_a_layout_holds_it_and_one_with_a_byte_less_does_not(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, index = drawn

    def holds(num_bytes: int) -> bool:
        space.cluster = replace(space.cluster, host_memory_bytes=num_bytes)
        pricer = space.pricer()
        ledger = hosted(space, layout)
        found = pricer.hosts_hold(pricer.prices(space.layout(index)), layout)
        assert found == (ledger.num_bytes <= ledger.limit_bytes)
        return found

    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    assert holds(high)
    assert not holds(high - 1)


@LAWS
@given(drawn=offloaded_layouts())
def test_no_node_keeps_less_than_its_bound_says(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, index = drawn
    for fraction in parts_of(layout):
        least = space.least_node_bytes(index, percent=round(100 * fraction))
        assert least <= hosted(space, with_fraction(layout, fraction)).num_bytes
