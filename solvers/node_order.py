"""The node order problem: which node stands at which place, where nodes and the links between them differ.

Sets
    N   nodes; node n has a kind, and every two nodes a link with a rate
    P   places, as many as nodes
    H   sets of hops; a hop is a pair of places
    K   rooms; a room is a set of places

Variables
    node[p]  node at place p, each node at one place

What an order amounts to (its `Signature`)
    slowest[h] = min over (p, q) in h of rate[node[p], node[q]]
    kinds[k]   = {kind[node[p]] : p in k}

Objective
    minimise  price(slowest, kinds)

The price is given from outside. It knows for every signature a bound and, where something was found, what it takes; it
may not fall when a rate falls or when a kind is added to a room. Of an order that is known in part the signature has
the best rate for hops that are not known yet, and no kind of nodes that are not, so its bound holds for every order
that completes it.

`solve` goes through the orders best first, place by place, with these cuts:

    (1) nodes of one kind with equal links to all others are interchangeable: only the first of them is placed  _classes
    (2) two partial orders with the same signature, the same nodes left and the same nodes at those places that have
        hops to empty ones have the same completions                                                           _state
    (3) a signature that is nowhere better than one whose bound is too high has a bound that is too high        _closed

It is exact until it has taken `max_nodes` partial orders or priced `max_prices` signatures. Then it swaps nodes of the
best order for as long as that helps, `max_swaps` times at most, and reports the least bound of what was left open.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

Hops = frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderProblem:
    """One node order problem.

    Args:
        rate_NN: Rate of the link between two nodes, symmetric; more is better. The diagonal is not read.
        kind_N: Kind of each node.
        hops_H: Sets of pairs of places, none of them empty.
        rooms_K: Sets of places, none of them empty.
        best_rate: Best rate of any link, which follows from the rates.
    """

    rate_NN: tuple[tuple[float, ...], ...]
    kind_N: tuple[int, ...]
    hops_H: tuple[Hops, ...]
    rooms_K: tuple[frozenset[int], ...]
    best_rate: float = field(init=False)

    def __post_init__(self) -> None:
        """Check shapes and places."""
        count = len(self.kind_N)
        if len(self.rate_NN) != count or any(len(row) != count for row in self.rate_NN):
            raise ValueError(f"rate_NN must have {count} rows of {count} rates")
        rates, pairs = self.rate_NN, [(here, there) for here in range(count) for there in range(here)]
        if any(rates[here][there] != rates[there][here] for here, there in pairs):
            raise ValueError("rate_NN must be symmetric")
        places = {place for hops in self.hops_H for hop in hops for place in hop}.union(*self.rooms_K)
        if not places <= set(range(count)):
            raise ValueError(f"places must be numbered 0 to {count - 1}")
        if not all(self.hops_H) or not all(self.rooms_K):
            raise ValueError("no set of hops and no room may be empty")
        # Every signature asks for it.
        object.__setattr__(self, "best_rate", max((rates[here][there] for here, there in pairs), default=inf))

    @property
    def num_nodes(self) -> int:
        """Return the number of nodes, and of places."""
        return len(self.kind_N)

    def signature(self, order: tuple[int, ...]) -> "Signature":
        """Return what an order amounts to; of places beyond its end nothing is known."""
        rates, kinds, best, length = self.rate_NN, self.kind_N, self.best_rate, len(order)
        return Signature(
            slowest_H=tuple(
                min((rates[order[p]][order[q]] for p, q in hops if p < length and q < length), default=best)
                for hops in self.hops_H
            ),
            kinds_K=tuple(frozenset(kinds[order[p]] for p in room if p < length) for room in self.rooms_K),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What an order amounts to.

    Args:
        slowest_H: Slowest rate of each set of hops.
        kinds_K: Kinds in each room.
    """

    slowest_H: tuple[float, ...]
    kinds_K: tuple[frozenset[int], ...]

    def is_nowhere_better(self, other: "Signature") -> bool:
        """Return whether no rate is higher than the other's, and no kind of the other's is absent."""
        slower = all(mine <= its for mine, its in zip(self.slowest_H, other.slowest_H, strict=True))
        return slower and all(mine >= its for mine, its in zip(self.kinds_K, other.kinds_K, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a signature costs.

    Args:
        seconds: What was found; infinite where nothing was.
        bound_seconds: Nothing takes less; infinite where it is proved that there is nothing.
    """

    seconds: float
    bound_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderLimits:
    """How far `solve` may go.

    Args:
        max_nodes: Partial orders that it takes up.
        max_prices: Signatures that it prices on the way.
        max_swaps: Signatures that it prices in swaps, where it was cut off.
    """

    max_nodes: int = 20_000
    max_prices: int = 200
    max_swaps: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One whole order that was priced.

    Args:
        order: The order.
        signature: What it amounts to.
        price: What that costs.
    """

    order: tuple[int, ...]
    signature: Signature
    price: Price


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderSolution:
    """The best order that was found.

    Args:
        leaves: Whole orders that were priced, the best first: one for each signature. Never empty.
        open_bound_seconds: No order without a leaf of its signature costs less than this, or than the ceiling or the
            best leaf; infinite where no order was left out for any other reason.
    """

    leaves: tuple[Leaf, ...]
    open_bound_seconds: float

    @property
    def best(self) -> Leaf:
        """Return the best order."""
        return self.leaves[0]

    @property
    def is_complete(self) -> bool:
        """Return whether no order was left out that might be better."""
        return self.open_bound_seconds == inf


@dataclass(slots=True, kw_only=True)
class _Search:
    """What is known as `solve` goes on.

    Args:
        problem: The problem.
        price: Prices a signature.
        ceiling_seconds: What costs as much is of no interest.
        prices: Signatures that were priced.
        closed: Signatures whose bound is too high.
        leaves: Whole orders by signature.
    """

    problem: OrderProblem
    price: Callable[[Signature], Price]
    ceiling_seconds: float
    prices: dict[Signature, Price] = field(default_factory=dict)
    closed: list[Signature] = field(default_factory=list)
    leaves: dict[Signature, Leaf] = field(default_factory=dict)

    def priced(self, signature: Signature) -> Price:
        """Return the price of a signature."""
        if signature not in self.prices:
            self.prices[signature] = self.price(signature)
        return self.prices[signature]

    @property
    def cutoff_seconds(self) -> float:
        """Return what an order must undercut."""
        return min(self.ceiling_seconds, min((leaf.price.seconds for leaf in self.leaves.values()), default=inf))

    def is_too_slow(self, signature: Signature) -> bool:
        """Return whether no order of a signature undercuts the cutoff."""
        if signature not in self.prices and any(signature.is_nowhere_better(other) for other in self.closed):
            return True
        if self.priced(signature).bound_seconds < self.cutoff_seconds:
            return False
        if signature not in self.closed:
            self.closed.append(signature)
        return True

    def add_leaf(self, order: tuple[int, ...]) -> Leaf:
        """Return a whole order, priced and remembered; of a signature the first order stays."""
        signature = self.problem.signature(order)
        leaf = Leaf(order=order, signature=signature, price=self.priced(signature))
        return self.leaves.setdefault(signature, leaf)


def solve(
    problem: OrderProblem,
    price: Callable[[Signature], Price],
    *,
    ceiling_seconds: float = inf,
    limits: OrderLimits | None = None,
) -> OrderSolution:
    """Return the best order; of equally good ones the nodes as they are numbered, then the first in order.

    Args:
        problem: The problem.
        price: Prices a signature; see the module's docstring for what it must keep to.
        ceiling_seconds: What costs as much is of no interest.
        limits: How far to go.
    """
    limits = limits or OrderLimits()
    search = _Search(problem=problem, price=price, ceiling_seconds=ceiling_seconds)
    search.add_leaf(tuple(range(problem.num_nodes)))
    open_bound = _best_first(search, limits)
    if open_bound < inf:
        _swap(search, limits)
    found = sorted(search.leaves.values(), key=lambda leaf: (leaf.price.seconds, leaf.price.bound_seconds))
    return OrderSolution(leaves=tuple(found), open_bound_seconds=open_bound)


def _best_first(search: _Search, limits: OrderLimits) -> float:
    """Go through the orders; return the least bound of those that were left open, infinite where none was."""
    problem = search.problem
    class_N, frontier_P = _classes(problem), _frontiers(problem)
    root = problem.signature(())
    waiting: list[tuple[float, int, tuple[int, ...]]] = [(search.priced(root).bound_seconds, 0, ())]
    seen: set[tuple[object, ...]] = set()
    taken = 0
    while waiting:
        bound, _, order = heapq.heappop(waiting)
        if bound >= search.cutoff_seconds:
            return inf
        if taken >= limits.max_nodes or len(search.prices) >= limits.max_prices:
            return bound
        taken += 1
        for node in _next_nodes(order, class_N):
            longer = (*order, node)
            signature = problem.signature(longer)
            state = _state(longer, signature, class_N, frontier_P[len(longer)])
            if state in seen:
                continue
            seen.add(state)
            if search.is_too_slow(signature):
                continue
            if len(longer) == problem.num_nodes:
                search.add_leaf(longer)
                continue
            heapq.heappush(waiting, (search.priced(signature).bound_seconds, -len(longer), longer))
    return inf


def _swap(search: _Search, limits: OrderLimits) -> None:
    """Swap pairs of nodes of the best order for as long as that helps."""
    problem = search.problem
    class_N = _classes(problem)
    left = limits.max_swaps + len(search.prices)
    best = min(search.leaves.values(), key=lambda leaf: leaf.price.seconds)
    improved = True
    while improved:
        improved = False
        for first in range(problem.num_nodes):
            for second in range(first):
                if class_N[best.order[first]] == class_N[best.order[second]]:
                    continue
                if len(search.prices) >= left:
                    return
                order = list(best.order)
                order[first], order[second] = order[second], order[first]
                leaf = search.add_leaf(tuple(order))
                if leaf.price.seconds < best.price.seconds:
                    best, improved = leaf, True


def _classes(problem: OrderProblem) -> tuple[int, ...]:
    """Return for each node the lowest one that it can be interchanged with."""
    rates, found = problem.rate_NN, []
    for node in range(problem.num_nodes):
        same = (
            other
            for other in range(node)
            if problem.kind_N[other] == problem.kind_N[node]
            and all(
                rates[other][third] == rates[node][third]
                for third in range(problem.num_nodes)
                if third not in (node, other)
            )
        )
        found.append(next(same, node))
    return tuple(found)


def _frontiers(problem: OrderProblem) -> tuple[tuple[int, ...], ...]:
    """Return for each number of places filled which of them have hops to places that are not."""
    furthest = [-1] * problem.num_nodes
    for hops in problem.hops_H:
        for here, there in hops:
            low, high = min(here, there), max(here, there)
            furthest[low] = max(furthest[low], high)
    return tuple(
        tuple(place for place in range(filled) if furthest[place] >= filled) for filled in range(problem.num_nodes + 1)
    )


def _next_nodes(order: tuple[int, ...], class_N: tuple[int, ...]) -> list[int]:
    """Return the first node of each class that is not placed yet."""
    placed = set(order)
    first_of: dict[int, int] = {}
    for node, of_class in enumerate(class_N):
        if node not in placed:
            first_of.setdefault(of_class, node)
    return list(first_of.values())


def _state(
    order: tuple[int, ...], signature: Signature, class_N: tuple[int, ...], frontier: tuple[int, ...]
) -> tuple[object, ...]:
    """Return what decides how a partial order can go on, and what it costs so far."""
    used = sorted(class_N[node] for node in order)
    return tuple(used), tuple(class_N[order[place]] for place in frontier), signature
