"""No random layout, and none a move or two from the plan, is better than the plan by the independent evaluator."""

from dataclasses import asdict

import pytest

from benchmarks.layouts import Judge, moves
from benchmarks.random_layouts import CLUSTERS, LAYOUTS, Case, run_of, try_case
from planner.bundled import model_names
from planner.layout import Layout
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


def test_from_a_worse_layout_a_move_leads_to_a_better_one() -> None:
    run = run_of("llama-3.1-8b", "dgx-h100-1")
    judge = Judge(run=run)

    def priced_moves(layout: Layout) -> list[tuple[float, Layout]]:
        legal = [moved for moved in moves(layout, run) if judge.is_legal(moved)]
        return [(seconds, moved) for moved in legal if (seconds := judge.step_seconds(moved)) is not None]

    best = search(run.model, run.cluster, run.request).best
    seconds, worse = max(priced_moves(best.layout), key=lambda entry: entry[0])
    assert seconds > best.step_seconds
    assert min(entry[0] for entry in priced_moves(worse)) < seconds
