from itertools import accumulate, product

import numpy as np
import pytest

from solvers import dp
from solvers.check import check
from solvers.errors import SolverError
from solvers.problem import Limits, Problem
from solvers.solution import Status
from tests.unit.solvers.chains import chain


def test_layers_are_spread_to_keep_the_busiest_stage_short() -> None:
    solution = dp.solve(chain([[1.0], [2.0], [3.0]], num_stages=2), Limits())
    assert (solution.stage_of_layer_L, solution.objective) == ((0, 0, 1), 15.0)


def test_stages_with_fixed_work_get_fewer_layers() -> None:
    problem = chain([[1.0]] * 10, num_stages=3, fixed_seconds_S=np.array([1.0, 0.0, 1.0]))
    assert dp.solve(problem, Limits()).layers_S(3) == (3, 4, 3)


def test_of_equally_good_partitions_the_most_even_is_taken() -> None:
    # A last stage of 4 seconds sets the bottleneck; the six layers before it fit in many ways.
    problem = chain([[1.0]] * 6 + [[4.0]], num_stages=4)
    assert dp.solve(problem, Limits()).layers_S(4) == (2, 2, 2, 1)


def recompute_problem(capacity_bytes: int) -> Problem:
    """Four layers on two stages; option 1 keeps 2 instead of 10 bytes a micro-batch and takes half as long again."""
    return chain(
        [[2.0, 3.0]] * 4,
        num_stages=2,
        static_bytes_LO=[[5, 5]] * 4,
        activation_bytes_LO=[[10, 2]] * 4,
        capacity_bytes_R=np.array([capacity_bytes, capacity_bytes]),
    )


@pytest.mark.parametrize(
    ("capacity_bytes", "options", "objective"),
    [
        # Stage 0 holds two micro-batches: 50 bytes, 34 with one layer recomputed, 18 with both.
        (50, (0, 0, 0, 0), 3.0 * 4.0 + 8.0),
        (49, (1, 0, 0, 0), 3.0 * 5.0 + 9.0),
        (34, (1, 0, 0, 0), 3.0 * 5.0 + 9.0),
        # Stage 1 holds one: 30 bytes, 22, 14.
        (33, (1, 1, 0, 0), 3.0 * 6.0 + 10.0),
        (29, (1, 1, 1, 0), 3.0 * 6.0 + 11.0),
        (18, (1, 1, 1, 1), 3.0 * 6.0 + 12.0),
    ],
)
def test_only_as_many_layers_are_recomputed_as_memory_needs(
    capacity_bytes: int, options: tuple[int, ...], objective: float
) -> None:
    problem = recompute_problem(capacity_bytes)
    solution = dp.solve(problem, Limits())
    assert solution.objective == pytest.approx(objective, rel=1e-12)
    assert solution.stage_of_layer_L == (0, 0, 1, 1)
    assert sorted(solution.option_of_layer_L[:2]) == sorted(options[:2])
    assert sorted(solution.option_of_layer_L[2:]) == sorted(options[2:])
    assert check(problem, solution) == ()


def test_one_byte_too_little_has_no_solution() -> None:
    # One layer on stage 0 and three on stage 1 need 9 and 21 bytes, so 18 was the least for two and two.
    solution = dp.solve(recompute_problem(17), Limits())
    assert solution.status is Status.INFEASIBLE
    assert solution.proof == "no path through the segments that fit reaches the last layer"


@pytest.mark.parametrize(("bottleneck_weight", "layers_S"), [(0.0, (4, 1)), (0.25, (4, 1)), (1.0, (3, 2))])
def test_the_weights_decide_between_a_short_busiest_stage_and_a_short_total(
    bottleneck_weight: float, layers_S: tuple[int, ...]
) -> None:
    # Stage 1 has room for the slow option only: 4 | 1 takes 8 and 3 seconds, 3 | 2 takes 6 and 6.
    problem = chain(
        [[2.0, 3.0]] * 5,
        num_stages=2,
        static_bytes_LO=[[4, 1]] * 5,
        capacity_bytes_R=np.array([20, 2]),
        bottleneck_weight=bottleneck_weight,
    )
    assert dp.solve(problem, Limits()).layers_S(2) == layers_S


