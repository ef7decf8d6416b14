import numpy as np

from solvers import exhaustive
from solvers.problem import Limits
from solvers.solution import Status, objective_of
from tests.unit.solvers.chains import chain


def test_the_best_of_all_choices_is_found() -> None:
    # 1 2 | 3 has a bottleneck of 3, 1 | 2 3 one of 5.
    solution = exhaustive.solve(chain([[1.0], [2.0], [3.0]], num_stages=2), Limits())
    assert (solution.stage_of_layer_L, solution.objective) == ((0, 0, 1), 15.0)
    assert solution.bound == solution.objective


def test_of_equal_choices_the_first_is_taken() -> None:
    problem = chain([[1.0, 1.0]] * 2, num_stages=2, min_layers_S=np.zeros(2, dtype=np.int64), bottleneck_weight=0.0)
    solution = exhaustive.solve(problem, Limits())
    assert (solution.stage_of_layer_L, solution.option_of_layer_L) == ((1, 1), (0, 0))


def test_no_choice_that_fits_is_an_answer() -> None:
    problem = chain([[1.0]] * 2, num_stages=2, static_bytes_LO=[[5]] * 2, capacity_bytes_R=np.array([5, 4]))
    solution = exhaustive.solve(problem, Limits())
    assert (solution.status, solution.proof) == (Status.INFEASIBLE, "all choices were looked at and none fits")


def test_the_seconds_of_the_stage_count_where_stages_differ() -> None:
    # Both layers on stage 0 take 1 + 4, one on each 1 + 2; both options of the other order take more.
    problem = chain([[1.0], [2.0]], num_stages=2, seconds_SLO=np.array([[[1.0], [4.0]], [[3.0], [2.0]]]))
    solution = exhaustive.solve(problem, Limits())
    assert (solution.stage_of_layer_L, solution.objective) == ((0, 1), 3.0 * 2.0 + 3.0)
    chosen = objective_of(problem, stage_of_layer_L=(0, 1), option_of_layer_L=(0, 0))
    assert chosen == solution.objective
