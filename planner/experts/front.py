"""The front of load and traffic: placements of which none is better in both than another.

Candidates are placements that only balance loads, with experts free to stand anywhere and, where groups divide over the
nodes, with each group within one; and from both, swaps that weigh pairs of a token's experts in two nodes
(`solvers.replicas.apart`) by each of `PAIR_WEIGHTS_FREE` or `PAIR_WEIGHTS_KEPT`. For a weight of traffic each layer
takes the candidate that makes load over the mean plus weight times traffic least; `WEIGHTS` gives the front. Each point
has a bound of its load, which no placement is below, and one of its traffic, which no placement is below that has loads
no heavier (`planner.experts.traffic`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.experts.histogram import Floats, RoutingHistogram
from planner.experts.placement import Placement, problem_of, scored
from planner.experts.request import ExpertRequest
from planner.experts.traffic import least_sends_L, least_split_L, pairs_within_groups_LEE
from solvers.replicas.apart import swap_together
from solvers.replicas.solve import solve

PAIR_WEIGHTS_FREE = (1.0, 10.0)
PAIR_WEIGHTS_KEPT = (0.003,)
"""Weights of split pairs against the load over the mean, from placements with groups free to cross nodes, and kept."""
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Weights of traffic for which the front is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One placement of the front.

    Args:
        weight: Least weight looked at for which it was best.
        placement: The placement.
        least_traffic: Mean over the layers of the traffic that every placement has in which no GPU carries more.
    """

    weight: float
    placement: Placement
    least_traffic: float


def candidates(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> tuple[Placement, ...]:
    """Return placements that trade load against traffic in different ways."""
    pairs = _pairs(histogram, request)
    found = []
    grouped = request.num_groups > 1 and request.num_groups % request.num_nodes == 0
    starts = ((False, PAIR_WEIGHTS_FREE), (True, PAIR_WEIGHTS_KEPT)) if grouped else ((False, PAIR_WEIGHTS_FREE),)
    for keep_groups, weights in starts:
        problem = problem_of(histogram, request, slots_per_gpu, keep_groups=keep_groups)
        start = solve(problem)
        if not keep_groups:
            bound = start.least_load_L
        found.append(scored(histogram, request, start.item_LBS, bound))
        if pairs is None:
            continue
        for weight in weights:
            weighed = replace(problem, family_I=(), affinity_LII=pairs, apart_weight=weight)
            found.append(scored(histogram, request, swap_together(weighed, start.item_LBS), bound))
    return tuple(found)


def _pairs(histogram: RoutingHistogram, request: ExpertRequest) -> Floats | None:
    """Return the pairs of each layer's experts, one in all; None where nothing is known of pairs."""
    layers = histogram.counted_layers
    if histogram.coactivation_LEE is not None:
        pairs = histogram.coactivation_LEE[layers]
    elif request.router is not None and request.num_groups > 1:
        pairs = pairs_within_groups_LEE(histogram.tokens_LE[layers], request.router)
    else:
        return None
    total = pairs.sum(axis=(1, 2), keepdims=True) / 2
    normalised: Floats = pairs / np.where(total > 0, total, 1.0)
    return normalised


def weighed(
    histogram: RoutingHistogram, request: ExpertRequest, found: Sequence[Placement], weight: float
) -> Placement:
    """Return in each layer the candidate with the least load over the mean plus weight times traffic."""
    scores = np.stack([placement.imbalance_L + weight * _traffic(placement) for placement in found])
    best = scores.argmin(axis=0)
    layers = histogram.counted_layers
    placed = np.stack([found[choice].expert_LGS[layer] for choice, layer in zip(best, layers, strict=True)])
    mean = histogram.tokens_LE[layers].sum(axis=1) / request.num_gpus
    return scored(histogram, request, placed, found[0].bound_L * mean)


def front(histogram: RoutingHistogram, request: ExpertRequest, found: Sequence[Placement]) -> tuple[FrontPoint, ...]:
    """Return the placements that are best for some weight, each once, the lightest loads first."""
    points: list[FrontPoint] = []
    for weight in WEIGHTS:
        placement = weighed(histogram, request, found, weight)
        if not points or _traffic(placement).mean() < _traffic(points[-1].placement).mean() - 1e-9:
            least = float(_least_traffic(histogram, request, placement).mean())
            points.append(FrontPoint(weight=weight, placement=placement, least_traffic=least))
    return tuple(points)


def _least_traffic(histogram: RoutingHistogram, request: ExpertRequest, placement: Placement) -> Floats:
    """Return the traffic of each layer at least, with loads no heavier than a placement's."""
    layers = histogram.counted_layers
    if histogram.coactivation_LEE is not None:
        slots = placement.slots_per_gpu * request.gpus_per_node
        return least_split_L(histogram.coactivation_LEE[layers], slots_per_node=slots)
    assert request.router is not None, "the front is asked for where traffic is known"
    return least_sends_L(
        histogram.tokens_LE[layers], placement.imbalance_L, num_nodes=request.num_nodes, router=request.router
    )


def _traffic(placement: Placement) -> Floats:
    traffic = placement.traffic_L
    assert traffic is not None, "the front is asked for where traffic is known"
    return traffic
