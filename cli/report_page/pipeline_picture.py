"""The predicted pipeline of a step, drawn: a row a pipeline rank, a stroke a pass.

A long step is drawn in two stretches, its first and its last, at one scale; what lies between is left out and counted.
The picture draws the evaluator's own timeline, the one that `trace` writes; nothing is scheduled here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np

from cli.render import count, counted, milliseconds, percent
from cli.report_page.axes import Scale, bottom_axis
from cli.report_page.markup import drawing, element, folded, grid_element, number, scrollable
from planner.arrays import FloatArray
from planner.evaluation.evaluate import Evaluation
from planner.layout import Layout, Stage
from planner.schedules.simulate import Timeline

WIDTH = 1000.0
"""Pixels of a stretch; a short step that needs a little more is drawn whole all the same."""
WIDEST = 2400.0
NARROWEST_PASS = 4.0
"""Pixels of a pass of median length, at least."""
MOST_PASSES = 4800
"""Passes of one stretch; a stretch that holds more ends earlier."""
RAMP = 1.6
"""A stretch lasts this many times the wait for the first backward pass of the first rank."""
FEWEST_PASSES = 24
"""Passes of one rank that a stretch is at least as long as."""
LEFT, TOP, BOTTOM = 50.0, 8.0, 38.0
MILLISECOND = 1e-3
LETTER = 6.2
LABEL_HEIGHT = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """A part of a step that is drawn.

    Args:
        start_seconds: Where it begins.
        end_seconds: Where it ends.
    """

    start_seconds: float
    end_seconds: float

    @property
    def seconds(self) -> float:
        """Return how long it is."""
        return self.end_seconds - self.start_seconds


def stretches(timeline: Timeline, *, step_seconds: float) -> tuple[Stretch, ...]:
    """Return what to draw of a step: all of it, or its first and its last stretch where passes would be too narrow."""
    duration_RK: FloatArray = timeline.end_seconds_RK - timeline.start_seconds_RK
    typical = float(np.median(duration_RK))
    whole = Stretch(start_seconds=0.0, end_seconds=step_seconds)
    if step_seconds / typical * NARROWEST_PASS <= WIDEST and duration_RK.size <= MOST_PASSES:
        return (whole,)
    first_backward = int(timeline.order.is_backward_RK[0].argmax())
    ramp = RAMP * float(timeline.end_seconds_RK[0, first_backward])
    shortest = FEWEST_PASSES * float(duration_RK.max())
    seconds = min(max(ramp, shortest), WIDEST / NARROWEST_PASS * typical)
    starts = np.sort(timeline.start_seconds_RK, axis=None)
    ends = np.sort(timeline.end_seconds_RK, axis=None)
    first, last = seconds, step_seconds - seconds
    if starts.size > MOST_PASSES:
        first = min(first, float(starts[MOST_PASSES]))
        last = max(last, float(ends[-MOST_PASSES - 1]))
    if first >= last:
        return (whole,)
    return (Stretch(start_seconds=0.0, end_seconds=first), Stretch(start_seconds=last, end_seconds=step_seconds))


def pipeline_elements(evaluation: Evaluation, layout: Layout) -> tuple[ET.Element, ...]:
    """Return the pictures of a step, what they leave out, and the figures of ranks and stages as tables."""
    timeline, step_seconds = evaluation.timeline, evaluation.step_seconds
    drawn = stretches(timeline, step_seconds=step_seconds)
    figures: list[ET.Element] = []
    for stretch in drawn:
        if len(drawn) > 1:
            what = "The first" if stretch.start_seconds == 0.0 else "The last"
            figures.append(element("h3", f"{what} {milliseconds(stretch.seconds)}"))
        figures.append(_picture(evaluation, layout, stretch))
    return (
        *_busiest(evaluation),
        _legend(layout),
        element("figure", *figures, element("figcaption", *_left_out(timeline, drawn))),
        *_tables(evaluation, layout),
    )


def _busiest(evaluation: Evaluation) -> Iterator[ET.Element]:
    """Yield how much of the step the pipeline rank with most work is at it; nothing without a pipeline."""
    timeline = evaluation.timeline
    if timeline.order.pp > 1:
        share = float(timeline.busy_seconds_R[timeline.busiest_rank]) / evaluation.step_seconds
        yield element(
            "p",
            f"Pipeline rank {timeline.busiest_rank} has most work. Passes take {percent(share)} of its step; the rest"
            " is bubble, transfers, collectives that nothing hides and the optimizer.",
        )


def passes_in(timeline: Timeline, stretch: Stretch) -> list[tuple[int, int]]:
    """Return the rank and position of every pass that runs in a stretch, rank by rank."""
    shown_RK = (timeline.start_seconds_RK < stretch.end_seconds) & (timeline.end_seconds_RK > stretch.start_seconds)
    return [(rank, position) for rank, position in np.argwhere(shown_RK).tolist()]


def _left_out(timeline: Timeline, drawn: tuple[Stretch, ...]) -> Iterator[str]:
    """Yield how many passes are drawn, which time is left out, and what does not fit beside the text."""
    every = timeline.start_seconds_RK.size
    if len(drawn) == 1:
        yield f"All {count(every)} passes of the step are drawn."
    else:
        first, last = drawn
        shown = {entry for stretch in drawn for entry in passes_in(timeline, stretch)}
        hidden = count(every - len(shown))
        yield (
            f"{count(len(shown))} of {count(every)} passes are drawn. Left out: {hidden} passes from "
            f"{milliseconds(first.end_seconds)} to {milliseconds(last.start_seconds)}; `shardwright trace` writes them "
            "all."
        )
    if any(_width(timeline, stretch) > WIDTH for stretch in drawn):
        yield " The picture is wider than the text: scroll it sideways."


def _width(timeline: Timeline, stretch: Stretch) -> float:
    """Return how wide a stretch is drawn."""
    typical = float(np.median(timeline.end_seconds_RK - timeline.start_seconds_RK))
    return min(WIDEST, max(WIDTH, stretch.seconds / typical * NARROWEST_PASS))


def _row_height(pp: int) -> float:
    return 20.0 if pp <= 16 else 14.0 if pp <= 32 else 9.0


def _picture(evaluation: Evaluation, layout: Layout, stretch: Stretch) -> ET.Element:
    """Return one stretch of the step."""
    timeline = evaluation.timeline
    width = _width(timeline, stretch)
    scale = Scale(low=stretch.start_seconds, high=stretch.end_seconds, start=LEFT, end=LEFT + width)
    height = _row_height(layout.pp)
    bottom = TOP + height * layout.pp
    parts = [bottom_axis(scale, top=TOP, bottom=bottom, unit=MILLISECOND, name="ms from the start of the step")]
    rows: dict[int, list[tuple[int, int]]] = {rank: [] for rank in range(layout.pp)}
    for rank, position in passes_in(timeline, stretch):
        rows[rank].append((rank, position))
    tail = list(_tail(evaluation))
    every = math.ceil(LABEL_HEIGHT / height)
    for rank, places in rows.items():
        y = TOP + height * rank
        middle = y + height / 2
        parts.append(element("rect", x=LEFT, y=y + 1.0, width=width, height=height - 2.0, class_="row"))
        if rank % every == 0:
            parts.append(element("text", f"pp {rank}", x=LEFT - 6.0, y=middle + 4.0, class_="end"))
        strokes = [*_passes(timeline, places, scale, labelled=height >= 14.0)]
        strokes += _extras(timeline, rank, scale)
        strokes += [_stroke(scale, start, end, name=name, kind=kind) for name, kind, start, end in tail]
        drawn = (stroke for stroke in strokes if stroke is not None)
        parts.append(element("g", *drawn, stroke_width=height - 3.0, transform=f"translate(0 {number(middle)})"))
    title = (
        f"Passes of {counted(layout.pp, 'pipeline rank')} from {milliseconds(stretch.start_seconds)} to "
        f"{milliseconds(stretch.end_seconds)}"
    )
    picture = drawing(title, *parts, width=LEFT + width + 32.0, height=bottom + BOTTOM)
    return scrollable(title, picture)


def _stroke(scale: Scale, start: float, end: float, *, name: str, kind: str = "") -> ET.Element | None:
    """Return a horizontal stroke over a time, cut off at the ends of the picture; none of what lies outside."""
    left, right = scale(max(start, scale.low)), scale(min(end, scale.high))
    if right <= left:
        return None
    # A hair less than its length, so that neighbours can be told apart.
    length = max(right - left - 0.5, 0.4)
    attributes = {"class_": kind} if kind else {}
    return element(
        "path",
        element("title", name),
        d=f"M{number(round(left, 1))} 0h{number(round(length, 1))}",
        **attributes,
    )


def _passes(
    timeline: Timeline, places: list[tuple[int, int]], scale: Scale, *, labelled: bool
) -> Iterator[ET.Element | None]:
    """Yield the passes of a rank by kind: forward, then backward; where there is room, with their micro-batches."""
    order = timeline.order
    for backward, kind, letter in ((False, "forward", "F"), (True, "backward", "B")):
        strokes: list[ET.Element] = []
        labels: list[ET.Element] = []
        for rank, position in places:
            if bool(order.is_backward_RK[rank, position]) is not backward:
                continue
            microbatch = int(order.microbatch_RK[rank, position])
            name = f"{letter}{microbatch}" + (f" stage {order.stage_RK[rank, position]}" if order.vpp > 1 else "")
            start = float(timeline.start_seconds_RK[rank, position])
            end = float(timeline.end_seconds_RK[rank, position])
            stroke = _stroke(scale, start, end, name=name)
            if stroke is None:
                continue
            chunk = int(order.chunk_RK[rank, position])
            if chunk:
                # Later chunks are fainter, down to half.
                stroke.set("stroke-opacity", number(1.0 - 0.5 * chunk / (order.vpp - 1)))
            strokes.append(stroke)
            left, right = scale(max(start, scale.low)), scale(min(end, scale.high))
            if labelled and right - left >= LETTER * len(str(microbatch)) + 3.0:
                label = element("text", str(microbatch), x=(left + right) / 2, y=4, class_=f"in-{kind}")
                labels.append(label)
        if strokes:
            yield element("g", *strokes, class_=kind)
        if labels:
            yield element("g", *labels, aria_hidden="true")


def _extras(timeline: Timeline, rank: int, scale: Scale) -> Iterator[ET.Element | None]:
    """Yield what keeps a rank busy behind its last backward passes."""
    extras_V = timeline.times.last_backward_extra_seconds_V
    for chunk, end in enumerate(timeline.last_backward_end_seconds_RC[rank].tolist()):
        seconds = extras_V[rank + chunk * timeline.order.pp] if extras_V else 0.0
        if seconds:
            name = f"gradient reduction, {milliseconds(seconds)}"
            yield _stroke(scale, end, end + seconds, name=name, kind="reduce")


def _tail(evaluation: Evaluation) -> Iterator[tuple[str, str, float, float]]:
    """Yield name, kind, start and end of what all ranks do behind the last of them."""
    start = float(evaluation.timeline.rank_end_seconds_R.max())
    for name, kind, seconds in (
        ("gradient norm and tied embedding", "reduce", evaluation.tail_communication_seconds),
        ("optimizer step", "tail", evaluation.tail_optimizer_seconds),
    ):
        if seconds:
            yield f"{name}, {milliseconds(seconds)}", kind, start, start + seconds
        start += seconds


def _legend(layout: Layout) -> ET.Element:
    """Return what the strokes mean."""
    entries = [
        ("forward", "forward pass of a micro-batch"),
        ("backward", "backward pass, recomputation included"),
        ("reduce", "gradients exchanged with nothing beside it"),
        ("tail", "optimizer step"),
    ]
    items = []
    for kind, words in entries:
        stroke = element("path", d="M0 6.5h18", stroke_width=13, class_=kind)
        items.append(element("li", _key(stroke), words))
    items.append(element("li", _key(element("rect", width=18, height=13, class_="row")), "waiting"))
    if layout.vpp > 1:
        items.append(element("li", "fainter: a later one of the rank's stages"))
    items.append(element("li", "Numbers are micro-batches; where there is no room for them, hover."))
    return element("ul", *items, class_="legend")


def _key(shape: ET.Element) -> ET.Element:
    return element("svg", shape, width=18, height=13, class_="swatch", aria_hidden="true")


def _tables(evaluation: Evaluation, layout: Layout) -> Iterator[ET.Element]:
    """Yield what each pipeline rank does with the step, and what one micro-batch takes on each stage."""
    timeline, times = evaluation.timeline, evaluation.timeline.times
    rows = []
    for rank in range(layout.pp):
        busy = float(timeline.busy_seconds_R[rank])
        rows.append(
            (
                str(rank),
                milliseconds(float(timeline.start_seconds_RK[rank, 0])),
                milliseconds(float(timeline.rank_end_seconds_R[rank])),
                milliseconds(busy),
                milliseconds(evaluation.step_seconds - busy),
                percent(busy / evaluation.step_seconds),
            )
        )
    headers = ("pipeline rank", "starts", "ends", "in passes", "not in passes", "share in passes")
    yield folded("Each pipeline rank", grid_element(headers, rows, rights=(False, *(True for _ in headers[1:]))))
    stages = []
    for stage, contents in enumerate(layout.stages):
        sends = times.transfer_seconds_E[stage] if stage < len(times.transfer_seconds_E) else None
        stages.append(
            (
                str(stage),
                str(stage % layout.pp),
                held_in_words(contents),
                milliseconds(times.forward_seconds_V[stage]),
                milliseconds(times.backward_seconds_V[stage]),
                "" if sends is None else milliseconds(sends),
            )
        )
    headers = ("stage", "pipeline rank", "holds", "forward", "backward", "to the next stage")
    yield folded(
        "One micro-batch on each stage", grid_element(headers, stages, rights=(False, False, False, True, True, True))
    )


def held_in_words(stage: Stage) -> str:
    """Return what a stage holds: "embedding, layers 0 to 9"."""
    parts = ["embedding"] * stage.has_embedding
    last = stage.first_layer + stage.num_layers - 1
    if stage.num_layers:
        parts.append(f"layer {last}" if stage.num_layers == 1 else f"layers {stage.first_layer} to {last}")
    parts += ["head"] * stage.has_head
    return ", ".join(parts)
