"""The memory of every pipeline rank in every phase: stacks of terms against the usable limit, and the whole ledger.

A term keeps its colour in all stacks, and its place: stacks are built in the order in which the ledger first names
their terms, so that a picture without colours can be read by its legend.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree as ET

from cli.render import gib, numbered, percent
from cli.report_page.axes import Scale, left_axis
from cli.report_page.markup import Content, drawing, element, folded, grid_element, number, scrollable, sources_element
from cli.report_page.style import term_style
from planner.plans.plan import MemoryLine, Phase
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.units import GIB

RANKS_A_ROW = 16
GAP, BETWEEN = 2.0, 15.0
"""Widths of the gap between a rank's stacks, and between ranks."""
NARROWEST, WIDEST = 11.0, 40.0
"""Widths of a stack."""
LEFT, TOP, PLOT, BOTTOM = 48.0, 22.0, 240.0, 34.0
ROOM = 820.0
"""Width that stacks grow into where there are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """A ledger, looked up.

    Args:
        ranks: Lowest global rank of each pipeline rank.
        phases: Phases that it has, in the order of a step.
        terms: Terms in the order in which it first names them.
        num_bytes: Of a rank, a phase and a term; nothing where the ledger has no line.
        limit_bytes: What each rank may use.
    """

    ranks: tuple[int, ...]
    phases: tuple[Phase, ...]
    terms: tuple[str, ...]
    num_bytes: Mapping[tuple[int, Phase, str], int]
    limit_bytes: Mapping[int, int]

    def total_bytes(self, rank: int, phase: Phase) -> int:
        """Return what a rank needs in a phase."""
        return sum(self.num_bytes.get((rank, phase, term), 0) for term in self.terms)


def ledger_of(lines: Sequence[MemoryLine], *, limit_bytes: int | tuple[int, ...]) -> Ledger:
    """Return a ledger by rank, phase and term; lines of one term are added up."""
    num_bytes: dict[tuple[int, Phase, str], int] = {}
    for line in lines:
        key = (line.rank, line.phase, line.term)
        num_bytes[key] = num_bytes.get(key, 0) + line.num_bytes
    named = {line.phase for line in lines}
    return Ledger(
        ranks=tuple(sorted({line.rank for line in lines})),
        phases=tuple(phase for phase in Phase if phase in named),
        terms=tuple(dict.fromkeys(line.term for line in lines)),
        num_bytes=num_bytes,
        limit_bytes={held.rank: held.limit_bytes for held in memory_by_rank(lines, limit_bytes=limit_bytes)},
    )


def memory_elements(
    lines: Sequence[MemoryLine], *, limit_bytes: int | tuple[int, ...], gpu_bytes: int
) -> tuple[ET.Element, ...]:
    """Return the picture of a ledger, its legend with sources, and all of its figures.

    Args:
        lines: The ledger.
        limit_bytes: What a rank may use: one number, or one for each pipeline rank.
        gpu_bytes: What a GPU has; the largest where they differ.
    """
    ledger = ledger_of(lines, limit_bytes=limit_bytes)
    phases = ", ".join(phase.value for phase in ledger.phases)
    caption = (
        f"The stacks of each rank, from the left: {phases}; their first letters stand below. Above each rank: its peak "
        "in GiB. A rank of the pipeline is named by its lowest GPU."
    )
    rows = [ledger.ranks[start : start + RANKS_A_ROW] for start in range(0, len(ledger.ranks), RANKS_A_ROW)]
    drawn = [
        scrollable(f"Memory of ranks {ranks[0]} to {ranks[-1]}", _stacks(ledger, ranks, gpu_bytes=gpu_bytes))
        for ranks in rows
    ]
    return (
        element("figure", _hatches(ledger), *drawn, element("figcaption", caption)),
        *_legend(ledger, lines),
        folded("Every figure of the ledger, in GiB", _every_figure(ledger)),
    )


def _fill(place: int) -> str:
    colour, hatched = term_style(place)
    return f"url(#hatch-{place})" if hatched else colour


def _hatches(ledger: Ledger) -> ET.Element:
    """Return the hatched fills of a ledger's terms, for all pictures of the page."""
    patterns = []
    for place in range(len(ledger.terms)):
        colour, hatched = term_style(place)
        if hatched:
            stripe = element("path", d="M0 0V5", stroke="var(--paper)", stroke_width=4)
            patterns.append(
                element(
                    "pattern",
                    element("rect", width=5, height=5, fill=colour),
                    stripe,
                    id=f"hatch-{place}",
                    width=5,
                    height=5,
                    patternUnits="userSpaceOnUse",
                    patternTransform="rotate(45)",
                )
            )
    return element("svg", element("defs", *patterns), width=0, height=0, aria_hidden="true")


