"""How many experts a step reaches on the busiest rank, and their rows, held against drawn routing."""

import numpy as np
import pytest

from planner.arrays import FloatArray
from planner.serving.rank_model import RoutedExperts
from planner.serving.reached_experts import largest_of, reached_on_busiest
from profiles.kernels.operations import FORMATS

DRAWN_LAYERS = 300


def of_rank(experts: int, ranks: int, topk: int) -> RoutedExperts:
    return RoutedExperts(
        hidden=4096,
        inter=1536,
        gated=True,
        experts=experts,
        copies=experts,
        on_rank=experts // ranks,
        topk=topk,
        format=FORMATS["fp8"],
        grouped="fp8",
    )


def drawn(experts: RoutedExperts, tokens: int, spread: float) -> tuple[float, float]:
    """Return the reached experts and the rows of the busiest rank, in the mean of layers that are drawn token by token.

    Tokens take their experts one after another without taking one twice, by weights that are lognormal (the largest
    of exponential races).
    """
    random = np.random.default_rng(11)
    ranks = experts.experts // experts.on_rank
    reached, rows = [], []
    for _ in range(DRAWN_LAYERS):
        weight_E = np.exp(spread * random.standard_normal(experts.experts))
        races_ME = random.exponential(size=(tokens, experts.experts)) / weight_E
        chosen_MK = np.argpartition(races_ME, experts.topk - 1, axis=1)[:, : experts.topk]
        count_GS = np.bincount(chosen_MK.ravel(), minlength=experts.experts).reshape(ranks, -1)
        reached.append((count_GS > 0).sum(axis=1).max())
        rows.append(count_GS.sum(axis=1).max())
    return float(np.mean(reached)), float(np.mean(rows))


def said(experts: RoutedExperts, tokens: float, spread: float) -> tuple[float, float]:
    found = reached_on_busiest(experts, np.array([float(tokens)]), spread=spread)
    return float(found.active_T[0]), float(found.rows_T[0])


@pytest.mark.parametrize("spread", [0.0, 0.6])
@pytest.mark.parametrize(("experts", "ranks", "topk"), [(128, 1, 8), (128, 4, 8), (256, 8, 8), (64, 8, 4)])
@pytest.mark.parametrize("tokens", [4, 16, 64, 256])
def test_the_busiest_rank_is_that_of_drawn_routing(
    experts: int, ranks: int, topk: int, tokens: int, spread: float
) -> None:
    shape = of_rank(experts, ranks, topk)
    # The largest of a few counts of a handful is not that of normal numbers.
    assert said(shape, tokens, spread) == pytest.approx(drawn(shape, tokens, spread), rel=0.08 if tokens < 16 else 0.05)


def test_few_tokens_reach_fewer_unequal_experts_and_many_burden_a_rank_more() -> None:
    shape = of_rank(128, 8, 8)
    (few_even, _), (few_uneven, _) = said(shape, 8, 0.0), said(shape, 8, 0.8)
    (_, many_even), (_, many_uneven) = said(shape, 2048, 0.0), said(shape, 2048, 0.8)
    assert few_uneven < 0.95 * few_even
    assert many_uneven > 1.2 * many_even


def test_ranks_that_hold_all_experts_have_no_busiest_one() -> None:
    shape, tokens_T = of_rank(128, 1, 8), np.array([1.0, 32.0, 4096.0])
    busiest, alike = (reached_on_busiest(shape, tokens_T, spread=0.6, evenly=evenly) for evenly in (False, True))
    np.testing.assert_allclose(busiest.active_T, alike.active_T)
    np.testing.assert_allclose(busiest.rows_T, tokens_T * 8)
    assert busiest.active_T[0] == pytest.approx(8, rel=0.01)  # one token never takes an expert twice


@pytest.mark.parametrize("ranks", [2, 4, 8, 32, 72])
def test_the_largest_of_normal_numbers(ranks: int) -> None:
    random: FloatArray = np.random.default_rng(3).standard_normal((20_000, ranks))
    assert largest_of(ranks) == pytest.approx(float(random.max(axis=1).mean()), abs=0.03)
