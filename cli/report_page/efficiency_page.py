"""What a profile achieves by shape, as a page of its own: a picture for each suite, and the points behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree as ET

from cli.render import Block
from cli.render_profile import in_words
from cli.report_page.axes import Scale, bottom_axis, left_axis
from cli.report_page.markup import as_html, block_elements, drawing, element, folded, grid_element, headed, scrollable
from cli.report_page.style import STYLE, TERM_COLOURS
from profiles.achieved import Achieved, achieved
from profiles.hardware import Device
from profiles.judging import Judged
from profiles.measure.journal import Entry
from profiles.recorded import Recording

WIDTH = 760.0
HEIGHT = 320.0
LEFT, TOP, BOTTOM = 64.0, 14.0, 270.0
LEGEND_ROW = 18.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point of a picture.

    Args:
        name: What was measured.
        series: What it is drawn with.
        rate: What it achieves.
        is_used: Planning uses it.
    """

    name: str
    series: str
    rate: Achieved
    is_used: bool


def marks_of(recording: Recording, judged: Judged, device: Device | None) -> dict[str, list[Mark]]:
    """Return the points of each suite that achieve a rate, in the order of the journal."""
    kept = {entry.line for entry in judged.kept}
    found: dict[str, list[Mark]] = {}
    for entry in recording.measured:
        rate = achieved(entry, device)
        if rate is not None and entry.point.suite != "layer":
            mark = Mark(name=entry.point.key, series=_series(entry), rate=rate, is_used=entry.line in kept)
            found.setdefault(entry.point.suite, []).append(mark)
    return found


def _series(entry: Entry) -> str:
    """Return what a point is drawn with: the words that tell a suite's curves apart."""
    words = entry.point.words
    return " ".join(words[:1] if entry.point.suite == "collectives" else words[:2])


def efficiency_page(recording: Recording, judged: Judged, device: Device | None, *, blocks: Sequence[Block]) -> str:
    """Return the page.

    Args:
        recording: The profile.
        judged: Which points planning uses.
        device: Their GPU; None where its datasheet is not known, which leaves rates without their share of it.
        blocks: What the terminal shows, for the head of the page.
    """
    title = f"What {recording.device} achieves"
    sections = [
        headed(suite, picture(suite, marks), points_table(marks), anchor=suite)
        for suite, marks in marks_of(recording, judged, device).items()
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE),
    )
    body = element("body", element("h1", title), *block_elements(blocks, heading="h2"), *sections)
    return as_html(element("html", head, body, lang="en"))


def picture(suite: str, marks: Sequence[Mark]) -> ET.Element:
    """Return the rates of a suite's points by their work; by their part of the datasheet's where that is known."""
    known = all(mark.rate.fraction is not None for mark in marks)
    heights = [_height(mark, known=known) for mark in marks]
    works = [math.log2(max(mark.rate.work, 1.0)) for mark in marks]
    names = sorted({mark.series for mark in marks})
    across = Scale(low=min(works) - 0.5, high=max(works) + 0.5, start=LEFT, end=WIDTH - 16.0)
    up = Scale(low=0.0, high=max(1.0, *heights) if known else max(heights) * 1.05, start=BOTTOM, end=TOP)
    unit = marks[0].rate.unit
    counted = "flops" if unit == "FLOP/s" else "bytes"
    parts = [
        bottom_axis(across, top=TOP, bottom=BOTTOM, unit=1.0, name=f"work, log2 of {counted}"),
        left_axis(up, left=LEFT, right=WIDTH - 16.0, unit=0.01 if known else 1e9),
    ]
    for mark, work, height in zip(marks, works, heights, strict=True):
        told = element("title", f"{mark.name}: {rate_in_words(mark.rate)}{'' if mark.is_used else ', left out'}")
        colour = TERM_COLOURS[names.index(mark.series) % len(TERM_COLOURS)]
        fill = colour if mark.is_used else "none"
        parts.append(element("circle", told, cx=across(work), cy=up(height), r=3.5, fill=fill, stroke=colour))
    for index, name in enumerate(names):
        y = HEIGHT + LEGEND_ROW * (index + 0.5)
        colour = TERM_COLOURS[index % len(TERM_COLOURS)]
        parts.append(element("circle", cx=LEFT + 4.0, cy=y - 4.0, r=4, fill=colour))
        parts.append(element("text", name, x=LEFT + 16.0, y=y))
    what = "per cent of the datasheet's rate" if known else f"G{unit}"
    label = f"{suite}: {what} by work"
    height = HEIGHT + LEGEND_ROW * len(names) + 8.0
    caption = element("figcaption", f"{what[0].upper()}{what[1:]} by work; hollow points are left out by the gates.")
    return element("figure", scrollable(label, drawing(label, *parts, width=WIDTH, height=height)), caption)


def _height(mark: Mark, *, known: bool) -> float:
    return mark.rate.fraction or 0.0 if known else mark.rate.per_second


def rate_in_words(rate: Achieved) -> str:
    """Return a rate and its part of the datasheet's."""
    share = "" if rate.fraction is None else f", {100 * rate.fraction:.1f} % of the datasheet"
    return f"{in_words(rate.per_second, rate.unit)}{share}"


def points_table(marks: Sequence[Mark]) -> ET.Element:
    """Return the points of a suite, to open."""
    rows = [
        (mark.name, rate_in_words(mark.rate), "" if mark.is_used else "left out")
        for _, group in groupby(sorted(marks, key=lambda mark: mark.series), key=lambda mark: mark.series)
        for mark in group
    ]
    return folded("Points", grid_element(("point", "achieved", "gates"), rows, rights=(False, True, False)))
