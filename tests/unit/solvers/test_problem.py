import numpy as np
import pytest

from tests.unit.solvers.chains import chain, with_changes


def test_arrays_are_copies_and_read_only() -> None:
    seconds_LO = np.ones((2, 1))
    problem = with_changes(chain([[1.0], [1.0]], num_stages=2), seconds_LO=seconds_LO)
    seconds_LO[0, 0] = 7.0
    assert problem.seconds_LO[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        problem.seconds_LO[0, 0] = 7.0


def test_sizes_come_from_the_shapes() -> None:
    problem = chain([[1.0, 2.0]] * 5, num_stages=3)
    assert (problem.num_layers, problem.num_options, problem.num_stages, problem.num_ranks) == (5, 2, 3, 3)
    assert not problem.shares_ranks


def test_layers_that_are_equal_in_everything_are_of_one_kind() -> None:
    problem = chain(
        [[1.0], [1.0], [2.0], [1.0], [1.0]],
        num_stages=1,
        static_bytes_LO=[[5], [5], [5], [5], [5]],
        activation_bytes_LO=[[1], [1], [1], [1], [9]],
    )
    assert problem.kind_L == (0, 0, 2, 0, 4)


def test_layers_that_differ_on_one_stage_are_of_two_kinds() -> None:
    seconds_SLO = np.array([[[1.0], [2.0], [1.0]], [[2.0], [1.0], [2.0]]])
    problem = chain([[1.0]] * 3, num_stages=2, seconds_SLO=seconds_SLO)
    assert problem.kind_L == (0, 1, 0)
    assert problem.stage_seconds_LO(1).tolist() == [[2.0], [1.0], [2.0]]


def test_bytes_of_an_option_grow_with_the_microbatches_in_flight() -> None:
    problem = chain([[1.0, 2.0]], num_stages=2, static_bytes_LO=[[10, 20]], activation_bytes_LO=[[3, 1]])
    assert problem.bytes_LO(0).tolist() == [[16, 22]]
    assert problem.bytes_LO(1).tolist() == [[13, 21]]


def test_the_simple_bound_spreads_the_fastest_options_evenly() -> None:
    problem = chain([[1.0, 2.0], [3.0, 2.0], [1.0, 1.0]], num_stages=2, fixed_seconds_S=np.array([0.5, 1.5]))
    assert problem.simple_bound() == pytest.approx(3.0 * 3.0 + 6.0)


def test_the_simple_bound_knows_that_a_layer_is_not_split() -> None:
    assert chain([[1.0], [9.0]], num_stages=2).simple_bound() == pytest.approx(3.0 * 9.0 + 10.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck_weight": -1.0}, "the weights of the objective must not be negative"),
        ({"seconds_LO": np.ones(2)}, "seconds_LO has two axes, fixed_seconds_S and capacity_bytes_R have one"),
        ({"seconds_LO": np.ones((0, 1))}, "there must be a layer, an option, a stage and a rank"),
        (
            {"seconds_SLO": np.ones((1, 2, 1))},
            "seconds_SLO has shape (1, 2, 1), not (2, 2, 1)",
        ),
        (
            {"seconds_SLO": np.full((2, 2, 1), 2.0)},
            "seconds_LO must hold the least seconds of seconds_SLO",
        ),
        (
            {"seconds_LO": np.array([[1.0], [-1.0]])},
            "seconds_LO holds seconds that are negative or not finite",
        ),
        (
            {"fixed_seconds_S": np.array([1.0, np.inf])},
            "fixed_seconds_S holds seconds that are negative or not finite",
        ),
        (
            {"fixed_seconds_S": np.ones((2, 1))},
            "seconds_LO has two axes, fixed_seconds_S and capacity_bytes_R have one",
        ),
        ({"static_bytes_LO": np.ones((2, 2), dtype=np.int64)}, "static_bytes_LO has shape (2, 2), not (2, 1)"),
        ({"static_bytes_LO": np.ones((2, 1))}, "static_bytes_LO must hold integers, not float64"),
        ({"in_flight_S": np.array([1, -1])}, "in_flight_S holds a negative number"),
        (
            {"rank_of_stage_S": np.array([0, 0])},
            "rank_of_stage_S must name every rank of capacity_bytes_R and no other",
        ),
        ({"min_layers_S": np.array([1, 3])}, "min_layers_S exceeds max_layers_S"),
        (
            {"static_bytes_LO": np.full((2, 1), 2**62)},
            "the bytes of all layers together do not fit 64-bit integers",
        ),
    ],
)
def test_arrays_that_make_no_problem_are_refused(changes: dict[str, object], message: str) -> None:
    problem = chain([[1.0], [1.0]], num_stages=2)
    with pytest.raises(ValueError, match=r".") as caught:
        with_changes(problem, **changes)
    assert str(caught.value) == message


def test_stage_times_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^fixed_bytes_S has shape \(2,\), not \(1,\)$"):
        chain([[1.0]], num_stages=1, fixed_bytes_S=np.zeros(2, dtype=np.int64))
