"""Exhaustive search, the dynamic programme and both MIPs agree on random small chain partition problems.

Seconds and bytes are small integers (thousandths of a second, bytes), so that two different objectives are at least
0.5e-3 apart and equal ones differ by rounding alone. Choices may tie and are not compared.
"""

import pytest

from solvers.check import check
from solvers.problem import Problem
from solvers.registry import SOLVERS, solve
from solvers.solution import Status
from tests.unit.solvers.chains import random_problem, with_changes, with_unequal_stages

_ROUNDING = 1e-12


def assert_agreement(problem: Problem) -> Status:
    """Compare every solver that takes the problem with exhaustive search."""
    oracle = solve(problem, solver="exhaustive")
    for name, solver in SOLVERS.items():
        if problem.shares_ranks and not solver.shares_ranks:
            continue
        solution = solve(problem, solver=name)
        assert solution.status is oracle.status, name
        assert check(problem, solution) == (), name
        if oracle.objective is not None:
            assert solution.objective == pytest.approx(oracle.objective, rel=1e-9, abs=_ROUNDING), name
            assert problem.simple_bound() <= oracle.objective
    return oracle.status


def test_all_solvers_agree_with_exhaustive_search() -> None:
    statuses = [assert_agreement(random_problem(seed, shares_ranks=False)) for seed in range(40)]
    assert 5 <= statuses.count(Status.INFEASIBLE) <= 35


def test_the_mips_agree_with_exhaustive_search_when_stages_share_ranks() -> None:
    statuses = [assert_agreement(random_problem(seed, shares_ranks=True)) for seed in range(20)]
    assert 2 <= statuses.count(Status.INFEASIBLE) <= 18


@pytest.mark.parametrize("shares_ranks", [False, True])
def test_all_solvers_agree_where_stages_differ(shares_ranks: bool) -> None:
    problems = [with_unequal_stages(random_problem(seed, shares_ranks=shares_ranks), seed) for seed in range(500, 520)]
    statuses = [assert_agreement(problem) for problem in problems]
    assert 2 <= statuses.count(Status.INFEASIBLE) <= 18


def test_the_programme_agrees_with_exhaustive_search_where_stages_differ() -> None:
    slower = 0
    for seed in range(3000, 3300):
        equal = random_problem(seed, shares_ranks=False)
        problem = with_unequal_stages(equal, seed)
        oracle, solution = solve(problem, solver="exhaustive"), solve(problem, solver="dp")
        assert solution.status is oracle.status
        assert check(problem, solution) == ()
        if oracle.objective is not None:
            assert solution.objective == pytest.approx(oracle.objective, rel=_ROUNDING, abs=_ROUNDING)
            fastest = with_changes(problem, seconds_SLO=None)
            best = solve(fastest, solver="dp").objective
            assert best is not None
            assert best <= oracle.objective * (1 + _ROUNDING) + _ROUNDING
            slower += best < oracle.objective * (1 - 1e-6)
    assert slower > 50


@pytest.mark.slow
@pytest.mark.parametrize("shares_ranks", [False, True])
def test_all_solvers_agree_with_exhaustive_search_on_many_problems(shares_ranks: bool) -> None:
    for seed in range(1000, 1250):
        assert_agreement(random_problem(seed, shares_ranks=shares_ranks))


def test_the_programme_agrees_with_exhaustive_search_on_many_problems() -> None:
    for seed in range(2000, 2300):
        problem = random_problem(seed, shares_ranks=False)
        oracle, solution = solve(problem, solver="exhaustive"), solve(problem, solver="dp")
        assert solution.status is oracle.status
        assert check(problem, solution) == ()
        if oracle.objective is not None:
            assert solution.objective == pytest.approx(oracle.objective, rel=_ROUNDING, abs=_ROUNDING)
