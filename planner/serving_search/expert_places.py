"""Ways to deal the experts of a layer to the ranks of an engine, by the routing that the request tells.

Without a balancer the ranks have the experts in their order. With vLLM's (`--enable-eplb`) they are dealt by their
load, and each rank may hold further copies, among which the tokens of an expert are shared; experts and copies divide
evenly over the ranks (`vllm/distributed/eplb`). They stand where `planner.experts` places them: vLLM's balancer places
them itself, by the loads that it sees, and is taken to do it as well.
"""

from functools import lru_cache

import numpy as np

from planner.experts.decide import balanced
from planner.experts.histogram import RoutingHistogram
from planner.experts.request import ExpertRequest
from planner.requests.request import Bounds
from planner.requests.routing import Routing
from planner.serving.placed_experts import PlacedExperts, in_their_order
from planner.serving.rank_operators import Balance
from planner.units import GIB

MORE_SLOTS = (0, 1, 2, 4)
"""Copies a rank, beside its part of the experts, that are tried."""


@lru_cache(maxsize=256)
def in_order(routing: Routing, ranks: int) -> Balance:
    """Return the experts in their order on so many ranks that hold whole ones; on one where ranks split each."""
    return Balance(placed=in_their_order(routing, ranks))


def tried_copies(num_experts: int, ranks: int, asked: Bounds | None) -> tuple[int, ...]:
    """Return the numbers of copies that are tried on so many ranks, the fewest first.

    Args:
        num_experts: Experts of a layer, which the ranks divide.
        ranks: Ranks.
        asked: Numbers that the user allows: each that the ranks divide comes in, and the ends of a range. None for any.
    """
    numbers = {ranks * more for more in MORE_SLOTS}
    if asked is not None:
        least, most = -(-(asked.minimum or 0) // ranks), (asked.maximum or 0) // ranks
        numbers |= {number for number in asked.allowed or () if number % ranks == 0} | {least * ranks, most * ranks}
        numbers = {number for number in numbers if asked.admits(number)}
    # More slots than experts would hold one twice.
    return tuple(sorted(number for number in numbers if (num_experts + number) // ranks <= num_experts))


def balances(routing: Routing, *, ranks: int, asked: Bounds | None = None) -> tuple[Balance, ...]:
    """Return the ways to deal experts to so many ranks, that with the fewest copies first.

    Args:
        routing: Which experts tokens choose.
        ranks: Ranks, which divide the experts.
        asked: Numbers of copies that the user allows, with a balancer; None for any, and for none without one.
    """
    numbers = tried_copies(routing.num_experts, ranks, asked)
    balanced = tuple(balance_of(routing, ranks, (routing.num_experts + number) // ranks) for number in numbers)
    return balanced if asked is not None else (in_order(routing, ranks), *balanced)


@lru_cache(maxsize=1024)
def balance_of(routing: Routing, ranks: int, slots: int) -> Balance:
    """Return the experts on so many ranks with so many slots each, the busy ones in copies."""
    tokens_LE = np.array(routing.tokens_LE, dtype=np.float64)
    copies = ranks * slots - routing.num_experts
    found = balanced(
        RoutingHistogram(source=routing.source, tokens_LE=tokens_LE),
        ExpertRequest(num_gpus=ranks, gpus_per_node=ranks, redundant=copies),
        slots,
    )
    return Balance(redundant=copies, placed=PlacedExperts(routing=routing, expert_LGS=found.expert_LGS))


def load_words(balance: Balance, *, slot_bytes: float) -> tuple[str, ...]:
    """Return the load of the busiest rank, what it was before the balancer, and what another slot would make of it.

    Args:
        balance: Experts on ranks; nothing is said of none placed, and of a single rank.
        slot_bytes: What one more expert of every layer takes on a rank.
    """
    placed = balance.placed
    if placed is None or placed.num_ranks == 1:
        return ()
    loads, before = placed.loads, in_their_order(placed.routing, placed.num_ranks).loads
    busiest = f"load of the busiest of {placed.num_ranks} ranks over the mean"
    if balance.redundant is None:
        return (f"{busiest} {loads.mean:.3f}, {loads.worst:.3f} in layer {loads.worst_layer}; in their order",)
    with_copies = f"with {placed.redundant} copies a layer" if placed.redundant else "balanced without copies"
    said = f"{busiest} {loads.mean:.3f}, {loads.worst:.3f} in layer {loads.worst_layer}, {with_copies}"
    found = [f"{said}; {before.mean:.3f} and {before.worst:.3f} in their order without any"]
    if placed.slots < placed.routing.num_experts:
        more = balance_of(placed.routing, placed.num_ranks, placed.slots + 1).placed
        assert more is not None, "a balancer places experts"
        found.append(
            f"one more copy on every rank takes {slot_bytes / GIB:.2f} GiB there and makes it {more.loads.mean:.3f}"
        )
    return tuple(found)
