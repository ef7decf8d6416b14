"""The node order problem: agreement with every permutation, its cuts, and what it says when it is cut off."""

from itertools import permutations
from math import inf

import numpy as np
import pytest

from solvers.node_order import Hops, OrderLimits, OrderProblem, Price, Signature, solve


def problem(
    rates: dict[tuple[int, int], float],
    *,
    num_nodes: int,
    hops: tuple[Hops, ...] = (),
    kinds: tuple[int, ...] | None = None,
    rooms: tuple[frozenset[int], ...] = (),
    usual: float = 10.0,
) -> OrderProblem:
    """Return a problem in which all pairs but some have the usual rate."""
    table = [[0.0 if here == there else usual for there in range(num_nodes)] for here in range(num_nodes)]
    for (here, there), rate in rates.items():
        table[here][there] = table[there][here] = rate
    return OrderProblem(
        rate_NN=tuple(tuple(row) for row in table),
        kind_N=kinds or (0,) * num_nodes,
        hops_H=hops,
        rooms_K=rooms,
    )


def ring(*places: int) -> Hops:
    return frozenset((places[index - 1], place) for index, place in enumerate(places))


def seconds_of(signature: Signature, weights: tuple[float, ...] = (), costs: tuple[float, ...] = ()) -> float:
    """Return a price that falls with no rate and no kind: weighted inverse rates, and the dearest kind of each room."""
    weights = weights or (1.0,) * len(signature.slowest_H)
    paid = sum(weight / rate for weight, rate in zip(weights, signature.slowest_H, strict=True))
    return paid + sum(max((costs[kind] for kind in kinds), default=0.0) for kinds in signature.kinds_K)


def exact(signature: Signature) -> Price:
    seconds = seconds_of(signature, costs=(1.0, 2.0, 4.0))
    return Price(seconds=seconds, bound_seconds=seconds)


def random_problem(seed: int) -> OrderProblem:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 6))
    upper = np.triu(rng.integers(1, 4, (count, count)), 1).astype(float)
    pairs = [(here, there) for there in range(count) for here in range(there)]

    def some_pairs() -> Hops:
        chosen = rng.permutation(len(pairs))[: int(rng.integers(1, len(pairs) + 1))]
        return frozenset(pairs[index] for index in chosen.tolist())

    def some_places() -> frozenset[int]:
        return frozenset(rng.permutation(count)[: int(rng.integers(1, count + 1))].tolist())

    kinds = rng.integers(0, 3, count).tolist()
    return OrderProblem(
        rate_NN=tuple(tuple(row) for row in (upper + upper.T).tolist()),
        kind_N=tuple(kinds),
        hops_H=tuple(some_pairs() for _ in range(int(rng.integers(0, 4)))),
        rooms_K=tuple(some_places() for _ in range(int(rng.integers(0, 3)))),
    )


def least_of_all(given: OrderProblem) -> float:
    return min(exact(given.signature(order)).seconds for order in permutations(range(given.num_nodes)))


@pytest.mark.parametrize("slack", [1.0, 0.7])
def test_the_best_order_agrees_with_every_permutation(slack: float) -> None:
    moved = 0
    for seed in range(200):
        given = random_problem(seed)

        def price(signature: Signature) -> Price:
            seconds = exact(signature).seconds
            return Price(seconds=seconds, bound_seconds=slack * seconds)

        solution = solve(given, price)
        assert solution.is_complete
        assert sorted(solution.best.order) == list(range(given.num_nodes))
        assert given.signature(solution.best.order) == solution.best.signature
        assert solution.best.price.seconds == least_of_all(given)
        moved += solution.best.order != tuple(range(given.num_nodes))
    assert moved > 20


def test_a_slow_link_is_kept_out_of_a_ring_of_four_but_not_of_three() -> None:
    of_four = solve(problem({(0, 1): 1.0}, num_nodes=4, hops=(ring(0, 1, 2, 3),)), exact)
    assert of_four.best.signature.slowest_H == (10.0,)
    assert of_four.best.order == (0, 2, 1, 3)
    of_three = solve(problem({(0, 1): 1.0}, num_nodes=3, hops=(ring(0, 1, 2),)), exact)
    assert of_three.best.signature.slowest_H == (1.0,)


