"""Orders of experts without copies: as good as any permutation, groups kept, never worse than the checkpoint's."""

from collections.abc import Iterator, Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.experts.histogram import Floats
from planner.experts.ordering import reordered
from planner.requests.expert_orders import ExpertOrder, order_error
from planner.requests.routing import Routing
from solvers.replicas.cpsat import WORTH
from tests.examples import examples

EXPERTS = 6
COUNTS = st.lists(st.lists(st.integers(0, 60), min_size=EXPERTS, max_size=EXPERTS).filter(any), min_size=1, max_size=3)


def routed(counts: Sequence[Sequence[int]], capacity: float | None = None) -> Routing:
    rows = tuple(",".join(map(str, row)) for row in counts)
    return Routing(source="made up", layers=tuple(range(len(rows))), counts=rows, capacity_factor=capacity)


def permitted(num_groups: int) -> Iterator[tuple[int, ...]]:
    """Yield every order that keeps groups, told by looking at where the experts of each group stand."""
    size = EXPERTS // num_groups
    for order in permutations(range(EXPERTS)):
        blocks = [set(order[first : first + size]) for first in range(0, EXPERTS, size)]
        if all(set(range(group * size, group * size + size)) in blocks for group in range(num_groups)):
            yield order


def load(kept: Sequence[float], total: int, order: Sequence[int], ep: int) -> float:
    """Return what the busiest rank gets over the mean."""
    of_rank = np.array([kept[expert] for expert in order]).reshape(ep, -1).sum(axis=1)
    return float(of_rank.max() * ep / total)


@settings(max_examples=examples(few=20, many=40), deadline=None)
@given(counts=COUNTS, num_groups=st.sampled_from((1, 2, 3)), capacity=st.none() | st.sampled_from((0.5, 1.0, 1.5)))
def test_no_permutation_is_better_and_none_is_below_the_bound(
    counts: list[list[int]], num_groups: int, capacity: float | None
) -> None:
    natural = routed(counts, capacity)
    found = reordered(natural, num_groups=num_groups)
    assert [order.ep for order in found.orders or ()] == [2, 3]
    orders = list(permitted(num_groups))
    for ep in (2, 3):
        order, least = found.order(ep), found.least_loads(ep)
        assert order is not None
        assert least is not None
        cut_across = num_groups > 1 and num_groups != ep
        for layer, row in enumerate(counts):
            kept = [min(tokens, capacity * sum(row) / EXPERTS) if capacity else tokens for tokens in row]
            best = min(load(kept, sum(row), permutation, ep) for permutation in orders)
            reached, before = found.loads(ep).factor_L[layer], natural.loads(ep).factor_L[layer]
            assert least.factor_L[layer] <= best + 1e-6
            assert best - 1e-6 <= reached <= before
            if not cut_across:
                assert reached <= best + WORTH + 1e-6
            assert bool(order.rows[layer]) == (reached < before)
            written = order.order_LE(EXPERTS)[layer]
            assert order_error(written, num_experts=EXPERTS, num_groups=num_groups) == ""
            assert reached == pytest.approx(load(kept, sum(row), written, ep), abs=1e-6)


def test_whole_groups_go_to_ranks_that_hold_several_and_ranks_that_share_one_share_its_experts() -> None:
    found = reordered(routed([[9, 8, 7, 1, 1, 1, 1, 1]]), num_groups=4)
    rows = {order.ep: order.rows[0] for order in found.orders or ()}
    # 17, 8, 2 and 2 of the groups: the heaviest beside one of the lightest, and then the one of 8 with the other.
    assert rows[2] in {"0,1,4,5,2,3,6,7", "0,1,6,7,2,3,4,5"}
    assert rows[4] == "", "a rank has a group each"
    found = reordered(routed([[9, 8, 7, 1, 1, 1, 1, 9]]), num_groups=2)
    # The second group stays: 9 beside 1 is what it has already.
    assert {order.ep: order.rows[0] for order in found.orders or ()} == {2: "", 4: "0,3,1,2,4,5,6,7"}


def test_experts_stay_where_groups_and_ranks_cut_across_one_another() -> None:
    counts = [[9, 1, 1, 9, 1, 1, 9, 1, 1, 9, 1, 1]]
    found = reordered(routed(counts), num_groups=4)
    order = found.order(3)
    assert order == ExpertOrder(ep=3, rows=("",), least_L=order.least_L if order else ())
    free = reordered(routed(counts)).order(3)
    assert free is not None
    assert order is not None
    assert order.least_L <= free.least_L


def test_nothing_is_ordered_where_every_rank_gets_the_same() -> None:
    padded = Routing(source="", layers=(0,), counts=("9,1,1,1",), capacity_factor=1.5, pads_to_capacity=True)
    rerouted = Routing(source="", layers=(0,), counts=("9,1,1,1",), reroutes=True)
    assert reordered(padded) is padded
    assert reordered(rerouted) is rerouted
    even = reordered(routed([[1, 1, 1, 1]]))
    assert not even.reorders(2)
    assert even.orders == (ExpertOrder(ep=2, rows=("",), least_L=(1.0,)),)


