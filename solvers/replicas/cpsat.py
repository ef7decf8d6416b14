"""The loads of the replica placement problem as a constraint programme, for CP-SAT, one case at a time.

Sets
    I, B, R, F   as in `solvers.replicas.problem`
    K            numbers of copies that an item can have

Variables
    y[i, k]      item i has k copies                               boolean
    z[i, b, k]   a copy of item i, one of k, stands on bin b       boolean
    h[f, r]      family f stands in room r                         boolean
    T            what the heaviest bin carries, in ticks           integer

Objective
    minimise T

Constraints
    (1)  sum over k of y[i, k] = 1, and sum over b of z[i, b, k] = k y[i, k]
    (2)  sum over k of z[i, b, k] <= 1; the slots of a bin are taken, sum over i, k of z[i, b, k] = slots
    (3)  sum over r of h[f, r] = 1, z[i, b, k] <= h[family of i, room of b], as many families in each room
    (4)  sum over i, k of (weight[i] / k) z[i, b, k] <= T
    (5)  the bins of a room carry in falling order, where there is but one room

It starts from a placement that was found otherwise, and returns it where it finds none better.
"""

from dataclasses import dataclass

import numpy as np
from ortools.sat.python import cp_model

from solvers.replicas.problem import Floats, Ints, ReplicaProblem, copies_LI, load_LB

