"""The search's points are those that `benchmarks.points` states a second time, no more and no fewer."""

from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.brute_force import splits
from benchmarks.instances import instances
from benchmarks.meshes import NotStated, Run
from benchmarks.points import count_considered, count_legal, is_proved, legal_points
from benchmarks.random_layouts import run_of
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, IN_TURN, ON_HOSTS, PIPELINED, Layout
from planner.models.bundled import model_names
from planner.requests.request import Constraints
from planner.requests.workload import Packing, Precision
from planner.search.space.enumeration import enumerate_layouts
from tests.agreement.test_prices import DOCUMENTS
from tests.examples import examples
from tests.small_runs import MANY_LAYOUTS, small_runs, with_drives
from tests.small_spaces import SmallSpace

INSTANCES = {instance.name: instance for instance in instances()}
LARGE = {"kimi-k2-131072xh100", "deepseek-v3-2048xh100", "qwen3-235b-a22b-32xdgx-h100", "nemotron-h-56b-32xdgx-h100"}
"""Counting these takes seconds each."""
MEDIUM = {"mixtral-8x22b-8xdgx-h100", "llama-3.1-405b-16384xh100", "llama-3.1-405b-128xdgx-h100"}
"""Counting these takes a second or a few."""
LISTED = ("llama-2-7b-4xl40s", "llama-3.1-8b-deepspeed-1xdgx-h100", "llama-3.2-1b-4xa100")


def space_of(run: Run) -> SmallSpace:
    return SmallSpace(
        run.model, run.workload, run.cluster, target=run.request.target, constraints=run.request.constraints
    )


def assert_counts_are_equal(run: Run) -> None:
    space = enumerate_layouts(space_of(run).scope)
    assert count_considered(run) == space.considered
    assert count_legal(run) == (len(space.points), len(space.unsimulated))


@settings(max_examples=examples(few=12, many=30), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS))
def test_the_points_of_a_small_run_with_states_on_the_hosts_are_as_many_by_an_independent_count(run: Run) -> None:
    for parameters in (GPU_WEIGHTS, HOST_WEIGHTS):
        hosted = replace(run, offloaded=True, parameters=parameters)
        space = enumerate_layouts(space_of(run).scope, offload_percent=100, parameters=parameters)
        assert count_considered(hosted) == space.considered
        assert count_legal(hosted) == (len(space.points), len(space.unsimulated))


@settings(max_examples=examples(few=12, many=30), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS), drives=st.sampled_from((ON_HOSTS, IN_TURN, PIPELINED)))
def test_the_points_of_a_small_run_with_states_or_weights_on_drives_are_as_many_by_an_independent_count(
    run: Run, drives: int
) -> None:
    run = replace(run, cluster=with_drives(run.cluster))
    for parameters in (GPU_WEIGHTS, HOST_WEIGHTS, DRIVE_WEIGHTS):
        driven = replace(run, offloaded=True, parameters=parameters, drives=drives != ON_HOSTS)
        scope = space_of(run).scope
        space = enumerate_layouts(scope, offload_percent=100, parameters=parameters, drives=drives)
        assert count_considered(driven) == space.considered
        assert count_legal(driven) == (len(space.points), len(space.unsimulated))


@settings(max_examples=examples(few=12, many=30), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS))
def test_the_points_of_a_small_run_with_activations_on_the_hosts_are_as_many_by_an_independent_count(run: Run) -> None:
    hosted = replace(run, activations=True)
    space = enumerate_layouts(space_of(run).scope, activations=True)
    assert count_considered(hosted) == space.considered
    assert count_legal(hosted) == (len(space.points), len(space.unsimulated))


@settings(max_examples=examples(few=12, many=30), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS))
def test_the_points_of_a_small_run_with_modules_on_the_hosts_are_as_many_by_an_independent_count(run: Run) -> None:
    assert_counts_with_modules_are_equal(run, ("core_attn", "attn_proj"))


@pytest.mark.parametrize("modules", [("core_attn", "attn_proj"), ("qkv_linear",), ("expert_fc1", "moe_act")])
def test_modules_that_no_layer_has_leave_no_points_by_either_count(modules: tuple[str, ...]) -> None:
    run = run_of("llama-3.1-8b", "dgx-h100-1")
    layers = run.model.runs[0]
    model = replace(run.model, runs=(replace(layers, block=replace(layers.block, mixer=None)),))
    assert assert_counts_with_modules_are_equal(replace(run, model=model), modules) == 0


def assert_counts_with_modules_are_equal(run: Run, modules: tuple[str, ...]) -> int:
    hosted = replace(run, modules=modules)
    space = enumerate_layouts(space_of(run).scope, modules=modules)
    assert count_considered(hosted) == space.considered
    assert count_legal(hosted) == (len(space.points), len(space.unsimulated))
    return len(space.points)


def assert_points_are_the_same(run: Run) -> None:
    space = space_of(run)
    searched: list[Layout] = [space.layout(index) for index in range(len(space.points))]
    listed = list(legal_points(run))
    assert len(set(listed)) == len(listed)
    assert set(searched) == set(listed)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in MEDIUM else ()) for name in sorted(INSTANCES.keys() - LARGE)],
)
def test_the_points_of_an_instance_are_as_many_by_an_independent_count(name: str) -> None:
    assert_counts_are_equal(INSTANCES[name].run())


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(LARGE))
def test_the_points_of_a_large_instance_are_as_many_by_an_independent_count(name: str) -> None:
    assert_counts_are_equal(INSTANCES[name].run())


@pytest.mark.long
@pytest.mark.parametrize("cluster", ["dgx-h100-1", "dgx-h100-8"])
@pytest.mark.parametrize("model", model_names())
def test_the_points_of_a_bundled_model_are_as_many_by_an_independent_count(model: str, cluster: str) -> None:
    assert_counts_are_equal(run_of(model, cluster))


@pytest.mark.parametrize("name", LISTED)
def test_the_points_of_an_instance_are_the_same_by_an_independent_list(name: str) -> None:
    assert_points_are_the_same(INSTANCES[name].run())


@settings(max_examples=examples(few=20, many=60), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS))
def test_the_points_of_a_small_run_are_the_same_by_an_independent_list(run: Run) -> None:
    assert_counts_are_equal(run)
    assert_points_are_the_same(run)


@settings(max_examples=examples(few=6, many=20), deadline=None)
@given(run=small_runs(most_layouts=MANY_LAYOUTS))
def test_every_split_of_a_listed_point_is_searched_and_other_degrees_are_not(run: Run) -> None:
    for point in legal_points(run):
        for layout in islice(splits(point, run), 1):
            assert is_proved(layout, run)
            assert not is_proved(replace(layout, rank_order="tp-ep-cp-dp-pp"), run)


@pytest.mark.parametrize("what", ["precision fp8-delayed", "documents", "constraints"])
def test_rules_that_are_not_stated_twice_are_refused_by_name(what: str) -> None:
    run = INSTANCES["llama-2-7b-4xl40s"].run()
    request, workload = run.request, run.workload
    padded = replace(DOCUMENTS, packing=Packing.PADDED)
    requests = {
        "precision fp8-delayed": replace(request, workload=replace(workload, precision=Precision.FP8_DELAYED)),
        "documents": replace(request, workload=replace(workload, documents=padded)),
        "constraints": replace(request, constraints=Constraints(sequence_parallel=True)),
    }
    changed = replace(run, request=requests[what])
    with pytest.raises(NotStated, match=what):
        count_legal(changed)
