"""No random layout, and none a move or two from the plan, is better than the plan by the independent evaluator."""

from collections import Counter
from dataclasses import asdict
from itertools import islice
from random import Random

import pytest

from benchmarks.brute_force import can_say
from benchmarks.layouts import Judge, Verdict, moves, random_layouts
from benchmarks.meshes import Run
from benchmarks.random_layouts import CLUSTERS, LAYOUTS, Case, run_of, try_case
from planner.evaluation.evaluate import Evaluation, evaluate
from planner.evaluation.priced_step import priced_step
from planner.evaluation.validate import layout_violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Layout
from planner.memory.ledger import memory_limit_bytes
from planner.models.bundled import model_names
from planner.models.layers import build_graph
from planner.ranks.placement import PlacedModel, place
from planner.search.search import search
from profiles.planned import cost_model_on

FEW = 40
JUDGED = [("llama-3.1-70b", "dgx-h100-8"), ("mixtral-8x7b", "dgx-a100-8"), ("nemotron-h-56b", "dgx-h100-8")]
ROUNDING = 1e-12


def assert_nothing_is_better(case: Case, *, layouts: int) -> None:
    assert [asdict(better) for better in case.better] == []
    assert case.step_seconds is None or case.priced["random"] == layouts


@pytest.mark.parametrize(
    ("model", "cluster"),
    [
        ("llama-3.1-8b", "dgx-h100-1"),
        ("mixtral-8x7b", "dgx-a100-8"),
        ("phi-2", "dgx-h100-1"),
        ("gemma-2b", "dgx-h100-1"),
        pytest.param("gpt-oss-20b", "dgx-h100-8", marks=pytest.mark.slow),
    ],
)
def test_no_layout_that_is_drawn_is_better_than_the_plan(model: str, cluster: str) -> None:
    assert_nothing_is_better(try_case(model, cluster, layouts=FEW, seed=0), layouts=FEW)


@pytest.mark.long
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("model", model_names())
def test_none_of_many_layouts_that_are_drawn_is_better_than_the_plan(model: str, cluster: str) -> None:
    assert [asdict(better) for better in try_case(model, cluster, layouts=LAYOUTS, seed=0).better] == []


def placed_alone(run: Run, layout: Layout) -> PlacedModel:
    capabilities = CAPABILITIES[run.request.target]
    graph = build_graph(run.model, run.workload, eager=capabilities.eager)
    return place(run.model, graph, layout, run.workload, capabilities)


def evaluated_alone(run: Run, layout: Layout) -> Evaluation:
    """Return a layout's price with nothing kept from any other."""
    return evaluate(placed_alone(run, layout), cost_model_on(run.cluster, CAPABILITIES[run.request.target].software))


def expected_verdict(run: Run, layout: Layout) -> Verdict:
    """Return a layout's verdict from the whole list of what it breaks and from its whole ledger."""
    placed = placed_alone(run, layout)
    graph = build_graph(run.model, run.workload, eager=placed.capabilities.eager)
    if list(layout_violations(layout, run.model, graph, run.cluster, run.request)):
        return Verdict.ILLEGAL
    limit = memory_limit_bytes(run.cluster.device.memory_bytes, run.request.memory_headroom)
    if evaluated_alone(run, layout).peak_memory_bytes > limit:
        return Verdict.TOO_LARGE
    return Verdict.SIMULATED if can_say(layout, run) else Verdict.ILLEGAL


@pytest.mark.parametrize(("model", "cluster"), JUDGED)
def test_a_judge_that_keeps_prices_says_what_a_lone_evaluation_does(model: str, cluster: str) -> None:
    run = run_of(model, cluster)
    judge = Judge(run)
    seen: Counter[Verdict] = Counter()
    for layout in islice(random_layouts(run, Random(1)), 3 * FEW):
        judged = judge.judged(layout)
        seen[judged.verdict] += 1
        assert judged.verdict is expected_verdict(run, layout)
        if judged.verdict is Verdict.SIMULATED:
            assert judged.step_seconds == evaluated_alone(run, layout).step_seconds
    assert min(seen[verdict] for verdict in Verdict if verdict is not Verdict.SLOWER_BY_BOUND) > 0


@pytest.mark.parametrize(("model", "cluster"), JUDGED)
def test_no_step_is_shorter_than_its_ranks_own_work_and_ways(model: str, cluster: str) -> None:
    run = run_of(model, cluster)
    judge = Judge(run)
    cost_model = cost_model_on(run.cluster, CAPABILITIES[run.request.target].software)
    shares = []
    for layout in islice(random_layouts(run, Random(2)), 6 * FEW):
        seconds = judge.judged(layout).step_seconds
        if seconds is None:
            continue
        shares.append(priced_step(placed_alone(run, layout), cost_model).least_seconds() / seconds)
        assert shares[-1] <= 1 + ROUNDING
        assert judge.judged(layout, ceiling_seconds=seconds / 2).verdict is Verdict.SLOWER_BY_BOUND or shares[-1] < 0.5
        assert judge.judged(layout, ceiling_seconds=2 * seconds).step_seconds == seconds
    assert max(shares) > 0.99


def test_from_a_worse_layout_a_move_leads_to_a_better_one() -> None:
    run = run_of("llama-3.1-8b", "dgx-h100-1")
    judge = Judge(run)

    def priced_moves(layout: Layout) -> list[tuple[float, Layout]]:
        judged = [(judge.judged(moved).step_seconds, moved) for moved in moves(layout, run)]
        return [(seconds, moved) for seconds, moved in judged if seconds is not None]

    best = search(run.model, run.cluster, run.request).best
    seconds, worse = max(priced_moves(best.layout), key=lambda entry: entry[0])
    assert seconds > best.step_seconds
    assert min(entry[0] for entry in priced_moves(worse)) < seconds
