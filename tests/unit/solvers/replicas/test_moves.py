"""Steps from one placement to another, swaps that weigh pairs, and CP-SAT beside a placement by hand."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.replicas import apart
from solvers.replicas.apart import swap_together
from solvers.replicas.check import broken_constraints, objectives
from solvers.replicas.cpsat import improve, improve_small
from solvers.replicas.greedy import place
from solvers.replicas.moves import matched, moved_L, steps
from solvers.replicas.problem import ReplicaProblem, load_LB
from solvers.replicas.solve import solve
from tests.unit.solvers.replicas.weights import drawn

# Four items on two bins: 9 and 1 beside 5 and 5 carry 10 each.
FOUR = ReplicaProblem(weight_LI=np.array([[9.0, 5.0, 5.0, 1.0]]), num_bins=2, slots_per_bin=2)
UNEVEN = np.array([[0, 1], [2, 3]])


@pytest.mark.parametrize("families", [0, 4])
def test_each_step_makes_the_heaviest_bin_lighter_and_moves_two_copies_at_most(families: int) -> None:
    problem = drawn((16, 4, 5, 2, families), 3)
    later = replace(problem, weight_LI=np.roll(problem.weight_LI, 5, axis=1))
    before = place(problem)
    last, heaviest = before, load_LB(later.weight_LI, before).max()
    placements = list(steps(later, before, most=6))
    assert placements
    for placed in placements:
        assert broken_constraints(later, placed) == ()
        assert moved_L(placed, last)[0] <= 2
        assert load_LB(later.weight_LI, placed).max() < heaviest
        last, heaviest = placed, load_LB(later.weight_LI, placed).max()


def test_bins_with_other_names_move_nothing() -> None:
    problem = drawn((16, 4, 5, 2, 0), 1)
    placed = place(problem)
    renamed = placed[:, [3, 2, 1, 0]]
    assert moved_L(renamed, placed)[0] > 0
    assert moved_L(matched(renamed, placed, num_rooms=2), placed)[0] == 0
    assert moved_L(matched(renamed, placed, num_rooms=1), placed)[0] == 0


def test_cp_sat_finds_the_placement_that_is_told_by_hand() -> None:
    improved = improve(FOUR, 0, UNEVEN)
    assert sorted(sorted(items) for items in improved.item_BS.tolist()) == [[0, 3], [1, 2]]
    assert improved.bound == pytest.approx(10.0, rel=1e-6)
    best = np.array([[0, 3], [1, 2]])
    assert improve(FOUR, 0, best).item_BS is best
    assert objectives(FOUR, np.array([UNEVEN, best])[:1]) == [1.4]
    assert solve(FOUR).least_load_L.tolist() == [10.0]
    assert load_LB(FOUR.weight_LI, solve(FOUR).item_LBS).max() == 10.0


def test_large_problems_are_placed_without_cp_sat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("solvers.replicas.cpsat.improve_small")
    problem = drawn((33, 2, 17, 1, 0), 0)
    assert broken_constraints(problem, solve(problem).item_LBS) == ()
    with pytest.raises(ImportError, match="improve_small"):
        solve(FOUR)


def test_a_placement_that_is_good_enough_is_not_improved() -> None:
    given, bound = UNEVEN[None], np.array([9.0])
    kept, told = improve_small(FOUR, given, bound, enough_L=np.array([14.0]))
    assert (kept.tolist(), told.tolist()) == (given.tolist(), [9.0])
    better, proved = improve_small(FOUR, given, bound)
    assert load_LB(FOUR.weight_LI, better).max() == 10.0
    assert proved == pytest.approx([10.0], rel=1e-6)


def test_without_time_cp_sat_keeps_the_placement_and_proves_nothing() -> None:
    problem = drawn((16, 4, 5, 2, 4), 3)
    start = place(problem)[0]
    kept = improve(problem, 0, start, seconds=0.0)
    assert (kept.item_BS == start).all()
    assert kept.bound <= problem.weight_LI.sum() / problem.num_bins


def test_families_stay_in_their_rooms_where_pairs_are_weighed() -> None:
    # Items 0 and 4 are of two families, and belong together; nothing may bring them into one room. Within room 1 the
    # swap that levels its bins is free.
    affinity = np.zeros((1, 8, 8))
    affinity[0, 0, 4] = affinity[0, 4, 0] = 1.0
    problem = ReplicaProblem(
        weight_LI=np.array([[4.0, 4.0, 4.0, 4.0, 7.0, 7.0, 1.0, 1.0]]),
        num_bins=4,
        slots_per_bin=2,
        num_rooms=2,
        family_I=(0, 0, 0, 0, 1, 1, 1, 1),
        affinity_LII=affinity,
        apart_weight=100.0,
    )
    start = np.array([[[0, 1], [2, 3], [4, 5], [6, 7]]])
    found = swap_together(problem, start)
    assert broken_constraints(problem, found) == ()
    assert load_LB(problem.weight_LI, found).tolist() == [[8.0, 8.0, 8.0, 8.0]]
    assert objectives(problem, found) == pytest.approx([1.0 + 100.0])
    free = swap_together(replace(problem, family_I=()), start)
    assert objectives(problem, free)[0] < 2.0


def test_swaps_end_after_as_many_turns_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = replace(FOUR, affinity_LII=np.zeros((1, 4, 4)))
    assert objectives(problem, swap_together(problem, UNEVEN[None])) == [1.0]
    monkeypatch.setattr(apart, "MOST_TURNS", 0)
    assert swap_together(problem, UNEVEN[None]).tolist() == [UNEVEN.tolist()]
