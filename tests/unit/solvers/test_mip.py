import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from solvers import mip, mip_mathopt, mip_pulp
from solvers.check import check
from solvers.errors import SolverError
from solvers.mip import Answer, LinearModel
from solvers.problem import Limits, Problem
from solvers.solution import Solution, Status
from tests.unit.solvers.chains import chain

Solve = Callable[[Problem, Limits], Solution]
BOTH = pytest.mark.parametrize("solve", [mip_mathopt.solve, mip_pulp.solve], ids=["mathopt", "pulp"])


def interleaved(num_layers: int, *, num_ranks: int, chunks: int, capacity_bytes: int) -> Problem:
    """Return equal layers with three options, `chunks` stages a rank."""
    num_stages = num_ranks * chunks
    return chain(
        [[0.010, 0.011, 0.0133]] * num_layers,
        num_stages=num_stages,
        static_bytes_LO=[[1_612_345_600] * 3] * num_layers,
        activation_bytes_LO=[[912_345_600, 512_345_600, 50_123_456]] * num_layers,
        in_flight_S=np.full(num_stages, num_ranks),
        fixed_seconds_S=np.array([0.001] + [0.0] * (num_stages - 2) + [0.008]),
        rank_of_stage_S=np.arange(num_stages) % num_ranks,
        capacity_bytes_R=np.full(num_ranks, capacity_bytes),
        bottleneck_weight=16 - 1 / chunks,
        total_weight=1 / chunks,
    )


def test_equal_neighbouring_layers_are_one_run() -> None:
    form = mip.formulate(chain([[1.0], [1.0], [2.0], [1.0]], num_stages=2))
    assert [(run.first_layer, run.num_layers) for run in form.runs] == [(0, 2), (2, 1), (3, 1)]


def test_the_model_has_a_row_for_every_constraint() -> None:
    model = mip.linear_model(mip.formulate(chain([[1.0, 2.0], [3.0, 4.0]], num_stages=2)))
    assert [row.name for row in model.rows] == [
        "choice_0",
        "choice_1",
        "start_1_0",
        "finish_1_0",
        "start_1_1",
        "finish_1_1",
        "layers_0",
        "layers_1",
        "bottleneck_0",
        "bottleneck_1",
        "memory_0",
        "memory_1",
    ]
    assert [column.name for column in model.columns if column.is_integer] == [
        *(f"n_{run}_{stage}_{option}" for run in range(2) for stage in range(2) for option in range(2)),
        "w_1_0",
        "w_1_1",
    ]


def test_memory_rows_are_scaled_and_their_room_rounded_down_to_what_layers_can_fill() -> None:
    problem = chain(
        [[1.0, 1.0]] * 2,
        num_stages=1,
        static_bytes_LO=[[12, 60]] * 2,
        fixed_bytes_S=np.array([1]),
        capacity_bytes_R=np.array([36]),
    )
    # 35 bytes are left, 24 of them of use; 60 bytes do not fit, which 49 say as well.
    memory = mip.linear_model(mip.formulate(problem)).rows[-1]
    assert memory.upper == pytest.approx(10_000.0)
    assert [coefficient for _, coefficient in memory.terms] == pytest.approx([5_000.0, 49 / 24 * 10_000.0])


def test_cbc_is_not_misled_by_the_size_of_bytes() -> None:
    # With unscaled rows CBC 2.10.3 stops at 2.051575 and calls it optimal; HiGHS proves 2.051075.
    problem = interleaved(126, num_ranks=16, chunks=4, capacity_bytes=31 * 10**9)
    solution = mip_pulp.solve(problem, Limits(max_nodes=300))
    assert solution.objective == pytest.approx(2.051075, rel=1e-9) or solution.status is Status.FEASIBLE
    assert (solution.bound or 0.0) <= 2.051075 * (1 + 1e-9)


@BOTH
def test_stages_of_one_rank_share_its_time_and_memory(solve: Solve) -> None:
    problem = interleaved(16, num_ranks=2, chunks=2, capacity_bytes=40 * 10**9)
    solution = solve(problem, Limits())
    assert solution.status is Status.OPTIMAL
    assert check(problem, solution) == ()


@BOTH
def test_no_choice_that_fits_is_an_answer(solve: Solve) -> None:
    solution = solve(interleaved(16, num_ranks=2, chunks=2, capacity_bytes=10 * 10**9), Limits())
    assert solution.status is Status.INFEASIBLE
    assert solution.proof == "the MIP solver proved that its relaxation has no solution"


