"""Interleaved stages that come out uneven: moves of layers, and the bound on all splits."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.brute_force import priced_layouts
from benchmarks.meshes import Run
from planner.evaluation.described import given_layout
from planner.evaluation.evaluate import simulated_step_seconds
from planner.frameworks.capabilities import MEGATRON
from planner.inputs.load import load_inputs
from planner.layout import Granularity, Layout, stages_from_counts
from planner.plans.plan import PlannedLayout, Status
from planner.ranks.placement import place
from planner.requests.request import Bounds, Constraints, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.search.search import search
from planner.search.space.dimensions import interleaved_counts
from planner.search.splits.candidates import PointBound, Pricer
from planner.search.splits.uneven import LEAST_GAIN, improved, least_seconds
from solvers.errors import SolverError
from tests.agreement.test_prices import PricedSpace, spaces
from tests.builders import tiny_dense_model, tiny_request
from tests.examples import examples
from tests.kinds import even_workload
from tests.small_runs import four_gpus, with_memory

EXAMPLES = Path(__file__).parents[5] / "examples"


@st.composite
def interleaved_points(draw: st.DrawFn) -> tuple[PricedSpace, int]:
    """Return an interleaved point of any kind of model."""
    space = draw(spaces())
    indices = np.flatnonzero(space.points.vpp_X > 1)
    assume(len(indices) > 0)
    return space, int(draw(st.sampled_from(indices.tolist())))


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[PricedSpace, Layout]:
    """Return an interleaved point of any kind of model with its layers as even as can be."""
    space, index = draw(interleaved_points())
    return space, space.layout(index)


def drawn_split(even: Layout, data: st.DataObject) -> Layout:
    """Return any split of an interleaved point."""
    fewest = max(even.recompute.num_layers or 0, 1)
    spare = sum(counts_of(even)) - fewest * len(even.stages)
    num_cuts = len(even.stages) - 1
    cuts = sorted(data.draw(st.lists(st.integers(0, spare), min_size=num_cuts, max_size=num_cuts)))
    return with_counts(
        even, tuple(fewest + after - before for before, after in zip((0, *cuts), (*cuts, spare), strict=True))
    )


def counts_of(layout: Layout) -> tuple[int, ...]:
    return tuple(stage.num_layers for stage in layout.stages)


def with_counts(layout: Layout, counts: tuple[int, ...]) -> Layout:
    return replace(layout, stages=stages_from_counts(counts))


def single_moves(layout: Layout) -> list[Layout]:
    fewest = max(layout.recompute.num_layers or 0, 1)
    moved = []
    for origin, target in product(range(len(layout.stages)), repeat=2):
        counts = list(counts_of(layout))
        counts[origin] -= 1
        counts[target] += 1
        if origin != target and counts[origin] >= fewest:
            moved.append(with_counts(layout, tuple(counts)))
    return moved


@settings(max_examples=examples(few=12, many=25), deadline=None)
@given(drawn=interleaved())
def test_after_moving_layers_no_single_move_helps(drawn: tuple[PricedSpace, Layout]) -> None:
    space, even = drawn
    start = space.pricer.candidate(even, lower_bound_seconds=0.0)
    best = improved(space.pricer, start)
    placed = place(space.model, space.graph, best.layout, space.workload, space.capabilities)
    assert best.step_seconds == pytest.approx(simulated_step_seconds(placed, space.cost_model), rel=1e-9)
    assert best.step_seconds <= start.step_seconds
    prices = space.pricer.prices(even)
    for split in single_moves(best.layout):
        # A move that lengthens the optimizer step of a rank by less than the pipeline gains is not looked for.
        gained = best.step_seconds - prices.step_seconds(split)
        tails = prices.tail_seconds(best.layout) - prices.tail_seconds(split)
        assert gained <= max(tails, 0.0) + LEAST_GAIN * best.step_seconds, counts_of(split)


@pytest.mark.parametrize("num_layers", [13, 17])
def test_where_layers_are_alike_no_two_moves_together_help(num_layers: int) -> None:
    model = replace(tiny_dense_model(num_layers=num_layers), vocab_size=4000)
    space = PricedSpace(model, even_workload(seq_len=1024), MEGATRON)
    is_small_X = (space.points.pp_X * space.points.vpp_X <= 8) & (space.points.recompute_layers_X == 0)
    points = np.flatnonzero((space.points.vpp_X > 1) & is_small_X)
    for even in (space.layout(index) for index in points[:: len(points) // 12].tolist()):
        best = improved(space.pricer, space.pricer.candidate(even, lower_bound_seconds=0.0))
        prices = space.pricer.prices(even)
        twice = {split.stages: split for once in single_moves(best.layout) for split in single_moves(once)}
        for split in twice.values():
            # As above: what only shortens the optimizer step of a rank is not looked for.
            gained = best.step_seconds - prices.step_seconds(split)
            tails = prices.tail_seconds(best.layout) - prices.tail_seconds(split)
            assert gained <= max(tails, 0.0) + LEAST_GAIN * best.step_seconds, counts_of(split)


@settings(max_examples=examples(few=20, many=40), deadline=None)
@given(drawn=interleaved(), data=st.data())
def test_no_split_undercuts_the_bound_on_all_splits(drawn: tuple[PricedSpace, Layout], data: st.DataObject) -> None:
    space, even = drawn
    split = drawn_split(even, data)
    prices = space.pricer.prices(even)
    seconds = prices.step_seconds(split)
    bound = PointBound(pipeline_seconds=0.0, tail_seconds=prices.tail_seconds(split))
    assert least_seconds(space.pricer, even, bound=bound, ceiling_seconds=2 * seconds) <= seconds * (1 + 1e-9)


@settings(max_examples=examples(few=20, many=60), deadline=None)
@given(drawn=interleaved_points(), data=st.data())
def test_no_memory_bound_on_all_splits_rules_out_one_that_just_fits(
    drawn: tuple[PricedSpace, int], data: st.DataObject
) -> None:
    space, index = drawn
    split = drawn_split(space.layout(index), data)
    prices = space.pricer.prices(split)
    seconds, limit = prices.step_seconds(split), prices.peak_bytes(split)
    alone = space.points.where(np.array([index]))
    assert space.table.fits_X(alone, limit_bytes=limit, any_split=True)[0], counts_of(split)
    bounds = space.table.bounds(alone, limit_bytes=limit)
    assert bounds.any_split_seconds_X[0] + bounds.tail_seconds_X[0] <= seconds * (1 + 1e-9), counts_of(split)
    bound = PointBound(pipeline_seconds=0.0, tail_seconds=prices.tail_seconds(split))
    pricer = Pricer(space.table, limit_bytes=limit)
    rooms = space.table.layer_rooms(alone, limit_bytes=limit)
    least = least_seconds(pricer, split, bound=bound, ceiling_seconds=2 * seconds, rooms=rooms)
    assert least <= seconds * (1 + 1e-9), counts_of(split)


@pytest.fixture(scope="module")
def priced_pinned() -> tuple[Run, list[tuple[Layout, int, float]]]:
    """Return a run with two chunks of each of two pipeline ranks, and every layout of it with its bytes and seconds."""
    run = Run(
        model=replace(tiny_dense_model(num_layers=5), vocab_size=512),
        cluster=four_gpus(gpus_per_node=4),
        request=replace(
            tiny_request(),
            workload=TrainWorkload(seq_len=4096, global_batch_size=4, precision=Precision.BF16),
            constraints=Constraints(),
            memory_headroom=0.0,
            target=Target.ANY,
        ),
    )
    one = Bounds(allowed=(1,))
    pins = Constraints(
        degrees={"pp": Bounds(allowed=(2,)), "vpp": Bounds(allowed=(2,)), "tp": one, "cp": one, "zero_stage": one},
        recompute=("none",),
        optimizer_offload=(0.0,),
    )
    layouts = [
        (layout, peak, seconds())
        for layout, peak, seconds in priced_layouts(run, uneven=True)
        if (layout.pp, layout.vpp, layout.tp, layout.cp, layout.zero_stage) == (2, 2, 1, 1, 1)
        and layout.recompute.granularity is Granularity.NONE
    ]
    return replace(run, request=replace(run.request, constraints=pins)), layouts


def test_where_only_uneven_stages_fit_they_are_planned(
    priced_pinned: tuple[Run, list[tuple[Layout, int, float]]],
) -> None:
    run, layouts = priced_pinned
    even = interleaved_counts(run.model.num_layers, 4)
    least_even = min(peak for layout, peak, _ in layouts if counts_of(layout) == even)
    limits = sorted({peak for _, peak, _ in layouts if peak < least_even})
    assert limits
    for limit in limits:
        tight = with_memory(run, limit)
        plan = search(tight.model, tight.cluster, tight.request)
        fastest = min(seconds for _, peak, seconds in layouts if peak <= limit)
        assert plan.best.step_seconds >= fastest * (1 - 1e-9)
        bound = plan.search.uneven_bound_seconds or plan.best.step_seconds
        assert bound <= fastest * (1 + 1e-9)
        assert plan.search.simulated + sum(plan.search.pruned.values()) == plan.search.considered


def test_that_nothing_fits_is_proved_of_all_splits_or_not_said(
    priced_pinned: tuple[Run, list[tuple[Layout, int, float]]],
) -> None:
    run, layouts = priced_pinned
    least = min(peak for _, peak, _ in layouts)
    just_less = with_memory(run, least - 1)
    with pytest.raises(SolverError, match="may fit: too long to simulate, or no split found"):
        search(just_less.model, just_less.cluster, just_less.request)
    far_less = with_memory(run, least * 9 // 10)
    assert search(far_less.model, far_less.cluster, far_less.request).status is Status.INFEASIBLE


def test_a_move_that_does_not_fit_is_not_made() -> None:
    sets = ["constraints={tp: 1, cp: 2, pp: 2, vpp: 4}"]
    inputs = load_inputs(EXAMPLES / "llama-3.1-8b-1xdgx-h100" / "spec.yaml", sets)
    plan = search(inputs.model, inputs.cluster, inputs.request)
    roomy = plan.plans[0]
    headroom = 1.0 - (roomy.peak_memory_bytes - 1) / inputs.cluster.device.memory_bytes
    tight = search(inputs.model, inputs.cluster, replace(inputs.request, memory_headroom=headroom))
    assert tight.plans[0].peak_memory_bytes < roomy.peak_memory_bytes
    assert tight.plans[0].step_seconds >= roomy.step_seconds


def test_the_layout_of_a_llama_70b_made_by_hand_is_beaten() -> None:
    # Et*2|(t*2|)*34,t*3|(t*2|)*3,tL at tp 4, pp 8, vpp 5.
    by_hand = (2,) * 35 + (3, 2, 2, 2, 1)
    spec, model = EXAMPLES / "llama-3.1-70b-8xdgx-h100" / "spec.yaml", "model=llama-3-70b"
    inputs = load_inputs(spec, [model, "constraints={tp: 4, pp: 8, vpp: 5, zero_stage: 0}"])
    even = interleaved_counts(inputs.model.num_layers, 40)
    assert even is not None

    def given(layout: Layout, counts: tuple[int, ...]) -> PlannedLayout:
        return given_layout(with_counts(layout, counts), inputs.model, inputs.cluster, inputs.request)

    entry = search(inputs.model, inputs.cluster, inputs.request).best
    hand = given(entry.layout, by_hand)
    assert hand.peak_memory_bytes <= hand.memory_limit_bytes
    assert entry.step_seconds < hand.step_seconds < given(entry.layout, even).step_seconds
    free = load_inputs(spec, [model, "constraints={tp: 4, pp: 8, vpp: 5}"])
    assert search(free.model, free.cluster, free.request).best.step_seconds <= entry.step_seconds
