"""Placement that balances loads: families to rooms, copies to items, copies to bins, swaps, exchanges of copies."""

import numpy as np

from solvers.replicas.copies import rooms_of_families
from solvers.replicas.exchange import place_anywhere
from solvers.replicas.problem import Floats, Ints, ReplicaProblem


def place(problem: ReplicaProblem) -> Ints:
    """Return the item on each slot of each bin, of each case: item_LBS. What keeps items apart costs is not looked at.

    Items of families are placed room by room, a room of a case as a case of its own.
    """
    if not problem.family_I:
        return place_anywhere(problem.weight_LI, num_bins=problem.num_bins, slots_per_bin=problem.slots_per_bin)
    members_LRM = room_members(problem)
    num_cases, num_rooms, num_members = members_LRM.shape
    weight_LRM = np.take_along_axis(problem.weight_LI[:, None, :], members_LRM, axis=2)
    placed = place_anywhere(
        weight_LRM.reshape(num_cases * num_rooms, num_members),
        num_bins=problem.bins_per_room,
        slots_per_bin=problem.slots_per_bin,
    ).reshape(num_cases, num_rooms, -1)
    items = np.take_along_axis(members_LRM, placed, axis=2)
    return items.reshape(num_cases, problem.num_bins, problem.slots_per_bin)


def family_weight_LF(problem: ReplicaProblem) -> Floats:
    """Return what each family weighs."""
    members = np.array(problem.family_I)[:, None] == np.arange(problem.num_families)[None, :]
    weights: Floats = problem.weight_LI @ members.astype(np.float64)
    return weights


def room_members(problem: ReplicaProblem) -> Ints:
    """Return the items of each room of each case."""
    room_LF = rooms_of_families(family_weight_LF(problem), problem.num_rooms)
    room_LI = room_LF[:, np.array(problem.family_I)]
    return np.argsort(room_LI, axis=1, kind="stable").reshape(problem.num_cases, problem.num_rooms, -1)
