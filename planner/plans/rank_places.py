"""Where global ranks stand in the two grids of a layout: that of the dense part and that of the routed experts."""

from collections.abc import Iterable
from dataclasses import dataclass

from planner.layout import REPLICAS_OUTERMOST, Layout

DENSE_AXES = ("tp", "cp", "dp", "pp")
"""Axes of the grid of everything but routed experts, fastest first in the default rank order."""

EXPERT_AXES = ("etp", "ep", "edp", "pp")
"""Axes of the grid of the routed experts, over the same ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where one global rank stands in both grids.

    Args:
        rank: The global rank.
        dense: Its coordinates along `DENSE_AXES`.
        expert: Its coordinates along `EXPERT_AXES`.
    """

    rank: int
    dense: tuple[int, ...]
    expert: tuple[int, ...]


def rank_places(layout: Layout, ranks: Iterable[int]) -> tuple[RankPlace, ...]:
    """Return where ranks stand in both grids: (tp, cp, dp, pp), and (etp, ep, edp, pp) of the routed experts."""
    return tuple(
        RankPlace(
            rank=rank, dense=_coordinates(layout, DENSE_AXES, rank), expert=_coordinates(layout, EXPERT_AXES, rank)
        )
        for rank in ranks
    )


def telling_ranks(layout: Layout, *, at_most: int) -> tuple[int, ...]:
    """Return all ranks, or where these are too many the first, the next along each axis of a grid, and the last."""
    if layout.world_size <= at_most:
        return tuple(range(layout.world_size))
    steps = {stride for axes in (DENSE_AXES, EXPERT_AXES) for stride, size in strides(layout, axes) if size > 1}
    return tuple(sorted({0, *steps, layout.world_size - 1}))


def strides(layout: Layout, axes: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Return of each axis of a grid how far apart neighbours along it are, and its size."""
    *inner, replicas, stages = axes
    outermost = layout.rank_order == REPLICAS_OUTERMOST
    found: dict[str, tuple[int, int]] = {}
    stride = 1
    for axis in (*inner, stages, replicas) if outermost else (*inner, replicas, stages):
        size: int = getattr(layout, axis)
        found[axis] = (stride, size)
        stride *= size
    return tuple(found[axis] for axis in axes)


def _coordinates(layout: Layout, axes: Iterable[str], rank: int) -> tuple[int, ...]:
    return tuple(rank // stride % size for stride, size in strides(layout, axes))
