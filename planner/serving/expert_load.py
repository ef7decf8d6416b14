"""How unevenly routed tokens fall on ranks: the busiest one over the mean, with and without copies of experts.

Without a balancer the experts of a layer are dealt to the ranks in the order of their numbers. With vLLM's balancer
(`--enable-eplb`) they are dealt by their load, and each rank may hold further copies, among which the tokens of an
expert are shared; experts and copies divide evenly over the ranks (`vllm/distributed/eplb`). Here the copies are
placed by `solvers.replicas`, whose placements are no heavier than those of the greedy balancer of serving engines.

The load of experts is given as numbers, or as a Zipf law without saying which expert is how popular: then the busiest
rank is the mean over random orders.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.blocks import MixtureOfExperts
from planner.serve_request import ExpertLoad
from planner.serving.rank_operators import Balance
from planner.specs import ModelSpec
from solvers.replicas.greedy import place
from solvers.replicas.problem import ReplicaProblem, imbalance_L

FloatArray = NDArray[np.float64]

RANDOM_ORDERS = 64
MORE_SLOTS = (0, 1, 2, 4)
"""Copies a rank, beside its part of the experts, that are tried."""


def expert_counts(model: ModelSpec) -> tuple[int, ...]:
    """Return the numbers of routed experts that layers of a model have."""
    parts = (block.feed_forward for block in model.distinct_blocks)
    return tuple(sorted({part.num_experts for part in parts if isinstance(part, MixtureOfExperts)}))


@lru_cache(maxsize=1024)
def balances(load: ExpertLoad, *, experts: int, ranks: int, extra: tuple[int, ...] = ()) -> tuple[Balance, ...]:
    """Return the ways to deal a layer's experts to so many ranks: in order, and balanced with some numbers of copies.

    Args:
        load: How often each is asked for.
        experts: Experts of a layer.
        ranks: Ranks, which divide them.
        extra: Further numbers of copies, of all ranks; those that the ranks do not divide are left out.
    """
    loads_E = _loads(load, experts)
    found = [Balance(skew=_in_order(loads_E, ranks, by_number=load.zipf is None))]
    loads_LE = loads_E[None]
    for more in sorted({*MORE_SLOTS, *(number // ranks for number in extra if number % ranks == 0)}):
        slots = experts // ranks + more
        if slots > experts:
            break
        problem = ReplicaProblem(weight_LI=loads_LE, num_bins=ranks, slots_per_bin=slots)
        skew = float(imbalance_L(loads_LE, place(problem))[0])
        found.append(Balance(redundant=more * ranks, skew=max(skew, 1.0)))
    return tuple(found)


def _loads(load: ExpertLoad, experts: int) -> FloatArray:
    if load.zipf is None:
        return np.array(load.loads_E)
    loads_E: FloatArray = np.arange(1, experts + 1, dtype=np.float64) ** -load.zipf
    return loads_E


def _in_order(loads_E: FloatArray, ranks: int, *, by_number: bool) -> float:
    """Return the busiest rank over the mean where experts are dealt by number."""
    mean = loads_E.sum() / ranks
    if by_number:
        return float(loads_E.reshape(ranks, -1).sum(axis=1).max() / mean)
    draws = np.random.default_rng(0)
    orders = [draws.permutation(loads_E).reshape(ranks, -1).sum(axis=1).max() for _ in range(RANDOM_ORDERS)]
    return float(np.mean(orders) / mean)
