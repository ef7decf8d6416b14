"""The page of a serving plan: every point of the front is drawn, the plan stands in it, the files are there whole."""

import pytest

from cli.report_page.serving_page import serving_page
from cli.report_page.speed_plot import speed_elements
from planner.serving_plans.plan import ParetoPoint
from planner.serving_search.launch import serve_files
from tests.pages import read_elements, read_page
from tests.served import served

IMPOSSIBLE = ("ttft_ms: 500", "ttft_ms: 5")


def point(user: float, gpu: float) -> ParetoPoint:
    return ParetoPoint(
        tokens_per_second_per_user=user,
        tokens_per_second_per_gpu=gpu,
        ttft_seconds=0.1,
        gpu="h100-sxm-80gb",
        words="tp1",
        batch=4,
        split=False,
    )


def test_a_page_says_what_the_plan_says() -> None:
    plan = served()
    page = read_page(serving_page(plan))
    headings = [node.text for node in page.all("h2")]
    assert [node.text for node in page.all("nav")[0].all("a")] == headings
    assert headings[:2] == ["Engines", "Requests, by simulation"]
    assert headings[-3:] == ["Assumptions", "Search", "Files"]
    assert len(page.all("circle")) == len(plan.pareto) + 1
    files = {part.all("summary")[0].text: part.all("pre")[0].text for part in page.all("details")}
    assert files == dict(serve_files(plan))
    tiles = [tile.all("b")[0].text for tile in page.with_class("tile")]
    assert tiles[0] == f"{plan.requests_per_second:,.2f}/s"
    assert tiles[-1] == "16.00 an hour"


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert serving_page(served()) == serving_page(served())


def test_a_page_without_a_plan_says_why() -> None:
    page = read_page(serving_page(served(IMPOSSIBLE)))
    assert page.all("h2")[0].text == "How far each target must move"
    assert not page.with_class("tile")
    assert any(paragraph.text.startswith("Binding: ttft") for paragraph in page.all("p"))


@pytest.mark.parametrize("planned", [None, (900.0, 30.0)])
def test_points_stand_where_their_figures_say(planned: tuple[float, float] | None) -> None:
    front = (point(100.0, 200.0), point(50.0, 400.0), point(25.0, 800.0))
    found = read_elements(*speed_elements(front, planned=planned))
    places = [(float(c.attributes["cx"]), float(c.attributes["cy"])) for c in found.with_class("dot")]
    # Halves of a figure are half as far from the axis.
    (x_1, y_1), (x_2, y_2), (x_3, y_3) = places
    assert x_1 - x_2 == pytest.approx(2 * (x_2 - x_3), abs=0.02)
    assert y_2 - y_3 == pytest.approx(2 * (y_1 - y_2), abs=0.02)
    assert len(found.with_class("hollow")) == (planned is not None)
