"""Other schedules of a plan's pipelines, against the evaluator where it knows the schedule, and among themselves."""

from dataclasses import replace
from functools import cache

import pytest

from planner.evaluation.described import given_layout
from planner.evaluation.evaluate import evaluate
from planner.frameworks.capabilities import MEGATRON
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, even_counts, stages_from_counts
from planner.models.bundled import load_bundled
from planner.models.layers import build_graph
from planner.plans.plan import Plan, PricedSchedule
from planner.ranks.placement import place
from planner.requests.request import Constraints
from planner.requests.workload import Precision, TrainWorkload
from planner.schedule_views.other_schedules import (
    BESIDE,
    BUILDERS,
    POST_VALIDATION,
    TRANSFERS,
    TWO_COPIES,
    V_SHAPE,
    with_other_schedules,
)
from planner.schedules.bidirectional import NAME as BIDIRECTIONAL
from planner.schedules.limited import NAME as LIMITED
from profiles.catalogue import load_preset
from profiles.planned import cost_model_on
from tests.builders import tiny_plan, tiny_request

MODEL = load_bundled("llama-3.1-8b")
CLUSTER = load_preset("dgx-h100").to_cluster()
RUN = TrainWorkload(seq_len=4096, global_batch_size=32, precision=Precision.BF16)
REQUEST = replace(tiny_request(), workload=RUN, constraints=Constraints())
LAYOUT = Layout(
    tp=1,
    sequence_parallel=False,
    pp=4,
    vpp=1,
    dp=2,
    zero_stage=1,
    micro_batch_size=1,
    num_microbatches=16,
    schedule=Schedule.ONE_F_ONE_B,
    recompute=Recompute(granularity=Granularity.NONE),
    overlap=Overlap(grad_reduce=True, param_gather=True, p2p=False),
    stages=stages_from_counts((8, 8, 9, 7)),
)


def plan_of(*layouts: Layout, headroom: float = 0.06) -> Plan:
    """Return a plan with these layouts, whatever fits."""
    request = replace(REQUEST, memory_headroom=headroom)
    planned = tuple(given_layout(layout, MODEL, CLUSTER, request) for layout in layouts)
    return replace(tiny_plan(), model=MODEL, cluster=CLUSTER, request=request, plans=planned)


@cache
def priced() -> dict[str, PricedSchedule]:
    """Return the layout under every other schedule."""
    schedules = with_other_schedules(plan_of(LAYOUT)).schedules
    assert schedules is not None
    assert schedules.left_out == {}
    assert [entry.step_seconds for entry in schedules.priced] == sorted(
        entry.step_seconds for entry in schedules.priced
    )
    return {entry.schedule: entry for entry in schedules.priced}


def test_every_schedule_is_priced_once() -> None:
    assert set(priced()) == {*BUILDERS, LIMITED}


def test_1f1b_with_transfers_beside_it_costs_what_the_evaluator_says() -> None:
    beside = replace(LAYOUT, overlap=replace(LAYOUT.overlap, p2p=True))
    placed = place(MODEL, build_graph(MODEL, RUN), beside, RUN, MEGATRON)
    known = evaluate(placed, cost_model_on(CLUSTER, MEGATRON.software))
    found = priced()[BESIDE]
    assert found.step_seconds == pytest.approx(known.step_seconds, rel=1e-12)
    assert found.peak_memory_bytes == known.peak_memory_bytes
    assert found.layers_per_stage == (8, 8, 9, 7)
    assert found.needs == (TRANSFERS,)


