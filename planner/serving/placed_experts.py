"""Where the routed experts of an engine stand, and what part of all choices each of its ranks gets.

Copies of an expert are taken evenly. Axes: L counted layers, G ranks, S slots of a rank, E experts, T tokens of a step.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.requests.routing import RankLoads, Routing

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedExperts:
    """The experts of an engine on its ranks.

    Args:
        routing: Which experts tokens choose.
        expert_LGS: The expert on each slot.
    """

    routing: Routing
    expert_LGS: Ints

    @property
    def num_ranks(self) -> int:
        """Return the ranks that the experts are dealt to."""
        return int(self.expert_LGS.shape[1])

    @property
    def slots(self) -> int:
        """Return the experts on a rank, copies included."""
        return int(self.expert_LGS.shape[2])

    @property
    def redundant(self) -> int:
        """Return the copies beside the experts of a layer."""
        return self.num_ranks * self.slots - self.routing.num_experts

    @cached_property
    def part_LE(self) -> Floats:
        """Return the part of all choices that each expert gets."""
        tokens_LE = np.array(self.routing.tokens_LE, dtype=np.float64)
        part: Floats = tokens_LE / tokens_LE.sum(axis=1, keepdims=True)
        return part

    @cached_property
    def share_LGS(self) -> Floats:
        """Return the part of all choices that each slot gets."""
        layers, experts = self.part_LE.shape
        flat_LP = self.expert_LGS.reshape(layers, -1)
        place = np.arange(layers)[:, None] * experts + flat_LP
        copies_LE = np.bincount(place.ravel(), minlength=layers * experts).reshape(layers, experts)
        each_LE = self.part_LE / np.maximum(copies_LE, 1)
        share: Floats = np.take_along_axis(each_LE, flat_LP, axis=1).reshape(self.expert_LGS.shape)
        return share

    @cached_property
    def share_LG(self) -> Floats:
        """Return the part of all choices that each rank gets."""
        share: Floats = self.share_LGS.sum(axis=2)
        return share

    @property
    def loads(self) -> RankLoads:
        """Return what the busiest rank of each layer gets over the mean."""
        factor_L = self.share_LG.max(axis=1) * self.num_ranks
        return RankLoads(layers=self.routing.layers, factor_L=tuple(np.round(factor_L, 6).tolist()))

    @property
    def worst_share(self) -> float:
        """Return the part of all choices that some rank gets in some layer, at most."""
        return float(self.share_LG.max())

    def busiest_rows_LT(self, tokens_T: Floats, topk: int) -> Floats:
        """Return the rows of the busiest rank's experts."""
        rows: Floats = self.share_LG.max(axis=1)[:, None] * (topk * tokens_T)
        return rows

    def most_reached_LT(self, tokens_T: Floats, topk: int) -> Floats:
        """Return on how many of its slots some token comes, of the rank where these are most."""
        missed_LGS = _log_missed(topk * self.share_LGS)
        reached = [self.slots - np.exp(tokens * missed_LGS).sum(axis=2).min(axis=1) for tokens in tokens_T.tolist()]
        return np.stack(reached, axis=1)

    def reached_LT(self, tokens_T: Floats, topk: int) -> Floats:
        """Return to how many experts of all ranks some token comes, copies left out."""
        missed_LE = _log_missed(topk * self.part_LE)
        reached = [self.routing.num_experts - np.exp(tokens * missed_LE).sum(axis=1) for tokens in tokens_T.tolist()]
        return np.stack(reached, axis=1)


def _log_missed(visits: Floats) -> Floats:
    """Return the logarithms of the probabilities that a token comes not, by how often it does in the mean."""
    return np.log1p(-np.minimum(visits, 1 - 1e-12))


def in_their_order(routing: Routing, num_ranks: int) -> PlacedExperts:
    """Return the experts in their order, as engines without a balancer place them."""
    experts = np.arange(routing.num_experts, dtype=np.int64).reshape(num_ranks, -1)
    placed = np.broadcast_to(experts, (len(routing.layers), *experts.shape))
    return PlacedExperts(routing=routing, expert_LGS=placed)
