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
from numpy.typing import NDArray

from planner.serving.rank_operators import RoutedExperts

FloatArray = NDArray[np.float64]

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


def reached_on_busiest(experts: RoutedExperts, tokens_T: FloatArray, *, spread: float) -> Reached:
    """Return what a step brings to the busiest rank.

    Args:
        experts: The experts of a rank.
        tokens_T: Tokens of a step.
        spread: Standard deviation of the logarithm of an expert's part of all choices; of experts not counted.
    """
    placed, on_rank = experts.placed, experts.on_rank
    if placed is not None:
        active_LT, rows_LT = (
            placed.most_reached_LT(tokens_T, experts.topk),
            placed.busiest_rows_LT(tokens_T, experts.topk),
        )
        return _busiest(experts, active_LT, rows_LT, by_chance=active_LT * (1 - active_LT / on_rank))
    elsewhere, part_X = 1.0 - on_rank / experts.copies, _parts(spread)
    reached_TX, rows_T = _reached_TX(experts, tokens_T, part_X), _mean_rows_T(experts, tokens_T)
    return _busiest(
        experts,
        on_rank * reached_TX.mean(axis=1),
        rows_T,
        by_chance=on_rank * (reached_TX * (1 - reached_TX)).mean(axis=1),
        by_place=on_rank * elsewhere * reached_TX.var(axis=1),
        rows_by_place=elsewhere * rows_T**2 * part_X.var() / on_rank,
    )


def reached_evenly(experts: RoutedExperts, tokens_T: FloatArray, *, spread: float) -> Reached:
    """Return the same where the experts of all ranks are chosen alike, and chance alone makes one the busiest.

    Arguments are those of `reached_on_busiest`.
    """
    rows_T = _mean_rows_T(experts, tokens_T)
    if experts.placed is not None:
        active_LT = experts.placed.reached_LT(tokens_T, experts.topk) / experts.placed.num_ranks
        by_chance_LT = active_LT * (1 - active_LT / experts.on_rank)
        return _busiest(experts, active_LT, np.broadcast_to(rows_T, active_LT.shape), by_chance=by_chance_LT)
    reached_TX = _reached_TX(experts, tokens_T, _parts(spread))
    by_chance_T = experts.on_rank * (reached_TX * (1 - reached_TX)).mean(axis=1)
    return _busiest(experts, experts.on_rank * reached_TX.mean(axis=1), rows_T, by_chance=by_chance_T)


def _busiest(  # noqa: PLR0913 - means and variances
    experts: RoutedExperts,
    active_T: FloatArray,
    rows_T: FloatArray,
    *,
    by_chance: FloatArray,
    by_place: FloatArray | float = 0.0,
    rows_by_place: FloatArray | float = 0.0,
) -> Reached:
    """Return the busiest rank by the mean of ranks and the variance of chance and of how experts lie."""
    above = largest_of(experts.copies // experts.on_rank)
    rows_by_chance = (1.0 - experts.on_rank / experts.copies) * rows_T
    rows_T = rows_T + above * np.sqrt(rows_by_chance + rows_by_place)
    active_T = np.minimum(active_T + above * np.sqrt(by_chance + by_place), experts.on_rank)
    return Reached(active_T=np.minimum(active_T, rows_T), rows_T=rows_T)


def _mean_rows_T(experts: RoutedExperts, tokens_T: FloatArray) -> FloatArray:
    rows_T: FloatArray = tokens_T * experts.topk * experts.on_rank / experts.copies
    return rows_T


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
