"""Small replica placement problems of one case."""

import numpy as np

from solvers.replicas.problem import ReplicaProblem


def drawn(shape: tuple[int, int, int, int, int], seed: int) -> ReplicaProblem:
    """Return a problem of so many items, bins, slots of a bin, rooms and families; no families for 0."""
    items, bins, slots, rooms, families = shape
    weights = np.random.default_rng(seed).integers(1, 60, (1, items)).astype(float)
    return ReplicaProblem(
        weight_LI=weights,
        num_bins=bins,
        slots_per_bin=slots,
        num_rooms=rooms,
        family_I=tuple(item // (items // families) for item in range(items)) if families else (),
    )
