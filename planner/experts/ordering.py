"""The orders of a checkpoint's experts in which the busiest rank of expert parallelism gets least.

For each number of ranks that divides the experts, every rank with as many of each layer, none twice: the placement
problem of `solvers.replicas` without copies, exact where layers are small and bounded from below everywhere. Where the
router chooses groups first (`planner.requests.expert_orders`), whole groups go to ranks that hold several; several
ranks that share a group share its experts; and where ranks hold parts of two groups, experts stay as they are. So do
the experts of layers that no order found is better for, and those that get tokens up to a capacity count that much.

Each layer is ordered alone, as light as was found: no order that another layer has costs it anything. What is sent
between nodes follows from loads alone, as tokens return to their own rank after every layer and each choice is sent by
itself, so that which experts are chosen together, or one after the other, changes nothing.
"""

import math
from dataclasses import replace

import numpy as np

from planner.experts.histogram import Floats, Ints
from planner.requests.expert_orders import ExpertOrder
from planner.requests.routing import DIGITS, Routing
from solvers.replicas.bounds import least_load_L
from solvers.replicas.problem import ReplicaProblem
from solvers.replicas.solve import Placed, solve


def reordered(routing: Routing, *, num_groups: int = 1) -> Routing:
    """Return a routing with an order of the experts for every number of ranks that divides them.

    Args:
        routing: Which experts tokens choose.
        num_groups: Groups of neighbouring experts that the router chooses some of; 1 where it may choose any experts.
    """
    if routing.is_even_anyway:
        return routing
    experts = routing.num_experts
    kept_LE = np.array(routing.kept_LE, dtype=np.float64)
    orders = tuple(
        _for_ranks(routing, kept_LE, ep=ep, num_groups=num_groups) for ep in range(2, experts) if experts % ep == 0
    )
    return replace(routing, orders=orders)


def _for_ranks(routing: Routing, kept_LE: Floats, *, ep: int, num_groups: int) -> ExpertOrder:
    experts = routing.num_experts
    found = _placed(kept_LE, ep=ep, num_groups=num_groups)
    rows: tuple[str, ...] = ("",) * len(routing.layers)
    least_load_of_layer = least_load_L(_problem(kept_LE, ep)) if found is None else found.least_load_L
    if found is not None:
        rows = tuple(",".join(map(str, row)) for row in found.item_LBS.reshape(-1, experts).tolist())
    tried = replace(routing, orders=(ExpertOrder(ep=ep, rows=rows, least_L=(0.0,) * len(rows)),))
    before_L, after_L = routing.in_order.loads(ep).factor_L, tried.loads(ep).factor_L
    gains_L = [after < before for before, after in zip(before_L, after_L, strict=True)]
    reached_L = map(min, before_L, after_L)
    mean_L = np.array(routing.tokens_LE, dtype=np.float64).sum(axis=1) / ep
    return ExpertOrder(
        ep=ep,
        rows=tuple(row if gains else "" for row, gains in zip(rows, gains_L, strict=True)),
        least_L=tuple(
            min(reached, _rounded_down(float(load / mean)))
            for reached, load, mean in zip(reached_L, least_load_of_layer, mean_L, strict=True)
        ),
    )


def _placed(kept_LE: Floats, *, ep: int, num_groups: int) -> Placed | None:
    """Return the experts of each rank, each layer a case; None where groups and ranks cut across one another."""
    layers, experts = kept_LE.shape
    size = experts // num_groups
    if num_groups == 1:
        found = solve(_problem(kept_LE, ep))
        return Placed(item_LBS=_tidy(found.item_LBS), least_load_L=found.least_load_L)
    if num_groups % ep == 0:
        found = solve(_problem(kept_LE.reshape(layers, num_groups, size).sum(axis=2), ep))
        experts_LBS = (_tidy(found.item_LBS)[..., None] * size + np.arange(size)).reshape(layers, ep, -1)
        return Placed(item_LBS=experts_LBS, least_load_L=found.least_load_L)
    if ep % num_groups == 0:
        ranks = ep // num_groups
        problem = _problem(kept_LE.reshape(layers * num_groups, size), ranks)
        # A layer waits for its busiest group alone.
        least_L = least_load_L(problem).reshape(layers, num_groups).max(axis=1)
        found = solve(problem, enough_L=np.repeat(least_L, num_groups))
        within = _tidy(found.item_LBS).reshape(layers, num_groups, ranks, -1)
        experts_LBS = (within + size * np.arange(num_groups)[:, None, None]).reshape(layers, ep, -1)
        return Placed(item_LBS=experts_LBS, least_load_L=found.least_load_L.reshape(layers, num_groups).max(axis=1))
    return None


def _problem(weight_LI: Floats, bins: int) -> ReplicaProblem:
    """Return the placement of items on bins that hold as many each, none twice."""
    return ReplicaProblem(weight_LI=weight_LI, num_bins=bins, slots_per_bin=weight_LI.shape[1] // bins)


def _tidy(item_LBS: Ints) -> Ints:
    """Return the same bins with the items of each ascending, and bins by their first."""
    ordered: Ints = np.sort(item_LBS, axis=2)
    by_first = np.argsort(ordered[:, :, 0], axis=1)
    return np.take_along_axis(ordered, by_first[:, :, None], axis=1)


def _rounded_down(factor: float) -> float:
    """Return a load factor that is not above this one, with as many decimals as loads have."""
    ticks = 10.0**DIGITS
    return math.floor(factor * ticks) / ticks