def test_a_long_stage_is_found_when_short_ones_fit_but_cost_more() -> None:
    # Only stage 1 has room for the fast option; with no weight on the bottleneck it takes all that it may.
    problem = chain(
        [[1.0, 10.0]] * 40,
        num_stages=4,
        static_bytes_LO=[[10, 1]] * 40,
        capacity_bytes_R=np.array([9, 400, 9, 9]),
        max_layers_S=np.array([9, 40, 9, 9]),
        bottleneck_weight=0.0,
    )
    solution = dp.solve(problem, Limits())
    assert solution.layers_S(4) == (1, 37, 1, 1)
    assert solution.objective == pytest.approx(37.0 + 3 * 10.0)


def test_a_long_stage_is_found_when_the_others_have_no_room() -> None:
    problem = chain(
        [[1.0]] * 40,
        num_stages=4,
        static_bytes_LO=[[1]] * 40,
        capacity_bytes_R=np.array([1, 37, 1, 1]),
    )
    assert dp.solve(problem, Limits()).layers_S(4) == (1, 37, 1, 1)


def test_an_empty_stage_is_used_where_it_is_allowed() -> None:
    problem = chain(
        [[1.0]] * 4,
        num_stages=3,
        static_bytes_LO=[[1]] * 4,
        min_layers_S=np.zeros(3, dtype=np.int64),
        capacity_bytes_R=np.array([2, 0, 2]),
    )
    assert dp.solve(problem, Limits()).layers_S(3) == (2, 0, 2)


def test_more_layers_than_the_stages_may_hold_have_no_solution() -> None:
    problem = chain([[1.0]] * 4, num_stages=3, max_layers_S=np.ones(3, dtype=np.int64))
    assert dp.solve(problem, Limits()).status is Status.INFEASIBLE


def test_runs_that_begin_alike_are_priced_alike() -> None:
    # Two layers have no room for both fast options: two of the first kind take 1 + 3, one beside the other kind 3 + 2.
    problem = chain(
        [[1.0, 3.0], [1.0, 3.0], [2.0, 5.0]],
        num_stages=2,
        static_bytes_LO=[[4, 1]] * 3,
        capacity_bytes_R=np.array([5, 5]),
    )
    solution = dp.solve(problem, Limits())
    assert (solution.stage_of_layer_L, solution.objective) == ((0, 0, 1), 3.0 * 4.0 + 6.0)


def test_too_many_pareto_points_stop_the_programme() -> None:
    with pytest.raises(SolverError) as caught:
        dp.solve(recompute_problem(34), Limits(max_states=3))
    assert (
        str(caught.value) == "dp stopped with status too many Pareto points under max_states = 3 and found no solution"
    )


def test_shared_ranks_are_refused() -> None:
    problem = chain([[1.0]] * 2, num_stages=2, rank_of_stage_S=np.zeros(2, np.int64), capacity_bytes_R=np.array([9]))
    with pytest.raises(ValueError, match=r"^the dynamic programme needs a rank of its own for every stage; use a MIP"):
        dp.solve(problem, Limits())


def test_a_model_of_many_equal_layers_with_three_options_is_solved_exactly() -> None:
    num_layers, num_stages = 128, 32
    problem = chain(
        [[0.010, 0.011, 0.0133]] * num_layers,
        num_stages=num_stages,
        static_bytes_LO=[[1_612_345_600] * 3] * num_layers,
        activation_bytes_LO=[[912_345_600, 512_345_600, 50_123_456]] * num_layers,
        fixed_seconds_S=np.array([0.001] + [0.0] * 30 + [0.008]),
        capacity_bytes_R=np.full(num_stages, 75 * 10**9),
        bottleneck_weight=63.0,
    )
    solution = dp.solve(problem, Limits())
    assert check(problem, solution) == ()
    # The first stages must recompute every layer but a few: no stage can be shorter than four layers at 75 GB.
    assert solution.layers_S(num_stages) == (4,) * num_stages
    assert solution.objective == pytest.approx(4.351, rel=1e-9)


