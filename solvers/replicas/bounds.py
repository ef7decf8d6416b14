"""What the heaviest bin carries at least, whatever the placement.

    (a)  the mean load of the bins
    (b)  the heaviest copy, with the copies that make it lightest
and where every item has one copy
    (c)  of the heaviest k B + 1 items some bin has k + 1 at least, and beside them S - k - 1 of any, for each k < S;
         with k = 0, the heaviest item with the lightest S - 1
and where families stay in one room
    (d)  the mean load of the bins of the heaviest room, with families spread as evenly as can be
    (e)  the heaviest copy of a family that has all copies of its room for itself
"""

import numpy as np

from solvers.replicas.copies import least_heaviest_room_L, spread_copies
from solvers.replicas.greedy import family_weight_LF
from solvers.replicas.problem import Floats, ReplicaProblem


def least_load_L(problem: ReplicaProblem) -> Floats:
    """Return a lower bound of the heaviest bin's load in each case."""
    weight = problem.weight_LI
    bound: Floats = np.maximum(
        weight.sum(axis=1) / problem.num_bins,
        _least_heaviest_copy(weight, num_slots=problem.num_slots, num_bins=problem.num_bins),
    )
    if problem.num_slots == problem.num_items:
        bound = np.maximum(bound, _least_crowded_L(weight, num_bins=problem.num_bins))
    if not problem.family_I:
        return bound
    rooms = least_heaviest_room_L(family_weight_LF(problem), problem.num_rooms) / problem.bins_per_room
    bound = np.maximum(bound, rooms)
    family_I, size = np.array(problem.family_I), problem.num_items // problem.num_families
    spare = (problem.num_slots - problem.num_items) // problem.num_rooms
    for family in range(problem.num_families):
        alone = _least_heaviest_copy(
            weight[:, family_I == family], num_slots=size + spare, num_bins=problem.bins_per_room
        )
        bound = np.maximum(bound, alone)
    return bound


def _least_heaviest_copy(weight_LI: Floats, *, num_slots: int, num_bins: int) -> Floats:
    num_slots = min(num_slots, weight_LI.shape[1] * num_bins)
    heaviest: Floats = (weight_LI / spread_copies(weight_LI, num_slots=num_slots, num_bins=num_bins)).max(axis=1)
    return heaviest


def _least_crowded_L(weight_LI: Floats, *, num_bins: int) -> Floats:
    """Return what some bin carries at least where each of them holds as many items, all once."""
    slots = weight_LI.shape[1] // num_bins
    # Sums of the lightest and of the heaviest so many items, none first.
    lightest_LI = np.cumsum(np.insert(np.sort(weight_LI, axis=1), 0, 0.0, axis=1), axis=1)
    heaviest_LI = np.cumsum(np.insert(-np.sort(-weight_LI, axis=1), 0, 0.0, axis=1), axis=1)
    together = np.arange(slots)
    last = together * num_bins + 1
    crowded_LK = heaviest_LI[:, last] - heaviest_LI[:, last - together - 1] + lightest_LI[:, slots - together - 1]
    least: Floats = crowded_LK.max(axis=1)
    return least
