"""Every placement of a small replica placement problem, one after the other: the oracle of the tests.

Items take their bins in turn, the heaviest first, each any set of bins that have a slot left (constraint 2), so that
every item has a copy (constraint 1) and all slots are taken. Two sets that differ in bins of one room which hold the
same are looked at once, and so are rooms that hold nothing. A partial placement is left when some bin already carries
more than the best objective allows.
"""

from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np

from solvers.replicas.check import broken_constraints, objectives
from solvers.replicas.problem import Ints, ReplicaProblem

Bins = list[list[int]]


def best_placement(problem: ReplicaProblem) -> tuple[float, Ints]:
    """Return the least objective of a problem of one case, and a placement that has it."""
    if problem.num_cases != 1:
        raise ValueError("one case at a time")
    best: list[tuple[float, Ints]] = []
    mean = float(problem.weight_LI.sum()) / problem.num_bins

    def heaviest_allowed() -> float:
        return best[-1][0] * mean if best else float("inf")

    for bins in _placements(problem, heaviest_allowed):
        item_LBS = np.array([bins])
        if broken_constraints(problem, item_LBS):
            continue
        (objective,) = objectives(problem, item_LBS)
        if not best or objective < best[-1][0]:
            best.append((objective, item_LBS))
    return best[-1]


def _placements(problem: ReplicaProblem, heaviest_allowed: Callable[[], float]) -> Iterator[Bins]:
    """Yield the items of each bin for every placement in which no bin carries as much as is allowed at the time."""
    weights = problem.weight_LI[0].tolist()
    order = sorted(range(problem.num_items), key=lambda item: -weights[item])
    bins: Bins = [[] for _ in range(problem.num_bins)]
    carried = [0.0] * problem.num_bins

    def place(position: int, slots_left: int) -> Iterator[Bins]:
        if position == len(order):
            if slots_left == 0:
                yield bins
            return
        others = len(order) - position - 1
        item = order[position]
        for copies in range(1, min(problem.num_bins, slots_left - others) + 1):
            share = weights[item] / copies
            for chosen in _sets(problem, bins, copies):
                if any(carried[bin_] + share >= heaviest_allowed() and weights[item] for bin_ in chosen):
                    continue
                for bin_ in chosen:
                    bins[bin_].append(item)
                    carried[bin_] += share
                yield from place(position + 1, slots_left - copies)
                for bin_ in chosen:
                    bins[bin_].pop()
                    carried[bin_] -= share

    yield from place(0, problem.num_slots)


def _sets(problem: ReplicaProblem, bins: Bins, copies: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of bins with a slot left, one of those that differ only in bins that are alike."""
    free = [bin_ for bin_, items in enumerate(bins) if len(items) < problem.slots_per_bin]
    seen = set()
    for chosen in combinations(free, copies):
        rooms: dict[int, list[tuple[tuple[int, ...], bool]]] = {}
        for bin_, items in enumerate(bins):
            rooms.setdefault(bin_ // problem.bins_per_room, []).append((tuple(items), bin_ in chosen))
        # Bins of a room have no names, nor have rooms.
        state = tuple(sorted(tuple(sorted(room)) for room in rooms.values()))
        if state not in seen:
            seen.add(state)
            yield chosen
