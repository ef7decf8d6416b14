"""Looking at every follower placement, CP-SAT and CBC agree on small problems; sweeps are never better than they."""

from itertools import permutations, product

import numpy as np
import pytest

from solvers.followers.check import broken_constraints, leaving
from solvers.followers.cpsat import solve as by_cpsat
from solvers.followers.problem import FollowerProblem
from solvers.followers.pulp_cbc import solve as by_cbc
from solvers.followers.sweeps import sweep
from tests.unit.solvers.followers.flows import drawn


def least_leaving(problem: FollowerProblem) -> float:
    """Return what leaves in the best of all placements."""
    slots = [bin_ for bin_ in range(problem.num_bins) for _ in range(problem.num_items // problem.num_bins)]
    every = sorted(set(permutations(slots)))
    # Bins have no names: the first layer needs only placements that name them in order.
    first = [bins for bins in every if list(dict.fromkeys(bins)) == sorted(set(bins))]
    if problem.allowed_LIB is not None:
        first = every
    best = float("inf")
    for placed in product(first, *[every] * (problem.num_layers - 1)):
        array = np.array(placed)
        if not broken_constraints(problem, array):
            best = min(best, leaving(problem, array))
    return best


@pytest.mark.parametrize(
    ("layers", "items", "bins", "seed"),
    [
        (2, 6, 3, 0),
        (3, 4, 2, 1),
        pytest.param(3, 6, 2, 2, marks=pytest.mark.slow),
        (4, 4, 2, 3),
        (2, 4, 4, 4),
        pytest.param(3, 4, 4, 4, marks=pytest.mark.slow),
    ],
)
def test_both_programmes_are_as_good_as_looking_at_every_placement(
    layers: int, items: int, bins: int, seed: int
) -> None:
    problem = drawn(layers, items, bins, seed)
    least = least_leaving(problem)
    swept = sweep(problem)
    assert swept.leaving >= least * (1 - 1e-9)
    cpsat, cbc = by_cpsat(problem, swept), by_cbc(problem)
    for found in (swept, cpsat, cbc):
        assert broken_constraints(problem, found.bin_LI) == ()
        assert leaving(problem, found.bin_LI) == pytest.approx(found.leaving)
    assert cpsat.leaving == pytest.approx(least)
    assert cpsat.bound == pytest.approx(least, rel=1e-6)
    assert cbc.leaving == pytest.approx(least)


def test_items_stand_only_where_they_may() -> None:
    free = drawn(3, 4, 4, 7)
    allowed = np.zeros((3, 4, 4), dtype=bool)
    allowed[:, :2, :2] = allowed[:, 2:, 2:] = True
    problem = FollowerProblem(flow_KII=free.flow_KII, num_bins=4, allowed_LIB=allowed)
    least = least_leaving(problem)
    swept = sweep(problem)
    assert broken_constraints(problem, swept.bin_LI) == ()
    assert by_cpsat(problem, swept).leaving == pytest.approx(least)
    assert by_cbc(problem).leaving == pytest.approx(least)
    assert least >= least_leaving(free)
