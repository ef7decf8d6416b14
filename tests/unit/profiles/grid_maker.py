"""Makes the grids of `profiles.grids` from a profile's table of matrix products.

Those of the package are made by `pytest tests/unit/profiles/test_grids.py --update-golden`.
"""

import json
import math
from collections.abc import Mapping
from itertools import product

from profiles.grids import GemmGrid
from profiles.kernels.operations import FORMATS
from profiles.measured import KernelCosts
from profiles.residuals import nearest_implementation
from profiles.tables import Implementation, Shape, TableKind, TableRow

PLANNED: Mapping[str, Implementation] = {
    "bfloat16": Implementation(framework="vllm"),
    "fp8": Implementation(framework="vllm"),
}
"""Formats that training multiplies in, and whose kernels are nearest to its own: cuBLAS as PyTorch calls it, and scaled
products whose operands are quantised elsewhere."""

DIGITS = 4
"""Digits of a residual that are kept: a hundredth of a per cent."""


def gemm_grids(costs: KernelCosts, rows: tuple[TableRow, ...]) -> dict[str, GemmGrid]:
    """Return the residuals of a table of matrix products on its own sizes, by datasheet rate.

    Args:
        costs: What prices a product by that table.
        rows: The table.
    """
    grids: dict[str, GemmGrid] = {}
    for name, wanted in PLANNED.items():
        measured: dict[Implementation, dict[tuple[int, ...], float]] = {}
        for row in rows:
            if row.shape.words == (name,):
                measured.setdefault(row.implementation, {})[row.shape.sizes] = row.seconds
        if not measured:
            continue
        chosen = nearest_implementation(measured, wanted)
        axes = [sorted({sizes[axis] for sizes in measured[chosen]}) for axis in range(3)]
        shapes = [Shape(words=(name,), sizes=sizes) for sizes in product(*axes)]
        queries = [costs.query(TableKind.GEMM, shape, chosen) for shape in shapes]
        residuals = tuple(
            math.log(found.seconds / query.analytic_seconds)
            for query, found in zip(queries, costs.estimates(TableKind.GEMM, queries), strict=True)
        )
        m, n, k = (tuple(axis) for axis in axes)
        origin = f"{chosen.text} on {costs.cluster.device.name}"
        grids[FORMATS[name].rate] = GemmGrid(sizes=(m, n, k), residuals=residuals, origin=origin)
    return grids


def grids_text(grids: Mapping[str, GemmGrid]) -> str:
    """Return the file of grids by datasheet rate; equal grids are equal text."""
    content = {
        rate: {
            "origin": grid.origin,
            "m": list(grid.sizes[0]),
            "n": list(grid.sizes[1]),
            "k": list(grid.sizes[2]),
            "log_residuals": [round(residual, DIGITS) for residual in grid.residuals],
        }
        for rate, grid in sorted(grids.items())
    }
    return json.dumps(content, separators=(",", ":")).replace("]", "]\n") + "\n"
