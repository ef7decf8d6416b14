"""How unevenly tokens visit routed experts, and what that makes of the ranks that the experts are spread over.

A `Routing` holds the tokens that chose each expert of each layer. Rank r of ep ranks has the experts at the positions
r E / ep to (r + 1) E / ep - 1, as Megatron-LM places them: the experts of these numbers, or where the checkpoint is
written in another order for ep ranks (`planner.requests.expert_orders`), those that it has there. Of a layer with
counts t[e]

    load[r] = sum over the rank's experts of min(t[e], c T / E) / (T / ep),   T = sum of t,   load factor = max of load

where c is the capacity factor: an expert takes ceil(tokens * experts of a token / E * c) of each rank's tokens and
drops the rest (Megatron-LM 0.19.2, megatron/core/transformer/moe/moe_utils.py: get_capacity,
apply_router_token_dropping); with its input padded to that, every expert of every rank has exactly c T / E. Without one
nothing is dropped.

Least-loaded rerouting drops nothing and changes no result (Nguyen et al., arXiv 2601.17111): what a rank has beyond the
mean goes to the ranks with the most room, with the weights of its expert. Here no rank keeps more than the mean; the
largest experts are given away first, each to the rank with the most room until it has none. Of each layer the weights
are counted that the rank with the most of them sends or gets, in experts.

All ranks wait for the busiest in each layer, so time takes the mean of the load factors over the layers. What a rank
keeps may be of any layer, so memory takes the worst of them.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import fsum
from statistics import fmean

from planner.requests.expert_orders import ExpertOrder, check_orders

DIGITS = 6
"""Decimals of a load factor: far below what counts of a sample say."""
ROUNDING = 1e-9
"""Part of the mean load below which nothing is moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts tokens choose.

    Args:
        source: Where the counts come from: a file, or an assumption in words.
        layers: Layers of the model that were counted.
        counts: For each of them the tokens that chose each expert, as whole numbers between commas.
        capacity_factor: Tokens of an expert over the mean of all, beyond which tokens are dropped; None drops none.
        pads_to_capacity: Every expert's input is padded to its capacity.
        reroutes: What ranks have beyond the mean goes to others, with the weights of its experts.
        orders: For some degrees of expert parallelism, in which order the experts are written; at others they stand in
            theirs. None where no other order was looked for.
    """

    source: str
    layers: tuple[int, ...]
    counts: tuple[str, ...]
    capacity_factor: float | None = None
    pads_to_capacity: bool = False
    reroutes: bool = False
    orders: tuple[ExpertOrder, ...] | None = None

    def __post_init__(self) -> None:
        """Check that these are counts."""
        if not self.counts or len(self.counts) != len(self.layers):
            raise ValueError("every counted layer has a row of counts, and there is at least one")
        rows = _tokens_LE(self.counts)
        if len({len(row) for row in rows}) > 1:
            raise ValueError("every layer has as many experts")
        if min(min(row) for row in rows) < 0 or min(sum(row) for row in rows) == 0:
            raise ValueError("counts are not negative, and some token was counted in every layer")
        if self.pads_to_capacity and self.capacity_factor is None:
            raise ValueError("without a capacity factor there is no capacity to pad to")
        if self.capacity_factor is not None and self.capacity_factor <= 0:
            raise ValueError("a capacity factor is above 0")
        if self.reroutes and self.capacity_factor is not None:
            raise ValueError("tokens beyond a capacity are dropped or rerouted, not both")
        if self.orders is not None:
            if self.is_even_anyway:
                raise ValueError("experts are not reordered where every rank gets the same in any order")
            check_orders(self.orders, num_layers=len(self.layers), num_experts=self.num_experts)

    @property
    def num_experts(self) -> int:
        """Return the experts of a layer."""
        return self.counts[0].count(",") + 1

    @property
    def tokens_LE(self) -> tuple[tuple[int, ...], ...]:
        """Return the tokens that chose each expert of each counted layer."""
        return _tokens_LE(self.counts)

    @property
    def kept_LE(self) -> tuple[tuple[float, ...], ...]:
        """Return the tokens that each expert of each counted layer takes, those beyond its capacity left out."""
        return _kept_LE(self)

    @property
    def is_even_anyway(self) -> bool:
        """Return whether every rank gets the same, whichever experts it has: they are padded, or tokens rerouted."""
        return self.pads_to_capacity or self.reroutes

    def loads(self, ep: int) -> "RankLoads":
        """Return the load factor of each counted layer with the experts spread over `ep` ranks."""
        return _loads(self, ep)

    def order(self, ep: int) -> ExpertOrder | None:
        """Return the order of the experts for `ep` ranks; None where none was looked for."""
        return next((order for order in self.orders or () if order.ep == ep), None)

    def reorders(self, ep: int) -> bool:
        """Return whether some layer's experts are written in another order for `ep` ranks."""
        order = self.order(ep)
        return order is not None and order.reorders

    def least_loads(self, ep: int) -> "RankLoads | None":
        """Return what no order of the experts has less than on `ep` ranks; None where no order was looked for."""
        order = self.order(ep)
        return None if order is None else RankLoads(layers=self.layers, factor_L=order.least_L)

    @property
    def in_order(self) -> "Routing":
        """Return the same of experts in their own order."""
        return replace(self, orders=None)

    def moved_L(self, ep: int) -> tuple[int, ...]:
        """Return of each counted layer how many experts' weights some rank sends or gets, at most."""
        return _moved_L(self, ep)

    @property
    def dropped_fraction(self) -> float:
        """Return the part of all choices that is dropped, every layer counting the same."""
        return _dropped(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLoads:
    """Load of the busiest rank of each layer over the mean.

    Args:
        layers: Layers of the model.
        factor_L: The load factor of each.
    """

    layers: tuple[int, ...]
    factor_L: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean over the layers."""
        return fmean(self.factor_L)

    @property
    def worst(self) -> float:
        """Return the largest."""
        return max(self.factor_L)

    @property
    def worst_layer(self) -> int:
        """Return the first layer that has it."""
        return self.layers[self.factor_L.index(self.worst)]


@lru_cache(maxsize=64)
def _tokens_LE(counts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(cell) for cell in row.split(",")) for row in counts)


@lru_cache(maxsize=256)
def _loads(routing: Routing, ep: int) -> RankLoads:
    capacity, experts = routing.capacity_factor, routing.num_experts
    if routing.pads_to_capacity:
        assert capacity is not None, "checked when it was made"
        factors: tuple[float, ...] = (capacity,) * len(routing.layers)
    elif routing.reroutes:
        factors = (1.0,) * len(routing.layers)
    else:
        of_rank = -(-experts // ep)
        order = routing.order(ep)
        kept_LE = _kept_LE(routing)
        if order is not None:
            kept_LE = tuple(
                tuple(kept[expert] for expert in order_E)
                for kept, order_E in zip(kept_LE, order.order_LE(experts), strict=True)
            )
        factors = tuple(
            max(fsum(kept[first : first + of_rank]) for first in range(0, experts, of_rank)) * ep / sum(row)
            for row, kept in zip(routing.tokens_LE, kept_LE, strict=True)
        )
    return RankLoads(layers=routing.layers, factor_L=tuple(round(factor, DIGITS) for factor in factors))


@lru_cache(maxsize=64)
def _kept_LE(routing: Routing) -> tuple[tuple[float, ...], ...]:
    """Return the tokens that each expert takes."""
    capacity = routing.capacity_factor
    if capacity is None:
        return routing.tokens_LE
    return tuple(
        tuple(min(float(tokens), capacity * sum(row) / len(row)) for tokens in row) for row in routing.tokens_LE
    )


@lru_cache(maxsize=64)
def _dropped(routing: Routing) -> float:
    kept = (fsum(kept) / sum(row) for row, kept in zip(routing.tokens_LE, _kept_LE(routing), strict=True))
    return round(1 - fmean(kept), DIGITS)


@lru_cache(maxsize=256)
def _moved_L(routing: Routing, ep: int) -> tuple[int, ...]:
    if not routing.reroutes or ep == 1:
        return (0,) * len(routing.layers)
    return tuple(_moved(row, ep) for row in routing.tokens_LE)


def _moved(tokens_E: tuple[int, ...], ep: int) -> int:
    """Return how many experts' weights some rank sends or gets at most, so that none has more than the mean."""
    of_rank = -(-len(tokens_E) // ep)
    load_R = [sum(tokens_E[rank * of_rank : (rank + 1) * of_rank]) for rank in range(ep)]
    mean = sum(tokens_E) / ep
    room_R = [mean - load for load in load_R]
    moved_R = [0] * ep
    for rank, load in enumerate(load_R):
        excess = load - mean
        experts = range(rank * of_rank, min((rank + 1) * of_rank, len(tokens_E)))
        for expert in sorted(experts, key=lambda expert: (-tokens_E[expert], expert)):
            left = min(excess, float(tokens_E[expert]))
            excess -= left
            while left > mean * ROUNDING:
                roomiest = max(range(ep), key=lambda other: (room_R[other], -other))
                given = min(left, room_R[roomiest])
                if given <= mean * ROUNDING:
                    break
                room_R[roomiest] -= given
                left -= given
                moved_R[rank] += 1
                moved_R[roomiest] += 1
    return max(moved_R)
