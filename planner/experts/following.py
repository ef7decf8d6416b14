"""Experts of neighbouring layers that follow one another, on one node and one GPU: ExFlow (arXiv 2401.08383).

First over nodes, then over the GPUs of each node, as `solvers.followers` places them: each layer as well as can be
while its neighbours stay, and by CP-SAT where the problem is small. What experts carry is not weighed; every GPU has as
many of each layer, and none has copies.
"""

import numpy as np

from planner.errors import InputError
from planner.experts.histogram import Ints, RoutingHistogram
from planner.experts.request import ExpertRequest
from planner.experts.traffic import node_share_LEN
from solvers.followers.problem import FollowerProblem
from solvers.followers.sweeps import sweep

MOST_CHOICES = 200
"""Layers times experts times GPUs up to which CP-SAT finds more than sweeps do, in little time."""


def leaving_fraction(histogram: RoutingHistogram, expert_LGS: Ints, *, num_bins: int) -> float | None:
    """Return the share of tokens whose experts of two neighbouring layers stand in two of `num_bins` equal parts.

    None where what follows what was not counted. Copies are taken evenly.
    """
    transitions = histogram.transitions_LEE
    if transitions is None or not transitions.sum():
        return None
    share = node_share_LEN(expert_LGS, num_experts=histogram.num_experts, num_nodes=num_bins)
    stays = sum(
        float(((flow @ after) * before).sum())
        for flow, before, after in zip(transitions, share[:-1], share[1:], strict=True)
    )
    return max(0.0, 1 - stays / float(transitions.sum()))


def followed(histogram: RoutingHistogram, request: ExpertRequest) -> Ints:
    """Return the expert on each slot of each GPU of all layers.

    Raises:
        InputError: What follows what was not counted, or the experts do not divide over the GPUs.
    """
    transitions = histogram.transitions_LEE
    if transitions is None or not transitions.shape[0]:
        raise InputError(
            "Which experts follow one another is not known.",
            hint="Give a histogram with transitions, or a .npz file with topk_ids.",
        )
    if request.redundant != 0:
        raise InputError("Experts that follow one another are placed without copies.", hint="Give --redundant 0.")
    node_LE = _placed(FollowerProblem(flow_KII=transitions, num_bins=request.num_nodes))
    gpus = np.arange(request.num_gpus) // request.gpus_per_node
    allowed_LEG = node_LE[:, :, None] == gpus[None, None, :]
    gpu_LE = _placed(FollowerProblem(flow_KII=transitions, num_bins=request.num_gpus, allowed_LIB=allowed_LEG))
    ordered = np.argsort(gpu_LE, axis=1, kind="stable")
    return ordered.reshape(histogram.num_layers, request.num_gpus, -1)


def _placed(problem: FollowerProblem) -> Ints:
    found = sweep(problem)
    if problem.num_layers * problem.num_items * problem.num_bins <= MOST_CHOICES:
        from solvers.followers.cpsat import solve  # noqa: PLC0415 - OR-Tools only where it is used

        found = solve(problem, found)
    return found.bin_LI
