"""Recomputes from scratch what a follower placement breaks, and what leaves its bin."""

from collections import Counter

from solvers.followers.problem import FollowerProblem, Ints


def broken_constraints(problem: FollowerProblem, bin_LI: Ints) -> tuple[str, ...]:
    """Return what a placement breaks: "shape", "even", "allowed"; nothing for a sound one."""
    if bin_LI.shape != (problem.num_layers, problem.num_items):
        return ("shape",)
    broken = set()
    even = dict.fromkeys(range(problem.num_bins), problem.num_items // problem.num_bins)
    for layer, bins in enumerate(bin_LI.tolist()):
        if Counter(bins) != even:
            broken.add("even")
        elif not all(problem.may_stand(layer, item, bin_) for item, bin_ in enumerate(bins)):
            broken.add("allowed")
    return tuple(sorted(broken))


def leaving(problem: FollowerProblem, bin_LI: Ints) -> float:
    """Return what leaves its bin."""
    total = 0.0
    placed = bin_LI.tolist()
    for layer, flow in enumerate(problem.flow_KII.tolist()):
        for item, row in enumerate(flow):
            for follower, amount in enumerate(row):
                if placed[layer][item] != placed[layer + 1][follower]:
                    total += amount
    return total
