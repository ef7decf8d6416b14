"""The search on real models and clusters: what the answers must look like, and that they are the same each time."""

from dataclasses import replace

import pytest

from planner.errors import NotExpressibleError
from planner.models.bundled import load_bundled
from planner.models.specs import BlockRun
from planner.plans.plan import Plan, Status
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import AttentionKernel, Precision, TrainWorkload
from planner.schema.plan import plan_to_text
from planner.search.search import search
from profiles.catalogue import load_preset
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster

RUN = TrainWorkload(seq_len=4096, global_batch_size=512, precision=Precision.BF16)


def asked(workload: TrainWorkload = RUN, constraints: Constraints | None = None) -> PlanRequest:
    return PlanRequest(
        workload=workload,
        constraints=constraints or Constraints(),
        memory_headroom=0.05,
        target=Target.MEGATRON,
        objective=Objective.STEP_TIME,
    )


def nodes_of(preset: str, nodes: int) -> Cluster:
    return load_preset(preset).model_copy(update={"nodes": nodes}).to_cluster()


@pytest.fixture(scope="module", params=["dgx-h100", "dgx-a100"])
def plan_of_70b(request: pytest.FixtureRequest) -> Plan:
    return search(load_bundled("llama-3.1-70b"), nodes_of(request.param, 8), asked())


def test_70b_on_64_gpus_stays_in_the_nvlink_domain_at_a_plausible_mfu(plan_of_70b: Plan) -> None:
    assert len(plan_of_70b.plans) == 5
    for planned in plan_of_70b.plans:
        assert planned.layout.tp <= 8
        assert 0.30 <= planned.mfu <= 0.60
        assert planned.peak_memory_bytes <= planned.memory_limit_bytes
        assert planned.layout.world_size == 64
        assert planned.layout.global_batch_size == 512


def test_70b_search_and_check_agree_and_the_account_is_complete(plan_of_70b: Plan) -> None:
    for planned in plan_of_70b.plans:
        assert planned.step_seconds == pytest.approx(planned.reevaluated_step_seconds, rel=1e-9)
        assert sum(line.seconds for line in planned.time) == pytest.approx(planned.step_seconds, rel=1e-8)
        assert planned.lower_bound_seconds <= planned.step_seconds * (1 + 1e-12)
    account = plan_of_70b.search
    assert sum(account.pruned.values()) + account.simulated == account.considered
    assert account.legal < account.considered


def test_70b_beats_its_baseline_and_says_how_sure_it_is(plan_of_70b: Plan) -> None:
    assert plan_of_70b.baseline is not None
    assert plan_of_70b.best.step_seconds <= plan_of_70b.baseline.step_seconds
    assert plan_of_70b.bound is not None
    assert plan_of_70b.gap is not None
    assert plan_of_70b.bound <= plan_of_70b.best.step_seconds
    assert plan_of_70b.gap <= 0.15
    assert plan_of_70b.status is (Status.OPTIMAL if plan_of_70b.gap <= 1e-6 else Status.FEASIBLE)


def tiny_plan(constraints: Constraints | None = None, **changes: object) -> Plan:
    changed = replace(asked(tiny_workload(), constraints), **changes)  # type: ignore[arg-type]
    return search(tiny_dense_model(), two_node_cluster(), changed)


def test_equal_inputs_give_equal_plans_and_equal_documents() -> None:
    first, second = tiny_plan(), tiny_plan()
    assert first == second
    assert plan_to_text(first) == plan_to_text(second)


def test_pins_are_kept_and_cost_time() -> None:
    free = tiny_plan()
    pinned = tiny_plan(Constraints(degrees={"tp": Bounds(allowed=(2,)), "pp": Bounds(allowed=(2,))}))
    assert {(planned.layout.tp, planned.layout.pp) for planned in pinned.plans} == {(2, 2)}
    assert pinned.best.step_seconds >= free.best.step_seconds


