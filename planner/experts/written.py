"""A placement as plan files hold it: a row of experts between commas for each layer, slots of a rank as neighbours."""

from collections.abc import Sequence

import numpy as np

from planner.experts.histogram import Ints


def rows_of(expert_LGS: Ints) -> tuple[str, ...]:
    """Return the row of each layer."""
    return tuple(",".join(map(str, row)) for row in expert_LGS.reshape(len(expert_LGS), -1).tolist())


def slots_of(rows: Sequence[str], *, num_ranks: int) -> Ints:
    """Return the expert on each slot of each rank.

    Raises:
        ValueError: These are no rows of whole numbers of one length, or the ranks have not as many slots.
    """
    slots = np.array([[int(cell) for cell in row.split(",")] for row in rows], dtype=np.int64)
    return slots.reshape(len(rows), num_ranks, -1)


def placement_error(expert_LGS: Ints, *, num_layers: int, num_experts: int, redundant: int | None) -> str:
    """Return what is wrong with a placement; empty where nothing is.

    Args:
        expert_LGS: The placement.
        num_layers: Layers in which tokens were counted.
        num_experts: Experts of a layer.
        redundant: Copies that the engine is told of.
    """
    layers, ranks, slots = expert_LGS.shape
    if layers != num_layers:
        return f"has {layers} layers, and tokens were counted in {num_layers}"
    if ranks * slots - num_experts != redundant:
        return f"has {ranks * slots - num_experts} copies, and the engine is told of {redundant}"
    if expert_LGS.min() < 0 or expert_LGS.max() >= num_experts:
        return f"names experts that there are not: they are numbered 0 to {num_experts - 1}"
    ordered = np.sort(expert_LGS, axis=2)
    if (ordered[:, :, 1:] == ordered[:, :, :-1]).any():
        return "holds an expert twice on a rank"
    if any(np.unique(layer).size < num_experts for layer in expert_LGS):
        return "leaves an expert out"
    return ""
