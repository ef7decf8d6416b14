"""Laws of states on drives: what they save and cost, and that search, checker and bounds agree on it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.evaluation.priced_step import stage_prices, tail_seconds
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, IN_TURN, PIPELINED, Layout
from planner.memory.host import drive_memory, host_memory
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.ranks.placement import PlacedModel
from planner.requests.request import Target
from planner.requests.workload import DType, Precision, TrainMethod
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.small_runs import with_drives
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, mixed_models, models, workloads

LAWS = settings(max_examples=examples(few=15, many=40), deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def small_sub_groups() -> object:
    """Update small models in several sub-groups, as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("planner.offloading.drive_step.DRIVE_SUB_GROUP_ELEMENTS", 20_000)
        yield


@st.composite
def layouts_with_states_on_drives(draw: st.DrawFn) -> tuple[SmallSpace, Layout, int]:
    """Return a space whose points have their states on drives, a placed layout of it, and the index of its point."""
    workload = replace(
        draw(workloads(precisions=(Precision.BF16, Precision.FP16))),
        moment_dtype=DType.FP32,
        lora=None,
        method=TrainMethod.PRETRAIN,
    )
    space = SmallSpace(
        draw(st.one_of(models(), mixed_models())),
        workload,
        with_drives(two_node_cluster()),
        target=draw(st.sampled_from((Target.ANY, Target.DEEPSPEED))),
        offload_percent=100,
        parameters=draw(st.sampled_from((GPU_WEIGHTS, HOST_WEIGHTS, DRIVE_WEIGHTS))),
        drives=draw(st.sampled_from((IN_TURN, PIPELINED))),
    )
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    splits = list(space.splits(space.layout(index)))
    assume(splits)
    return space, draw(st.sampled_from(splits)), index


def placed_in_every_way(space: SmallSpace, layout: Layout) -> tuple[PlacedModel, PlacedModel, PlacedModel]:
    """Return the model with states on the hosts, on drives in turn, and pipelined."""
    assert layout.offload is not None
    return tuple(  # type: ignore[return-value]
        space.place(replace(layout, offload=replace(layout.offload, drives=drives, overlapped=overlapped)))
        for drives, overlapped in ((False, False), (True, False), (True, True))
    )


@LAWS
@given(drawn=layouts_with_states_on_drives())
def test_drives_cost_time_and_pipelining_never_does(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, _ = drawn
    cost_model = space.table.cost_model
    ways = placed_in_every_way(space, layout)
    hosted, in_turn, pipelined = (sum(tail_seconds(placed, cost_model)) for placed in ways)
    assert hosted < pipelined <= in_turn * (1.0 + 1e-12)
    passes = [
        [(price.forward_seconds, price.backward_seconds) for price in stage_prices(placed, cost_model)]
        for placed in ways
    ]
    assert passes[0] == passes[1] == passes[2]


@LAWS
@given(drawn=layouts_with_states_on_drives())
def test_pipelining_takes_more_of_a_node_and_both_ways_as_much_of_its_drives(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    hosted, in_turn, pipelined = placed_in_every_way(space, layout)
    ledgers = [host_memory(placed, space.cluster) for placed in (in_turn, pipelined)]
    assert ledgers[0] is not None
    assert ledgers[1] is not None
    assert ledgers[0].num_bytes <= ledgers[1].num_bytes
    assert (drive_memory(hosted, space.cluster) is None) is (layout.parameter_offload != DRIVE_WEIGHTS)
    assert drive_memory(in_turn, space.cluster) == drive_memory(pipelined, space.cluster)
    peaks = [peaks_of_ranks(memory_ledger(placed)) for placed in (hosted, in_turn, pipelined)]
    assert peaks[1] == peaks[2]


@LAWS
@given(drawn=layouts_with_states_on_drives())
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
    assert peak == max(peaks_of_ranks(memory_ledger(space.place(layout))))
    assert bool(space.table.fits_X(point, limit_bytes=peak)[0])


@LAWS
@given(drawn=layouts_with_states_on_drives())
def test_weights_on_drives_cost_passes_and_steps_and_nothing_of_a_gpu(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, _ = drawn
    cost_model = space.table.cost_model
    assert layout.offload is not None
    hosted, driven = (
        space.place(replace(layout, offload=replace(layout.offload, parameters=True, parameter_drives=on_drives)))
        for on_drives in (False, True)
    )
    for there, here in zip(stage_prices(driven, cost_model), stage_prices(hosted, cost_model), strict=True):
        assert there.forward_seconds > here.forward_seconds
        assert there.backward_seconds > here.backward_seconds
    assert sum(tail_seconds(driven, cost_model)) > sum(tail_seconds(hosted, cost_model))
    assert peaks_of_ranks(memory_ledger(driven)) == peaks_of_ranks(memory_ledger(hosted))
    with_weights, without = (drive_memory(placed, space.cluster) for placed in (driven, hosted))
    assert with_weights is not None
    assert without is not None
    assert with_weights.lines[:-1] == without.lines