def layer_output(tokens_TH: Floats, router_EH: Floats, bias_E: Floats, experts_EHH: Floats, groups: int) -> Floats:
    """Return what a layer computes that chooses two of its groups by their two best scores, and four experts there."""
    logits_TE = tokens_TH @ router_EH.T
    scores_TE = 1 / (1 + np.exp(-logits_TE))
    by_group_TGE = (scores_TE + bias_E).reshape(len(tokens_TH), groups, -1)
    best_TG = np.sort(by_group_TGE, axis=2)[:, :, -2:].sum(axis=2)
    taken_TG = best_TG >= np.sort(best_TG, axis=1)[:, -2:-1]
    open_TE = np.where(taken_TG[:, :, None], by_group_TGE, -np.inf).reshape(scores_TE.shape)
    chosen_TE = open_TE >= np.sort(open_TE, axis=1)[:, -4:-3]
    weights_TE = np.where(chosen_TE, scores_TE, 0.0)
    weights_TE = weights_TE / weights_TE.sum(axis=1, keepdims=True)
    output: Floats = np.einsum("te,th,ehk->tk", weights_TE, tokens_TH, experts_EHH)
    return output


def test_a_layer_written_in_its_order_computes_the_same_and_one_whose_groups_are_torn_apart_does_not() -> None:
    generator = np.random.default_rng(5)
    tokens_TH, router_EH = generator.normal(size=(64, 16)), generator.normal(size=(16, 16))
    bias_E, experts_EHH = generator.normal(size=16) / 10, generator.normal(size=(16, 16, 16))
    counts = [generator.integers(0, 90, 16).tolist()]
    natural = layer_output(tokens_TH, router_EH, bias_E, experts_EHH, 4)
    for num_groups, same in ((4, True), (1, False)):
        orders = reordered(routed(counts), num_groups=num_groups).orders or ()
        written = [order.order_LE(16)[0] for order in orders if order.reorders]
        assert written
        for order_E in map(list, written):
            found = layer_output(tokens_TH, router_EH[order_E], bias_E[order_E], experts_EHH[order_E], 4)
            assert np.allclose(found, natural) == same


@pytest.mark.parametrize("seed", [0, 1])
def test_many_experts_come_close_to_the_bound(seed: int) -> None:
    weights = 1 / np.arange(1, 129)
    generator = np.random.default_rng(seed)
    counts = [generator.multinomial(100_000, generator.permutation(weights / weights.sum())).tolist() for _ in range(4)]
    for num_groups in (1, 8):
        found = reordered(routed(counts), num_groups=num_groups)
        for order in found.orders or ():
            least = found.least_loads(order.ep)
            assert least is not None
            if num_groups == 1 or order.ep >= num_groups:
                assert found.loads(order.ep).mean <= least.mean * 1.001


@pytest.mark.parametrize(
    ("order", "num_groups", "message"),
    [
        ((0, 1, 2, 2), 1, "does not hold each of the experts 0 to 3 once"),
        ((0, 1, 2), 1, "does not hold each of the experts 0 to 3 once"),
        ((0, 2, 1, 3), 2, "mixes experts of groups 0 and 1 at positions 0 to 1"),
        ((3, 2, 0, 1), 2, ""),
        ((3, 1, 0, 2), 1, ""),
    ],
)
def test_an_order_holds_every_expert_once_and_its_groups_together(
    order: tuple[int, ...], num_groups: int, message: str
) -> None:
    assert order_error(order, num_experts=4, num_groups=num_groups) == message


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([(3, ("",), (1.0,))], "are for degrees above 1 that divide them, which ascend"),
        ([(1, ("",), (1.0,))], "are for degrees above 1 that divide them, which ascend"),
        ([(4, ("",), (1.0,)), (2, ("",), (1.0,))], "are for degrees above 1 that divide them, which ascend"),
        ([(2, ("", ""), (1.0,))], "has a row and a bound for every counted layer"),
        ([(2, ("",), ())], "has a row and a bound for every counted layer"),
        ([(2, ("0,1,2,2",), (1.0,))], "does not hold each of the experts 0 to 3 once"),
    ],
)
def test_what_is_no_order_is_refused(
    orders: list[tuple[int, tuple[str, ...], tuple[float, ...]]], message: str
) -> None:
    made = tuple(ExpertOrder(ep=ep, rows=rows, least_L=least) for ep, rows, least in orders)
    with pytest.raises(ValueError, match=message):
        Routing(source="", layers=(0,), counts=("9,1,1,1",), orders=made)
    with pytest.raises(ValueError, match="not reordered where every rank gets the same"):
        Routing(source="", layers=(0,), counts=("9,1,1,1",), reroutes=True, orders=())
