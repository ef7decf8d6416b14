"""Reads a page of HTML strictly: what is open is closed in order, and nothing is left out by repair."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

from cli.report_page.markup import as_html, element

VOID = frozenset({"meta"})
"""Elements without an end, of those that a page of ours has."""


@dataclass(slots=True)
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: "list[Node | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        """Return all text in it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str = "") -> "list[Node]":
        """Return every element below it, in order; those of one name, if given."""
        found: list[Node] = []
        for child in self.children:
            if isinstance(child, Node):
                found += [child] * (not tag or child.tag == tag)
                found += child.all(tag)
        return found

    def with_class(self, name: str) -> "list[Node]":
        """Return every element below it of a class."""
        return [node for node in self.all() if name in node.attributes.get("class", "").split()]

    def rows(self) -> list[list[str]]:
        """Return the cells of every row of a table below it."""
        return [[cell.text.strip() for cell in row.all() if cell.tag in {"th", "td"}] for row in self.all("tr")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(text: str) -> Node:
    """Return the elements of a page, or of a part of one."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1, f"<{reader.open[-1].tag}> is never closed"
    return reader.open[0]


def read_elements(*elements: ET.Element) -> Node:
    """Return parts of a page as a browser would get them."""
    return read_page(as_html(element("div", *elements)))