def _stacks(ledger: Ledger, ranks: Sequence[int], *, gpu_bytes: int) -> ET.Element:
    """Return the stacks of some ranks on one axis; the axis is the same for all rows of the picture."""
    top_bytes = 1.04 * max(gpu_bytes, *(ledger.total_bytes(rank, phase) for rank in ledger.ranks for phase in Phase))
    scale = Scale(low=0.0, high=top_bytes, start=TOP + PLOT, end=TOP)
    bar = ((ROOM - BETWEEN) / len(ranks) - BETWEEN) / len(ledger.phases) - GAP
    bar = min(WIDEST, max(NARROWEST, bar))
    group = len(ledger.phases) * (bar + GAP) + BETWEEN
    right = LEFT + len(ranks) * group + BETWEEN
    width = max(right, 420.0) + 110.0
    parts = [left_axis(scale, left=LEFT, right=right, unit=GIB)]
    for index, rank in enumerate(ranks):
        parts.append(_rank(ledger, rank, scale, left=LEFT + BETWEEN + index * group, bar=bar))
    parts += _limits(
        ledger, ranks, scale, ends=[LEFT, *(LEFT + group * place for place in range(1, len(ranks))), right]
    )
    below = 10.0 if ledger.limit_bytes[ranks[-1]] < gpu_bytes else -2.0
    usable = f"{gib(ledger.limit_bytes[ranks[-1]])} usable"
    parts.append(element("text", usable, x=right + 4.0, y=scale(ledger.limit_bytes[ranks[-1]]) + below))
    top = scale(gpu_bytes)
    parts.append(element("path", d=f"M{LEFT:.1f} {top:.1f}H{right:.1f}", class_="grid"))
    parts.append(element("text", f"{gib(gpu_bytes)} of a GPU", x=right + 4.0, y=top - 2.0))
    parts.append(element("text", "GiB", x=LEFT - 6.0, y=12.0, class_="end quiet"))
    title = f"Memory by phase and term of ranks {ranks[0]} to {ranks[-1]}; every figure stands in the table below"
    return drawing(title, *parts, width=width, height=TOP + PLOT + BOTTOM)


def _limits(ledger: Ledger, ranks: Sequence[int], scale: Scale, *, ends: Sequence[float]) -> Iterator[ET.Element]:
    """Yield a line over neighbouring ranks that may use as much; all but the last one with its figure.

    Args:
        ledger: The ledger.
        ranks: The ranks of the picture.
        scale: Its axis.
        ends: Where each rank begins, and where the last one ends.
    """
    for limit, run in groupby(range(len(ranks)), key=lambda place: ledger.limit_bytes[ranks[place]]):
        places = list(run)
        start, end, height = ends[places[0]], ends[places[-1] + 1], scale(limit)
        yield element("path", d=f"M{start:.1f} {height:.1f}H{end:.1f}", class_="limit")
        if places[-1] + 1 < len(ranks):
            yield element("text", gib(limit), x=start + 3.0, y=height - 3.0, class_="halo")