def test_schedules_differ_as_published() -> None:
    found = priced()
    seconds = {name: entry.step_seconds for name, entry in found.items()}
    peaks = {name: entry.peak_memory_bytes for name, entry in found.items()}
    assert seconds["ZB-H2"] < seconds["ZB-H1"] < seconds[BESIDE]
    assert seconds["ZB-V"] < seconds["V-Half"] < seconds["V-Min"]
    assert peaks["V-Min"] < peaks["V-Half"] < peaks["ZB-V"]
    assert peaks[BESIDE] < peaks["ZB-H1"] < peaks["ZB-H2"] < peaks["GPipe"]
    # Two copies of the weights and gradients, the optimizer's states split over twice the ranks.
    assert peaks["DualPipe"] > peaks[BESIDE]
    assert {name for name, entry in found.items() if V_SHAPE in entry.needs} == {
        "ZB-V",
        "V-Half",
        "V-Min",
        BIDIRECTIONAL,
    }
    assert {name for name, entry in found.items() if TWO_COPIES in entry.needs} == {"DualPipe", BIDIRECTIONAL}
    later = {name for name, entry in found.items() if POST_VALIDATION in entry.needs}
    assert later == {"ZB-H1", "ZB-H2", "ZB-V", "V-Half", "V-Min", LIMITED}


def test_what_fits_follows_the_limit_and_the_best_that_fits_is_what_the_target_costs() -> None:
    plan = with_other_schedules(plan_of(LAYOUT))
    limit = plan.best.memory_limit_bytes
    assert plan.schedules is not None
    assert {entry.fits for entry in plan.schedules.priced} == {True, False}
    assert all(entry.fits == (entry.peak_memory_bytes <= limit) for entry in plan.schedules.priced)
    best = plan.schedules.best
    assert best is not None
    assert best.step_seconds == min(entry.step_seconds for entry in plan.schedules.priced if entry.fits)
    cost = plan.schedule_cost_fraction
    assert cost is not None
    assert cost == pytest.approx(1 - best.step_seconds / plan.best.step_seconds)
    assert cost > 0
    assert with_other_schedules(plan_of(LAYOUT)) == plan


def test_less_memory_lets_less_fit_and_the_scheduler_within_memory_keeps_to_it() -> None:
    for headroom in (0.06, 0.3, 0.4):
        plan = with_other_schedules(plan_of(LAYOUT, headroom=headroom))
        assert plan.schedules is not None
        within = [entry for entry in plan.schedules.priced if entry.schedule == LIMITED]
        assert all(entry.fits for entry in within)
        assert bool(within) != (LIMITED in plan.schedules.left_out)


def test_what_cannot_run_says_why() -> None:
    few = replace(LAYOUT, dp=2, micro_batch_size=4, num_microbatches=4)
    alone = replace(
        LAYOUT, pp=1, dp=8, num_microbatches=4, schedule=Schedule.NO_PIPELINE, stages=stages_from_counts((32,))
    )
    schedules = with_other_schedules(plan_of(alone, few)).schedules
    assert schedules is not None
    assert {entry.index for entry in schedules.priced} == {1}
    assert schedules.left_out["ZB-V"] == "layout 1: ZB-V needs at least 2 pp = 8 micro-batches, not 4"
    assert schedules.left_out["DualPipe"].startswith("layout 1: DualPipe needs even pp and micro-batches")
    nothing = with_other_schedules(plan_of(alone))
    assert nothing.schedules is not None
    assert nothing.schedules.priced == ()
    assert nothing.schedule_cost_fraction is None


def test_an_interleaved_layout_is_not_priced_under_1f1b_again() -> None:
    layout = replace(
        LAYOUT,
        vpp=2,
        schedule=Schedule.INTERLEAVED,
        overlap=replace(LAYOUT.overlap, p2p=True),
        stages=stages_from_counts(even_counts(32, 8)),
    )
    schedules = with_other_schedules(plan_of(layout)).schedules
    assert schedules is not None
    assert schedules.left_out == {BESIDE: "layout 0: the search chooses among it and interleaving"}
    by_name = {entry.schedule: entry for entry in schedules.priced}
    assert by_name["breadth-first"].layers_per_stage == even_counts(32, 8)
    assert TRANSFERS not in by_name["breadth-first"].needs


def test_layers_recomputed_by_stage_are_not_priced_in_other_stages() -> None:
    layout = replace(LAYOUT, recompute=Recompute(granularity=Granularity.FULL, num_layers=2))
    schedules = with_other_schedules(plan_of(layout)).schedules
    assert schedules is not None
    reason = "layout 0: a number of recomputed layers is one of each stage, and it has other stages"
    assert schedules.left_out["ZB-V"] == reason
    assert "ZB-H1" in {entry.schedule for entry in schedules.priced}
