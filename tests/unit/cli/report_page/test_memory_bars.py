"""Stacks are as high as the ledger says, and every line of it stands in the table with its exact bytes."""

from dataclasses import replace
from itertools import groupby

import pytest

from cli.report_page.memory_bars import ledger_of, memory_elements
from cli.report_page.style import TERM_COLOURS
from planner.plans.plan import MemoryLine, Phase
from planner.plans.rank_memory import memory_by_rank
from planner.units import GIB
from tests.pages import Node, read_elements
from tests.unit.cli.samples import sample_planned

PLANNED = sample_planned()


def page_of(lines: tuple[MemoryLine, ...]) -> Node:
    return read_elements(*memory_elements(lines, limit_bytes=7 * GIB, gpu_bytes=8 * GIB))


def test_a_ledger_has_the_totals_of_the_report() -> None:
    ledger = ledger_of(PLANNED.memory, limit_bytes=7 * GIB)
    for memory in memory_by_rank(PLANNED.memory, limit_bytes=7 * GIB):
        assert {phase: ledger.total_bytes(memory.rank, phase) for phase in ledger.phases} == memory.phase_bytes


def test_stacks_are_as_high_as_their_totals() -> None:
    page = page_of(PLANNED.memory)
    (limit,) = page.with_class("limit")
    of_limit = float(limit.attributes["d"].split()[1].partition("H")[0])
    heights = [
        sum(float(segment.attributes["height"]) for segment in stack.all("rect")) for stack in page.with_class("stack")
    ]
    ground = {
        float(stack.all("rect")[0].attributes["y"]) + float(stack.all("rect")[0].attributes["height"])
        for stack in page.with_class("stack")
    }
    (bottom,) = {round(value, 1) for value in ground}
    scale = (bottom - of_limit) / 7
    assert heights == pytest.approx([scale * gigabytes for gigabytes in (2, 6, 2, 2, 4, 2)], abs=0.05)


def test_segments_lie_on_one_another() -> None:
    for stack in page_of(PLANNED.memory).with_class("stack"):
        tops = [float(segment.attributes["y"]) for segment in stack.all("rect")]
        bottoms = [float(part.attributes["y"]) + float(part.attributes["height"]) for part in stack.all("rect")]
        assert bottoms[1:] == pytest.approx(tops[:-1], abs=0.05)


def test_every_line_of_the_ledger_stands_in_the_table() -> None:
    page = page_of(PLANNED.memory)
    table = page.all("details")[-1]
    assert table.rows() == [
        ["rank", "phase", "weights", "activations", "all", "left"],
        ["rank 0", "initialisation", "2.00", "", "2.00", "5.00"],
        ["rank 0", "forward-backward", "2.00", "4.00", "6.00", "1.00"],
        ["rank 0", "optimizer-step", "2.00", "", "2.00", "5.00"],
        ["rank 2", "initialisation", "2.00", "", "2.00", "5.00"],
        ["rank 2", "forward-backward", "2.00", "2.00", "4.00", "3.00"],
        ["rank 2", "optimizer-step", "2.00", "", "2.00", "5.00"],
    ]
    assert [data.attributes["value"] for data in table.all("data")][:3] == [
        str(num_bytes * GIB) for num_bytes in (2, 2, 5)
    ]


def test_the_legend_names_the_heaviest_rank_and_the_sources() -> None:
    page = page_of(PLANNED.memory)
    assert [title.text for title in page.all("h3")] == ["Rank 0, the heaviest"]
    assert page.rows()[:4] == [
        ["term", "initialisation", "forward-backward", "optimizer-step", "share of forward-backward", "source"],
        ["weights", "2.00 GiB", "2.00 GiB", "2.00 GiB", "33.3 %", "[1]"],
        ["activations", "", "4.00 GiB", "", "66.7 %", "[2]"],
        ["all", "2.00 GiB", "6.00 GiB", "2.00 GiB", "100.0 %", ""],
    ]
    (notes,) = page.with_class("notes")
    assert [note.text for note in notes.all("p")] == [
        "[1] 2 bytes a parameter",
        "[2] saved tensors, 2 micro-batches in flight",
    ]


def test_more_terms_than_colours_are_hatched_and_all_differ() -> None:
    first = PLANNED.memory[0]
    lines = tuple(replace(first, term=f"term {index}") for index in range(len(TERM_COLOURS) + 3))
    page = page_of(lines)
    fills = [segment.attributes["fill"] for segment in page.with_class("stack")[0].all("rect")]
    assert len(set(fills)) == len(lines)
    hatches = {f"url(#{pattern.attributes['id']})" for pattern in page.all("pattern")}
    assert len(hatches) == 3
    assert set(fills) - hatches == set(TERM_COLOURS)


def test_many_ranks_stand_in_rows_on_one_scale() -> None:
    lines = tuple(replace(line, rank=line.rank // 2 + 2 * step) for step in range(20) for line in PLANNED.memory)
    page = page_of(lines)
    figure = page.all("figure")[0]
    pictures = [svg for svg in figure.all("svg") if svg.attributes.get("role") == "img"]
    assert [len(picture.with_class("stack")) for picture in pictures] == [48, 48, 24]
    limits = {picture.with_class("limit")[0].attributes["d"].split()[1].partition("H")[0] for picture in pictures}
    assert len(limits) == 1


def test_a_rank_that_does_not_fit_stands_above_the_limit() -> None:
    page = page_of(tuple(replace(line, num_bytes=line.num_bytes * 10) for line in PLANNED.memory))
    (limit,) = page.with_class("limit")
    tops = [float(part.attributes["y"]) for stack in page.with_class("stack") for part in stack.all("rect")]
    assert min(tops) < float(limit.attributes["d"].split()[1].partition("H")[0])
    left = [cells[-1] for cells in page.all("details")[-1].rows()[1:]]
    assert "-53.00" in left


def test_the_rows_of_a_rank_follow_the_phases_of_a_step() -> None:
    cells = [row[:2] for row in page_of(PLANNED.memory[::-1]).all("details")[-1].rows()[1:]]
    for _, rows in groupby(cells, key=lambda row: row[0]):
        assert [phase for _, phase in rows] == [phase.value for phase in Phase]


def test_ranks_with_limits_of_their_own_have_lines_of_their_own() -> None:
    ranks = sorted({line.rank for line in PLANNED.memory})
    lines = tuple(replace(line, rank=rank) for rank in range(3) for line in PLANNED.memory if line.rank == ranks[0])
    limits = (7 * GIB, 7 * GIB, 6 * GIB)
    page = read_elements(*memory_elements(lines, limit_bytes=limits, gpu_bytes=8 * GIB))
    assert len(page.with_class("limit")) == 2
    for words in ("7.00 GiB", "6.00 GiB usable"):
        assert words in page.text
    # The rank with least left is the heaviest, though all hold as much.
    assert "Rank 2, the heaviest" in page.text
    ledger = ledger_of(lines, limit_bytes=limits)
    left = {rank: limits[rank] - ledger.total_bytes(rank, Phase.FORWARD_BACKWARD) for rank in range(3)}
    cells = [node.attributes["value"] for node in page.all("data")]
    assert {str(value) for value in left.values()} <= set(cells)
