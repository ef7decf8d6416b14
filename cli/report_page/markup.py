"""HTML as a tree, so that no text of a user's can become markup; and the blocks of the terminal as such trees."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from xml.etree import ElementTree as ET

from cli.render import Blank, Block, Facts, Item, Line, Numbered, Style, Table

Content = ET.Element | str

OWN_LINE = frozenset(
    {"section", "figure", "table", "tr", "p", "li", "dl", "div", "details", "svg", "g", "head", "meta"}
)
"""Elements after which a line of the file ends, so that two pages can be compared."""

STYLES = {Style.GOOD: "good", Style.BAD: "bad", Style.QUIET: "quiet"}


def element(tag: str, *content: Content, **attributes: str | float) -> ET.Element:
    """Return an element with text and elements in it.

    Args:
        tag: Its name.
        content: What it holds, in order.
        attributes: By name: an underscore at the end is dropped (`class_`), others are hyphens (`aria_label`).
    """
    made = ET.Element(
        tag,
        {
            name.rstrip("_").replace("_", "-"): value if isinstance(value, str) else number(value)
            for name, value in attributes.items()
        },
    )
    last: ET.Element | None = None
    for part in content:
        if isinstance(part, ET.Element):
            made.append(part)
            last = part
        elif last is None:
            made.text = (made.text or "") + part
        else:
            last.tail = (last.tail or "") + part
    if tag in OWN_LINE:
        made.tail = "\n"
    return made


def number(value: float) -> str:
    """Return a length as short as a picture needs it: at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def as_html(root: ET.Element) -> str:
    """Return a whole document as text."""
    return "<!DOCTYPE html>\n" + ET.tostring(root, encoding="unicode", method="html") + "\n"


def scrollable(label: str, *content: Content) -> ET.Element:
    """Return what may be wider than the window in a frame that scrolls, by keyboard too."""
    return element("div", *content, class_="scroll", tabindex=0, role="region", aria_label=label)


def folded(title: str, *content: Content) -> ET.Element:
    """Return what opens on demand, and is always printed."""
    return element("details", element("summary", title), *content)


def headed(title: str, *content: Content, anchor: str) -> ET.Element:
    """Return a section of the page."""
    return element("section", element("h2", title), *content, id=anchor)


def drawing(title: str, *content: Content, width: float, height: float) -> ET.Element:
    """Return a picture of fixed size, with what it shows in words for those who do not see it."""
    return element(
        "svg",
        *content,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
    )


def block_elements(blocks: Iterable[Block], *, heading: str = "h3") -> Iterator[ET.Element]:
    """Yield blocks as HTML, neighbouring items as one list.

    Args:
        blocks: What the terminal would print.
        heading: What a heading among them becomes.
    """
    for kind, run in groupby(blocks, key=type):
        if kind is Item:
            yield element("ul", *(element("li", block.text) for block in run if isinstance(block, Item)))
            continue
        for block in run:
            match block:
                case Line(text=text, style=Style.HEADING):
                    yield element(heading, text)
                case Line(text=text, style=style):
                    yield element("p", text.strip(), **({"class_": STYLES[style]} if style in STYLES else {}))
                case Facts(pairs=pairs):
                    yield facts_element(pairs)
                case Table() as table:
                    yield table_element(table)
                case Blank() | Item():
                    pass


def sources_element(sources: Numbered) -> ET.Element:
    """Return the texts behind the marks of a table, to open: they are long."""
    return folded("Sources", element("div", *block_elements(sources.notes), class_="notes"))


def facts_element(pairs: Iterable[tuple[str, str]]) -> ET.Element:
    """Return names with their values."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs))


def table_element(table: Table) -> ET.Element:
    """Return a table of the terminal."""
    return grid_element(
        [column.header for column in table.columns],
        table.rows,
        rights=[column.right for column in table.columns],
    )


def grid_element(
    headers: Iterable[str], rows: Iterable[Iterable[Content]], *, rights: Iterable[bool], label: str = ""
) -> ET.Element:
    """Return a table whose first column names the rows.

    Args:
        headers: A title a column.
        rows: Cells.
        rights: Columns of figures, which stand to the right.
        label: What it shows, where no heading says so; else the titles do.
    """
    titles = list(headers)
    sides = ["num" if right else "" for right in rights]

    def cell(content: Content, index: int) -> ET.Element:
        attributes = {"class_": sides[index]} if sides[index] else {}
        if index == 0:
            return element("th", content, scope="row", **attributes)
        return element("td", content, **attributes)

    head = element(
        "tr",
        *(
            element("th", title, scope="col", **({"class_": side} if side else {}))
            for title, side in zip(titles, sides, strict=True)
        ),
    )
    body = [element("tr", *(cell(content, index) for index, content in enumerate(row))) for row in rows]
    table = element("table", element("thead", head), element("tbody", *body))
    return scrollable(label or ", ".join(title for title in titles if title), table)
