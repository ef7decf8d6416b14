"""The number of nodes as a decision: every verdict against a search of each number by itself."""

import math
from dataclasses import replace
from functools import cache

import pytest

from planner.decisions.nodes import _Search, part_of, plan_nodes
from planner.evaluation.validate import violations
from planner.models.bundled import load_bundled
from planner.plans.choices import NodeChoice, NodeCount, NodeVerdict
from planner.plans.plan import Plan, Status
from planner.requests.objectives import seconds_at_deadline
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.schema.plan import plan_to_text
from planner.search.ground import ignore, prepare
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from profiles.schema import ClusterEntry
from solvers.errors import SolverError
from tests.builders import GIB, tiny_dense_model, tiny_request, two_node_cluster, wide_dense_model

OFFERED = 6
MODEL = tiny_dense_model()


def cluster_of(num_nodes: int = OFFERED) -> Cluster:
    return two_node_cluster(num_nodes=num_nodes)


def asked(**changes: object) -> PlanRequest:
    """Return 24 sequences, which some numbers of nodes split better than others, with changes."""
    workload = replace(tiny_request().workload, global_batch_size=24)
    free = replace(tiny_request(), workload=workload, constraints=Constraints(), node_counts=Bounds(minimum=1))
    return replace(free, **changes)  # type: ignore[arg-type]


@cache
def alone(num_nodes: int) -> Plan:
    """Return the plan of one number of nodes, searched by itself."""
    return search(MODEL, cluster_of(num_nodes), asked(), top=5)


def best_step(num_nodes: int) -> float | None:
    plan = alone(num_nodes)
    return plan.best.step_seconds if plan.plans else None


def choice_of(plan: Plan) -> NodeChoice:
    assert plan.node_choice is not None
    return plan.node_choice


def days_with(step_seconds: float) -> float:
    return step_seconds / seconds_at_deadline(1.0, asked().workload)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 5, 6])
def test_a_part_of_a_cluster_is_the_cluster_of_so_many_nodes(num_nodes: int) -> None:
    assert part_of(cluster_of(), num_nodes) == cluster_of(num_nodes)


@pytest.mark.parametrize("preset", ["dgx-h100", "dgx-a100", "gb200-nvl72"])
@pytest.mark.parametrize("num_nodes", [1, 2, 7, 20])
def test_a_part_of_a_preset_is_what_a_spec_with_so_many_nodes_says(preset: str, num_nodes: int) -> None:
    whole = load_preset(preset).model_copy(update={"nodes": 40}).to_cluster()
    said = ClusterEntry.model_validate({"preset": preset, "nodes": num_nodes}).to_cluster()
    assert part_of(whole, num_nodes) == said


def test_a_name_made_of_the_number_of_nodes_follows_it() -> None:
    entry = {
        "gpu": "l40s",
        "gpus_per_node": 4,
        "nodes": 3,
        "nics": {"count": 1, "bandwidth": "100Gb/s"},
        "host_ram": "512GiB",
    }
    whole = ClusterEntry.model_validate(entry).to_cluster()
    assert part_of(whole, 2) == ClusterEntry.model_validate({**entry, "nodes": 2}).to_cluster()


def test_a_bound_of_all_layouts_is_below_the_best_of_every_number() -> None:
    for num_nodes in range(1, OFFERED + 1):
        bound = prepare(MODEL, cluster_of(num_nodes), asked()).lower_bound_seconds()
        step = best_step(num_nodes)
        assert math.isinf(bound) if step is None else bound <= step