TICKS = 10_000_000
"""Ticks of the mean load."""
SEED = 0
MOST_SECONDS = 4.0
"""Deterministic seconds of one case, at most."""
MOST_SECONDS_IN_ALL = 24.0
"""Deterministic seconds of all cases, each of which has an equal part."""
WORTH = 1e-4
"""Share of the mean load above the bound from which a placement is worth work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """What came of one case.

    Args:
        item_BS: The item on each slot.
        bound: No placement has a heaviest bin that carries less.
    """

    item_BS: Ints
    bound: float


def improve_small(
    problem: ReplicaProblem, item_LBS: Ints, bound_L: Floats, *, enough_L: Floats | None = None
) -> tuple[Ints, Floats]:
    """Return placements and bounds no worse than given, of the cases that are not known to be optimal.

    Args:
        problem: The problem.
        item_LBS: Placements.
        bound_L: What the heaviest bin of each case carries at least.
        enough_L: What it may carry all the same; None for no more than that.
    """
    item_LBS, bound_L = item_LBS.copy(), bound_L.copy()
    enough = bound_L if enough_L is None else np.maximum(bound_L, enough_L)
    enough = enough + WORTH * problem.weight_LI.sum(axis=1) / problem.num_bins
    cases = np.flatnonzero(load_LB(problem.weight_LI, item_LBS).max(axis=1) > enough)
    for case in cases.tolist():
        seconds = min(MOST_SECONDS, MOST_SECONDS_IN_ALL / len(cases))
        improved = improve(problem, case, item_LBS[case], seconds=seconds)
        item_LBS[case], bound_L[case] = improved.item_BS, max(bound_L[case], improved.bound)
    return item_LBS, bound_L


def improve(problem: ReplicaProblem, case: int, item_BS: Ints, *, seconds: float = MOST_SECONDS) -> Improved:
    """Return a placement of one case whose heaviest bin carries no more than that of `item_BS`.

    Args:
        problem: The problem.
        case: Which case.
        item_BS: A placement of it.
        seconds: Deterministic seconds at most.
    """
    weights = problem.weight_LI[case]
    before = float(load_LB(weights[None], item_BS[None]).max())
    tick = float(weights.sum()) / problem.num_bins / TICKS
    programme = _Programme(problem, weights / tick)
    programme.hint(item_BS)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = seconds
    status = solver.solve(programme.model)
    assert status != cp_model.INFEASIBLE, "a placement that holds is no solution of the programme"
    # Ticks are rounded: of each slot by half a tick at most.
    bound = max(0.0, solver.best_objective_bound - problem.slots_per_bin) * tick
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        found = programme.item_BS(solver)
        after = float(load_LB(weights[None], found[None]).max())
        if after < before:
            return Improved(item_BS=found, bound=min(bound, after))
    return Improved(item_BS=item_BS, bound=min(bound, before))


class _Programme:
    """The programme of one case.

    Args:
        problem: The problem.
        ticks_I: Weight of each item, in ticks.
    """

    def __init__(self, problem: ReplicaProblem, ticks_I: Floats) -> None:
        self.problem = problem
        self.ticks_I = ticks_I
        self.model = cp_model.CpModel()
        items, bins = range(problem.num_items), range(problem.num_bins)
        spare = problem.num_slots - problem.num_items
        self.most = min(problem.bins_per_room if problem.family_I else problem.num_bins, spare + 1)
        counts = range(1, self.most + 1)
        self.y = {(i, k): self.model.new_bool_var(f"y_{i}_{k}") for i in items for k in counts}
        self.z = {(i, b, k): self.model.new_bool_var(f"z_{i}_{b}_{k}") for i in items for b in bins for k in counts}
        heaviest = self.model.new_int_var(0, problem.num_bins * TICKS + problem.num_slots, "T")
        for i in items:
            self.model.add_exactly_one(self.y[i, k] for k in counts)
            for k in counts:
                self.model.add(sum(self.z[i, b, k] for b in bins) == k * self.y[i, k])
        carried = []
        for b in bins:
            for i in items:
                self.model.add_at_most_one(self.z[i, b, k] for k in counts)
            self.model.add(sum(self.z[i, b, k] for i in items for k in counts) == problem.slots_per_bin)
            carried.append(sum(round(ticks_I[i] / k) * self.z[i, b, k] for i in items for k in counts))
            self.model.add(carried[b] <= heaviest)
        self.home = self._families()
        if problem.num_rooms == 1:
            for b in range(1, problem.num_bins):
                self.model.add(carried[b - 1] >= carried[b])
        self.model.minimize(heaviest)

    def _families(self) -> "dict[tuple[int, int], cp_model.IntVar]":
        """Add constraint (3)."""
        problem, rooms = self.problem, range(self.problem.num_rooms)
        if not problem.family_I:
            return {}
        families = range(problem.num_families)
        home = {(f, r): self.model.new_bool_var(f"h_{f}_{r}") for f in families for r in rooms}
        for f in families:
            self.model.add_exactly_one(home[f, r] for r in rooms)
        for r in rooms:
            self.model.add(sum(home[f, r] for f in families) == problem.num_families // problem.num_rooms)
        for (i, b, _), z in self.z.items():
            self.model.add_implication(z, home[problem.family_I[i], b // problem.bins_per_room])
        return home

    def hint(self, item_BS: Ints) -> None:
        """Start from a placement."""
        problem = self.problem
        if problem.num_rooms == 1:
            item_BS = item_BS[np.argsort(-load_LB(self.ticks_I[None], item_BS[None])[0], kind="stable")]
        copies = copies_LI(item_BS[None], problem.num_items)[0].tolist()
        held = {(item, bin_) for bin_, items in enumerate(item_BS.tolist()) for item in items}
        for (i, k), y in self.y.items():
            self.model.add_hint(y, copies[i] == k)
        for (i, b, k), z in self.z.items():
            self.model.add_hint(z, (i, b) in held and copies[i] == k)
        for (f, r), home in self.home.items():
            member = problem.family_I.index(f)
            self.model.add_hint(
                home, any((member, b) in held for b in range(problem.num_bins) if b // problem.bins_per_room == r)
            )

    def item_BS(self, solver: cp_model.CpSolver) -> Ints:
        """Return the item on each slot of a solution."""
        problem = self.problem
        return np.array(
            [
                [
                    i
                    for i in range(problem.num_items)
                    if any(solver.value(self.z[i, b, k]) for k in range(1, self.most + 1))
                ]
                for b in range(problem.num_bins)
            ]
        )