def peak_of(problem: Problem, counts: tuple[int, ...], weights: list[float], extras: list[float]) -> float:
    """Return the largest of the stages' values, every layer at its one option."""
    seconds, begin = [], 0
    for stage, count in enumerate(counts):
        layers = problem.seconds_LO[begin : begin + count, 0]
        seconds.append(float(layers.sum()) + float(problem.fixed_seconds_S[stage]))
        begin += count
    return max(
        extras[stage] + weights[stage] * own + sum(seconds[stage + 1 :])
        for stage, own in enumerate(seconds)
        if weights[stage] >= 1.0
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_least_peak_is_that_of_the_best_of_all_partitions_within_memory(seed: int) -> None:
    random = np.random.default_rng(seed)
    num_layers, num_stages = int(random.integers(3, 10)), int(random.integers(2, 5))
    problem = chain(
        random.uniform(0.1, 3.0, size=(num_layers, 1)).tolist(),
        num_stages=num_stages,
        static_bytes_LO=random.integers(1, 9, size=(num_layers, 1)).tolist(),
        activation_bytes_LO=random.integers(0, 5, size=(num_layers, 1)).tolist(),
        fixed_seconds_S=random.uniform(0.0, 2.0, size=num_stages),
        capacity_bytes_R=np.full(num_stages, int(random.integers(15, 80))),
    )
    weights = (random.integers(1, 9, size=num_stages) - float(random.integers(0, 3))).tolist()
    extras = random.uniform(0.0, 2.0, size=num_stages).tolist()
    if max(weights) < 1.0:
        weights[-1] = 1.0
    fitting = [
        counts
        for counts in product(range(num_layers + 1), repeat=num_stages)
        if sum(counts) == num_layers
        and all(
            low <= count <= high
            for low, count, high in zip(problem.min_layers_S, counts, problem.max_layers_S, strict=True)
        )
        and fits(problem, counts)
    ]
    expected = min((peak_of(problem, counts, weights, extras) for counts in fitting), default=np.inf)
    peaks = dp.Peaks(problem=problem, own_weight_S=np.array(weights), extra_seconds_S=np.array(extras))
    assert peaks.least() == pytest.approx(expected, rel=1e-12)
    if not fitting:
        assert peaks.splits_below(np.inf, at_most=10) == ()
        return
    values = sorted(peak_of(problem, counts, weights, extras) for counts in fitting)
    limit = values[len(values) // 2] * (1 + 1e-9)
    below = {counts for counts in fitting if peak_of(problem, counts, weights, extras) < limit}
    found = peaks.splits_below(limit, at_most=len(below))
    assert found is not None
    assert list(found) == sorted(found)
    assert sorted(counts for _, counts in found) == sorted(below)
    for value, counts in found:
        assert value == pytest.approx(peak_of(problem, counts, weights, extras), rel=1e-12)
    assert peaks.splits_below(limit, at_most=len(below) - 1) is None


@pytest.mark.parametrize("seed", range(20))
def test_the_least_sum_is_the_least_of_all_splits_that_fit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    layers, stages = int(generator.integers(1, 7)), int(generator.integers(1, 4))
    problem = chain(
        generator.integers(1, 9, size=(layers, 1)).tolist(),
        num_stages=stages,
        static_bytes_LO=generator.integers(0, 4, size=(layers, 1)).tolist(),
        capacity_bytes_R=generator.integers(1, 12, size=stages),
    )
    value_SJN = generator.random((stages, layers + 1, layers + 1))
    sums = [
        sum(
            value_SJN[stage, end, count]
            for stage, (end, count) in enumerate(zip(accumulate(counts), counts, strict=True))
        )
        for counts in product(range(layers + 1), repeat=stages)
        if sum(counts) == layers
        and all(low <= count for low, count in zip(problem.min_layers_S, counts, strict=True))
        and fits(problem, counts)
    ]
    assert dp.least_sum(problem, value_SJN) == pytest.approx(min(sums, default=np.inf), rel=1e-12)


def fits(problem: Problem, counts: tuple[int, ...]) -> bool:
    begin = 0
    for stage, count in enumerate(counts):
        needed = int(problem.bytes_LO(stage)[begin : begin + count, 0].sum()) + int(problem.fixed_bytes_S[stage])
        if needed > problem.capacity_bytes_R[stage]:
            return False
        begin += count
    return True


def test_the_least_peak_needs_a_rank_for_every_stage() -> None:
    shared = chain([[1.0]] * 4, num_stages=4, rank_of_stage_S=np.array([0, 1, 0, 1]), capacity_bytes_R=np.array([9, 9]))
    with pytest.raises(ValueError, match="a rank of its own"):
        dp.Peaks(problem=shared, own_weight_S=np.ones(4), extra_seconds_S=np.zeros(4))
