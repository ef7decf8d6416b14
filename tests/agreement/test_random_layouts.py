"""No random layout, and none a move or two from the plan, is better than the plan by the independent evaluator."""

from dataclasses import asdict

import pytest

from benchmarks.layouts import Judge, moves
from benchmarks.points import is_proved
from benchmarks.random_layouts import CLUSTERS, LAYOUTS, Case, run_of, try_case
from planner.bundled import model_names
from planner.search import search

FEW = 40


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
        ("gpt-oss-20b", "dgx-h100-8"),
    ],
)
def test_no_layout_that_is_drawn_is_better_than_the_plan(model: str, cluster: str) -> None:
    assert_nothing_is_better(try_case(model, cluster, layouts=FEW, seed=0), layouts=FEW)


@pytest.mark.long
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("model", model_names())
def test_none_of_many_layouts_that_are_drawn_is_better_than_the_plan(model: str, cluster: str) -> None:
    assert [asdict(better) for better in try_case(model, cluster, layouts=LAYOUTS, seed=0).better] == []


def test_a_plan_that_is_not_the_best_is_found_out() -> None:
    run = run_of("llama-3.1-8b", "dgx-h100-1")
    plan = search(run.model, run.cluster, run.request)
    judge = Judge(run=run)
    worse = plan.plans[-1].layout
    better = [
        seconds
        for layout in moves(worse, run)
        if judge.is_legal(layout)
        and (seconds := judge.step_seconds(layout)) is not None
        and seconds < plan.plans[-1].step_seconds
    ]
    assert better


def test_the_best_layout_is_one_that_is_searched() -> None:
    run = run_of("llama-3.1-8b", "dgx-h100-1")
    assert is_proved(search(run.model, run.cluster, run.request).best.layout, run)
