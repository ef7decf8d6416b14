"""Followers on bins: placements by hand, what a problem refuses, and what a checker finds."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.errors import SolverError
from solvers.followers import sweeps
from solvers.followers.check import broken_constraints, leaving
from solvers.followers.cpsat import solve as by_cpsat
from solvers.followers.problem import FollowerProblem, Followers
from solvers.followers.pulp_cbc import solve as by_cbc
from solvers.followers.sweeps import sweep
from tests.unit.solvers.followers.flows import drawn

# Four items, each followed by itself, 5 a time.
EACH = FollowerProblem(flow_KII=5.0 * np.eye(4)[None], num_bins=2)


def crossed() -> FollowerProblem:
    """Return the same where items 0 and 1 start on one bin, and items 0 and 2 end on one."""
    allowed = np.zeros((2, 4, 2), dtype=bool)
    allowed[0, (0, 1), 0] = allowed[0, (2, 3), 1] = True
    allowed[1, (0, 2), 0] = allowed[1, (1, 3), 1] = True
    return replace(EACH, allowed_LIB=allowed)


@pytest.mark.parametrize(("problem", "least"), [(EACH, 0.0), (crossed(), 10.0)], ids=["anywhere", "somewhere"])
def test_all_three_find_the_placement_that_is_told_by_hand(problem: FollowerProblem, least: float) -> None:
    swept = sweep(problem)
    told, drawn_up = by_cpsat(problem, swept), by_cbc(problem)
    for found in (swept, told, drawn_up):
        assert broken_constraints(problem, found.bin_LI) == ()
        assert found.leaving == leaving(problem, found.bin_LI) == least
    assert swept.bound == 0.0
    poor = Followers(bin_LI=np.array([[0, 0, 1, 1], [1, 1, 0, 0]]), leaving=20.0, bound=0.0)
    assert by_cpsat(problem, poor).leaving == least
    assert (told.bound, drawn_up.bound) == pytest.approx((least, least))


def test_an_item_where_it_may_not_stand_is_found() -> None:
    assert broken_constraints(crossed(), np.array([[0, 0, 1, 1], [0, 0, 1, 1]])) == ("allowed",)


def test_sweeps_stop_after_as_many_ways_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = drawn(8, 12, 4, 0)
    monkeypatch.setattr(sweeps, "STARTS", 0)
    until_none_helps = sweep(problem).leaving
    monkeypatch.setattr(sweeps, "MOST_WAYS", 1)
    after_one = sweep(problem)
    assert broken_constraints(problem, after_one.bin_LI) == ()
    assert after_one.leaving == leaving(problem, after_one.bin_LI)
    assert after_one.leaving > until_none_helps


def test_bins_that_are_allowed_are_told_for_each_item_of_each_layer() -> None:
    with pytest.raises(ValueError, match="allowed_LIB must say for each item of each layer"):
        replace(EACH, allowed_LIB=np.ones((1, 4, 2), dtype=bool))


def test_sweeps_find_items_that_only_follow_one_another() -> None:
    generator = np.random.default_rng(2)
    layers, items = 6, 32
    kind_LI = np.array([generator.permutation(np.arange(items) % 4) for _ in range(layers)])
    flow = (kind_LI[:-1, :, None] == kind_LI[1:, None, :]).astype(float)
    found = sweep(FollowerProblem(flow_KII=flow, num_bins=4))
    assert found.leaving == 0.0


def test_where_nothing_is_allowed_no_programme_finds_a_placement() -> None:
    problem = drawn(2, 4, 2, 0)
    nowhere = FollowerProblem(flow_KII=problem.flow_KII, num_bins=2, allowed_LIB=np.zeros((2, 4, 2), dtype=bool))
    with pytest.raises(SolverError, match="cp-sat stopped with status infeasible"):
        by_cpsat(nowhere, sweep(problem))
    with pytest.raises(SolverError, match="cbc stopped"):
        by_cbc(nowhere)


@pytest.mark.parametrize(
    ("placed", "broken"),
    [([[0, 0, 1, 1], [0, 1, 0, 1]], ()), ([[0, 0, 0, 1], [0, 1, 0, 1]], ("even",)), ([[0, 0, 1, 1]], ("shape",))],
)
def test_each_constraint_can_be_broken(placed: list[list[int]], broken: tuple[str, ...]) -> None:
    assert broken_constraints(drawn(2, 4, 2, 0), np.array(placed)) == broken


@pytest.mark.parametrize(
    ("shape", "bins", "message"),
    [((1, 4, 4), 3, "bins divide the items"), ((1, 4, 3), 1, "flow_KII must hold"), ((0, 4, 4), 1, "flow_KII must")],
)
def test_a_problem_that_makes_no_sense_is_refused(shape: tuple[int, ...], bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FollowerProblem(flow_KII=np.ones(shape), num_bins=bins)
