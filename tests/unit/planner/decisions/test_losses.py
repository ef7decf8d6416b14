"""Lost nodes where nodes differ, against searches on every choice of the nodes that are left."""

from dataclasses import replace
from functools import cache
from itertools import combinations, permutations

import pytest

from planner.decisions.decide import decide
from planner.decisions.losses import losses_of
from planner.documents import parse_document
from planner.errors import InputError
from planner.plans.choices import Spare
from planner.requests.request import Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import Precision, TrainWorkload
from planner.schema.plan import plan_from_document, plan_to_text
from planner.search.search import search
from profiles.hardware import Cluster
from tests.builders import tiny_dense_model
from tests.unequal_clusters import RATE, unequal_cluster

MODEL = tiny_dense_model()
REQUEST = PlanRequest(
    workload=TrainWorkload(seq_len=128, global_batch_size=12, precision=Precision.BF16),
    constraints=Constraints(
        degrees={"micro_batch_size": Bounds(allowed=(1, 2)), "zero_stage": Bounds(allowed=(0,))}, recompute=("none",)
    ),
    memory_headroom=0.05,
    target=Target.ANY,
    objective=Objective.STEP_TIME,
)
CLUSTERS = {
    "two older nodes": unequal_cluster(4, older=[1, 3]),
    "a slow link": unequal_cluster(4, slow={(0, 2): RATE / 30}),
    "an older node behind a slow link": unequal_cluster(3, older=[2], slow={(0, 2): RATE / 20}),
}


def unlike(cluster: Cluster) -> int:
    """Return the least number of groups such that any two nodes of one may change places, by trying every pair."""
    nodes = cluster.unequal
    assert nodes is not None
    rows, kinds, count = nodes.bytes_per_second_NN, nodes.kind_of_node_N, cluster.num_nodes
    groups: list[int] = []
    for node in range(count):
        swapped = []
        for other in groups:
            order = list(range(count))
            order[node], order[other] = other, node
            same = all(rows[order[a]][order[b]] == rows[a][b] for a, b in permutations(range(count), 2))
            swapped.append(same and kinds[node] == kinds[other])
        if not any(swapped):
            groups.append(node)
    return len(groups)


@cache
def lost(name: str) -> Spare:
    plan = decide(MODEL, CLUSTERS[name], REQUEST, top=1, lost_nodes=1)
    assert plan.spare is not None
    return plan.spare


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_loss_that_is_not_like_another_is_planned_for(name: str) -> None:
    losses, cluster = lost(name).losses, CLUSTERS[name]
    assert len(losses) == unlike(cluster)
    assert sum(loss.num_alike for loss in losses) == cluster.num_nodes
    assert all(len(loss.nodes) == 1 for loss in losses)


@pytest.mark.parametrize("name", CLUSTERS)
def test_what_is_planned_anew_is_the_fastest_on_any_nodes_left(name: str) -> None:
    cluster = CLUSTERS[name]
    for loss in lost(name).losses:
        left = [node for node in range(cluster.num_nodes) if node not in loss.nodes]
        steps = {
            part: plans[0].step_seconds
            for size in range(1, len(left) + 1)
            for part in combinations(left, size)
            if (plans := search(MODEL, cluster.only(part), REQUEST, top=1).plans)
        }
        assert loss.replanned is not None
        assert loss.replanned.step_seconds == pytest.approx(min(steps.values()), rel=1e-9)
        assert loss.replanned.step_seconds == steps[loss.left]
        assert loss.replanned.num_nodes == len(loss.left)


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_answer_is_the_worst_loss(name: str) -> None:
    found = lost(name)
    steps = [loss.replanned.step_seconds for loss in found.losses if loss.replanned is not None]
    assert steps == sorted(steps, reverse=True)
    assert found.replanned == found.losses[0].replanned
    assert found.kept == ()


def test_a_node_behind_a_slow_link_is_a_lesser_loss_than_one_with_good_links() -> None:
    worst, least = lost("a slow link").losses
    assert (worst.nodes, worst.num_alike) == ((1,), 2)
    assert (least.nodes, least.num_alike) == ((0,), 2)
    assert worst.replanned is not None
    assert least.replanned is not None
    assert worst.replanned.step_seconds > least.replanned.step_seconds


def test_losses_are_kept_in_a_plan_file() -> None:
    plan = decide(MODEL, CLUSTERS["a slow link"], REQUEST, top=1, lost_nodes=2)
    assert plan.spare is not None
    assert [len(loss.nodes) for loss in plan.spare.losses] == [2] * 3
    assert sum(loss.num_alike for loss in plan.spare.losses) == 6
    assert plan_from_document(parse_document(plan_to_text(plan), file="plan.json")) == plan


def test_where_nothing_fits_any_more_that_is_the_worst_loss() -> None:
    pinned = replace(REQUEST, constraints=replace(REQUEST.constraints, degrees={"dp": Bounds(allowed=(3,))}))
    cluster = unequal_cluster(3, older=[2])
    plan = search(MODEL, cluster, pinned, top=1)
    losses = losses_of(plan, num_lost=1, watch=lambda *_: None)
    assert [loss.replanned for loss in losses] == [None, None]
    assert {loss.reason for loss in losses} == {"no layout is legal and fits"}
    assert all(loss.proven for loss in losses)


def test_too_many_losses_are_refused() -> None:
    rates = {pair: RATE / (2 + index) for index, pair in enumerate(combinations(range(7), 2))}
    plan = replace(search(MODEL, CLUSTERS["a slow link"], REQUEST, top=1), cluster=unequal_cluster(7, slow=rates))
    with pytest.raises(InputError) as caught:
        losses_of(plan, num_lost=2, watch=lambda *_: None)
    assert caught.value.message == (
        "--spare 2: which nodes are lost matters here, in 21 ways; at most 16 are planned for."
    )


def test_what_is_left_of_equal_nodes_is_a_cluster_of_equal_nodes() -> None:
    cluster = CLUSTERS["two older nodes"]
    older, mixed = cluster.only((1, 3)), cluster.only((1, 2, 3))
    assert older.unequal is None
    assert (older.device.name, older.num_nodes) == ("older-gpu", 2)
    assert mixed.unequal is not None
    assert mixed.unequal.kind_of_node_N == (1, 0, 1)
    assert (mixed.world_size, mixed.levels[-1].num_gpus) == (6, 6)
    slow = CLUSTERS["a slow link"].only((0, 2))
    assert slow.unequal is None
    assert slow.levels[-1].bytes_per_second == RATE / 30
    assert cluster.only((3,)).num_nodes == 1
