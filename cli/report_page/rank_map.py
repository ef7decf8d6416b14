"""Which rank stands on which node: repeated nodes are drawn once, with a count.

Two nodes look alike when their GPUs have the same coordinates relative to their first GPU, in the grid of everything
but routed experts and in that of the experts. A row is a run of neighbouring nodes that look alike and hold the same
pipeline ranks; neighbouring rows of as many nodes that look alike are alike themselves. Of each run the first ones and
the last one are drawn. Nothing is lost: `rank // distance % size` gives every coordinate, and all axes are listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

import numpy as np

from cli.render import count, counted
from cli.report_page.markup import element, folded, grid_element
from cli.report_page.pipeline_picture import held_in_words
from planner.layout import REPLICAS_OUTERMOST, ContextKind, Layout
from planner.plans.layout_words import gpus_in_words
from planner.plans.rank_places import DENSE_AXES, EXPERT_AXES, RankPlace, rank_places, strides

DRAWN_FIRST = 2
"""Nodes and rows of a run that are drawn before the count; then the last."""
MOST_ROWS = 24
"""Rows that are drawn at most, where hardly any node looks like another."""
MOST_MEMBERS = 8

Shape = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRow:
    """Neighbouring nodes that look alike and hold the same pipeline ranks.

    Args:
        nodes: Their numbers.
        pipeline_ranks: What each of them holds.
        shape: Coordinates of each GPU relative to the node's first GPU, those of experts behind the others.
    """

    nodes: range
    pipeline_ranks: tuple[int, ...]
    shape: Shape

    def is_like(self, other: "NodeRow") -> bool:
        """Return whether the two differ in nothing but where they begin."""
        return (self.shape, len(self.nodes)) == (other.shape, len(other.nodes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a grid of ranks.

    Args:
        name: Its name.
        size: Ranks of one group along it.
        distance: How far apart neighbours of a group are.
        members: The group of rank 0.
        most_nodes: Nodes that the group that touches most of them touches.
    """

    name: str
    size: int
    distance: int
    members: tuple[int, ...]
    most_nodes: int


def node_rows(layout: Layout, *, gpus_per_node: int) -> tuple[NodeRow, ...]:
    """Return all nodes in rows of equal ones, in order."""
    places = rank_places(layout, range(layout.world_size))
    rows: list[NodeRow] = []
    for first in range(0, layout.world_size, gpus_per_node):
        of_node = places[first : first + gpus_per_node]
        node = first // gpus_per_node
        row = NodeRow(
            nodes=range(node, node + 1),
            pipeline_ranks=tuple(sorted({place.dense[DENSE_AXES.index("pp")] for place in of_node})),
            shape=_shape(of_node),
        )
        if rows and (rows[-1].shape, rows[-1].pipeline_ranks) == (row.shape, row.pipeline_ranks):
            rows[-1] = NodeRow(
                nodes=range(rows[-1].nodes.start, node + 1), pipeline_ranks=row.pipeline_ranks, shape=row.shape
            )
        else:
            rows.append(row)
    return tuple(rows)


def _shape(places: Sequence[RankPlace]) -> Shape:
    """Return coordinates relative to the first place."""
    first = (*places[0].dense, *places[0].expert)
    return tuple(
        tuple(own - base for own, base in zip((*place.dense, *place.expert), first, strict=True)) for place in places
    )


