"""Laws of modules on the host: what they save and cost, and that search, checker and bounds agree on it."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from planner.evaluation.evaluate import simulated_step_seconds
from planner.evaluation.priced_step import stage_prices
from planner.layout import OFFLOADABLE, Layout
from planner.memory.host import host_memory
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.memory.saved import activation_peaks
from planner.offloading.module_timeline import GroupSeconds, LayerGroups, backward_seconds, forward_seconds
from planner.offloading.modules import NEAR_LAYERS, groups, leaving_bytes, present_modules
from planner.requests.request import Target
from planner.requests.workload import AttentionKernel, Precision
from planner.search.bounds.module_waits import Passed, backward_wait_seconds, forward_wait_seconds
from tests.builders import two_node_cluster
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, mixed_models, models, workloads

LAWS = settings(max_examples=40, deadline=None, derandomize=True)
SECONDS = st.floats(0.0, 10.0)


@st.composite
def spaces_with_modules_on_the_host(draw: st.DrawFn) -> tuple[SmallSpace, Layout, int]:
    """Return a space whose points have modules on the host, a placed layout of it, and the index of its point."""
    workload = draw(workloads(precisions=(Precision.BF16, Precision.FP16)))
    assume(workload.lora is None and workload.attention_kernel is not AttentionKernel.UNFUSED)
    model, target = draw(st.one_of(models(), mixed_models())), draw(st.sampled_from((Target.ANY, Target.MEGATRON)))
    plain = SmallSpace(model, workload, two_node_cluster(), target=target)
    there = present_modules(plain.graph, workload)
    choices = [
        named
        for count in range(1, len(there) + 1)
        for named in combinations(there, count)
        if "attn_proj" not in named or "core_attn" in named
    ]
    assume(choices)
    modules = draw(st.sampled_from(choices))
    space = SmallSpace(model, workload, two_node_cluster(), target=target, modules=modules)
    assume(len(space.points) > 0)
    index = draw(st.integers(0, len(space.points) - 1))
    split = draw(st.sampled_from(list(space.splits(space.layout(index)))))
    assert split.offloaded_modules == modules
    return space, split, index


@LAWS
@given(drawn=spaces_with_modules_on_the_host())
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
@given(drawn=spaces_with_modules_on_the_host())
def test_modules_leave_gpus_no_fuller_nodes_no_emptier_and_steps_no_shorter(
    drawn: tuple[SmallSpace, Layout, int],
) -> None:
    space, layout, _ = drawn
    here = replace(layout, offloaded_modules=())
    near, away = space.place(here), space.place(layout)
    assert all(less <= more for less, more in zip(activation_peaks(away), activation_peaks(near), strict=True))
    assert host_memory(near, space.cluster) is None
    hosted = host_memory(away, space.cluster)
    assert hosted is not None
    assert hosted.num_bytes >= sum(line.num_bytes for line in hosted.lines[1:])
    for before, after in zip(
        stage_prices(near, space.table.cost_model), stage_prices(away, space.table.cost_model), strict=True
    ):
        assert after.forward_seconds >= before.forward_seconds
        assert after.backward_seconds >= before.backward_seconds
    for layer in near.rank_model.layers:
        moved = groups(layer, layout.recompute, layout.offloaded_modules)
        assert [group.module for group in moved] == [name for name in OFFLOADABLE if name in {g.module for g in moved}]
        leaving = leaving_bytes(layer, layout.recompute, layout.offloaded_modules)
        assert leaving <= layer.saved_bytes(layout.recompute)
        assert leaving <= sum(group.num_bytes for group in moved)


@st.composite
def layers_with_groups(draw: st.DrawFn) -> list[LayerGroups]:
    """Return layers with groups of up to four modules, of which a layer may lack some."""
    module = st.sampled_from(("qkv_linear", "core_attn", "expert_fc1", "moe_act"))

    def group(name: str) -> GroupSeconds:
        return GroupSeconds(module=name, forward=draw(SECONDS), backward=draw(SECONDS), copy=draw(SECONDS))

    found: list[LayerGroups] = []
    for _ in range(draw(st.integers(1, 6))):
        names = draw(st.sets(module, max_size=4))
        first = tuple(group(name) for name in ("qkv_linear", "core_attn") if name in names)
        last = tuple(group(name) for name in ("expert_fc1", "moe_act") if name in names)
        found.append(LayerGroups(first=first, forward=draw(SECONDS), backward=draw(SECONDS), last=last))
    return found


def passed(layers: Sequence[LayerGroups], *, backward: bool) -> tuple[list[Passed], float]:
    """Return the groups of layers as a pass comes to them, and what runs behind."""
    found: list[Passed] = []
    since = 0.0
    for layer in reversed(layers) if backward else layers:
        own = (*layer.first, None, *layer.last)
        for group in reversed(own) if backward else own:
            if group is None:
                since += layer.backward if backward else layer.forward
            else:
                found.append(Passed(group.module, since, group.backward if backward else group.forward, group.copy))
                since = 0.0
    return found, since


@LAWS
@given(layers=layers_with_groups(), in_pipeline=st.booleans())
def test_what_the_search_adds_up_is_what_the_checker_simulates(layers: list[LayerGroups], *, in_pipeline: bool) -> None:
    there, _ = passed(layers, backward=False)
    alone = sum(layer.forward_seconds for layer in layers)
    assert abs(alone + forward_wait_seconds(there) - forward_seconds(layers)) <= 1e-9
    back, behind = passed(layers, backward=True)
    waited = backward_wait_seconds(back, behind_seconds=behind, in_pipeline=in_pipeline)
    alone = sum(layer.backward_seconds for layer in layers)
    assert abs(alone + waited - backward_seconds(layers, in_pipeline=in_pipeline)) <= 1e-9


def most_layers_here(order: str, *, num_layers: int, forward: float, backward: float, copy: float, idle: float) -> int:
    """Return the most layers whose one module is on a GPU at once, as a rank runs forward and backward passes.

    A module is there from the beginning of its forward pass until its copy ends, and from the beginning of the copy
    back until the end of its backward pass. The first group that is needed back never leaves. Micro-batches come back
    in the order in which they went.

    Args:
        order: F and B, one letter for each pass through all layers.
        num_layers: Layers, all alike.
        forward: Seconds of a layer's forward pass.
        backward: Seconds of its backward pass.
        copy: Seconds of one copy.
        idle: Seconds between passes.
    """
    gpu = to_host = from_host = 0.0
    changes: list[tuple[float, int]] = []
    waiting: deque[list[tuple[int, float]]] = deque()  # groups of each micro-batch on the host, and since when
    fetched: deque[float] = deque()
    first = True
    for letter in order:
        gpu += idle
        if letter == "F":
            chunk: list[tuple[int, float]] = []
            under_way: deque[float] = deque()
            for layer in range(num_layers):
                changes.append((gpu, +1))
                gpu += forward
                if first and layer == num_layers - 1:
                    fetched.append(0.0)
                    first = False
                    continue
                to_host = max(to_host, gpu) + copy
                changes.append((to_host, -1))
                chunk.append((layer, to_host))
                under_way.append(to_host)
                while len(under_way) > 1:
                    gpu = max(gpu, under_way.popleft())
            waiting.append(chunk)
            continue
        own = waiting.popleft()
        for _ in range(num_layers):
            if not fetched:  # not there yet when the micro-batch before it ended
                from_host = max(from_host, gpu, own[-1][1]) + copy
                changes.append((from_host - copy, +1))
                own.pop()
                fetched.append(from_host)
            gpu = max(gpu, fetched.popleft()) + backward
            changes.append((gpu, -1))
            source = own or (waiting[0] if waiting else None)
            if source:
                from_host = max(from_host, gpu, source[-1][1]) + copy
                changes.append((from_host - copy, +1))
                source.pop()
                fetched.append(from_host)
    here = most = 0
    for _, change in sorted(changes, key=lambda entry: (entry[0], entry[1])):
        here += change
        most = max(most, here)
    assert here == 0
    return most


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    warmup=st.integers(0, 5),
    steady=st.integers(0, 6),
    num_layers=st.integers(2, 6),
    seconds=st.tuples(*[st.floats(0.01, 10.0)] * 3),
    idle=st.floats(0.0, 20.0),
)
def test_no_more_layers_are_near_than_the_ledger_counts(
    warmup: int, steady: int, num_layers: int, seconds: tuple[float, float, float], idle: float
) -> None:
    forward, backward, copy = seconds
    order = "F" * warmup + "FB" * (steady + 1) + "B" * warmup
    most = most_layers_here(order, num_layers=num_layers, forward=forward, backward=backward, copy=copy, idle=idle)
    assert most <= NEAR_LAYERS


def test_single_layers_pile_up() -> None:
    assert most_layers_here("FFFFFFBBBBBB", num_layers=1, forward=0.5, backward=1.0, copy=1.0, idle=0.0) > NEAR_LAYERS
