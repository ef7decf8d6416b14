"""Residuals of matrix products on a regular grid, for planning: thousands of products in milliseconds, without SciPy.

A grid holds log(measured / analytic) in a burst at every combination of the sizes that were measured; combinations that
were not are interpolated once, when the grid is made (`profiles.residuals`). Between its points a residual is linear in
log m, log n and log k; outside it fades, in octaves of m, n and k.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path

from profiles.errors import ProfileFileError
from profiles.store import shipped_directory

GRIDS = "gemm_grids.json"

HALF_LIFE = 4.0
"""Octaves outside of the grid over which a residual falls to half, as in `profiles.residuals`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmGrid:
    """Residuals of matrix products in one format.

    Args:
        sizes: Rows, columns and inner dimensions of the grid, each rising.
        residuals: log(measured / analytic), by rows, columns, then inner dimension.
        origin: Who ran the products, and on which GPU.
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    residuals: tuple[float, ...]
    origin: str

    def __post_init__(self) -> None:
        """Check that there is a residual for each point of at least two sizes along each axis."""
        if math.prod(len(axis) for axis in self.sizes) != len(self.residuals):
            raise ValueError(f"{len(self.residuals)} residuals do not fill a grid")
        if any(len(axis) < 2 or list(axis) != sorted(set(axis)) for axis in self.sizes):
            raise ValueError("a grid needs two sizes or more along each axis, each larger than the last")

    def factor(self, m: int, n: int, k: int) -> tuple[float, float]:
        """Return by what the analytic price is multiplied, and how many octaves the product lies outside."""
        outside = 0.0
        corners: list[tuple[tuple[int, float], tuple[int, float]]] = []
        for size, axis in zip((m, n, k), self.sizes, strict=True):
            inside = min(max(size, axis[0]), axis[-1])
            outside += abs(math.log2(size / inside))
            upper = min(bisect_right(axis, inside), len(axis) - 1)
            share = math.log(inside / axis[upper - 1]) / math.log(axis[upper] / axis[upper - 1])
            corners.append(((upper - 1, 1.0 - share), (upper, share)))
        residual = 0.0
        _, columns, depths = (len(axis) for axis in self.sizes)
        for (row, by_row), (column, by_column), (depth, by_depth) in product(*corners):
            weight = by_row * by_column * by_depth
            if weight:
                residual += weight * self.residuals[(row * columns + column) * depths + depth]
        return math.exp(residual * 0.5 ** (outside / HALF_LIFE)), outside


def read_grids(path: Path | Traversable) -> Mapping[str, GemmGrid]:
    """Return the grids of a file by datasheet rate.

    Raises:
        ProfileFileError: They cannot be read.
    """
    try:
        content: Mapping[str, Mapping[str, Sequence[int]]] = json.loads(path.read_text(encoding="utf-8"))
        return {
            rate: GemmGrid(
                sizes=(tuple(grid["m"]), tuple(grid["n"]), tuple(grid["k"])),
                residuals=tuple(grid["log_residuals"]),
                origin=str(grid["origin"]),
            )
            for rate, grid in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProfileFileError(
            file=str(path),
            line=None,
            message=f"no grids can be read: {error}",
            remedy="They come with the package: install it again.",
        ) from None


@cache
def shipped_grids(device: str) -> Mapping[str, GemmGrid]:
    """Return the grids of a GPU that come with the package, by datasheet rate; none where there are none."""
    path = shipped_directory() / device / GRIDS
    return read_grids(path) if path.is_file() else {}