def grid_axes(layout: Layout, axes: tuple[str, ...], *, gpus_per_node: int) -> tuple[Axis, ...]:
    """Return the axes of one grid, fastest first."""
    ranks = np.arange(layout.world_size)
    found = []
    for name, (distance, size) in zip(axes, strides(layout, axes), strict=True):
        group = ranks - ranks // distance % size * distance
        pairs = np.unique(np.stack([group, ranks // gpus_per_node]), axis=1)
        _, nodes = np.unique(pairs[0], return_counts=True)
        found.append(
            Axis(
                name=name,
                size=size,
                distance=distance,
                members=tuple(range(0, distance * size, distance)),
                most_nodes=int(nodes.max()),
            )
        )
    return tuple(found)


def rank_map_elements(layout: Layout, *, gpus_per_node: int, has_experts: bool) -> tuple[ET.Element, ...]:
    """Return the nodes with their GPUs, the groups of every axis, and where each pipeline rank stands."""
    rows = node_rows(layout, gpus_per_node=gpus_per_node)
    parts: list[ET.Element] = []
    runs = _runs(rows)
    drawn = 0
    for index, run in enumerate(runs):
        if drawn >= MOST_ROWS:
            left = sum(len(row.nodes) for later in runs[index:] for row in later)
            parts.append(element("p", f"{counted(left, 'more node')}, each unlike the one before it, are not drawn."))
            break
        shown, hidden = _ends(len(run))
        for position in shown:
            if hidden and position == shown[-1]:
                parts.append(_rows_left_out([run[place] for place in hidden]))
            parts.append(_row(layout, run[position], gpus_per_node=gpus_per_node, has_experts=has_experts))
            drawn += 1
    axes = "A rank's coordinate along an axis is its number // distance % size. Numbers are global ranks."
    if layout.cp_kind is ContextKind.ULYSSES_RING:
        axes += (
            f" Of each cp group the first {layout.ulysses} exchange heads, the next {layout.ulysses} likewise; rings "
        )
        axes += "join ranks at the same place of these."
    return (
        element(
            "p", "A GPU's number is its global rank; its axes of size 1 are left out. Shades tell tp groups apart."
        ),
        element("div", *parts, class_="rows"),
        element("h3", "Groups of ranks"),
        element("p", axes),
        *_axis_tables(layout, gpus_per_node=gpus_per_node, has_experts=has_experts),
        folded("Each pipeline rank: its nodes and GPUs, and what it holds", _pipeline_table(layout, gpus_per_node)),
    )


def _runs(rows: Sequence[NodeRow]) -> list[list[NodeRow]]:
    """Return neighbouring rows that are alike together."""
    runs: list[list[NodeRow]] = []
    for row in rows:
        if runs and runs[-1][-1].is_like(row):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _ends(length: int) -> tuple[list[int], list[int]]:
    """Return which of a run are drawn, and which are counted: one alone is drawn instead."""
    if length <= DRAWN_FIRST + 2:
        return list(range(length)), []
    return [*range(DRAWN_FIRST), length - 1], list(range(DRAWN_FIRST, length - 1))


def _span(first: int, last: int, one: str) -> str:
    """Return "node 3" or "nodes 3 to 8"."""
    return f"{one} {first}" if first == last else f"{one}s {first} to {last}"


def _rows_left_out(rows: Sequence[NodeRow]) -> ET.Element:
    nodes = _span(rows[0].nodes.start, rows[-1].nodes[-1], "node")
    ranks = _span(rows[0].pipeline_ranks[0], rows[-1].pipeline_ranks[-1], "pipeline rank")
    words = f"{ranks[0].upper()}{ranks[1:]}: likewise, {nodes}, {counted(len(rows[0].nodes), 'node')} each."
    return element("p", words, class_="quiet")


def _row(layout: Layout, row: NodeRow, *, gpus_per_node: int, has_experts: bool) -> ET.Element:
    """Return one row of nodes: the first ones, a count, the last one."""
    shown, hidden = _ends(len(row.nodes))
    # The heading names the pipeline rank where there is but one.
    told = DENSE_AXES if len(row.pipeline_ranks) > 1 else DENSE_AXES[:-1]
    parts: list[ET.Element] = []
    for position in shown:
        if hidden and position == shown[-1]:
            nodes = _span(row.nodes[hidden[0]], row.nodes[hidden[-1]], "node")
            parts.append(element("p", f"+ {counted(len(hidden), 'node')} that look alike: {nodes}", class_="more"))
        node = row.nodes[position]
        ranks = range(node * gpus_per_node, (node + 1) * gpus_per_node)
        cells = [_gpu(layout, place, told=told, has_experts=has_experts) for place in rank_places(layout, ranks)]
        parts.append(
            element("div", element("h4", f"node {node}"), element("div", *cells, class_="gpus"), class_="node")
        )
    ranks_held = _span(row.pipeline_ranks[0], row.pipeline_ranks[-1], "pipeline rank")
    nodes = _span(row.nodes[0], row.nodes[-1], "node")
    title = element("h3", f"{ranks_held[0].upper()}{ranks_held[1:]}: {nodes}")
    return element("div", title, element("div", *parts, class_="nodes"))


def _gpu(layout: Layout, place: RankPlace, *, told: tuple[str, ...], has_experts: bool) -> ET.Element:
    """Return one GPU: its rank and its coordinates along all axes that are told, if they have more than one rank."""
    lines = [_coordinates(layout, told, place.dense)]
    if has_experts:
        lines.append(_coordinates(layout, EXPERT_AXES[:-1], place.expert))
    # Neighbouring tensor-parallel groups differ in shade.
    odd = place.rank // layout.tp % 2 == 1
    return element(
        "div",
        element("b", f"GPU {place.rank}"),
        *(element("span", line) for line in lines if line),
        class_="gpu odd" if odd else "gpu",
    )


def _coordinates(layout: Layout, axes: Sequence[str], place: Sequence[int]) -> str:
    return " ".join(
        f"{axis} {coordinate}" for axis, coordinate in zip(axes, place, strict=False) if getattr(layout, axis) > 1
    )


def _axis_tables(layout: Layout, *, gpus_per_node: int, has_experts: bool) -> tuple[ET.Element, ...]:
    """Return the groups along every axis, of one grid or both."""
    grids = [("everything but routed experts" if has_experts else "", DENSE_AXES)]
    if has_experts:
        grids.append(("routed experts", EXPERT_AXES))
    tables: list[ET.Element] = []
    for title, axes in grids:
        rows = [
            (
                axis.name,
                count(axis.size),
                str(axis.distance),
                "inside a node" if axis.most_nodes == 1 else f"up to {counted(axis.most_nodes, 'node')}",
                _members(axis.members),
            )
            for axis in grid_axes(layout, axes, gpus_per_node=gpus_per_node)
        ]
        if title:
            tables.append(element("h4", f"Grid of {title}"))
        headers = ("axis", "size", "distance", "a group stands", "the group of rank 0")
        tables.append(grid_element(headers, rows, rights=(False, True, True, False, False)))
    return tuple(tables)


def _members(members: Sequence[int]) -> str:
    if len(members) <= MOST_MEMBERS:
        return ", ".join(str(member) for member in members)
    return f"{', '.join(str(member) for member in members[:3])}, ..., {members[-1]}"


def _nodes_of(layout: Layout, pipeline_rank: int, gpus_per_node: int) -> str:
    """Return the nodes of one pipeline rank: "0 to 3", or with replicas outermost those of every replica."""
    first = layout.first_global_rank(pipeline_rank)
    if layout.rank_order != REPLICAS_OUTERMOST:
        last = first + layout.stage_ranks - 1
        return _span(first // gpus_per_node, last // gpus_per_node, "node").partition(" ")[2]
    if layout.replica_distance <= gpus_per_node:
        return "all"
    last = first + layout.stage_distance - 1
    nodes = _span(first // gpus_per_node, last // gpus_per_node, "node").partition(" ")[2]
    return f"{nodes}, and so on every {layout.replica_distance // gpus_per_node}"


def _pipeline_table(layout: Layout, gpus_per_node: int) -> ET.Element:
    """Return the nodes, the GPUs and the layers of every pipeline rank."""
    rows = []
    for rank in range(layout.pp):
        gpus = gpus_in_words(layout, rank).partition(" ")[2]
        nodes = _nodes_of(layout, rank, gpus_per_node)
        held = "; ".join(held_in_words(stage) for stage in layout.chunks(rank))
        rows.append((str(rank), nodes, gpus, held))
    return grid_element(("pipeline rank", "nodes", "GPUs", "holds"), rows, rights=(False, True, True, False))
