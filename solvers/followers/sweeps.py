"""Layer after layer, each placed as well as can be while its neighbours stay: an assignment problem of items to slots.

What item j of a layer keeps on bin b is what comes to it from the items of the layer before on b, and what goes from it
to those of the layer behind. The first way through places each layer by the one before alone; then ways through all
layers, forth and back, until none changes what leaves by more than `HELPS`. Every start (the first layer in its order,
or each of `STARTS` others, drawn with a seed) ends in a placement of its own; the best is taken.
"""

import numpy as np

from solvers.followers.problem import Floats, FollowerProblem, Followers, Ints

HELPS = 1e-9
"""Part of what stays that is worth another way."""

STARTS = 4
"""Drawn orders of the first layer, beside the one as given."""

MOST_WAYS = 20
"""Ways forth and back of one start, at most."""

SEED = 0


def sweep(problem: FollowerProblem) -> Followers:
    """Return the best placement that the sweeps of all starts end in; its bound is nothing, 0."""
    generator = np.random.default_rng(SEED)
    in_order = np.arange(problem.num_items)
    found = [_swept(problem, order) for order in (in_order, *(generator.permutation(in_order) for _ in range(STARTS)))]
    kept, placed = max(found, key=lambda pair: pair[0])
    return Followers(bin_LI=placed, leaving=max(0.0, float(problem.flow_KII.sum()) - kept), bound=0.0)


def _swept(problem: FollowerProblem, order: Ints) -> tuple[float, Ints]:
    """Return what stays on its bin, and the placement, from the items of the first layer in an order."""
    layers = problem.num_layers
    placed = np.zeros((layers, problem.num_items), dtype=np.int64)
    wish = np.zeros((problem.num_items, problem.num_bins))
    wish[order, np.arange(problem.num_items) // (problem.num_items // problem.num_bins)] = 1.0
    placed[0] = _assigned(problem, 0, wish)
    for layer in range(1, layers):
        placed[layer] = _assigned(problem, layer, _from_before(problem, placed, layer))
    stays = _stays(problem, placed)
    for _ in range(MOST_WAYS):
        for layer in (*range(layers), *range(layers - 2, -1, -1)):
            wish = np.zeros((problem.num_items, problem.num_bins))
            if layer > 0:
                wish += _from_before(problem, placed, layer)
            if layer < layers - 1:
                wish += problem.flow_KII[layer] @ _one_hot(problem, placed[layer + 1])
            placed[layer] = _assigned(problem, layer, wish)
        after = _stays(problem, placed)
        if after <= stays * (1 + HELPS):
            break
        stays = after
    return _stays(problem, placed), placed


def _from_before(problem: FollowerProblem, placed: Ints, layer: int) -> Floats:
    wish: Floats = problem.flow_KII[layer - 1].T @ _one_hot(problem, placed[layer - 1])
    return wish


def _one_hot(problem: FollowerProblem, bin_I: Ints) -> Floats:
    held: Floats = np.eye(problem.num_bins)[bin_I]
    return held


def _assigned(problem: FollowerProblem, layer: int, wish_IB: Floats) -> Ints:
    """Return the bin of each item for which most is kept, as many items on each."""
    from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - SciPy only where it is used

    if problem.allowed_LIB is not None:
        # What is not allowed costs more than all that could be kept.
        wish_IB = np.where(problem.allowed_LIB[layer], wish_IB, -1.0 - 2.0 * float(wish_IB.sum()))
    slots = problem.num_items // problem.num_bins
    rows, columns = linear_sum_assignment(np.repeat(wish_IB, slots, axis=1), maximize=True)
    bins = np.empty(problem.num_items, dtype=np.int64)
    bins[rows] = columns // slots
    return bins


def _stays(problem: FollowerProblem, placed: Ints) -> float:
    together = placed[:-1, :, None] == placed[1:, None, :]
    return float(problem.flow_KII[together].sum())
