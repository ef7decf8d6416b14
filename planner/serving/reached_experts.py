"""How many experts a step reaches on the busiest rank, and how many rows these get.

Each of M tokens chooses k of E experts. An expert that gets the part x / E of all choices is reached by some token with
the probability p(x) = 1 - (1 - k x / E)^M, so a rank with n of them has

    A = n mean p(x) of them to read, with the variance n mean p(x) (1 - p(x)) of random routing,
    R = M k n / E rows,              with the variance R (1 - n / E).

Models are trained towards experts that are chosen alike, and do not get there: x is taken to be lognormal with mean 1
and, of its logarithm, a standard deviation that is fitted to runs of servers (`KernelFactors.routing_spread`). Few
tokens then reach fewer experts than they would of equal ones, and many burden one rank more than another: how experts
lie on ranks adds n (1 - n / E) var p(x) to the variance of A and R^2 (1 - n / E) var x / n to that of R. Where it is
known how often tokens choose each expert (`planner.serving.placed_experts`), the ranks' own numbers stand for these.

The busiest of some ranks lies above their mean by as many standard deviations as the largest of so many normal numbers
in the mean, the quantile (ranks - 3/8) / (ranks + 1/4) (Blom, "Statistical estimates and transformed beta-variables",
1958).

Axes: T tokens of a step, L counted layers, X equally likely kinds of experts.
"""

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

from planner.arrays import FloatArray
from planner.serving.rank_model import RoutedExperts

KINDS = 64
"""Equally likely kinds of experts that stand for a lognormal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reached:
    """What a step brings to the experts of one rank; an axis of layers stands in front where they were counted.

    Args:
        active_T: Experts that some token reaches.
        rows_T: Their rows.
    """

    active_T: FloatArray
    rows_T: FloatArray


def reached_on_busiest(experts: RoutedExperts, tokens_T: FloatArray, *, spread: float, evenly: bool = False) -> Reached:
    """Return what a step brings to the busiest rank.

    Args:
        experts: The experts of a rank.
        tokens_T: Tokens of a step.
        spread: Standard deviation of the logarithm of an expert's part of all choices; of experts not counted.
        evenly: The ranks' experts are chosen alike, and chance alone makes one the busiest.
    """
    placed, on_rank = experts.placed, experts.on_rank
    elsewhere = 1.0 - on_rank / experts.copies
    rows_T = tokens_T * experts.topk * on_rank / experts.copies
    active_by_place_T = rows_by_place_T = np.zeros_like(tokens_T)
    if placed is None:
        part_X = _parts(spread)
        reached_TX = _reached_TX(experts, tokens_T, part_X)
        active_T = on_rank * reached_TX.mean(axis=1)
        by_chance_T = on_rank * (reached_TX * (1 - reached_TX)).mean(axis=1)
        if not evenly:
            active_by_place_T = on_rank * elsewhere * reached_TX.var(axis=1)
            rows_by_place_T = elsewhere * rows_T**2 * part_X.var() / on_rank
    else:
        if evenly:
            active_T = placed.reached_LT(tokens_T, experts.topk) / placed.num_ranks
            rows_T = np.broadcast_to(rows_T, active_T.shape)
        else:
            active_T, rows_T = (of(tokens_T, experts.topk) for of in (placed.most_reached_LT, placed.busiest_rows_LT))
        by_chance_T = active_T * (1 - active_T / on_rank)
    above = largest_of(experts.copies // on_rank)
    rows_T = rows_T + above * np.sqrt(elsewhere * rows_T + rows_by_place_T)
    active_T = np.minimum(active_T + above * np.sqrt(by_chance_T + active_by_place_T), on_rank)
    return Reached(active_T=np.minimum(active_T, rows_T), rows_T=rows_T)


def _reached_TX(experts: RoutedExperts, tokens_T: FloatArray, part_X: FloatArray) -> FloatArray:
    """Return the probability that some token reaches an expert of each kind."""
    missed_X = 1 - np.minimum(experts.topk * part_X / experts.copies, 1.0)
    reached_TX: FloatArray = 1 - missed_X ** tokens_T[:, np.newaxis]
    return reached_TX


@cache
def _parts(spread: float) -> FloatArray:
    """Return how often experts of each kind are chosen, over the mean."""
    normal = NormalDist()
    quantile_X = np.array([normal.inv_cdf((kind + 0.5) / KINDS) for kind in range(KINDS)])
    part_X: FloatArray = np.exp(spread * quantile_X)
    part_X /= part_X.mean()
    part_X.setflags(write=False)
    return part_X


@cache
def largest_of(ranks: int) -> float:
    """Return the mean of the largest of so many standard normal numbers, near enough (Blom, with alpha 3/8)."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0
