"""Exhaustive search with the independent evaluator finds nothing better than the planner, on random small problems.

Whole runs: every legal point as `benchmarks.points` states them, every split, priced by the ledger and the evaluator.
Single points: every split, against the dynamic programme with its simulations and, on the surrogate that both solve,
against both MIPs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from benchmarks.brute_force import (
    HostedLayout,
    can_say,
    hosted_layouts,
    layouts_with_activations_on_hosts,
    layouts_with_modules_on_hosts,
    priced_layouts,
)
from benchmarks.meshes import Run
from benchmarks.points import is_proved
from planner.errors import NotExpressibleError
from planner.evaluation.evaluate import evaluate
from planner.evaluation.validate import violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import DRIVE_WEIGHTS, GPU_WEIGHTS, HOST_WEIGHTS, Layout
from planner.memory.host import drive_memory
from planner.models.blocks import Activation, DenseFeedForward, MixtureOfExperts, Router, SelfAttention
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.models.specs import BlockRun
from planner.plans.plan import Status
from planner.ranks.placement import place
from planner.requests.request import OFFLOADED_LAYERS, Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.routing import Routing
from planner.requests.workload import DType, Precision, TrainWorkload
from planner.search.search import search
from planner.search.splits.candidates import PointBound, Pricer, Rejected
from planner.search.splits.formulate import formulate
from planner.search.splits.settle import settle
from solvers.check import check
from solvers.errors import SolverError
from solvers.registry import SOLVERS, solve
from tests.builders import tiny_dense_model, tiny_request
from tests.examples import examples
from tests.small_runs import four_gpus, small_runs, with_drives, with_memory
from tests.small_spaces import NO_LIMIT_BYTES, SmallSpace, points_of_small_spaces

SUPPRESSED = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
FEW = settings(max_examples=examples(few=3, many=12), deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
MANY = settings(max_examples=250, deadline=None, suppress_health_check=SUPPRESSED)
ROUNDING = 1e-9
PARTS = (0.07, 0.5, 0.51, 1.0)


def fastest_of(priced: list[tuple[Layout, float]], run: Run) -> float | None:
    """Return the shortest step of the layouts that the target can say."""
    return min((seconds for layout, seconds in priced if can_say(layout, run)), default=None)


def assert_plan_is_exhaustively_best(run: Run, data: st.DataObject) -> None:
    """Plan a run under a memory limit that is some layout's peak, or a byte less, with everything on the GPUs."""
    layouts = list(priced_layouts(run, uneven=True))
    peaks = sorted({peak for _, peak, _ in layouts})
    limit = data.draw(st.sampled_from(peaks)) - data.draw(st.sampled_from((0, 1)))
    fitting = [(layout, seconds()) for layout, peak, seconds in layouts if peak <= limit]
    constraints = Constraints(
        optimizer_offload=(0.0,), degrees={OFFLOADED_LAYERS: Bounds(allowed=(0,))}, offloaded_modules=()
    )
    assert_plan_is_best_of(fitting, with_memory(run, limit), constraints=constraints)


def within_limits(
    run: Run, layouts_of: Callable[[Run], Iterable[HostedLayout]], data: st.DataObject
) -> tuple[Run, list[tuple[Layout, float]]]:
    """Return a run under limits of GPUs and nodes that are some layout's needs, or a byte less, and what fits there.

    A node must hold what some layout that fits into the GPUs puts there, and a tenth of itself beside that.
    """
    layouts = list(layouts_of(run))
    assume(layouts)
    limit = data.draw(st.sampled_from(sorted({peak for _, peak, _, _ in layouts}))) - data.draw(st.sampled_from((0, 1)))
    run = with_memory(run, limit)
    held = [hosted.num_bytes for _, peak, hosted, _ in layouts if peak <= limit]
    tenth = run.cluster.host_memory_bytes // 10
    node_bytes = (data.draw(st.sampled_from(sorted(held or [tenth]))) - tenth) * 10 // 9
    run = replace(run, cluster=replace(run.cluster, host_memory_bytes=node_bytes + data.draw(st.integers(-2, 2))))
    fitting = [
        (layout, seconds())
        for layout, peak, hosted, seconds in layouts_of(run)
        if peak <= limit and hosted.num_bytes <= hosted.limit_bytes
    ]
    return run, fitting


