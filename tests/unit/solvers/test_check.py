"""Every constraint of the problem: satisfied, just satisfied, violated."""

from dataclasses import replace

import numpy as np
import pytest

from solvers.check import Violation, check
from solvers.problem import Problem
from solvers.solution import infeasible
from tests.unit.solvers.chains import chain, choice

FOUR = [[1.0, 2.0]] * 4


@pytest.fixture
def roomy() -> Problem:
    return chain(FOUR, num_stages=3)


def test_a_choice_within_all_constraints_has_no_violations(roomy: Problem) -> None:
    assert check(roomy, choice(roomy, [0, 1, 1, 2])) == ()


def test_that_nothing_fits_cannot_be_checked_against_a_choice(roomy: Problem) -> None:
    assert check(roomy, infeasible(solver="by hand", proof="none")) == ()


def test_choice_the_last_stage_and_the_last_option_are_just_allowed(roomy: Problem) -> None:
    assert check(roomy, choice(roomy, [0, 1, 2, 2], [1, 1, 1, 1])) == ()


def test_choice_a_stage_or_option_beyond_the_last_is_found(roomy: Problem) -> None:
    right = choice(roomy, [0, 1, 2, 2])
    assert check(roomy, replace(right, stage_of_layer_L=(0, 1, 2, 3))) == (
        Violation(constraint=1, message="layer 3 has stage 3, of 3"),
    )
    assert check(roomy, replace(right, option_of_layer_L=(0, 2, 0, -1))) == (
        Violation(constraint=1, message="layer 1 has option 2, of 2"),
        Violation(constraint=1, message="layer 3 has option -1, of 2"),
    )


def test_choice_a_layer_without_a_stage_is_found(roomy: Problem) -> None:
    solution = replace(choice(roomy, [0, 1, 2, 2]), stage_of_layer_L=(0, 1, 2))
    assert check(roomy, solution) == (Violation(constraint=1, message="3 layers have a stage, not 4"),)


def test_order_a_stage_may_be_skipped_when_it_may_be_empty() -> None:
    problem = chain(FOUR, num_stages=3, min_layers_S=np.array([1, 0, 1]))
    assert check(problem, choice(problem, [0, 0, 2, 2])) == ()


def test_order_a_layer_before_the_stage_of_the_one_before_is_found() -> None:
    problem = chain(FOUR, num_stages=2)
    assert check(problem, choice(problem, [0, 1, 0, 1])) == (
        Violation(constraint=2, message="layer 2 is on stage 0, the layer before it on stage 1"),
    )


@pytest.mark.parametrize("stages", [[0, 1, 1, 1], [0, 0, 1, 1]])
def test_count_the_bounds_on_layers_are_inclusive(stages: list[int]) -> None:
    problem = chain(FOUR, num_stages=2, min_layers_S=np.array([1, 2]), max_layers_S=np.array([2, 3]))
    assert check(problem, choice(problem, stages)) == ()


def test_count_one_layer_too_few_or_too_many_is_found() -> None:
    problem = chain(FOUR, num_stages=2, min_layers_S=np.array([1, 2]), max_layers_S=np.array([2, 3]))
    assert check(problem, choice(problem, [0, 0, 0, 1])) == (
        Violation(constraint=3, message="stage 0 holds 3 layers, not 1 to 2"),
        Violation(constraint=3, message="stage 1 holds 1 layers, not 2 to 3"),
    )


def test_objective_rounding_is_forgiven(roomy: Problem) -> None:
    right = choice(roomy, [0, 1, 1, 2])
    assert right.objective == 10.0
    assert check(roomy, replace(right, objective=10.0 * (1 + 1e-10))) == ()


def test_objective_another_value_is_found(roomy: Problem) -> None:
    right = choice(roomy, [0, 1, 1, 2])
    assert check(roomy, replace(right, objective=10.0 * (1 + 1e-8))) == (
        Violation(constraint=4, message="the objective is 10.0, not 10.0000001"),
    )


def test_objective_adds_the_stages_of_a_rank_before_taking_the_busiest() -> None:
    problem = chain(
        FOUR,
        num_stages=4,
        rank_of_stage_S=np.array([0, 1, 0, 1]),
        capacity_bytes_R=np.array([9, 9]),
        fixed_seconds_S=np.array([0.0, 0.0, 0.5, 0.0]),
    )
    solution = choice(problem, [0, 1, 2, 3])
    assert solution.objective == 3.0 * 2.5 + 4.5
    assert check(problem, solution) == ()


def memory_problem(capacity_bytes: int) -> Problem:
    # Stage 0 has two micro-batches in flight: 2 + 2 * (10 + 2 * 7) = 50 bytes; stage 1 has one: 2 * 17 = 34.
    return chain(
        [[1.0]] * 4,
        num_stages=2,
        static_bytes_LO=[[10]] * 4,
        activation_bytes_LO=[[7]] * 4,
        fixed_bytes_S=np.array([2, 0]),
        capacity_bytes_R=np.array([capacity_bytes, 34]),
    )


def test_memory_with_room_left_is_accepted() -> None:
    problem = memory_problem(60)
    assert check(problem, choice(problem, [0, 0, 1, 1])) == ()


def test_memory_that_is_just_full_is_accepted() -> None:
    problem = memory_problem(50)
    assert check(problem, choice(problem, [0, 0, 1, 1])) == ()


def test_memory_that_lacks_one_byte_is_found() -> None:
    problem = memory_problem(49)
    assert check(problem, choice(problem, [0, 0, 1, 1])) == (
        Violation(constraint=5, message="rank 0 needs 50 bytes, 1 more than its 49"),
    )


def test_memory_of_the_stages_of_a_rank_adds_up() -> None:
    def problem(capacity_bytes: int) -> Problem:
        return chain(
            [[1.0]] * 4,
            num_stages=4,
            static_bytes_LO=[[10]] * 4,
            rank_of_stage_S=np.array([0, 1, 0, 1]),
            capacity_bytes_R=np.array([capacity_bytes, 20]),
        )

    assert check(problem(20), choice(problem(20), [0, 1, 2, 3])) == ()
    assert check(problem(19), choice(problem(19), [0, 1, 2, 3])) == (
        Violation(constraint=5, message="rank 0 needs 20 bytes, 1 more than its 19"),
    )