def test_nodes_stay_where_they_are_when_no_order_is_better() -> None:
    for hops in ((), (ring(0, 1, 2, 3),)):
        assert solve(problem({}, num_nodes=4, hops=hops), exact).best.order == (0, 1, 2, 3)


def test_the_dear_kind_goes_where_it_costs_least() -> None:
    given = problem({}, num_nodes=3, kinds=(1, 0, 0), rooms=(frozenset({0}), frozenset({0, 1}), frozenset({2})))
    solution = solve(given, exact)
    assert solution.best.order == (1, 2, 0)
    assert solution.best.signature.kinds_K == (frozenset({0}), frozenset({0}), frozenset({1}))


def test_interchangeable_nodes_are_tried_once() -> None:
    asked: list[Signature] = []

    def price(signature: Signature) -> Price:
        asked.append(signature)
        return exact(signature)

    many = 40
    given = problem(
        {(0, 1): 1.0}, num_nodes=many, hops=tuple(ring(*range(start, start + 4)) for start in range(0, many, 4))
    )
    solution = solve(given, price)
    assert solution.is_complete
    assert set(solution.best.signature.slowest_H) == {10.0}
    assert len(asked) == len(set(asked)) <= 12


def test_an_order_that_costs_as_much_as_the_ceiling_is_not_looked_for() -> None:
    given = problem({(0, 1): 1.0}, num_nodes=4, hops=(ring(0, 1, 2, 3),))
    solution = solve(given, exact, ceiling_seconds=exact(given.signature((0, 2, 1, 3))).seconds)
    assert [leaf.order for leaf in solution.leaves] == [(0, 1, 2, 3)]
    assert solution.is_complete


@pytest.mark.parametrize("limits", [OrderLimits(max_nodes=2), OrderLimits(max_prices=3)])
def test_a_search_that_is_cut_off_says_so_and_its_bound_holds(limits: OrderLimits) -> None:
    cut = better = 0
    for seed in range(200):
        given = random_problem(seed)
        solution = solve(given, exact, limits=limits)
        least = least_of_all(given)
        assert solution.best.price.seconds >= least
        if solution.is_complete:
            assert solution.best.price.seconds == least
            continue
        cut += 1
        assert solution.open_bound_seconds <= least
        listed = exact(given.signature(tuple(range(given.num_nodes)))).seconds
        assert solution.best.price.seconds <= listed
        better += solution.best.price.seconds < listed
    assert cut > 20
    assert better > 10  # swaps of nodes


@pytest.mark.parametrize(("max_swaps", "slowest"), [(0, 1.0), (100, 10.0)])
def test_swaps_end_where_they_may_price_no_more(max_swaps: int, slowest: float) -> None:
    given = problem({(0, 1): 1.0}, num_nodes=4, hops=(ring(0, 1, 2, 3),))
    solution = solve(given, exact, limits=OrderLimits(max_nodes=0, max_swaps=max_swaps))
    assert not solution.is_complete
    assert solution.best.signature.slowest_H == (slowest,)


def test_leaves_without_a_price_stay_open_by_their_bounds() -> None:
    given = problem({(0, 1): 1.0}, num_nodes=2, hops=(frozenset({(0, 1)}),))
    solution = solve(given, lambda _: Price(seconds=inf, bound_seconds=3.0))
    assert [leaf.price for leaf in solution.leaves] == [Price(seconds=inf, bound_seconds=3.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_NN": ((0.0, 1.0),)}, "rate_NN must have 2 rows of 2 rates"),
        ({"rate_NN": ((0.0, 1.0), (2.0, 0.0))}, "rate_NN must be symmetric"),
        ({"hops_H": (frozenset({(0, 2)}),)}, "places must be numbered 0 to 1"),
        ({"rooms_K": (frozenset({5}),)}, "places must be numbered 0 to 1"),
        ({"hops_H": (frozenset(),)}, "no set of hops and no room may be empty"),
        ({"rooms_K": (frozenset(),)}, "no set of hops and no room may be empty"),
    ],
)
def test_problems_without_sense_are_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "rate_NN": ((0.0, 1.0), (1.0, 0.0)),
        "kind_N": (0, 0),
        "hops_H": (),
        "rooms_K": (),
        **changes,
    }
    with pytest.raises(ValueError, match=f"^{message}$"):
        OrderProblem(**fields)  # type: ignore[arg-type]