def assert_hosted_plan_is_exhaustively_best(run: Run, data: st.DataObject, *, parameters: int = GPU_WEIGHTS) -> None:
    """Plan a run with states on the hosts; where the weights are there too, with all states."""
    run, fitting = within_limits(run, partial(hosted_layouts, parts=PARTS, parameters=parameters, uneven=True), data)
    constraints = Constraints(optimizer_offload=PARTS, parameter_offload=parameters == HOST_WEIGHTS)
    assert_plan_is_best_of(fitting, replace(run, offloaded=True, parameters=parameters), constraints=constraints)


def assert_plan_with_drives_is_exhaustively_best(
    run: Run, data: st.DataObject, *, parameters: int, drives: bool = True
) -> None:
    """Plan a run with states or weights on drives that hold what some layout puts there, or a byte less."""
    run = replace(run, cluster=with_drives(run.cluster), offloaded=True, parameters=parameters, drives=drives)
    held = sorted({on_drives(layout, run) for layout, *_ in driven_layouts(run)})
    assume(held)
    run = with_drives_of(run, data.draw(st.sampled_from(held)) - data.draw(st.sampled_from((0, 0, 0, 1))))
    run, fitting = within_limits(run, lambda limited: driven_layouts(limited, within=True), data)
    driven = parameters == DRIVE_WEIGHTS
    constraints = Constraints(
        drive_offload=drives,
        parameter_offload=None if driven else parameters == HOST_WEIGHTS,
        parameter_drives=driven,
    )
    assert_plan_is_best_of(fitting, run, constraints=constraints)


def driven_layouts(run: Run, *, within: bool = False) -> Iterator[HostedLayout]:
    """Yield every layout with states or weights on drives in each way; those alone that the drives hold."""
    for entry in hosted_layouts(run, (1.0,), parameters=run.parameters, drives=run.drives, uneven=True):
        if not within or on_drives(entry[0], run) <= (run.cluster.nvme_bytes or 0):
            yield entry


