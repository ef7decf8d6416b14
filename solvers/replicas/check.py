"""Recomputes from scratch what a placement breaks and what it amounts to, one slot after the other."""

from collections import Counter

from solvers.replicas.problem import Ints, ReplicaProblem


def broken_constraints(problem: ReplicaProblem, item_LBS: Ints) -> tuple[str, ...]:
    """Return what a placement breaks: "shape", "every item", "twice on a bin", "family apart"."""
    shape = (problem.num_cases, problem.num_bins, problem.slots_per_bin)
    if tuple(item_LBS.shape) != shape:
        return ("shape",)
    broken = set()
    for case in item_LBS.tolist():
        if {item for items in case for item in items} != set(range(problem.num_items)):
            broken.add("every item")
        if any(len(set(items)) < len(items) for items in case):
            broken.add("twice on a bin")
        rooms: dict[int, set[int]] = {}
        if problem.family_I and "every item" not in broken:
            for number, items in enumerate(case):
                for item in items:
                    rooms.setdefault(problem.family_I[item], set()).add(number // problem.bins_per_room)
            if any(len(found) > 1 for found in rooms.values()):
                broken.add("family apart")
    return tuple(sorted(broken))


def loads(problem: ReplicaProblem, item_LBS: Ints) -> list[list[float]]:
    """Return what each bin of each case carries."""
    found = []
    for weights, case in zip(problem.weight_LI.tolist(), item_LBS.tolist(), strict=True):
        copies = Counter(item for items in case for item in items)
        found.append([sum(weights[item] / copies[item] for item in items) for items in case])
    return found


def objectives(problem: ReplicaProblem, item_LBS: Ints) -> list[float]:
    """Return the objective of each case."""
    found = []
    for number, carried in enumerate(loads(problem, item_LBS)):
        mean = sum(carried) / len(carried)
        balance = max(carried) / mean if mean else 1.0
        found.append(balance + problem.apart_weight * _apart(problem, number, item_LBS[number].tolist()))
    return found


def _apart(problem: ReplicaProblem, number: int, case: list[list[int]]) -> float:
    """Return what keeping items apart costs in one case."""
    if problem.affinity_LII is None:
        return 0.0
    copies = Counter(item for items in case for item in items)
    in_room: Counter[tuple[int, int]] = Counter()
    for bin_, items in enumerate(case):
        for item in items:
            in_room[item, bin_ // problem.bins_per_room] += 1
    total = 0.0
    for first in range(problem.num_items):
        for second in range(first):
            together = sum(in_room[first, room] * in_room[second, room] for room in range(problem.num_rooms)) / (
                copies[first] * copies[second]
            )
            total += float(problem.affinity_LII[number, first, second]) * (1 - together)
    return total
