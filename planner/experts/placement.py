"""A placement of experts and what it amounts to."""

from dataclasses import dataclass

import numpy as np

from planner.experts.following import leaving_fraction
from planner.experts.histogram import Floats, Ints, RoutingHistogram
from planner.experts.request import ExpertRequest
from planner.experts.traffic import sends_per_token_L, split_pairs_L
from solvers.replicas.problem import ReplicaProblem, imbalance_L


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Experts on the slots of all GPUs; figures are of the layers in which tokens were counted.

    Args:
        expert_LGS: Expert on each slot, of all layers of the histogram.
        imbalance_L: Load of the heaviest GPU over the mean.
        bound_L: What that is at least, whatever the placement.
        sends_L: How often a token is sent to another node; None where that is not known.
        split_L: Share of the pairs of a token's experts that stand in two nodes; None where pairs are not known.
        leaves_node: Share of tokens whose experts of two neighbouring layers stand in two nodes; None where what
            follows what is not known.
        leaves_gpu: The same of GPUs.
    """

    expert_LGS: Ints
    imbalance_L: Floats
    bound_L: Floats
    sends_L: Floats | None
    split_L: Floats | None
    leaves_node: float | None
    leaves_gpu: float | None

    @property
    def slots_per_gpu(self) -> int:
        """Return the slots of a GPU."""
        return int(self.expert_LGS.shape[2])

    @property
    def redundant(self) -> int:
        """Return the copies beside the experts of a layer."""
        return int(self.expert_LGS.shape[1] * self.expert_LGS.shape[2] - self.expert_LGS.max() - 1)

    @property
    def mean_imbalance(self) -> float:
        """Return the mean over layers."""
        return float(self.imbalance_L.mean())

    @property
    def worst_imbalance(self) -> float:
        """Return the worst layer's."""
        return float(self.imbalance_L.max())

    @property
    def mean_bound(self) -> float:
        """Return the mean over layers of what the imbalance is at least."""
        return float(self.bound_L.mean())

    @property
    def mean_sends(self) -> float | None:
        """Return the mean over layers of how often a token is sent; None where it is not known."""
        return None if self.sends_L is None else float(self.sends_L.mean())

    @property
    def traffic_L(self) -> Floats | None:
        """Return what is known of traffic: split pairs where pairs were counted, else sends."""
        return self.split_L if self.split_L is not None else self.sends_L

    @property
    def mean_traffic(self) -> float | None:
        """Return its mean over layers."""
        return None if self.traffic_L is None else float(self.traffic_L.mean())


def problem_of(
    histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int, *, keep_groups: bool | None = None
) -> ReplicaProblem:
    """Return the placement of experts as a problem of items and bins: layers in which tokens were counted are cases."""
    keep_groups = request.keep_groups if keep_groups is None else keep_groups
    experts_per_group = histogram.num_experts // request.num_groups
    families = tuple(expert // experts_per_group for expert in range(histogram.num_experts))
    return ReplicaProblem(
        weight_LI=histogram.tokens_LE[histogram.counted_layers],
        num_bins=request.num_gpus,
        slots_per_bin=slots_per_gpu,
        num_rooms=request.num_nodes,
        family_I=families if keep_groups else (),
    )


def in_order(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> Ints:
    """Return the experts in their order, from the first again where there are more slots."""
    slots = np.arange(request.num_gpus * slots_per_gpu) % histogram.num_experts
    shape = (histogram.num_layers, request.num_gpus, slots_per_gpu)
    return np.broadcast_to(slots.reshape(shape[1:]), shape).copy()


def scored(
    histogram: RoutingHistogram, request: ExpertRequest, placed_LGS: Ints, least_load_L: Floats | None = None
) -> Placement:
    """Return a placement of the layers in which tokens were counted, with what it amounts to.

    Args:
        histogram: What is known of the routing.
        request: What was asked.
        placed_LGS: Expert on each slot of those layers; the others hold experts in their order.
        least_load_L: What the heaviest GPU carries at least; None for the mean load.
    """
    layers = histogram.counted_layers
    tokens = histogram.tokens_LE[layers]
    expert_LGS = in_order(histogram, request, placed_LGS.shape[2])
    expert_LGS[layers] = placed_LGS
    mean = tokens.sum(axis=1) / request.num_gpus
    sends = split = None
    if request.router is not None:
        sends = sends_per_token_L(tokens, placed_LGS, num_nodes=request.num_nodes, router=request.router)
    if histogram.coactivation_LEE is not None:
        split = split_pairs_L(histogram.coactivation_LEE[layers], placed_LGS, num_nodes=request.num_nodes)
    return Placement(
        expert_LGS=expert_LGS,
        imbalance_L=imbalance_L(tokens, placed_LGS),
        bound_L=np.ones(layers.size) if least_load_L is None else least_load_L / mean,
        sends_L=sends,
        split_L=split,
        leaves_node=leaving_fraction(histogram, expert_LGS, num_bins=request.num_nodes),
        leaves_gpu=leaving_fraction(histogram, expert_LGS, num_bins=request.num_gpus),
    )
