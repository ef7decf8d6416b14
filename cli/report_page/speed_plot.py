"""Throughput against speed: the front of engines, and where the plan stands."""

from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree as ET

from cli.report_page.axes import Scale, bottom_axis, left_axis
from cli.report_page.layouts_plot import WIDTH
from cli.report_page.markup import drawing, element, scrollable
from planner.serving_plans.plan import ParetoPoint

HEIGHT, LEFT, TOP, BOTTOM = 340.0, 64.0, 20.0, 290.0


def speed_elements(front: Sequence[ParetoPoint], *, planned: tuple[float, float] | None) -> tuple[ET.Element, ...]:
    """Return output tokens a second of a GPU against those of a user.

    Args:
        front: Points that no other beats in both.
        planned: Tokens a second of a GPU and of a user in the plan; None without one.
    """
    users = [point.tokens_per_second_per_user for point in front]
    gpus = [point.tokens_per_second_per_gpu for point in front]
    if planned is not None:
        gpus.append(planned[0])
        users.append(planned[1])
    x = Scale(low=0.0, high=max(users) * 1.08, start=LEFT, end=WIDTH - 24.0)
    y = Scale(low=0.0, high=max(gpus) * 1.08, start=BOTTOM, end=TOP)
    parts = [
        bottom_axis(x, top=TOP, bottom=BOTTOM, unit=1.0, name="output tokens/s of a user"),
        left_axis(y, left=LEFT, right=x.end, unit=1.0),
        element("text", "output tokens/s of a GPU", x=LEFT, y=12.0, class_="quiet"),
    ]
    if len(front) > 1:
        steps = f"M{x(front[0].tokens_per_second_per_user):.1f} {y(front[0].tokens_per_second_per_gpu):.1f}" + "".join(
            f"V{y(after.tokens_per_second_per_gpu):.1f}H{x(after.tokens_per_second_per_user):.1f}"
            for _, after in pairwise(front)
        )
        parts.append(element("path", d=steps, class_="frontier"))
    for point in front:
        title = element("title", _words(point))
        place = {"cx": x(point.tokens_per_second_per_user), "cy": y(point.tokens_per_second_per_gpu)}
        parts.append(element("circle", title, **place, r=5, class_="dot"))
    words = "; ".join(_words(point) for point in front)
    caption = "Filled: engines at a batch, in closed form; no other is better in both."
    if planned is not None:
        px, py = x(planned[1]), y(planned[0])
        said = f"the plan: {planned[0]:,.1f} a GPU, {planned[1]:,.1f} a user"
        parts.append(element("circle", element("title", said), cx=px, cy=py, r=6, class_="hollow"))
        parts.append(element("text", "the plan", x=px + 10.0, y=py + 4.0, class_="halo"))
        words = f"{said}; {words}"
        caption += " Hollow: the plan at its load, by simulation, over all GPUs that there are."
    drawn = drawing(f"Throughput against speed: {words}", *parts, width=WIDTH, height=HEIGHT)
    return (element("figure", scrollable("Throughput against speed", drawn), element("figcaption", caption)),)


def _words(point: ParetoPoint) -> str:
    return (
        f"{point.words}, batch {point.batch}: {point.tokens_per_second_per_gpu:,.1f} a GPU, "
        f"{point.tokens_per_second_per_user:,.1f} a user"
    )
