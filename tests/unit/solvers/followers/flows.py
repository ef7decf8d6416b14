"""Small follower placement problems."""

import numpy as np

from solvers.followers.problem import FollowerProblem


def drawn(layers: int, items: int, bins: int, seed: int) -> FollowerProblem:
    """Return a problem whose flows are whole numbers below 30."""
    flow = np.random.default_rng(seed).integers(0, 30, (layers - 1, items, items)).astype(float)
    return FollowerProblem(flow_KII=flow, num_bins=bins)