@pytest.mark.parametrize("objective", [Objective.STEP_TIME, Objective.DAYS, Objective.COST, Objective.ENERGY])
def test_the_choice_is_the_best_of_all_numbers_searched_by_themselves(objective: Objective) -> None:
    plan = plan_nodes(MODEL, cluster_of(), asked(objective=objective))
    time_counts = objective in (Objective.STEP_TIME, Objective.DAYS)
    worth = {
        nodes: step * (1 if time_counts else nodes)
        for nodes in range(1, OFFERED + 1)
        if (step := best_step(nodes)) is not None
    }
    best = min(worth, key=lambda nodes: (worth[nodes], nodes))
    assert plan.cluster == cluster_of(best)
    assert plan.plans == alone(best).plans
    assert choice_of(plan).proven
    assert plan.status is Status.OPTIMAL
    for row in choice_of(plan).counts:
        step = best_step(row.num_nodes)
        assert row.step_seconds is None or row.step_seconds == step
        assert (row.verdict is NodeVerdict.NO_LAYOUT) == (step is None)
        assert row.bound_seconds is None or (step is not None and row.bound_seconds <= step)
        assert (row.verdict is NodeVerdict.BEST) == (row.num_nodes == best)


def test_the_fewest_nodes_that_meet_a_deadline_are_found_and_fewer_do_not() -> None:
    for enough in range(1, OFFERED + 1):
        step = best_step(enough)
        if step is None:
            continue
        plan = plan_nodes(
            MODEL, cluster_of(), asked(objective=Objective.FEWEST_NODES, deadline_days=days_with(step) * (1 + 1e-9))
        )
        meeting = [
            n for n in range(1, OFFERED + 1) if (other := best_step(n)) is not None and other <= step * (1 + 1e-9)
        ]
        assert plan.cluster.num_nodes == meeting[0]
        assert (plan.bound, plan.gap, plan.status) == (meeting[0], 0.0, Status.OPTIMAL)
        verdicts = {row.num_nodes: row.verdict for row in choice_of(plan).counts}
        assert set(verdicts) == set(range(1, OFFERED + 1))
        assert all((verdict is NodeVerdict.NOT_NEEDED) == (nodes > meeting[0]) for nodes, verdict in verdicts.items())
        assert violations(plan.best, plan.model, plan.cluster, plan.request) == ()


def test_more_nodes_may_be_slower_and_nothing_takes_them_to_be_faster() -> None:
    steps = [step for nodes in range(1, OFFERED + 1) if (step := best_step(nodes)) is not None]
    assert steps != sorted(steps, reverse=True)


def test_a_deadline_just_missed_says_by_how_much_and_what_would_meet_it() -> None:
    fastest = min(range(1, OFFERED + 1), key=lambda nodes: best_step(nodes) or math.inf)
    step = best_step(fastest)
    assert step is not None
    days = days_with(step)
    plan = plan_nodes(MODEL, cluster_of(), asked(objective=Objective.FEWEST_NODES, deadline_days=days * (1 - 1e-6)))
    assert plan.status is Status.INFEASIBLE
    assert plan.plans == ()
    assert plan.infeasible is not None
    assert plan.infeasible.misses_deadline
    assert plan.infeasible.nearest == alone(fastest).best
    assert plan.infeasible.shortfall_bytes == 0
    assert plan.infeasible.binding.startswith(
        f"the deadline: the fastest layout takes {days:.3g} days on {fastest} node"
    )
    assert {row.verdict for row in choice_of(plan).counts} <= {
        NodeVerdict.NO_LAYOUT,
        NodeVerdict.TOO_SLOW,
        NodeVerdict.BOUND_TOO_SLOW,
    }
    for relaxation in plan.infeasible.relaxations:
        if relaxation.path == "cluster.nodes":
            wider = plan_nodes(MODEL, cluster_of(int(relaxation.value)), plan.request)
        else:
            wider = plan_nodes(MODEL, cluster_of(), replace(plan.request, deadline_days=float(relaxation.value)))
        assert wider.plans


def test_a_deadline_far_away_still_names_the_fastest_layout() -> None:
    fastest = min(range(1, OFFERED + 1), key=lambda nodes: best_step(nodes) or math.inf)
    plan = plan_nodes(MODEL, cluster_of(), asked(objective=Objective.COST, deadline_days=1e-9))
    assert plan.infeasible is not None
    assert plan.infeasible.nearest == alone(fastest).best
    assert [row.path for row in plan.infeasible.relaxations] == ["deadline_days"]