@BOTH
@pytest.mark.parametrize(
    ("capacity_bytes", "status"), [(80_000_000_002, Status.OPTIMAL), (80_000_000_001, Status.INFEASIBLE)]
)
def test_one_byte_in_eighty_billion_decides(solve: Solve, capacity_bytes: int, status: Status) -> None:
    problem = chain(
        [[1.0], [1.0]],
        num_stages=1,
        static_bytes_LO=[[40_000_000_003], [39_999_999_999]],
        capacity_bytes_R=np.array([capacity_bytes]),
    )
    assert solve(problem, Limits()).status is status


def test_a_choice_that_rounding_let_through_is_cut_off_and_nothing_else() -> None:
    # The backend ignores the memory rows, as a solver with a coarse tolerance would, but keeps the cuts.
    def careless(model: LinearModel, limits: Limits) -> Answer:
        rows = tuple(row for row in model.rows if not row.name.startswith("memory"))
        return mip_mathopt.minimise(LinearModel(columns=model.columns, rows=rows), limits)

    problem = chain(
        [[2.0, 3.0]] * 4,
        num_stages=2,
        static_bytes_LO=[[10, 4]] * 4,
        capacity_bytes_R=np.array([14, 14]),
    )
    solution = mip.solve_with(careless, problem, Limits(), solver="careless")
    exact = mip_mathopt.solve(problem, Limits())
    assert solution.objective == exact.objective == 3.0 * 5.0 + 10.0
    assert check(problem, solution) == ()
    with pytest.raises(SolverError) as caught:
        mip.solve_with(careless, problem, Limits(max_cuts=0), solver="careless")
    assert str(caught.value) == (
        "careless stopped with status capacity broken by rounding under max_cuts = 0 and found no solution"
    )


def test_fixed_bytes_beyond_the_capacity_are_cut_off_by_an_empty_row() -> None:
    def careless(model: LinearModel, limits: Limits) -> Answer:
        if any(row.name.startswith("cut") for row in model.rows):
            return mip_mathopt.minimise(model, limits)
        rows = tuple(row for row in model.rows if not row.name.startswith("memory"))
        return mip_mathopt.minimise(LinearModel(columns=model.columns, rows=rows), limits)

    problem = chain(
        [[1.0]] * 2,
        num_stages=2,
        min_layers_S=np.zeros(2, dtype=np.int64),
        max_layers_S=np.array([2, 0]),
        fixed_bytes_S=np.array([0, 5]),
        capacity_bytes_R=np.array([9, 4]),
    )
    assert mip.solve_with(careless, problem, Limits(), solver="careless").status is Status.INFEASIBLE


@BOTH
def test_an_incumbent_at_the_node_limit_is_feasible_with_a_bound_and_never_optimal(solve: Solve) -> None:
    problem = interleaved(126, num_ranks=16, chunks=4, capacity_bytes=60 * 10**9)
    solution = solve(problem, Limits(max_nodes=1))
    assert solution.status is Status.FEASIBLE
    assert solution.proof == "stopped at its limit with an incumbent"
    assert solution.bound is not None
    assert problem.simple_bound() <= solution.bound < (solution.objective or 0.0)
    assert check(problem, solution) == ()


@pytest.mark.parametrize("bound", [None, -1.0, 10.0])
def test_the_bound_of_an_incumbent_is_the_better_of_two(bound: float | None) -> None:
    problem = chain([[1.0]] * 2, num_stages=2)

    def stopped(model: LinearModel, limits: Limits) -> Answer:
        return Answer(status=Status.FEASIBLE, values=(1.0, 1.0, 2.0), bound=bound)

    solution = mip.solve_with(stopped, problem, Limits(), solver="stopped")
    assert solution.objective == 5.0
    assert solution.bound == pytest.approx(5.0)


@BOTH
def test_stopping_with_nothing_is_an_error(solve: Solve) -> None:
    problem = interleaved(126, num_ranks=16, chunks=4, capacity_bytes=40 * 10**9)
    with pytest.raises(SolverError, match=r"^(mathopt|pulp) stopped with status .* under max_nodes = 0 and found no"):
        solve(problem, Limits(max_nodes=0))


def test_native_code_prints_nothing_on_standard_output() -> None:
    program = (
        "import ctypes, os, sys\n"
        "from solvers.mip_mathopt import quiet_standard_output\n"
        "print('before')\n"
        "with quiet_standard_output():\n"
        "    ctypes.CDLL(None).puts(b'from native code')\n"
        "print('after')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert result.stdout == "before\nafter\n"
