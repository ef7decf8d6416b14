"""The follower placement problem as an integer programme, for CP-SAT.

Variables
    x[l, i, b]   item i of layer l stands on bin b                                  boolean
    y[l, i, j]   what goes from item i of layer l to item j of the next leaves      boolean

Objective
    minimise  sum of flow[l, i, j] y[l, i, j], over pairs with any flow

Constraints
    (1)  sum over b of x[l, i, b] = 1; sum over i of x[l, i, b] = I / B
    (2)  x[l, i, b] = 0 where the item may not stand
    (3)  y[l, i, j] >= x[l, i, b] - x[l + 1, j, b] for each b
    (4)  where items may stand anywhere, the first item of the first layer stands on one bin
"""

import numpy as np
from ortools.sat.python import cp_model

from solvers.errors import SolverError
from solvers.followers.problem import FollowerProblem, Followers

TICKS = 1_000_000_000
"""Ticks of the flow of all pairs."""
SEED = 0
MOST_SECONDS = 10.0
"""Deterministic seconds."""


def solve(problem: FollowerProblem, hint: Followers) -> Followers:
    """Return the best placement that was found, with what was proved of it; no worse than the hint.

    Raises:
        SolverError: No placement is allowed, or none was found.
    """
    tick = float(problem.flow_KII.sum()) / TICKS or 1.0
    model, x, num_pairs = _programme(problem, hint, tick)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = MOST_SECONDS
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        limit = f"max_deterministic_time = {MOST_SECONDS}"
        raise SolverError(solver="cp-sat", status=solver.status_name(status).lower(), limit=limit)
    layers, items, bins = range(problem.num_layers), range(problem.num_items), range(problem.num_bins)
    placed = np.array([[next(b for b in bins if solver.value(x[la, i, b])) for i in items] for la in layers])
    together = placed[:-1, :, None] == placed[1:, None, :]
    leaving = float(problem.flow_KII[~together].sum())
    bound = max(0.0, solver.best_objective_bound - num_pairs) * tick
    if hint.leaving <= leaving:
        placed, leaving = hint.bin_LI, hint.leaving
    return Followers(bin_LI=placed, leaving=leaving, bound=min(bound, leaving))


def _programme(
    problem: FollowerProblem, hint: Followers, tick: float
) -> "tuple[cp_model.CpModel, dict[tuple[int, int, int], cp_model.IntVar], int]":
    """Return the programme, started from the hint, its x, and how many y it has."""
    model = cp_model.CpModel()
    layers, items, bins = range(problem.num_layers), range(problem.num_items), range(problem.num_bins)
    x = {(la, i, b): model.new_bool_var(f"x_{la}_{i}_{b}") for la in layers for i in items for b in bins}
    for (layer, i, b), stands in x.items():
        model.add_hint(stands, bool(hint.bin_LI[layer, i] == b))
        if not problem.may_stand(layer, i, b):
            model.add(stands == 0)
    for layer in layers:
        for i in items:
            model.add_exactly_one(x[layer, i, b] for b in bins)
        for b in bins:
            model.add(sum(x[layer, i, b] for i in items) == problem.num_items // problem.num_bins)
    if problem.allowed_LIB is None:
        # Bins have no names; the hint's is as good as any.
        model.add(x[0, 0, int(hint.bin_LI[0, 0])] == 1)
    costs = []
    for layer, i, j in np.argwhere(problem.flow_KII > 0).tolist():
        leaves = model.new_bool_var(f"y_{layer}_{i}_{j}")
        for b in bins:
            model.add(leaves >= x[layer, i, b] - x[layer + 1, j, b])
        costs.append(round(problem.flow_KII[layer, i, j] / tick) * leaves)
    model.minimize(sum(costs))
    return model, x, len(costs)
