"""Laws of weights on the host: what they save and cost, and that search, checker and bounds agree on it."""

from dataclasses import replace

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.evaluation.priced_step import stage_prices, tail_seconds
from planner.layout import Layout
from planner.memory.host import BUILT, WEIGHTS, host_memory
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.offloading.states import sharded_step
from planner.plans.plan import Phase
from planner.ranks.communication import shard_ranks
from planner.requests.request import Target
from planner.requests.workload import DType, Precision, TrainMethod
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, mixed_models, models, workloads

LAWS = settings(max_examples=examples(few=15, many=40), deadline=None, derandomize=True)


@st.composite
def layouts_with_weights_on_the_host(draw: st.DrawFn) -> tuple[SmallSpace, Layout, int]:
    """Return a space whose points have their weights on the host, a placed layout of it, and the index of its point."""
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
        target=draw(st.sampled_from((Target.ANY, Target.DEEPSPEED))),
        offload_percent=100,
        parameters=True,
    )
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    splits = list(space.splits(space.layout(index)))
    assume(splits)
    return space, draw(st.sampled_from(splits)), index


def with_weights_on_gpus(layout: Layout) -> Layout:
    """Return a layout with its optimizer states alone on the host."""
    assert layout.offload is not None
    return replace(layout, offload=replace(layout.offload, parameters=False))


@LAWS
@given(drawn=layouts_with_weights_on_the_host())
def test_weights_on_the_host_never_take_more_of_a_gpu_and_take_of_a_node_what_leaves(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    hosted, kept = space.place(layout), space.place(with_weights_on_gpus(layout))
    peaks = [peaks_of_ranks(memory_ledger(placed)) for placed in (hosted, kept)]
    assert all(less <= more for less, more in zip(*peaks, strict=True))
    of_step = [
        sum(line.num_bytes for line in memory_ledger(placed) if line.phase is Phase.OPTIMIZER_STEP and line.rank == 0)
        for placed in (hosted, kept)
    ]
    assert of_step[0] <= of_step[1]
    ledgers = [host_memory(placed, space.cluster) for placed in (hosted, kept)]
    assert ledgers[0] is not None
    assert ledgers[1] is not None
    held = {line.term: line.num_bytes for line in ledgers[0].lines}
    left = [
        line.num_bytes for line in memory_ledger(kept) if line.term == "weights" and line.phase is Phase.OPTIMIZER_STEP
    ]
    ranks = space.cluster.gpus_per_node
    assert held[WEIGHTS] >= ranks * min(left)
    assert held[BUILT] >= 2 * ranks * min(left)
    assert ledgers[0].num_bytes - ledgers[1].num_bytes >= 3 * ranks * min(left)


@LAWS
@given(drawn=layouts_with_weights_on_the_host())
def test_passes_take_no_less_and_the_step_behind_them_what_copies_no_weights(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    hosted, kept = space.place(layout), space.place(with_weights_on_gpus(layout))
    cost_model = space.table.cost_model
    for fetched, own in zip(stage_prices(hosted, cost_model), stage_prices(kept, cost_model), strict=True):
        assert fetched.forward_seconds >= own.forward_seconds * (1.0 - 1e-12)
        assert fetched.backward_seconds >= own.backward_seconds * (1.0 - 1e-12)
    behind, behind_kept = (sum(tail_seconds(placed, cost_model)) for placed in (hosted, kept))
    dense, expert = shard_ranks(layout, zero_stage=1)
    shares = [
        -(-elements.dense // dense) + -(-elements.expert // expert)
        for elements in (kept.elements(rank, trainable=True) for rank in range(layout.pp))
    ]
    copied = cost_model.compute(sharded_step(updated=max(shares), workload=space.workload).parameters).seconds
    assert abs(behind_kept - behind - copied) <= 1e-9 * behind_kept


@LAWS
@given(drawn=layouts_with_weights_on_the_host())
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
@given(drawn=layouts_with_weights_on_the_host())
def test_no_node_keeps_less_than_its_bound_says(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, index = drawn
    least = space.least_node_bytes(index, percent=100)
    ledger = host_memory(space.place(layout), space.cluster)
    assert ledger is not None
    assert 0.5 * ledger.num_bytes < least <= ledger.num_bytes
