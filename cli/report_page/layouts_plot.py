"""Layouts beside one another: step times with their bands, and memory against time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from cli.render import gib, milliseconds, percent
from cli.report_page.axes import Scale, bottom_axis, left_axis
from cli.report_page.markup import drawing, element, grid_element, scrollable
from planner.plans.plan import Certainty
from planner.units import GIB

WIDTH = 760.0
ROW = 24.0
LINE_HEIGHT = 14.0
LETTER = 6.2
"""Width of a letter at the size of a picture's text, at most; for keeping labels apart."""
MILLISECOND = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One layout in a picture of several.

    Args:
        label: What it is called.
        seconds: Its step time.
        num_bytes: Its peak memory.
    """

    label: str
    seconds: float
    num_bytes: int


def frontier(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the points that no other beats in time or memory without losing in the other, fastest first.

    Of points that are equal in both, the first stands for all.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.seconds, point.num_bytes)):
        if not kept or point.num_bytes < kept[-1].num_bytes:
            kept.append(point)
    return tuple(kept)


def band_elements(points: Sequence[Point], certainty: Certainty | None) -> tuple[ET.Element, ...]:
    """Return the step times of layouts, the first one's band, and which of the others it could swap with.

    Args:
        points: The layouts, best first.
        certainty: How wide the bands are, if that is known.
    """
    best = points[0]
    ends = [point.seconds for point in points]
    if certainty is not None:
        factor = 1.0 + certainty.half_width
        ends += [best.seconds / factor, best.seconds * factor, best.seconds * (1.0 + certainty.ratio_half_width)]
    margin = 0.06 * (max(ends) - min(ends)) or 0.1 * best.seconds
    left = 20.0 + LETTER * max(len(point.label) for point in points)
    bottom = 22.0 + ROW * len(points)
    scale = Scale(low=min(ends) - margin, high=max(ends) + margin, start=left, end=WIDTH - 90.0)
    parts = [bottom_axis(scale, top=18.0, bottom=bottom, unit=MILLISECOND, name="step time in ms")]
    if certainty is not None:
        y = 22.0 + ROW / 2
        low, high = scale(best.seconds / factor), scale(best.seconds * factor)
        parts.append(element("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}", class_="band"))
        swap = scale(best.seconds * (1.0 + certainty.ratio_half_width))
        parts.append(element("path", d=f"M{swap:.1f} 18V{bottom:.1f}", class_="limit"))
        above = f"{percent(certainty.ratio_half_width)} above the best"
        parts.append(element("text", above, x=swap, y=12.0, class_="mid"))
    for index, point in enumerate(points):
        y = 22.0 + ROW * (index + 0.5)
        x = scale(point.seconds)
        text = milliseconds(point.seconds)
        parts.append(element("text", point.label, x=left - 10.0, y=y + 4.0, class_="end"))
        title = element("title", f"{point.label}: {text}")
        parts.append(element("circle", title, cx=x, cy=y, r=5, class_="dot"))
        parts.append(
            element(
                "text", text, x=x + 9.0, y=y - 3.0 if certainty is not None and not index else y + 4.0, class_="halo"
            )
        )
    words = "Step times: " + "; ".join(f"{point.label} {milliseconds(point.seconds)}" for point in points)
    figure = [scrollable("Step times", drawing(words, *parts, width=WIDTH, height=bottom + 38.0))]
    if certainty is not None:
        low_seconds, high_seconds = best.seconds / factor, best.seconds * factor
        figure.append(
            element(
                "figcaption",
                f"The bar is the band of the best layout, {milliseconds(low_seconds)} to {milliseconds(high_seconds)}: "
                f"{certainty.source}. Most of an error is common to all layouts. "
                f"Layouts left of the dashed line could swap with the best: {certainty.ratio_source}.",
            )
        )
    return (element("figure", *figure),)


def pareto_elements(points: Sequence[Point], *, limit_bytes: int) -> tuple[ET.Element, ...]:
    """Return peak memory against step time, and the same as a table.

    Args:
        points: Layouts in any order.
        limit_bytes: What a GPU may use.
    """
    best = frontier(points)
    height, left, top, bottom = 340.0, 56.0, 20.0, 290.0
    times = [point.seconds for point in points]
    sizes = [*(point.num_bytes for point in points), limit_bytes]
    wide = 0.08 * (max(times) - min(times)) or 0.1 * times[0]
    high = 0.1 * (max(sizes) - min(sizes)) or 0.1 * sizes[0]
    x = Scale(low=min(times) - wide, high=max(times) + wide, start=left, end=WIDTH - 120.0)
    y = Scale(low=max(0.0, min(sizes) - high), high=max(sizes) + high, start=bottom, end=top)
    parts = [
        bottom_axis(x, top=top, bottom=bottom, unit=MILLISECOND, name="step time in ms"),
        left_axis(y, left=left, right=x.end, unit=GIB),
        element("text", "GiB", x=left - 6.0, y=12.0, class_="end quiet"),
        element("path", d=f"M{left:.1f} {y(limit_bytes):.1f}H{x.end:.1f}", class_="limit"),
        element("text", f"{gib(limit_bytes)} usable", x=x.end + 6.0, y=y(limit_bytes) + 4.0),
    ]
    if len(best) > 1:
        steps = f"M{x(best[0].seconds):.1f} {y(best[0].num_bytes):.1f}" + "".join(
            f"H{x(after.seconds):.1f}V{y(after.num_bytes):.1f}" for _, after in pairwise(best)
        )
        parts.append(element("path", d=steps, class_="frontier"))
    for point, place in zip(points, _label_places(points, x, y), strict=True):
        px, py = x(point.seconds), y(point.num_bytes)
        title = element("title", f"{point.label}: {milliseconds(point.seconds)}, {gib(point.num_bytes)}")
        if abs(place - py) > 1.0:
            parts.append(element("path", d=f"M{px:.1f} {py:.1f}L{px + 10.0:.1f} {place:.1f}", class_="leader"))
        parts.append(element("circle", title, cx=px, cy=py, r=5, class_="dot" if point in best else "hollow"))
        parts.append(element("text", point.label, x=px + 12.0, y=place + 4.0, class_="halo"))
    words = "Peak memory against step time: " + "; ".join(
        f"{point.label} {milliseconds(point.seconds)}, {gib(point.num_bytes)}" for point in points
    )
    caption = (
        "Filled: no other layout here is both faster and smaller; the dashed steps join these. Hollow: another one is "
        "at least as good in both."
    )
    rows = [
        (
            point.label,
            milliseconds(point.seconds),
            gib(point.num_bytes),
            gib(limit_bytes - point.num_bytes),
            "yes" if point in best else "no",
        )
        for point in points
    ]
    return (
        element(
            "figure",
            scrollable("Memory against time", drawing(words, *parts, width=WIDTH, height=height)),
            element("figcaption", caption),
        ),
        grid_element(
            ("layout", "step time", "peak memory", "left", "on the frontier"),
            rows,
            rights=(False, True, True, True, False),
        ),
    )


def _label_places(points: Sequence[Point], x: Scale, y: Scale) -> tuple[float, ...]:
    """Return how high the label of each point stands: at the point, or below labels that it would run into."""
    places: dict[int, float] = {}
    for index in sorted(range(len(points)), key=lambda index: (y(points[index].num_bytes), index)):
        left = x(points[index].seconds)
        right = left + LETTER * (len(points[index].label) + 1)
        place = y(points[index].num_bytes)
        for other, taken in sorted(places.items(), key=lambda entry: entry[1]):
            other_left = x(points[other].seconds)
            apart = right < other_left or left > other_left + LETTER * (len(points[other].label) + 1)
            if not apart and abs(place - taken) < LINE_HEIGHT:
                place = taken + LINE_HEIGHT
        places[index] = place
    return tuple(places[index] for index in range(len(points)))
