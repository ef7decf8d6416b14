"""How many copies of each item, and which family goes to which room.

Copies: the item whose copies carry most gets the next one. No other numbers of copies make the heaviest copy lighter:
for any weight t, at least sum over i of ceil(weight[i] / t) copies are needed to have none heavier than t, and one at
a time they are given just where they are needed.

Families: where there are few ways to spread them over the rooms, all of them are looked at; else the heaviest goes to
the lightest room that has a place left, and pairs are swapped for as long as that helps.
"""

from collections.abc import Iterator
from itertools import combinations
from math import factorial

import numpy as np

from solvers.replicas.problem import Floats, Ints

MOST_PARTITIONS = 5_000
"""Ways to spread families over rooms that are looked at one by one."""


def spread_copies(weight_LI: Floats, *, num_slots: int, num_bins: int, less: float = 0.0) -> Ints:
    """Return the copies of each item, one at least and one a bin at most, that make the heaviest copy lightest.

    Args:
        weight_LI: Weight of each item.
        num_slots: Copies of all items.
        num_bins: Copies of one item at most.
        less: Taken from the copies in the divisor: above 0 heavy items get more copies than that.
    """
    num_cases, num_items = weight_LI.shape
    copies = np.ones((num_cases, num_items), dtype=np.int64)
    share = weight_LI / (1 - less)
    cases = np.arange(num_cases)
    if num_bins == 1:
        return copies
    for _ in range(num_slots - num_items):
        chosen = share.argmax(axis=1)
        copies[cases, chosen] += 1
        now = copies[cases, chosen]
        share[cases, chosen] = np.where(now < num_bins, weight_LI[cases, chosen] / (now - less), -1.0)
    return copies


def num_partitions(num_families: int, num_rooms: int) -> int:
    """Return in how many ways families can be spread over rooms that are all alike, as many in each."""
    size = num_families // num_rooms
    alike: int = factorial(size) ** num_rooms * factorial(num_rooms)
    return factorial(num_families) // alike


def rooms_of_families(weight_LF: Floats, num_rooms: int) -> Ints:
    """Return the room of each family, as many in each, with the heaviest room as light as was found."""
    num_families = weight_LF.shape[1]
    if num_partitions(num_families, num_rooms) <= MOST_PARTITIONS:
        listed = np.array(list(_partitions(num_families, num_rooms)))
        lightest: Ints = listed[heaviest_rooms(weight_LF, listed, num_rooms).argmin(axis=1)]
        return lightest
    return np.array([_greedy_rooms(row, num_rooms) for row in weight_LF])


def least_heaviest_room_L(weight_LF: Floats, num_rooms: int) -> Floats:
    """Return what the heaviest room carries at least, whichever way families are spread."""
    num_families = weight_LF.shape[1]
    if num_partitions(num_families, num_rooms) <= MOST_PARTITIONS:
        listed = np.array(list(_partitions(num_families, num_rooms)))
        least: Floats = heaviest_rooms(weight_LF, listed, num_rooms).min(axis=1)
        return least
    # The heaviest family stands with the lightest others, and some room is at least as heavy as the mean.
    ordered = np.sort(weight_LF, axis=1)
    with_lightest = ordered[:, -1] + ordered[:, : num_families // num_rooms - 1].sum(axis=1)
    bound: Floats = np.maximum(with_lightest, weight_LF.sum(axis=1) / num_rooms)
    return bound


def heaviest_rooms(weight_LF: Floats, room_PF: Ints, num_rooms: int) -> Floats:
    """Return the heaviest room of each case under each way P to spread its families."""
    loads_LPR = np.stack([weight_LF @ (room_PF == room).T.astype(np.float64) for room in range(num_rooms)], axis=2)
    heaviest: Floats = loads_LPR.max(axis=2)
    return heaviest


def _partitions(num_families: int, num_rooms: int) -> Iterator[tuple[int, ...]]:
    """Yield the room of each family in every way that differs in more than the names of the rooms."""
    size = num_families // num_rooms
    room = [-1] * num_families

    def place(number: int) -> Iterator[tuple[int, ...]]:
        if number == num_rooms:
            yield tuple(room)
            return
        left = [family for family in range(num_families) if room[family] < 0]
        first, rest = left[0], left[1:]
        for others in combinations(rest, size - 1):
            for family in (first, *others):
                room[family] = number
            yield from place(number + 1)
            for family in (first, *others):
                room[family] = -1

    yield from place(0)


def _greedy_rooms(weight_F: Floats, num_rooms: int) -> Ints:
    """Return rooms for one case: heaviest family first, then swaps of the heaviest room's with any other."""
    size = weight_F.size // num_rooms
    room_F, load_R, taken_R = np.empty(weight_F.size, dtype=np.int64), np.zeros(num_rooms), np.zeros(num_rooms, int)
    for family in np.argsort(-weight_F, kind="stable"):
        room = int(np.where(taken_R < size, load_R, np.inf).argmin())
        room_F[family], load_R[room], taken_R[room] = room, load_R[room] + weight_F[family], taken_R[room] + 1
    while True:
        heaviest = int(load_R.argmax())
        mine, others = np.flatnonzero(room_F == heaviest), np.flatnonzero(room_F != heaviest)
        change = weight_F[mine][:, None] - weight_F[others][None, :]
        after = np.maximum(load_R[heaviest] - change, load_R[room_F[others]][None, :] + change)
        best = int(after.argmin())
        if after.flat[best] >= load_R[heaviest] * (1 - 1e-12):
            return room_F
        here, there = mine[best // others.size], others[best % others.size]
        other = room_F[there]
        moved = weight_F[here] - weight_F[there]
        load_R[heaviest] -= moved
        load_R[other] += moved
        room_F[here], room_F[there] = other, heaviest
