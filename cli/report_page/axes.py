"""Round figures for the axes of a picture, and lengths for figures."""

import math
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from cli.report_page.markup import element

ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, *, at_most: int) -> tuple[float, ...]:
    """Return multiples of a round step from `low` to `high`, as many as there is room for."""
    if high <= low:
        return (low,)
    raw = (high - low) / max(1, at_most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in ROUND if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


def decimals_of(values: tuple[float, ...]) -> int:
    """Return how many decimals tell round values apart."""
    if len(values) < 2:
        return 1
    step = values[1] - values[0]
    return next(digits for digits in range(12) if abs(round(step, digits) - step) <= 1e-9 * step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A figure's place on an axis of a picture.

    Args:
        low: Figure at `start`.
        high: Figure at `end`.
        start: Where the axis begins, in pixels.
        end: Where it ends; smaller than `start` on an axis that grows upwards.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return where a figure stands."""
        return self.start + (value - self.low) * (self.end - self.start) / (self.high - self.low)


def bottom_axis(scale: Scale, *, top: float, bottom: float, unit: float, name: str) -> ET.Element:
    """Return grid lines with their figures below, and what they count.

    Args:
        scale: The axis, in its internal unit.
        top: Where grid lines begin.
        bottom: Where they end.
        unit: How much of the internal unit one of the shown unit is.
        name: What the axis shows, with the shown unit.
    """
    length = abs(scale.end - scale.start)
    values = ticks(scale.low / unit, scale.high / unit, at_most=max(2, int(length / 90)))
    digits = decimals_of(values)
    parts: list[ET.Element] = []
    for value in values:
        place = scale(value * unit)
        parts.append(element("path", d=f"M{place:.1f} {top:.1f}V{bottom:.1f}", class_="grid"))
        parts.append(element("text", f"{value:,.{digits}f}", x=place, y=bottom + 14.0, class_="mid"))
    parts.append(element("text", name, x=(scale.start + scale.end) / 2, y=bottom + 30.0, class_="mid quiet"))
    return element("g", *parts)


def left_axis(scale: Scale, *, left: float, right: float, unit: float) -> ET.Element:
    """Return grid lines with their figures to the left.

    Args:
        scale: The axis, in its internal unit, growing upwards.
        left: Where grid lines begin.
        right: Where they end.
        unit: How much of the internal unit one of the shown unit is.
    """
    length = abs(scale.end - scale.start)
    values = ticks(scale.low / unit, scale.high / unit, at_most=max(2, int(length / 34)))
    digits = decimals_of(values)
    parts: list[ET.Element] = []
    for value in values:
        place = scale(value * unit)
        parts.append(element("path", d=f"M{left:.1f} {place:.1f}H{right:.1f}", class_="grid"))
        parts.append(element("text", f"{value:,.{digits}f}", x=left - 6.0, y=place + 4.0, class_="end"))
    return element("g", *parts)
