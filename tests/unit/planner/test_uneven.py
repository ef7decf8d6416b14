"""Interleaved stages that come out uneven: moves of layers, and the bound on all splits."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.candidates import PointBound
from planner.described import given_layout
from planner.evaluate import simulated_step_seconds
from planner.inputs import load_inputs
from planner.layout import Layout, stages_from_counts
from planner.placement import place
from planner.search import search
from planner.space import interleaved_counts
from planner.uneven import LEAST_GAIN, improved, least_seconds
from tests.agreement.test_prices import PricedSpace, spaces

EXAMPLES = Path(__file__).parents[3] / "examples"


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[PricedSpace, Layout]:
    """Return an interleaved point of any kind of model with its layers as even as can be."""
    space = draw(spaces())
    indices = np.flatnonzero(space.points.vpp_X > 1)
    assume(len(indices) > 0)
    return space, space.layout(int(draw(st.sampled_from(indices.tolist()))))


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


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(drawn=interleaved(), data=st.data())
def test_no_split_undercuts_the_bound_on_all_splits(drawn: tuple[PricedSpace, Layout], data: st.DataObject) -> None:
    space, even = drawn
    fewest = max(even.recompute.num_layers or 0, 1)
    spare = space.model.num_layers - fewest * len(even.stages)
    num_cuts = len(even.stages) - 1
    cuts = sorted(data.draw(st.lists(st.integers(0, spare), min_size=num_cuts, max_size=num_cuts)))
    counts = tuple(fewest + after - before for before, after in zip((0, *cuts), (*cuts, spare), strict=True))
    split = with_counts(even, counts)
    prices = space.pricer.prices(even)
    seconds = prices.step_seconds(split)
    bound = PointBound(pipeline_seconds=0.0, tail_seconds=prices.tail_seconds(split))
    assert least_seconds(space.pricer, even, bound=bound, ceiling_seconds=2 * seconds) <= seconds * (1 + 1e-9)


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
    sets = ["model=llama-3-70b", "constraints={tp: 4, pp: 8, vpp: 5}"]
    inputs = load_inputs(EXAMPLES / "llama-3.1-70b-8xdgx-h100" / "spec.yaml", sets)
    best = search(inputs.model, inputs.cluster, inputs.request).plans[0]
    even = interleaved_counts(inputs.model.num_layers, 40)
    assert even is not None
    best_seconds, hand_seconds, even_seconds = (
        given_layout(with_counts(best.layout, counts), inputs.model, inputs.cluster, inputs.request).step_seconds
        for counts in (counts_of(best.layout), by_hand, even)
    )
    assert best_seconds < hand_seconds < even_seconds
