"""What must hold of every chain partition problem, whatever its numbers."""

from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.problem import Problem
from solvers.registry import solve
from tests.unit.solvers.chains import random_problem, with_changes

problems = st.builds(random_problem, st.integers(0, 10**6), shares_ranks=st.just(False))
FEW = settings(max_examples=40, deadline=None)
_ROUNDING = 1 + 1e-12


def optimum(problem: Problem) -> float:
    objective = solve(problem, solver="dp").objective
    return inf if objective is None else objective


@FEW
@given(problems, st.integers(0, 100))
def test_more_memory_never_worsens_the_optimum(problem: Problem, more_bytes: int) -> None:
    roomier = with_changes(problem, capacity_bytes_R=problem.capacity_bytes_R + more_bytes)
    assert optimum(roomier) <= optimum(problem) * _ROUNDING


@FEW
@given(problems, st.integers(1, 5))
def test_more_microbatches_in_flight_never_improve_the_optimum(problem: Problem, more: int) -> None:
    deeper = with_changes(problem, in_flight_S=problem.in_flight_S + more)
    assert optimum(deeper) * _ROUNDING >= optimum(problem)


@FEW
@given(problems)
def test_another_option_never_worsens_the_optimum(problem: Problem) -> None:
    def wider(array: np.ndarray, factor: int) -> np.ndarray:
        return np.concatenate((array, array[:, :1] * factor), axis=1)

    more = with_changes(
        problem,
        seconds_LO=wider(problem.seconds_LO, 2),
        static_bytes_LO=wider(problem.static_bytes_LO, 0),
        activation_bytes_LO=wider(problem.activation_bytes_LO, 0),
    )
    assert optimum(more) <= optimum(problem) * _ROUNDING


@FEW
@given(problems)
def test_slower_layers_never_improve_the_optimum(problem: Problem) -> None:
    slower = with_changes(problem, seconds_LO=problem.seconds_LO * 1.5)
    assert optimum(slower) * _ROUNDING >= optimum(problem)


@FEW
@given(problems)
def test_the_order_of_options_does_not_matter(problem: Problem) -> None:
    reversed_options = with_changes(
        problem,
        seconds_LO=problem.seconds_LO[:, ::-1],
        static_bytes_LO=problem.static_bytes_LO[:, ::-1],
        activation_bytes_LO=problem.activation_bytes_LO[:, ::-1],
    )
    assert optimum(reversed_options) == pytest.approx(optimum(problem), rel=1e-12, abs=1e-15)


@FEW
@given(problems)
def test_a_chain_read_backwards_has_the_same_optimum(problem: Problem) -> None:
    backwards = with_changes(
        problem,
        seconds_LO=problem.seconds_LO[::-1],
        static_bytes_LO=problem.static_bytes_LO[::-1],
        activation_bytes_LO=problem.activation_bytes_LO[::-1],
        fixed_seconds_S=problem.fixed_seconds_S[::-1],
        fixed_bytes_S=problem.fixed_bytes_S[::-1],
        in_flight_S=problem.in_flight_S[::-1],
        min_layers_S=problem.min_layers_S[::-1],
        max_layers_S=problem.max_layers_S[::-1],
        capacity_bytes_R=problem.capacity_bytes_R[::-1],
    )
    assert optimum(backwards) == pytest.approx(optimum(problem), rel=1e-12, abs=1e-15)
