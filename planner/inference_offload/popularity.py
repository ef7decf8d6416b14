"""Routed experts in groups of equal popularity, the hottest first.

Experts of a layer are ranked by the tokens that chose them; experts of one rank in different layers count as equally
popular, by the mean over layers of their share. A pass of M tokens that each choose k of E experts reaches an expert
with share q of all choices with the probability 1 - (1 - k q)^M, if tokens choose independently.
"""

from dataclasses import dataclass

import numpy as np

from planner.errors import InputError
from planner.experts.histogram import RoutingHistogram

MOST_GROUPS = 8
"""Groups: the finer they are, the more of a long tail is told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGroup:
    """Experts of every layer that are about equally popular.

    Args:
        experts: How many of each layer.
        share: Share of a layer's choices that falls on all of them.
        chosen: Probability that a token chooses one of them that is given.
    """

    experts: int
    share: float
    chosen: float

    def reached(self, tokens: float) -> float:
        """Return the probability that one of them is reached by a pass of so many tokens."""
        return float(1.0 - (1.0 - self.chosen) ** tokens)


def expert_groups(
    num_experts: int, experts_per_token: int, histogram: RoutingHistogram | None
) -> tuple[ExpertGroup, ...]:
    """Return the groups; one where no histogram tells experts apart.

    Raises:
        InputError: The histogram is of another number of experts, or counts nothing.
    """
    if histogram is None:
        return (ExpertGroup(experts=num_experts, share=1.0, chosen=experts_per_token / num_experts),)
    if histogram.num_experts != num_experts:
        raise InputError(
            f"{histogram.source} counts {histogram.num_experts} experts; the model has {num_experts}.",
            hint="Give a histogram of this model.",
        )
    counted = histogram.tokens_LE[histogram.counted_layers]
    if not len(counted):
        raise InputError(f"{histogram.source} counts no token.", hint="Give a histogram of routed tokens.")
    share_E = np.sort(counted / counted.sum(axis=1, keepdims=True), axis=1)[:, ::-1].mean(axis=0)
    parts = np.array_split(share_E, min(MOST_GROUPS, num_experts))
    return tuple(
        ExpertGroup(
            experts=len(part),
            share=float(part.sum()),
            chosen=min(1.0, experts_per_token * float(part.mean())),
        )
        for part in parts
    )