def test_plans_come_best_first_and_no_more_than_asked_for() -> None:
    plan = search(tiny_dense_model(), two_node_cluster(), asked(tiny_workload()), top=3)
    seconds = [planned.step_seconds for planned in plan.plans]
    assert len(seconds) == 3
    assert seconds == sorted(seconds)
    one = search(tiny_dense_model(), two_node_cluster(), asked(tiny_workload()), top=1)
    assert one.plans == plan.plans[:1]


def test_every_objective_has_the_same_best_plan_and_its_own_bound() -> None:
    by_objective = {objective: tiny_plan(objective=objective) for objective in Objective}
    assert len({plan.best.layout for plan in by_objective.values()}) == 1
    bound = by_objective[Objective.STEP_TIME].bound
    assert bound is not None
    assert by_objective[Objective.TOKENS_PER_GPU].bound == pytest.approx(16 * 128 / bound / 8)
    seconds = bound * 1_000_000 / (16 * 128)
    assert by_objective[Objective.DAYS].bound == pytest.approx(seconds / 86400)
    assert by_objective[Objective.COST].bound == pytest.approx(2.0 * 8 * seconds / 3600)
    assert by_objective[Objective.ENERGY].bound == pytest.approx(600.0 * 8 * seconds)
    assert by_objective[Objective.FEWEST_NODES].bound == 2.0
    assert by_objective[Objective.ROBUST].bound is None  # `planner.decisions.robust` gives it one


def test_headroom_is_left_free() -> None:
    assert tiny_plan(memory_headroom=0.5).best.memory_limit_bytes == 8 << 30


def test_what_megatron_cannot_say_is_refused_and_planned_for_any_target() -> None:
    model = tiny_dense_model()
    block = replace(model.runs[0].block, parallel=True)
    parallel = replace(model, runs=(BlockRun(block=block, count=4),))
    with pytest.raises(NotExpressibleError, match="`target: any` plans it as it is, without files to start from"):
        search(parallel, two_node_cluster(), asked(tiny_workload()))
    plan = search(parallel, two_node_cluster(), replace(asked(tiny_workload()), target=Target.ANY))
    assert plan.plans


def test_layouts_that_fit_and_that_the_target_cannot_say_are_no_lack_of_memory() -> None:
    pinned = Constraints(degrees={"cp": Bounds(allowed=(2,)), "tp": Bounds(allowed=(1,)), "pp": Bounds(allowed=(1,))})
    request = asked(replace(tiny_workload(), attention_kernel=AttentionKernel.UNFUSED), pinned)
    with pytest.raises(
        NotExpressibleError, match=r"attention_kernel unfused, which sees one rank only(.|\n)*target: any"
    ):
        search(tiny_dense_model(), two_node_cluster(), request)
    assert search(tiny_dense_model(), two_node_cluster(), replace(request, target=Target.ANY)).plans


def test_progress_is_reported() -> None:
    seen: list[str] = []
    search(
        tiny_dense_model(),
        two_node_cluster(),
        asked(tiny_workload()),
        watch=lambda activity, _done, _total: seen.append(activity),
    )
    assert list(dict.fromkeys(seen)) == [
        "enumerating layouts",
        "bounding layouts",
        "pricing layouts",
        "closing the gap",
        "checking the best plans",
    ]


def test_a_search_that_stops_early_says_so_and_one_that_has_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_plan()
    monkeypatch.setattr("planner.search.visit.MAX_VISITED", 1)
    early = tiny_plan()
    assert early.search.simulated == 1
    assert early.status is Status.FEASIBLE
    assert whole.bound is not None
    assert early.bound is not None
    assert early.bound <= whole.best.step_seconds <= early.best.step_seconds
    # Where no point fits, all of them are looked at before that is said.
    monkeypatch.setattr("planner.search.visit.MAX_VISITED", 0)
    assert tiny_plan().plans
