"""Layouts beside one another: the frontier is the definition, labels stay apart, figures stand in the table."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from cli.report_page.layouts_plot import LETTER, LINE_HEIGHT, Point, band_elements, frontier, pareto_elements
from planner.plans.plan import Certainty
from planner.units import GIB
from tests.pages import read_elements

POINTS = st.lists(
    st.builds(
        Point,
        label=st.text("abc", min_size=1, max_size=12),
        seconds=st.sampled_from([1.0, 1.001, 1.5, 2.0]),
        num_bytes=st.sampled_from([GIB, 2 * GIB, 2 * GIB + 1, 5 * GIB]),
    ),
    min_size=1,
    max_size=8,
)


@given(points=POINTS)
def test_the_frontier_holds_what_no_other_layout_beats(points: list[Point]) -> None:
    def beaten(point: Point) -> bool:
        return any(
            (other.seconds, other.num_bytes) != (point.seconds, point.num_bytes)
            and other.seconds <= point.seconds
            and other.num_bytes <= point.num_bytes
            for other in points
        )

    wanted = {(point.seconds, point.num_bytes) for point in points if not beaten(point)}
    found = [(point.seconds, point.num_bytes) for point in frontier(points)]
    assert found == sorted(wanted)


@given(points=POINTS)
def test_labels_of_the_plot_do_not_run_into_one_another(points: list[Point]) -> None:
    page = read_elements(*pareto_elements(points, limit_bytes=8 * GIB))
    boxes = [
        (float(text.attributes["x"]), float(text.attributes["y"]), len(text.text)) for text in page.with_class("halo")
    ]
    assert len(boxes) == len(points)
    for (x, y, length), (other_x, other_y, other_length) in combinations(boxes, 2):
        apart = x + LETTER * length < other_x or other_x + LETTER * other_length < x
        assert apart or abs(y - other_y) >= LINE_HEIGHT - 0.02


def test_memory_against_time_stands_in_a_table_too() -> None:
    points = (
        Point(label="best", seconds=1.0, num_bytes=6 * GIB),
        Point(label="runner-up 1", seconds=1.5, num_bytes=4 * GIB),
        Point(label="baseline", seconds=2.0, num_bytes=5 * GIB),
    )
    page = read_elements(*pareto_elements(points, limit_bytes=7 * GIB))
    assert page.rows() == [
        ["layout", "step time", "peak memory", "left", "on the frontier"],
        ["best", "1,000.0 ms", "6.00 GiB", "1.00 GiB", "yes"],
        ["runner-up 1", "1,500.0 ms", "4.00 GiB", "3.00 GiB", "yes"],
        ["baseline", "2,000.0 ms", "5.00 GiB", "2.00 GiB", "no"],
    ]
    assert [len(page.with_class(kind)) for kind in ("dot", "hollow", "frontier", "limit")] == [2, 1, 1, 1]


def test_the_band_reaches_as_far_as_the_certainty_says() -> None:
    points = (Point(label="best", seconds=1.0, num_bytes=1), Point(label="runner-up 1", seconds=1.05, num_bytes=1))
    certainty = Certainty(half_width=0.25, source="runs", ratio_half_width=0.1, ratio_source="pairs")
    page = read_elements(*band_elements(points, certainty))
    (caption,) = page.all("figcaption")
    assert caption.text == (
        "The bar is the band of the best layout, 800.0 ms to 1,250.0 ms: runs. Most of an error is common to all "
        "layouts. Layouts left of the dashed line could swap with the best: pairs."
    )
    best, second = (float(dot.attributes["cx"]) for dot in page.with_class("dot"))
    (line,) = page.with_class("limit")
    swap = float(line.attributes["d"].split()[0].removeprefix("M"))
    # 1.1 is twice as far from the best as 1.05.
    assert abs((swap - best) - 2 * (second - best)) < 0.2


def test_without_a_certainty_there_is_no_band() -> None:
    points = (Point(label="best", seconds=1.0, num_bytes=1),)
    page = read_elements(*band_elements(points, None))
    assert [page.with_class("band"), page.with_class("limit"), page.all("figcaption")] == [[], [], []]
    assert [text.text for text in page.with_class("halo")] == ["1,000.0 ms"]
