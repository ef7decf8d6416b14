"""Laws of activations on the host: what they save and cost, and that search, checker and bounds agree on it."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.evaluation.priced_step import stage_prices
from planner.layout import Layout
from planner.memory.host import host_memory
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.offloading.activations import copied_tensors, held_bytes, layer_copy
from planner.offloading.timeline import LayerSeconds, backward_seconds, forward_seconds
from planner.ranks.shard import RankLayer
from planner.requests.request import Target
from planner.requests.workload import Precision
from planner.search.bounds.copy_waits import backward_wait_seconds, forward_wait_seconds
from tests.builders import two_node_cluster
from tests.examples import examples
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, mixed_models, models, workloads

LAWS = settings(max_examples=examples(few=15, many=40), deadline=None, derandomize=True)
SECONDS = st.floats(0.0, 10.0)


@st.composite
def spaces_with_activations_on_the_host(draw: st.DrawFn) -> tuple[SmallSpace, Layout, int]:
    """Return a space whose points have activations on the host, a placed layout of it, and the index of its point.

    Sequences are so long that most tensors are large enough to be moved.
    """
    workload = draw(workloads(precisions=(Precision.BF16, Precision.FP8_DELAYED)))
    space = SmallSpace(
        draw(st.one_of(models(), mixed_models())),
        replace(workload, seq_len=32 * workload.seq_len),
        two_node_cluster(),
        target=draw(st.sampled_from((Target.ANY, Target.MEGATRON))),
        activations=True,
    )
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    (split,) = space.splits(space.layout(index))
    layers = draw(st.integers(1, space.model.num_layers - 1))
    return space, replace(split, offloaded_layers=layers), index


def layers_of(space: SmallSpace, layout: Layout) -> tuple[RankLayer, ...]:
    return space.place(layout).rank_model.stage_layers(layout.stages[0])


def moments(num_layers: int, offloaded: int) -> list[set[int]]:
    """Return which layers are on the GPU at each layer's passes, by the calls before it, one after the other."""
    near, here, found = num_layers - offloaded, set[int](), []
    for layer in range(num_layers):
        here -= {layer - near}
        here |= {layer}
        found.append(set(here))
    for layer in reversed(range(num_layers)):
        here -= {layer + 1}
        here |= {fetched for fetched in (layer - (near - 1),) if 0 <= fetched < offloaded}
        assert layer in here, "a layer's tensors are there when they are needed"
        found.append(set(here))
    return found


@LAWS
@given(drawn=spaces_with_activations_on_the_host())
def test_a_gpu_holds_what_is_there_at_the_fullest_moment(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, _ = drawn
    layers = layers_of(space, layout)
    moved = [
        sum(part.num_bytes for part in layer.saved if part.num_bytes >= 2**18 * part.saved.element_bytes)
        for layer in layers
    ]
    assert all(sum(copied_tensors(layer)) >= own for layer, own in zip(layers, moved, strict=True))
    staying = sum(layer.all_saved_bytes for layer in layers) - sum(moved)
    fullest = max(sum(moved[layer] for layer in here) for here in moments(len(layers), layout.offloaded_layers))
    assert held_bytes(layers, layout.offloaded_layers) == staying + fullest
    assert held_bytes(layers, 0) == sum(layer.all_saved_bytes for layer in layers)


@LAWS
@given(drawn=spaces_with_activations_on_the_host())
def test_more_layers_never_take_more_of_a_gpu_nor_less_of_a_node_nor_less_time(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    less = [replace(layout, offloaded_layers=count) for count in range(layout.offloaded_layers + 1)]
    placed = [space.place(entry) for entry in less]
    peaks = [max(peaks_of_ranks(memory_ledger(entry))) for entry in placed]
    assert peaks == sorted(peaks, reverse=True)
    ledgers = [host_memory(entry, space.cluster) for entry in placed]
    assert ledgers[0] is None
    held = [ledger.num_bytes for ledger in ledgers if ledger is not None]
    assert held == sorted(held)
    prices = [stage_prices(entry, space.table.cost_model)[0] for entry in placed]
    for before, after in pairwise(prices):
        assert after.forward_seconds >= before.forward_seconds * (1.0 - 1e-12)
        assert after.backward_seconds >= before.backward_seconds * (1.0 - 1e-12)
    copies = [space.table.cost_model.compute(layer_copy(layer)).seconds for layer in layers_of(space, layout)]
    most = sum(copies[: layout.offloaded_layers])
    assert prices[-1].forward_seconds <= prices[0].forward_seconds + most * (1.0 + 1e-9)
    assert prices[-1].backward_seconds <= prices[0].backward_seconds + most * (1.0 + 1e-9)


@LAWS
@given(drawn=spaces_with_activations_on_the_host())
def test_search_and_checker_agree_and_no_bound_is_above(drawn: tuple[SmallSpace, Layout, int]) -> None:
    space, layout, index = drawn
    prices = space.pricer().prices(layout)
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
@given(layers=st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=2, max_size=12), data=st.data())
def test_what_the_search_adds_up_is_what_the_checker_simulates(
    layers: Sequence[tuple[float, float, float]], data: st.DataObject
) -> None:
    offloaded = data.draw(st.integers(1, len(layers) - 1))
    forward, backward, copies = (list(column) for column in zip(*layers, strict=True))
    simulated = [LayerSeconds(forward=there, backward=back, copy=copy) for there, back, copy in layers]
    added = sum(forward) + forward_wait_seconds(forward, copies, offloaded=offloaded)
    assert abs(added - forward_seconds(simulated, offloaded=offloaded)) <= 1e-9
    added = sum(backward) + backward_wait_seconds(backward, copies, offloaded=offloaded)
    assert abs(added - backward_seconds(simulated, offloaded=offloaded)) <= 1e-9
