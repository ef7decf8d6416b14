"""Where the time of a step goes: a bar a term, beside its figures and sources."""

from xml.etree import ElementTree as ET

from cli.render import milliseconds, numbered, percent
from cli.report_page.markup import Content, drawing, element, grid_element, sources_element
from planner.plans.comparison import time_terms
from planner.plans.plan import PlannedLayout

BAR_WIDTH, BAR_HEIGHT = 200.0, 14.0


def time_elements(planned: PlannedLayout) -> tuple[ET.Element, ...]:
    """Return the terms of a layout's step time, largest first, with their sources below."""
    terms = time_terms(planned)
    longest = terms[0].seconds
    sources = numbered([line.source for line in terms])
    rows: list[tuple[Content, ...]] = [
        (
            line.term,
            _bar(line.term, line.seconds / longest),
            milliseconds(line.seconds),
            percent(line.seconds / planned.step_seconds),
            mark,
        )
        for line, mark in zip(terms, sources.marks, strict=True)
    ]
    rows.append(("step", "", milliseconds(planned.step_seconds), percent(1.0), ""))
    table = grid_element(("term", "", "time", "share", "source"), rows, rights=(False, False, True, True, False))
    if planned.layout.pp == 1:
        return (table, sources_element(sources))
    return (element("p", "On the pipeline rank with most work."), table, sources_element(sources))


def _bar(term: str, part: float) -> ET.Element:
    """Return a bar that is as long as this part of the longest; a term below nothing has none."""
    bar = element("rect", x=0, y=1, width=max(0.0, part) * BAR_WIDTH, height=BAR_HEIGHT - 2.0, class_="bar")
    return drawing(f"{term}: {percent(part)} of the largest term", bar, width=BAR_WIDTH, height=BAR_HEIGHT)
