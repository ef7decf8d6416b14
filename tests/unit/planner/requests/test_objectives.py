"""What a step is worth: days, cost and energy of a whole run."""

from dataclasses import replace

import pytest

from planner.requests.objectives import power_assumption, seconds_at_deadline, whole_run
from tests.builders import tiny_workload, two_node_cluster

DAY = 86400.0


def test_a_run_takes_its_steps_and_every_gpu_its_price_and_power() -> None:
    # 2048 tokens a step: 864 steps of 100 s are a day, on 8 GPUs at 2 an hour and 600 W.
    workload = replace(tiny_workload(), tokens_to_train=864 * 2048)
    run = whole_run(100.0, two_node_cluster(), workload, num_nodes=2)
    assert run is not None
    assert run.days == pytest.approx(1.0)
    assert run.cost == pytest.approx(24 * 8 * 2.0)
    assert run.joules == pytest.approx(DAY * 8 * 600.0)
    half = whole_run(100.0, two_node_cluster(), workload, num_nodes=1)
    assert half is not None
    assert run.cost is not None
    assert (half.days, half.cost, half.joules) == (run.days, run.cost / 2, run.joules / 2)


def test_without_a_budget_there_is_no_run_and_without_a_price_no_cost() -> None:
    cluster = replace(two_node_cluster(), price_per_gpu_hour=None)
    assert whole_run(1.0, cluster, replace(tiny_workload(), tokens_to_train=None), num_nodes=2) is None
    run = whole_run(1.0, cluster, tiny_workload(), num_nodes=2)
    assert run is not None
    assert run.cost is None


def test_a_step_at_the_deadline_meets_it_exactly() -> None:
    seconds = seconds_at_deadline(3.5, tiny_workload())
    run = whole_run(seconds, two_node_cluster(), tiny_workload(), num_nodes=2)
    assert run is not None
    assert run.days == pytest.approx(3.5, rel=1e-12)


def test_the_power_is_the_nodes_share_or_else_the_board_and_is_named() -> None:
    cluster = two_node_cluster()
    assert power_assumption(cluster) == (
        "energy: every GPU draws 600 W, its share of the node by the cluster's description, all the time; cooling comes"
        " on top"
    )
    board = replace(cluster, watts_per_gpu=None)
    assert power_assumption(board) == (
        "energy: every GPU draws its board power, 500 W, all the time; hosts, network and cooling come on top"
    )
    run = whole_run(1.0, board, tiny_workload(), num_nodes=2)
    assert run is not None
    assert run.joules == pytest.approx(run.days * DAY * 8 * 500.0)
