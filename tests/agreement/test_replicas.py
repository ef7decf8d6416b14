"""Exhaustive search and CP-SAT agree on small placements, and swaps are never better."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.replicas.apart import room_share_LIR, swap_together
from solvers.replicas.check import broken_constraints, objectives
from solvers.replicas.cpsat import improve
from solvers.replicas.greedy import place
from solvers.replicas.problem import imbalance_L
from solvers.solution import OPTIMALITY_TOLERANCE
from tests.oracle.replica_placements import best_placement
from tests.unit.solvers.replicas.weights import drawn

SHAPES = (
    # Items, bins, slots, rooms, families.
    (6, 3, 3, 1, 0),
    (6, 2, 4, 1, 0),
    (8, 4, 2, 1, 0),
    (8, 4, 3, 2, 4),
    (7, 3, 3, 1, 0),
    (16, 4, 4, 1, 0),
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_cpsat_is_as_good_as_looking_at_every_placement(shape: tuple[int, int, int, int, int], seed: int) -> None:
    problem = drawn(shape, seed)
    least, best = best_placement(problem)
    assert broken_constraints(problem, best) == ()
    start = place(problem)
    improved = improve(problem, 0, start[0])
    found = improved.item_BS[None]
    assert broken_constraints(problem, found) == ()
    assert objectives(problem, found)[0] == pytest.approx(least, rel=OPTIMALITY_TOLERANCE)
    assert objectives(problem, start)[0] >= least * (1 - 1e-9)
    mean = problem.weight_LI.sum() / problem.num_bins
    assert improved.bound / mean <= least * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_swaps_that_weigh_pairs_are_never_better_than_the_best_and_never_worse_than_their_start(seed: int) -> None:
    generator = np.random.default_rng(seed)
    affinity = generator.random((1, 6, 6))
    affinity = np.triu(affinity[0], 1)[None]
    affinity += affinity.transpose(0, 2, 1)
    problem = replace(drawn((6, 4, 2, 2, 0), seed), affinity_LII=affinity / affinity.sum() * 2, apart_weight=0.5)
    least, _ = best_placement(problem)
    start = place(problem)
    found = swap_together(problem, start)
    assert broken_constraints(problem, found) == ()
    (after,), (before,) = objectives(problem, found), objectives(problem, start)
    share = room_share_LIR(problem, found)[0]
    assert problem.affinity_LII is not None
    pairs = problem.affinity_LII[0] * (1 - share @ share.T)
    balance = float(imbalance_L(problem.weight_LI, found)[0])
    assert after == pytest.approx(balance + problem.apart_weight * float(pairs.sum()) / 2, rel=1e-9, abs=1e-12)
    assert least * (1 - 1e-9) <= after <= before * (1 + 1e-9)
