"""No text becomes markup, and blocks of the terminal keep what they say."""

import pytest

from cli.render import Blank, Facts, Item, Line, Style, Table, columns
from cli.report_page.markup import as_html, block_elements, element, grid_element, number
from tests.pages import read_elements, read_page

HOSTILE = "<script>alert('1')</script>&amp;\"]]>--></style>"


def test_text_and_attributes_come_back_as_they_were() -> None:
    page = as_html(element("p", HOSTILE, element("b", HOSTILE), HOSTILE, title=HOSTILE))
    (paragraph,) = read_page(page).all("p")
    assert paragraph.children[0] == paragraph.children[2].rstrip("\n") == HOSTILE  # type: ignore[union-attr]
    assert paragraph.attributes == {"title": HOSTILE}
    assert [node.tag for node in paragraph.all()] == ["b"]


def test_attributes_are_named_as_html_has_them() -> None:
    made = element("path", class_="a", stroke_width=2, aria_label="x", viewBox="0 0 1 1")
    assert as_html(made) == (
        '<!DOCTYPE html>\n<path class="a" stroke-width="2" aria-label="x" viewBox="0 0 1 1"></path>\n'
    )


@pytest.mark.parametrize(("value", "text"), [(1.0, "1"), (0.126, "0.13"), (10.0, "10"), (7, "7"), (1234.5, "1234.5")])
def test_lengths_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_blocks_say_the_same_as_on_a_terminal() -> None:
    blocks = (
        Blank(),
        Line("Title", Style.HEADING),
        Line("  bad news", Style.BAD),
        Item("one"),
        Item("two"),
        Facts(pairs=(("name", "value"),)),
        Table(columns=columns("term", ">time"), rows=(("a", "1 ms"),)),
    )
    page = read_elements(*block_elements(blocks, heading="h4"))
    assert [node.text for node in page.all("h4")] == ["Title"]
    assert [(node.text, node.attributes) for node in page.all("p")] == [("bad news", {"class": "bad"})]
    assert [[item.text for item in part.all("li")] for part in page.all("ul")] == [["one", "two"]]
    assert ([node.text for node in page.all("dt")], [node.text for node in page.all("dd")]) == (["name"], ["value"])
    assert page.rows() == [["term", "time"], ["a", "1 ms"]]


def test_a_table_says_what_its_rows_and_columns_are_and_scrolls_by_keyboard() -> None:
    page = read_elements(grid_element(("term", "time"), [("a", "1 ms")], rights=(False, True)))
    assert [cell.attributes.get("scope") for cell in page.all("th")] == ["col", "col", "row"]
    (frame,) = page.with_class("scroll")
    assert frame.attributes == {"class": "scroll", "tabindex": "0", "role": "region", "aria-label": "term, time"}
