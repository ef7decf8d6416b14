"""The picture of a step shows its passes where the timeline has them, and says what it leaves out."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cli.plan_file import read_plan
from cli.report_page.pipeline_picture import (
    LEFT,
    MOST_PASSES,
    held_in_words,
    passes_in,
    pipeline_elements,
    stretches,
)
from planner.evaluation.described import evaluation_of
from planner.evaluation.evaluate import Evaluation
from planner.layout import Layout, Stage
from planner.plans.plan import Plan
from tests.pages import Node, read_elements
from tests.unit.cli.samples import sample_plan

EXAMPLES = Path(__file__).parents[4] / "examples"
SHORT = ("qwen3-235b-a22b-32xdgx-h100", "llama-3.1-8b-1m-tokens-8xdgx-h100")
LONG = (
    "llama-3.1-70b-8xdgx-h100",
    "llama-3.1-70b-lora-1xdgx-h100",
    "llama-3.1-405b-128xdgx-h100",
    "mixtral-8x22b-8xdgx-h100",
)
STROKE = re.compile(r"M([\d.]+) 0h([\d.]+)")


@cache
def evaluated(example: str) -> tuple[Evaluation, Layout]:
    plan: Plan = read_plan(EXAMPLES / example / "expected")
    return evaluation_of(plan, plan.best.layout), plan.best.layout


def pictures(page: Node) -> list[Node]:
    return [svg for svg in page.all("svg") if svg.attributes.get("role") == "img"]


def passes(picture: Node) -> list[str]:
    strokes = picture.with_class("forward") + picture.with_class("backward")
    return [title.text for group in strokes for title in group.all("title")]


@pytest.mark.parametrize("example", SHORT)
def test_a_short_step_is_drawn_whole_each_pass_once(example: str) -> None:
    evaluation, layout = evaluated(example)
    page = read_elements(*pipeline_elements(evaluation, layout))
    (picture,) = pictures(page)
    drawn = Counter(passes(picture))
    order = evaluation.timeline.order
    assert drawn.total() == order.stage_RK.size
    # A name says direction, micro-batch and, with several stages a rank, the stage; each stage has every one once.
    assert set(drawn.values()) == {1 if layout.vpp > 1 else layout.pp}
    scrolls = (
        " The picture is wider than the text: scroll it sideways." if float(picture.attributes["width"]) > 1100 else ""
    )
    assert page.all("figcaption")[0].text == f"All {order.stage_RK.size:,} passes of the step are drawn.{scrolls}"


def test_a_pass_stands_where_the_timeline_has_it() -> None:
    evaluation, layout = evaluated(SHORT[0])
    timeline = evaluation.timeline
    (picture,) = pictures(read_elements(*pipeline_elements(evaluation, layout)))
    width = float(picture.attributes["width"]) - LEFT - 32.0
    rows = [
        [path for group in row.children if isinstance(group, Node) for path in group.all("path")]
        for row in picture.all("g")
        if row.attributes.get("transform", "").startswith("translate") and "stroke-width" in row.attributes
    ]
    assert len(rows) == layout.pp
    for rank, strokes in enumerate(rows):
        # Strokes go by kind, so forward passes come in the order in which they start.
        starts = timeline.start_seconds_RK[rank][~timeline.order.is_backward_RK[rank]]
        expected = LEFT + starts / evaluation.step_seconds * width
        found = [float(match[1]) for match in map(STROKE.match, (path.attributes["d"] for path in strokes)) if match]
        assert found[: len(expected)] == pytest.approx(expected.tolist(), abs=0.06)


@pytest.mark.parametrize("example", LONG)
def test_a_long_step_is_drawn_at_both_ends_and_the_rest_is_counted(example: str) -> None:
    evaluation, layout = evaluated(example)
    timeline = evaluation.timeline
    first, last = stretches(timeline, step_seconds=evaluation.step_seconds)
    assert (first.start_seconds, last.end_seconds) == (0.0, evaluation.step_seconds)
    assert first.end_seconds < last.start_seconds
    page = read_elements(*pipeline_elements(evaluation, layout))
    shown = [len(passes(picture)) for picture in pictures(page)]
    wanted = [len(passes_in(timeline, stretch)) for stretch in (first, last)]
    # A pass of which only a hair lies in the stretch is one of it too.
    assert shown == wanted
    assert max(shown) <= MOST_PASSES + layout.pp
    caption = page.all("figcaption")[0].text
    every = timeline.start_seconds_RK.size
    assert caption.startswith(
        f"{sum(shown):,} of {every:,} passes are drawn. Left out: {every - sum(shown):,} passes from "
    )


@pytest.mark.parametrize("example", LONG)
def test_the_first_stretch_shows_passes_of_every_rank_and_the_last_one_every_end(example: str) -> None:
    evaluation, layout = evaluated(example)
    timeline = evaluation.timeline
    first, last = stretches(timeline, step_seconds=evaluation.step_seconds)
    assert {rank for rank, _ in passes_in(timeline, first)} == set(range(layout.pp))
    final = timeline.start_seconds_RK.shape[1] - 1
    assert {(rank, final) for rank in range(layout.pp)} <= set(passes_in(timeline, last))
    assert np.all(timeline.rank_end_seconds_R >= last.start_seconds)


def test_later_stages_of_a_rank_are_fainter() -> None:
    evaluation, layout = evaluated(SHORT[0])
    (picture,) = pictures(read_elements(*pipeline_elements(evaluation, layout)))
    opacity: dict[int, set[str]] = {}
    for path in picture.with_class("forward")[0].all("path"):
        stage = int(path.text.split()[-1])
        opacity.setdefault(stage // layout.pp, set()).add(path.attributes.get("stroke-opacity", "1"))
    assert {chunk: sorted(values) for chunk, values in sorted(opacity.items())} == {
        0: ["1"],
        1: ["0.9"],
        2: ["0.8"],
        3: ["0.7"],
        4: ["0.6"],
        5: ["0.5"],
    }


def test_tables_say_what_ranks_and_stages_do() -> None:
    plan = sample_plan()
    evaluation = evaluation_of(plan, plan.best.layout)
    page = read_elements(*pipeline_elements(evaluation, plan.best.layout))
    ranks, stages = (details.rows() for details in page.all("details"))
    assert [len(ranks), len(stages)] == [3, 3]
    times = evaluation.timeline.times
    assert [row[2] for row in stages[1:]] == ["embedding, layers 0 to 1", "layers 2 to 3, head"]
    assert [row[3] for row in stages[1:]] == [f"{seconds * 1e3:,.1f} ms" for seconds in times.forward_seconds_V]
    assert [row[3] for row in ranks[1:]] == [
        f"{seconds * 1e3:,.1f} ms" for seconds in evaluation.timeline.busy_seconds_R.tolist()
    ]


def test_without_a_pipeline_there_is_one_row_and_no_word_of_a_bubble() -> None:
    evaluation, layout = evaluated(SHORT[1])
    page = read_elements(*pipeline_elements(evaluation, layout))
    assert len(pictures(page)[0].with_class("row")) == 1
    assert page.all("p") == []


def test_what_a_stage_holds_in_words() -> None:
    whole = Stage(first_layer=0, num_layers=4, has_embedding=True, has_head=True)
    assert held_in_words(whole) == "embedding, layers 0 to 3, head"
    assert held_in_words(Stage(first_layer=4, num_layers=1, has_embedding=False, has_head=False)) == "layer 4"
    assert held_in_words(Stage(first_layer=5, num_layers=0, has_embedding=False, has_head=True)) == "head"