def _rank(ledger: Ledger, rank: int, scale: Scale, *, left: float, bar: float) -> ET.Element:
    """Return the stacks of one rank side by side, one a phase."""
    parts: list[ET.Element] = []
    for index, phase in enumerate(ledger.phases):
        x = left + index * (bar + GAP)
        segments: list[ET.Element] = []
        below = 0
        for place, term in enumerate(ledger.terms):
            num_bytes = ledger.num_bytes.get((rank, phase, term), 0)
            if not num_bytes:
                continue
            upper, lower = scale(below + num_bytes), scale(below)
            title = element("title", f"{phase.value}: {term} {gib(num_bytes)}")
            segments.append(element("rect", title, y=upper, width=bar, height=lower - upper, fill=_fill(place)))
            below += num_bytes
        parts.append(element("g", *segments, transform=f"translate({number(x)} 0)", class_="stack"))
        parts.append(element("text", phase.value[0], x=x + bar / 2, y=scale.start + 12.0, class_="mid quiet"))
    middle = left + (len(ledger.phases) * (bar + GAP) - GAP) / 2
    peak = max(ledger.total_bytes(rank, phase) for phase in ledger.phases)
    parts.append(element("text", f"{peak / GIB:,.1f}", x=middle, y=scale(peak) - 4.0, class_="mid halo"))
    parts.append(element("text", f"rank {rank}", x=middle, y=scale.start + 27.0, class_="mid"))
    return element("g", *parts)


def _legend(ledger: Ledger, lines: Sequence[MemoryLine]) -> tuple[ET.Element, ...]:
    """Return the terms with their colours, what they take on the heaviest rank, and where their figures come from."""
    heaviest = heaviest_rank(memory_by_rank(lines, limit_bytes=tuple(ledger.limit_bytes.values())))
    first_source = {line.term: line.source for line in reversed(lines)}
    sources = numbered([first_source[term] for term in ledger.terms])
    rows: list[tuple[Content, ...]] = []
    for place, (term, mark) in enumerate(zip(ledger.terms, sources.marks, strict=True)):
        of_phases = [ledger.num_bytes.get((heaviest.rank, phase, term)) for phase in ledger.phases]
        share = ledger.num_bytes.get((heaviest.rank, heaviest.peak_phase, term), 0) / heaviest.peak_bytes
        rows.append(
            (
                element("span", _swatch(place), term),
                *("" if num_bytes is None else gib(num_bytes) for num_bytes in of_phases),
                percent(share),
                mark,
            )
        )
    totals = [gib(ledger.total_bytes(heaviest.rank, phase)) for phase in ledger.phases]
    rows.append(("all", *totals, percent(1.0), ""))
    table = grid_element(
        ("term", *(phase.value for phase in ledger.phases), f"share of {heaviest.peak_phase.value}", "source"),
        rows,
        rights=(False, *(True for _ in ledger.phases), True, False),
    )
    return (
        element("h3", f"Rank {heaviest.rank}, the heaviest"),
        table,
        sources_element(sources),
    )


def _swatch(place: int) -> ET.Element:
    return element(
        "svg",
        element("rect", width=13, height=13, fill=_fill(place)),
        width=13,
        height=13,
        class_="swatch",
        aria_hidden="true",
    )


def _every_figure(ledger: Ledger) -> ET.Element:
    """Return each rank in each phase: every term, their sum, and what is left; each with its exact bytes."""
    rows: list[tuple[Content, ...]] = []
    for rank in ledger.ranks:
        for phase in ledger.phases:
            total = ledger.total_bytes(rank, phase)
            of_terms = [ledger.num_bytes.get((rank, phase, term)) for term in ledger.terms]
            cells = ["" if num_bytes is None else _exact(num_bytes) for num_bytes in of_terms]
            rows.append((f"rank {rank}", phase.value, *cells, _exact(total), _exact(ledger.limit_bytes[rank] - total)))
    return grid_element(
        ("rank", "phase", *ledger.terms, "all", "left"),
        rows,
        rights=(False, False, *(True for _ in ledger.terms), True, True),
        label="Memory by rank, phase and term",
    )


def _exact(num_bytes: int) -> ET.Element:
    """Return bytes as GiB, and for machines as they are."""
    return element("data", f"{num_bytes / GIB:,.2f}", value=str(num_bytes))
