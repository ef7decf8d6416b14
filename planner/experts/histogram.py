"""How often each expert of each layer is chosen: what expert placement starts from.

Axes: L layers, E experts, T sampled tokens, K experts of a token.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingHistogram:
    """What is known of the routing.

    Args:
        source: Where it comes from: a file, or an assumption in words.
        tokens_LE: Tokens that chose each expert. A layer without any has no routed experts, or was not recorded.
        coactivation_LEE: Tokens that chose both of two experts, symmetric with a zero diagonal; None where not known.
        transitions_LEE: Tokens that chose one expert in a layer and another in the next, one layer less; None likewise.
        assumed: The counts were drawn, not recorded.
    """

    source: str
    tokens_LE: Floats
    coactivation_LEE: Floats | None = None
    transitions_LEE: Floats | None = None
    assumed: bool = False

    @property
    def num_layers(self) -> int:
        """Return the layers, with those that no token was counted in."""
        return int(self.tokens_LE.shape[0])

    @property
    def num_experts(self) -> int:
        """Return the experts of a layer."""
        return int(self.tokens_LE.shape[1])

    @property
    def counted_layers(self) -> Ints:
        """Return the layers in which tokens were counted."""
        return np.flatnonzero(self.tokens_LE.sum(axis=1) > 0)


def from_choices(source: str, expert_TLK: Ints, num_experts: int) -> RoutingHistogram:
    """Return what a sample of tokens says: counts, pairs within a layer, and pairs of neighbouring layers."""
    num_tokens, num_layers, chosen = expert_TLK.shape
    visits_LTE = np.zeros((num_layers, num_tokens, num_experts), dtype=np.float32)
    tokens = np.arange(num_tokens)
    for layer in range(num_layers):
        for position in range(chosen):
            visits_LTE[layer, tokens, expert_TLK[:, layer, position]] = 1.0
    pairs = np.stack([visits.T @ visits for visits in visits_LTE]).astype(np.float64)
    diagonal = np.arange(num_experts)
    counts = pairs[:, diagonal, diagonal].copy()
    pairs[:, diagonal, diagonal] = 0.0
    follows = [here.T @ there for here, there in pairwise(visits_LTE)]
    return RoutingHistogram(
        source=source,
        tokens_LE=counts,
        coactivation_LEE=pairs,
        transitions_LEE=np.stack(follows).astype(np.float64) if follows else None,
    )
