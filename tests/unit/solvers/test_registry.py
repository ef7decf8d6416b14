import subprocess
import sys

import numpy as np
import pytest

from solvers.errors import SolverError
from solvers.problem import Limits
from solvers.registry import SOLVERS, solve
from solvers.solution import Status
from tests.unit.solvers.chains import chain, random_problem

TWO_A_RANK = chain([[1.0]] * 4, num_stages=4, rank_of_stage_S=np.array([0, 1, 0, 1]), capacity_bytes_R=np.array([9, 9]))


@pytest.mark.parametrize("name", SOLVERS)
def test_each_solver_answers_under_its_own_name(name: str) -> None:
    solution = solve(chain([[1.0]] * 4, num_stages=2), solver=name)
    assert (solution.solver, solution.status, solution.objective) == (name, Status.OPTIMAL, 3.0 * 2.0 + 4.0)


def test_an_unknown_solver_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"^there is no solver 'cplex'; there are dp, mathopt, pulp, exhaustive$"):
        solve(TWO_A_RANK, solver="cplex")


def test_a_solver_is_not_given_a_problem_that_it_declares_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        solve(TWO_A_RANK, solver="dp")
    assert str(caught.value) == (
        "solver 'dp' needs a rank of its own for every stage; use one of mathopt, pulp, exhaustive"
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_problem_gives_the_same_solution(name: str) -> None:
    problem = random_problem(3, shares_ranks=False)
    assert solve(problem, solver=name) == solve(problem, solver=name)


def test_a_solver_that_stops_with_nothing_says_so() -> None:
    with pytest.raises(SolverError) as caught:
        solve(TWO_A_RANK, solver="exhaustive", limits=Limits(max_points=34))
    assert str(caught.value) == "exhaustive stopped with status 35 choices under max_points = 34 and found no solution"


def test_solver_libraries_are_imported_only_when_a_solver_runs() -> None:
    program = "import sys, solvers.registry; print(sorted({'ortools', 'pulp', 'scipy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
