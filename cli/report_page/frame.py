"""The frame of a page: head, title, what stands above the sections, links to them, and the sections."""

from collections.abc import Iterable
from xml.etree import ElementTree as ET

from cli.report_page.markup import as_html, element
from cli.report_page.style import STYLE

# A browser that honours it loads nothing, whatever the page says.
NOTHING_LOADED = "default-src 'none'; style-src 'unsafe-inline'"

Tile = tuple[str, str, str]
"""A name, a figure and a remark."""


def framed(title: str, *, lead: Iterable[ET.Element], sections: Iterable[ET.Element]) -> str:
    """Return a whole page.

    Args:
        title: Of the page.
        lead: What stands above the links.
        sections: Each begins with a heading and has an id.
    """
    found = list(sections)
    links = [part for section in found for part in (element("a", _heading(section), href=f"#{section.get('id')}"), " ")]
    document = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=NOTHING_LOADED),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", title),
            element("style", STYLE),
        ),
        element(
            "body",
            element("h1", title),
            *lead,
            element("nav", *links, aria_label="Sections"),
            element("main", *found),
        ),
        lang="en",
    )
    return as_html(document)


def tiles_element(tiles: Iterable[Tile]) -> ET.Element:
    """Return the figures that one looks for first."""
    return element(
        "div",
        *(
            element("div", element("span", name), element("b", value), element("span", remark), class_="tile")
            for name, value, remark in tiles
        ),
        class_="tiles",
    )


def _heading(section: ET.Element) -> str:
    found = section.find("h2")
    assert found is not None, "every section has a heading"
    return found.text or ""
