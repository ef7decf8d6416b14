"""The main path of expert placement: a histogram and a question to slots, experts on them, and what that gains.

How many slots a GPU has: the fewest with which the loads are within `CLOSE` of the best that all the free memory buys.
"""

from dataclasses import dataclass

import numpy as np

from planner.errors import BrokenPromiseError
from planner.experts.histogram import Floats, Ints, RoutingHistogram
from planner.experts.request import ExpertRequest, check_request, slot_choices
from planner.experts.traffic import sends_per_token_L
from solvers.replicas.bounds import least_load_L
from solvers.replicas.check import broken_constraints
from solvers.replicas.greedy import place
from solvers.replicas.problem import ReplicaProblem, imbalance_L

CLOSE = 0.01
"""Share by which loads may be above those that all the free memory buys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a placement amounts to, over the layers in which tokens were counted.

    Args:
        imbalance_L: Load of the heaviest GPU over the mean of each layer.
        sends_L: How often a token is sent to another node in each layer; None where that is not known.
    """

    imbalance_L: Floats
    sends_L: Floats | None

    @property
    def mean_imbalance(self) -> float:
        """Return the mean over layers."""
        return float(self.imbalance_L.mean())

    @property
    def worst_imbalance(self) -> float:
        """Return the worst layer's."""
        return float(self.imbalance_L.max())

    @property
    def mean_sends(self) -> float | None:
        """Return the mean over layers; None where it is not known."""
        return None if self.sends_L is None else float(self.sends_L.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Experts on the slots of all GPUs.

    Args:
        expert_LGS: Expert on each slot, of all layers of the histogram.
        scores: What it amounts to.
        bound_L: What `scores.imbalance_L` is at least, whatever the placement.
    """

    expert_LGS: Ints
    scores: Scores
    bound_L: Floats

    @property
    def slots_per_gpu(self) -> int:
        """Return the slots of a GPU."""
        return int(self.expert_LGS.shape[2])

    @property
    def redundant(self) -> int:
        """Return the copies beside the experts of a layer."""
        return int(self.expert_LGS.shape[1] * self.expert_LGS.shape[2] - self.expert_LGS.max() - 1)

    @property
    def mean_bound(self) -> float:
        """Return the mean over layers of what the imbalance is at least."""
        return float(self.bound_L.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """The whole answer.

    Args:
        request: What was asked.
        histogram: What it was asked of.
        before: Experts in their order, as few on a GPU as there can be.
        choices: The best placement for each number of slots looked at, the fewest first.
        chosen: Which of them.
    """

    request: ExpertRequest
    histogram: RoutingHistogram
    before: Placement
    choices: tuple[Placement, ...]
    chosen: int

    @property
    def best(self) -> Placement:
        """Return the placement that was chosen."""
        return self.choices[self.chosen]

    def slot_bytes(self, slots: int) -> int | None:
        """Return what slots of one GPU take over all layers; None where it is not known."""
        memory = self.request.memory
        return None if memory is None else slots * memory.expert_bytes * len(self.histogram.counted_layers)


def plan_experts(histogram: RoutingHistogram, request: ExpertRequest) -> ExpertPlan:
    """Return which expert stands on which GPU, in how many copies.

    Raises:
        InputError: The question contradicts itself or the histogram.
    """
    check_request(request, histogram)
    slots = slot_choices(request, histogram)
    choices = tuple(best_placement(histogram, request, count) for count in slots)
    least = min(choice.scores.mean_imbalance for choice in choices)
    chosen = next(index for index, choice in enumerate(choices) if choice.scores.mean_imbalance <= least * (1 + CLOSE))
    fewest = -(-histogram.num_experts // request.num_gpus)
    return ExpertPlan(
        request=request,
        histogram=histogram,
        before=scored(histogram, request, in_order(histogram, request, fewest)),
        choices=choices,
        chosen=chosen,
    )


def best_placement(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> Placement:
    """Return the best placement that was found with so many slots a GPU."""
    problem = problem_of(histogram, request, slots_per_gpu)
    expert_LGS = in_order(histogram, request, slots_per_gpu)
    expert_LGS[histogram.counted_layers] = place(problem)
    broken = broken_constraints(problem, expert_LGS[histogram.counted_layers])
    if broken:
        raise BrokenPromiseError(f"a placement breaks: {', '.join(broken)}")
    return scored(histogram, request, expert_LGS, problem)


def problem_of(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> ReplicaProblem:
    """Return the placement of experts as a problem of items and bins: layers in which tokens were counted are cases."""
    experts_per_group = histogram.num_experts // request.num_groups
    families = tuple(expert // experts_per_group for expert in range(histogram.num_experts))
    return ReplicaProblem(
        weight_LI=histogram.tokens_LE[histogram.counted_layers],
        num_bins=request.num_gpus,
        slots_per_bin=slots_per_gpu,
        num_rooms=request.num_nodes,
        family_I=families if request.keep_groups else (),
    )


def scored(
    histogram: RoutingHistogram, request: ExpertRequest, expert_LGS: Ints, problem: ReplicaProblem | None = None
) -> Placement:
    """Return a placement with what it amounts to; without a problem the mean load is the bound."""
    layers = histogram.counted_layers
    tokens, placed = histogram.tokens_LE[layers], expert_LGS[layers]
    bound = np.ones(layers.size)
    if problem is not None:
        bound = least_load_L(problem) / (tokens.sum(axis=1) / request.num_gpus)
    sends = None
    if request.router is not None:
        sends = sends_per_token_L(tokens, placed, num_nodes=request.num_nodes, router=request.router)
    return Placement(
        expert_LGS=expert_LGS, scores=Scores(imbalance_L=imbalance_L(tokens, placed), sends_L=sends), bound_L=bound
    )


def in_order(histogram: RoutingHistogram, request: ExpertRequest, slots_per_gpu: int) -> Ints:
    """Return the experts in their order, from the first again where there are more slots."""
    slots = np.arange(request.num_gpus * slots_per_gpu) % histogram.num_experts
    shape = (histogram.num_layers, request.num_gpus, slots_per_gpu)
    return np.broadcast_to(slots.reshape(shape[1:]), shape).copy()