@pytest.mark.parametrize(("num_nodes", "offered"), [(1, []), (2, ["4"])])
def test_more_nodes_are_offered_only_where_it_is_known_what_joins_them(num_nodes: int, offered: list[str]) -> None:
    model, workload = wide_dense_model(), replace(tiny_request().workload, seq_len=4096, global_batch_size=64)
    request = asked(workload=workload, node_counts=None)
    step = search(model, cluster_of(num_nodes), request, top=1).best.step_seconds
    deadline = 0.75 * step / seconds_at_deadline(1.0, workload)
    plan = plan_nodes(model, cluster_of(num_nodes), replace(request, deadline_days=deadline))
    assert plan.infeasible is not None
    assert [row.value for row in plan.infeasible.relaxations if row.path == "cluster.nodes"] == offered


def test_a_deadline_alone_keeps_all_nodes() -> None:
    request = asked(node_counts=None, deadline_days=1e5)
    plan = plan_nodes(MODEL, cluster_of(4), request)
    assert plan.node_choice is None
    assert plan == replace(alone(4), request=request)


def test_where_nothing_fits_on_any_number_it_is_said_why() -> None:
    small = replace(cluster_of(2), device=replace(cluster_of(2).device, memory_bytes=1 * GIB))
    plan = plan_nodes(MODEL, small, asked())
    assert plan.status is Status.INFEASIBLE
    assert plan.infeasible is not None
    assert not plan.infeasible.misses_deadline
    assert plan.infeasible.shortfall_bytes > 0
    assert [row.verdict for row in choice_of(plan).counts] == [NodeVerdict.NO_LAYOUT] * 2


def test_what_is_not_proved_is_not_called_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    model, workload = (
        load_bundled("llama-3.1-8b"),
        TrainWorkload(seq_len=4096, global_batch_size=64, precision=Precision.BF16, tokens_to_train=10**9),
    )
    cluster = load_preset("dgx-h100").model_copy(update={"nodes": 1}).to_cluster()
    request = PlanRequest(
        workload=workload,
        constraints=Constraints(),
        memory_headroom=0.05,
        target=Target.MEGATRON,
        objective=Objective.STEP_TIME,
        deadline_days=1.0,
    )
    monkeypatch.setattr("planner.search.visit.MAX_VISITED", 1)
    stopped = search(model, cluster, request)
    assert stopped.gap is not None
    assert stopped.gap > 0
    missed = stopped.best.step_seconds * (1 - stopped.gap / 2)
    short = replace(request, deadline_days=missed / seconds_at_deadline(1.0, workload))
    with pytest.raises(SolverError) as caught:
        plan_nodes(model, cluster, short)
    assert "nothing found that meets the deadline and nothing proved" in str(caught.value)
    assert "not decided on 1 node; the fastest layout found takes " in str(caught.value)


def test_schedules_too_long_to_simulate_leave_a_number_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.search.space.enumeration.MAX_SCHEDULED_OPERATIONS", 1)
    with pytest.raises(SolverError) as caught:
        plan_nodes(MODEL, cluster_of(2), asked())
    assert "nothing found and nothing proved" in str(caught.value)
    assert "not decided on 1, 2 nodes" in str(caught.value)


def test_an_open_number_is_no_proof_of_another() -> None:
    request = asked()
    search_ = _Search(MODEL, cluster_of(2), request, top=1)
    search_.look(2, watch=ignore, needed_seconds=math.inf)
    step = best_step(2)
    assert step is not None
    assert search_.bound_merit(but=2) == math.inf
    search_.rows[1] = NodeCount(num_nodes=1, verdict=NodeVerdict.OPEN, bound_seconds=step / 2)
    assert search_.bound_merit(but=2) == step / 2


def test_equal_inputs_give_equal_bytes() -> None:
    request = asked(objective=Objective.COST)
    first, second = (plan_nodes(MODEL, cluster_of(), request) for _ in range(2))
    assert plan_to_text(first) == plan_to_text(second)