def on_drives(layout: Layout, run: Run) -> int:
    """Return what a layout puts on a node's drives: 16 bytes an element of states, 2 of weights, and blocks' ends."""
    graph = build_graph(run.model, run.workload, eager=CAPABILITIES[run.request.target].eager)
    placed = place(run.model, graph, layout, run.workload, CAPABILITIES[run.request.target])
    ledger = drive_memory(placed, run.cluster)
    assert ledger is not None
    elements = placed.elements(0, trainable=True)
    ranks = layout.dp * layout.cp // layout.state_replicas
    share = -(-elements.dense // ranks) + -(-elements.expert // max(layout.edp // layout.state_replicas, 1))
    groups = -(-share // DRIVE_SUB_GROUP)
    of_lines = {line.term: line.num_bytes for line in ledger.lines}
    states = run.cluster.gpus_per_node * 4 * (4 * share + 1024 * groups) if run.drives else 0
    assert of_lines.pop("states and gradients on drives", 0) == states
    weights = of_lines.pop("weights on drives", 0)
    assert (weights >= run.cluster.gpus_per_node * 2 * share) == (run.parameters == DRIVE_WEIGHTS)
    assert ledger.num_bytes == states + weights
    return ledger.num_bytes


def with_drives_of(run: Run, num_bytes: int) -> Run:
    """Return a run on nodes whose drives hold so much."""
    return replace(run, cluster=replace(run.cluster, nvme_bytes=num_bytes))


def assert_plan_with_activations_on_hosts_is_exhaustively_best(run: Run, data: st.DataObject) -> None:
    """Plan a run with what layers save on the hosts; sequences are so long that most tensors are large enough."""
    workload = replace(run.workload, seq_len=32 * run.workload.seq_len)
    run = replace(run, request=replace(run.request, workload=workload))
    run, fitting = within_limits(run, layouts_with_activations_on_hosts, data)
    constraints = Constraints(degrees={OFFLOADED_LAYERS: Bounds(minimum=1)})
    assert_plan_is_best_of(fitting, replace(run, activations=True), constraints=constraints)


def assert_plan_with_modules_on_hosts_is_exhaustively_best(run: Run, data: st.DataObject) -> None:
    """Plan a run with what modules save on the hosts."""
    sets: list[tuple[str, ...]] = [("core_attn", "attn_proj")]
    if all(isinstance(part.block.mixer, SelfAttention) for part in run.model.runs):
        sets.append(("qkv_linear", "core_attn", "attn_proj"))
    if run.model.has_experts:
        sets += [("expert_fc1", "moe_act"), ("core_attn", "attn_proj", "expert_fc1")]
    named = data.draw(st.sampled_from(sets))
    run = replace(run, modules=named)
    run, fitting = within_limits(run, layouts_with_modules_on_hosts, data)
    assert_plan_is_best_of(fitting, run, constraints=Constraints(offloaded_modules=named))


def assert_plan_is_best_of(fitting: list[tuple[Layout, float]], run: Run, *, constraints: Constraints) -> None:
    """Plan a run under constraints that say what is on the hosts, and hold it against all layouts that fit.

    Of uneven splits of interleaved stages the search promises a bound. What it looks at beyond its space makes no plan
    worse.
    """
    proved = [(layout, seconds) for layout, seconds in fitting if is_proved(layout, run)]
    fastest, fastest_proved = fastest_of(fitting, run), fastest_of(proved, run)
    request = replace(run.request, constraints=constraints)
    if proved and fastest_proved is None:
        with pytest.raises(NotExpressibleError):
            search(run.model, run.cluster, request)
        return
    try:
        plan = search(run.model, run.cluster, request)
    except SolverError:
        assert fastest_proved is None, "only interleaved stages may be left without a split or a proof"
        return
    if not plan.plans:
        assert plan.status is Status.INFEASIBLE
        assert fastest is None
        return
    assert plan.status is Status.OPTIMAL
    best, uneven_bound = plan.best.step_seconds, plan.search.uneven_bound_seconds
    if fastest is None:
        assert plan.best.layout.recompute.is_per_layer
        return
    assert (best if uneven_bound is None else uneven_bound) <= fastest * (1 + ROUNDING)
    if fastest_proved is not None:
        assert best <= fastest_proved * (1 + ROUNDING)
        if is_proved(plan.best.layout, run):
            assert math.isclose(best, fastest_proved, rel_tol=ROUNDING)


@FEW
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_a_small_run_is_better_than_its_plan(run: Run, data: st.DataObject) -> None:
    assert_plan_is_exhaustively_best(run, data)


@pytest.mark.long
@MANY
@given(run=small_runs(most_layouts=1_500), data=st.data())
def test_no_layout_of_many_small_runs_is_better_than_its_plan(run: Run, data: st.DataObject) -> None:
    assert_plan_is_exhaustively_best(run, data)


@FEW
@given(run=small_runs(most_layouts=150), data=st.data())
def test_no_layout_of_a_small_run_with_states_on_the_hosts_is_better_than_its_plan(
    run: Run, data: st.DataObject
) -> None:
    assert_hosted_plan_is_exhaustively_best(run, data)


PLACES = (GPU_WEIGHTS, HOST_WEIGHTS, DRIVE_WEIGHTS)
NO_DRIVES = Constraints(drive_offload=False, parameter_drives=False)
DRIVE_SUB_GROUP = 20_000
"""Sub-groups so small that a small model has several."""


@pytest.fixture
def small_sub_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Update small models in several sub-groups, as large ones are."""
    monkeypatch.setattr("planner.offloading.drive_step.DRIVE_SUB_GROUP_ELEMENTS", DRIVE_SUB_GROUP)


@FEW
@given(run=small_runs(most_layouts=examples(few=80, many=150)), data=st.data(), parameters=st.sampled_from(PLACES))
@pytest.mark.usefixtures("small_sub_groups")
def test_no_layout_of_a_small_run_with_states_on_drives_is_better_than_its_plan(
    run: Run, data: st.DataObject, parameters: int
) -> None:
    assert_plan_with_drives_is_exhaustively_best(run, data, parameters=parameters)


@FEW
@given(run=small_runs(most_layouts=examples(few=80, many=150)), data=st.data())
@pytest.mark.usefixtures("small_sub_groups")
def test_no_layout_of_a_small_run_with_weights_alone_on_drives_is_better_than_its_plan(
    run: Run, data: st.DataObject
) -> None:
    assert_plan_with_drives_is_exhaustively_best(run, data, parameters=DRIVE_WEIGHTS, drives=False)


def heavy_run(*, layers: int, gradient_dtype: DType) -> Run:
    """Return a run of wide layers on 4 GPUs whose states weigh more than what is computed with them."""
    model = load_bundled("llama-2-13b")
    workload = TrainWorkload(seq_len=128, global_batch_size=4, precision=Precision.BF16, gradient_dtype=gradient_dtype)
    return Run(
        model=replace(model, runs=(replace(model.runs[0], count=layers),)),
        cluster=with_drives(four_gpus(gpus_per_node=4)),
        request=PlanRequest(
            workload=workload,
            constraints=Constraints(),
            memory_headroom=0.0,
            target=Target.DEEPSPEED,
            objective=Objective.STEP_TIME,
        ),
    )


@pytest.mark.parametrize(("layers", "gradient_dtype"), [(24, DType.FP32), (40, DType.BF16)])
@pytest.mark.parametrize(("gpu", "node"), [(1, 0), (1, 1), (1, -1), (2, 0), (2, -1)])
def test_drives_are_planned_where_nothing_fits_without_them(
    layers: int, gradient_dtype: DType, gpu: int, node: int
) -> None:
    """Every way to put states on drives is weighed, with weights anywhere, and weights there with states on the hosts.

    GPUs have what some layout with drives needs, and nodes the least that one within it needs, a little more, or what
    is enough without drives.
    """
    run = heavy_run(layers=layers, gradient_dtype=gradient_dtype)
    on_drives = [replace(run, parameters=weights, drives=True) for weights in PLACES]
    peaks = sorted({peak for one in on_drives for _, peak, _, _ in driven_layouts(one)})
    limit = peaks[gpu]
    run = with_memory(run, limit)

    def needs(*, driven: bool) -> list[HostedLayout]:
        found: list[HostedLayout] = []
        for weights in PLACES:
            if driven or weights != DRIVE_WEIGHTS:
                found += hosted_layouts(run, (1.0,), parameters=weights, drives=driven)
        if driven:
            found += hosted_layouts(run, (1.0,), parameters=DRIVE_WEIGHTS)
        return [entry for entry in found if entry[1] <= limit]

    held = sorted({hosted.num_bytes for driven in (False, True) for _, _, hosted, _ in needs(driven=driven)})
    tenth = run.cluster.host_memory_bytes // 10
    run = replace(run, cluster=replace(run.cluster, host_memory_bytes=(held[node] - tenth) * 10 // 9 + 2))
    fastest_driven, fastest_hosted = (
        fastest_of(
            [
                (layout, seconds())
                for layout, _, hosted, seconds in needs(driven=driven)
                if hosted.num_bytes <= hosted.limit_bytes
            ],
            run,
        )
        for driven in (True, False)
    )
    assert fastest_driven is not None
    assert (fastest_hosted is None) is (node != -1)
    plan = search(run.model, run.cluster, run.request)
    without = search(run.model, run.cluster, replace(run.request, constraints=NO_DRIVES))
    assert bool(without.plans) is (fastest_hosted is not None)
    assert plan.best.layout.uses_drives is (fastest_hosted is None)
    fastest = fastest_driven if fastest_hosted is None else fastest_hosted
    assert math.isclose(plan.best.step_seconds, fastest, rel_tol=ROUNDING)
    assert not violations(plan.best, run.model, run.cluster, run.request)


@FEW
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_a_small_run_with_weights_on_the_hosts_is_better_than_its_plan(
    run: Run, data: st.DataObject
) -> None:
    assert_hosted_plan_is_exhaustively_best(run, data, parameters=HOST_WEIGHTS)


@FEW
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_a_small_run_with_activations_on_the_hosts_is_better_than_its_plan(
    run: Run, data: st.DataObject
) -> None:
    assert_plan_with_activations_on_hosts_is_exhaustively_best(run, data)


@pytest.mark.long
@MANY
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_many_small_runs_with_activations_on_the_hosts_is_better_than_their_plans(
    run: Run, data: st.DataObject
) -> None:
    assert_plan_with_activations_on_hosts_is_exhaustively_best(run, data)


@FEW
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_a_small_run_with_modules_on_the_hosts_is_better_than_its_plan(
    run: Run, data: st.DataObject
) -> None:
    assert_plan_with_modules_on_hosts_is_exhaustively_best(run, data)


@pytest.mark.long
@MANY
@given(run=small_runs(most_layouts=400), data=st.data())
def test_no_layout_of_many_small_runs_with_modules_on_the_hosts_is_better_than_their_plans(
    run: Run, data: st.DataObject
) -> None:
    assert_plan_with_modules_on_hosts_is_exhaustively_best(run, data)


@pytest.mark.long
@MANY
@given(run=small_runs(most_layouts=400), parameters=st.booleans(), data=st.data())
def test_no_layout_of_many_small_runs_with_states_on_the_hosts_is_better_than_their_plans(
    run: Run, data: st.DataObject, *, parameters: bool
) -> None:
    assert_hosted_plan_is_exhaustively_best(run, data, parameters=parameters)


@pytest.mark.parametrize(
    ("said", "quarters"),
    [
        ({}, 1),
        pytest.param({"capacity_factor": 1.25}, 4, marks=pytest.mark.slow),
        pytest.param({"reroutes": True}, 2, marks=pytest.mark.slow),
    ],
)
def test_no_layout_is_better_than_the_plan_where_ranks_get_more_the_more_there_are(
    said: Mapping[str, Any], quarters: int
) -> None:
    routing = Routing(source="made up", layers=(0, 1), counts=("14,1,2,1", "5,9,1,1"), **said)
    expert = DenseFeedForward(intermediate_size=2048, gated=True, activation=Activation.SILU)
    experts = MixtureOfExperts(num_experts=4, experts_per_token=2, expert=expert, router=Router())
    dense = tiny_dense_model(num_layers=2)
    block = replace(dense.runs[0].block, feed_forward=experts)
    run = Run(
        model=replace(dense, runs=(BlockRun(block=block, count=2),)),
        cluster=four_gpus(gpus_per_node=4),
        request=replace(
            tiny_request(),
            workload=TrainWorkload(seq_len=4096, global_batch_size=2, precision=Precision.BF16, routing=routing),
            constraints=Constraints(),
            memory_headroom=0.0,
            target=Target.ANY,
        ),
    )
    layouts = [(layout, peak, seconds()) for layout, peak, seconds in priced_layouts(run, uneven=True)]
    peaks = sorted({peak for _, peak, _ in layouts})
    limit = peaks[(len(peaks) - 1) * quarters // 4]
    fitting = [(layout, seconds) for layout, peak, seconds in layouts if peak <= limit]
    constraints = Constraints(
        optimizer_offload=(0.0,), degrees={OFFLOADED_LAYERS: Bounds(allowed=(0,))}, offloaded_modules=()
    )
    assert_plan_is_best_of(fitting, with_memory(run, limit), constraints=constraints)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_byte_more_or_less_decides_what_fits(every: int) -> None:
    run = Run(
        model=replace(tiny_dense_model(num_layers=3), vocab_size=4096),
        cluster=four_gpus(gpus_per_node=2),
        request=replace(
            tiny_request(),
            workload=TrainWorkload(seq_len=1024, global_batch_size=1, precision=Precision.BF16),
            constraints=Constraints(optimizer_offload=(0.0,)),
            memory_headroom=0.0,
            target=Target.ANY,
        ),
    )
    stated = replace(run, request=replace(run.request, constraints=Constraints()))
    layouts = [(peak, seconds()) for _, peak, seconds in priced_layouts(stated)]
    peaks = {peak for peak, _ in layouts}
    for limit in [peak - less for peak in sorted(peaks)[::every] for less in (0, 1)]:
        tight = with_memory(run, limit)
        plan = search(tight.model, tight.cluster, tight.request)
        fastest = min((seconds for peak, seconds in layouts if peak <= limit), default=None)
        if fastest is None:
            assert plan.status is Status.INFEASIBLE
        else:
            assert plan.status is Status.OPTIMAL
            assert plan.best.step_seconds <= fastest * (1 + ROUNDING)
            by_layer = plan.best.layout.recompute.is_per_layer
            assert by_layer or math.isclose(plan.best.step_seconds, fastest, rel_tol=ROUNDING)


def test_light_layers_that_are_not_run_again_leave_the_most_room() -> None:
    heavy, light = (
        replace(
            tiny_dense_model(num_layers=1).runs[0].block,
            feed_forward=DenseFeedForward(intermediate_size=size, gated=True, activation=Activation.SILU),
        )
        for size in (4096, 512)
    )
    run = Run(
        model=replace(
            tiny_dense_model(num_layers=3), runs=(BlockRun(block=heavy, count=1), BlockRun(block=light, count=2))
        ),
        cluster=four_gpus(gpus_per_node=4),
        request=replace(
            tiny_request(),
            workload=TrainWorkload(seq_len=4096, global_batch_size=4, precision=Precision.BF16),
            constraints=Constraints(),
            memory_headroom=0.0,
        ),
    )
    least, layout = min(((peak, layout) for layout, peak, _ in priced_layouts(run)), key=itemgetter(0))
    assert layout.recompute.num_layers == 1, "while the heavy layer is run again, what the light ones kept is gone"
    tight = with_memory(run, least)
    request = replace(tight.request, constraints=Constraints(optimizer_offload=(0.0,)))
    assert search(tight.model, tight.cluster, request).best.layout == layout


def fastest_split(space: SmallSpace, splits: list[tuple[int, float, Layout]], limit: int) -> float | None:
    """Return the shortest step of the splits that fit; with adapters every stage must have something to train."""
    trains = space.workload.lora is None
    return min(
        (
            seconds
            for peak, seconds, split in splits
            if peak <= limit and (trains or min(stage.num_layers for stage in split.stages))
        ),
        default=None,
    )


def assert_point_is_solved(space: SmallSpace, index: int, data: st.DataObject) -> None:
    """Solve one plain pipeline in every way, under a limit that is some split's peak or one byte below them all."""
    layout = space.layout(index)
    splits: list[tuple[int, float, Layout]] = []
    for split in space.splits(layout):
        evaluation = evaluate(space.place(split), space.table.cost_model)
        splits.append((evaluation.peak_memory_bytes, evaluation.step_seconds, split))
    peaks = sorted({peak for peak, _, _ in splits})
    limit = data.draw(st.sampled_from([peaks[0] - 1, *peaks, NO_LIMIT_BYTES]))
    fastest = fastest_split(space, splits, limit)
    points = space.points.where(np.arange(len(space.points)) == index)
    bounds = space.table.bounds(points, limit_bytes=limit)
    bound = PointBound(
        pipeline_seconds=float(bounds.pipeline_seconds_X[0]), tail_seconds=float(bounds.tail_seconds_X[0])
    )
    assert_splits_are_searched(space.pricer(limit), layout, bound, fastest)
    assert_solvers_agree(space, layout, limit)


def assert_splits_are_searched(pricer: Pricer, layout: Layout, bound: PointBound, fastest: float | None) -> None:
    """The split of the dynamic programme and those simulated behind it are together as good as all."""
    priced = pricer.price(layout, bound=bound, ceiling_seconds=math.inf)
    found = math.inf if isinstance(priced, Rejected) else priced.step_seconds
    settled = settle(pricer, layout, bound=bound, best_seconds=found)
    if settled.better is not None:
        found = settled.better.step_seconds
    assert math.isclose(found, math.inf if fastest is None else fastest, rel_tol=ROUNDING)


def assert_solvers_agree(space: SmallSpace, layout: Layout, limit: int) -> None:
    """Every solver finds the same least surrogate, whether bytes are rounded down or up."""
    for generous in (True, False):
        problem = formulate(
            model=space.model,
            workload=space.workload,
            capabilities=space.capabilities,
            costs=space.pricer().prices(layout).costs,
            layout=layout,
            limit_bytes=limit,
            generous=generous,
        )
        oracle = solve(problem, solver="exhaustive")
        for name in SOLVERS:
            solution = solve(problem, solver=name)
            assert solution.status is oracle.status, name
            assert check(problem, solution) == (), name
            if oracle.objective is not None:
                assert solution.objective == pytest.approx(oracle.objective, rel=ROUNDING), name


def is_plain_pipeline(drawn: tuple[SmallSpace, int]) -> bool:
    """Return whether the point has one stage of several on each rank."""
    space, index = drawn
    return bool(space.points.pp_X[index] > 1 and space.points.vpp_X[index] == 1)


@FEW
@given(point=points_of_small_spaces().filter(is_plain_pipeline), data=st.data())
def test_the_programme_the_mips_and_exhaustive_search_agree_on_a_point(
    point: tuple[SmallSpace, int], data: st.DataObject
) -> None:
    assert_point_is_solved(*point, data)


@pytest.mark.long
@MANY
@given(point=points_of_small_spaces().filter(is_plain_pipeline), data=st.data())
def test_the_programme_the_mips_and_exhaustive_search_agree_on_many_points(
    point: tuple[SmallSpace, int], data: st.DataObject
) -> None:
    assert_point_is_solved(*point, data)
