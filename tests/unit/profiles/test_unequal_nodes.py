"""Nodes that differ: how users write them, what each refusal says, and what operations take on them."""

from typing import Any

import pytest
from pydantic import ValidationError

from profiles.constants import NETWORK_FRACTION
from profiles.hardware import Cluster, UnequalNodes
from profiles.ops import Collective, CollectiveKind, Gemm
from profiles.planned import cost_model_on
from profiles.schema import ClusterEntry, MixedClusterEntry
from profiles.unequal import UnequalCostModel

NOMINAL = 50e9
"""What the cards of a DGX H100 give one GPU."""

GEMM = Gemm(m=4096, n=4096, k=4096, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=2)
ACROSS = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 28, size=32, stride=1)
NOT_SLOW = "that the network cards of these nodes reach: slow_links holds what is slower"
ONE_LEVEL = "where nodes differ, give the network as one level, and what pairs of nodes reach as node_bandwidth"
OWN_NVLINK = "links between nodes can differ only where every node has its own"
MIXED: dict[str, Any] = {"groups": [{"preset": "dgx-h100", "nodes": 3}, {"preset": "dgx-a100", "nodes": 1}]}


def cluster(**fields: object) -> Cluster:
    return ClusterEntry.model_validate({"preset": "dgx-h100", "nodes": 4, **fields}).to_cluster()


def nodes_of(built: Cluster) -> UnequalNodes:
    assert built.unequal is not None
    return built.unequal


def model_of(built: Cluster) -> UnequalCostModel:
    model = cost_model_on(built)
    assert isinstance(model, UnequalCostModel)
    return model


def findings(entry: type[ClusterEntry | MixedClusterEntry], fields: object) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        entry.model_validate(fields)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def test_a_cluster_that_says_nothing_of_its_nodes_has_equal_ones() -> None:
    assert cluster().unequal is None
    assert not isinstance(cost_model_on(cluster()), UnequalCostModel)


def test_slow_links_replace_what_the_cards_give() -> None:
    nodes = nodes_of(cluster(node_names=["a", "b", "c", "d"], slow_links=[{"nodes": ["b", 3], "bandwidth": "9GB/s"}]))
    assert nodes.bytes_per_second_NN[1] == (NOMINAL, 0.0, NOMINAL, 9e9 / NETWORK_FRACTION.value)
    assert nodes.bytes_per_second_NN[3][1] == nodes.bytes_per_second_NN[1][3]
    assert nodes.kind_of_node_N == (0, 0, 0, 0)


def test_of_both_directions_of_a_measured_link_the_slower_one_counts() -> None:
    rows = [[0, 360, 360, 360], [180, 0, 360, 360], [360, 360, 0, 90], [360, 360, 360, 0]]
    nodes = nodes_of(
        cluster(node_bandwidth={"unit": "Gb/s", "rows": [[float(value) for value in row] for row in rows]})
    )
    assert nodes.bytes_per_second_NN[0][1] == nodes.bytes_per_second_NN[1][0] == pytest.approx(NOMINAL / 2)
    assert nodes.bytes_per_second_NN[2][3] == pytest.approx(NOMINAL / 4)
    assert nodes.best_bytes_per_second == pytest.approx(NOMINAL)


def test_groups_differ_in_gpus_and_cards() -> None:
    built = MixedClusterEntry.model_validate(MIXED).to_cluster()
    nodes = nodes_of(built)
    assert built.name == "3 x dgx-h100 + 1 x dgx-a100"
    assert built.nodes_in_words == "3 x 8 h100-sxm-80gb + 1 x 8 a100-sxm-80gb"
    assert built.device.name == "h100-sxm-80gb"
    assert nodes.kind_of_node_N == (0, 0, 0, 1)
    assert nodes.bytes_per_second_NN[3] == (NOMINAL / 2, NOMINAL / 2, NOMINAL / 2, 0.0)
    assert nodes.best_bytes_per_second == NOMINAL


def test_groups_with_other_cards_only_are_two_kinds_of_one_gpu() -> None:
    slower = {"preset": "dgx-h100", "nodes": 2, "nics": {"count": 4, "bandwidth": "200Gb/s"}}
    built = MixedClusterEntry.model_validate({"groups": [slower, {"preset": "dgx-h100", "nodes": 2}]}).to_cluster()
    assert [count for _, count in built.device_counts] == [4]
    assert nodes_of(built).bytes_per_second_NN[3] == (NOMINAL / 4, NOMINAL / 4, NOMINAL, 0.0)


def test_the_price_of_mixed_nodes_is_their_mean_and_unknown_where_one_is() -> None:
    priced = [{"preset": "dgx-h100", "nodes": 3, "price_per_gpu_hour": 3.0}]
    whole = [*priced, {"preset": "dgx-a100", "nodes": 1, "price_per_gpu_hour": 1.0}]
    assert MixedClusterEntry.model_validate({"groups": whole}).to_cluster().price_per_gpu_hour == 2.5
    part = [*priced, {"preset": "dgx-a100", "nodes": 1}]
    assert MixedClusterEntry.model_validate({"groups": part}).to_cluster().price_per_gpu_hour is None


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        (
            {"slow_links": [{"nodes": [0, 4], "bandwidth": "1GB/s"}]},
            ("slow_links", 0, "nodes", 1),
            "there is no node 4: nodes are numbered 0 to 3",
        ),
        (
            {"slow_links": [{"nodes": ["x", 1], "bandwidth": "1GB/s"}]},
            ("slow_links", 0, "nodes", 0),
            "there is no node x in node_names",
        ),
        (
            {"slow_links": [{"nodes": [2, 2], "bandwidth": "1GB/s"}]},
            ("slow_links", 0, "nodes"),
            "a link joins two nodes, not one with itself",
        ),
        (
            {"slow_links": [{"nodes": [0, 1], "bandwidth": "60GB/s"}]},
            ("slow_links", 0, "bandwidth"),
            f"60 GB/s is more than the 45 GB/s {NOT_SLOW}",
        ),
        ({"node_names": ["a", "b"]}, ("node_names",), "2 names for 4 nodes"),
        ({"node_names": ["a", "b", "c", "a"]}, ("node_names", 3), "a is listed twice"),
        (
            {"node_bandwidth": {"unit": "GB/s", "rows": [[0.0]]}},
            ("node_bandwidth", "rows"),
            "1 rows for 4 nodes",
        ),
        (
            {"node_bandwidth": {"unit": "GB/s", "rows": [[0.0] * 3] * 4}},
            ("node_bandwidth", "rows", 0),
            "3 numbers for 4 nodes",
        ),
        (
            {"node_bandwidth": {"unit": "GB/s", "rows": [[0.0, 45.0, 45.0, 0.0]] * 4}},
            ("node_bandwidth", "rows", 0, 3),
            "nodes 0 and 3 reach nothing",
        ),
        (
            {
                "slow_links": [{"nodes": [0, 1], "bandwidth": "1GB/s"}],
                "node_bandwidth": {"unit": "GB/s", "rows": [[45.0] * 4] * 4},
            },
            ("slow_links",),
            "give slow_links or node_bandwidth, not both: the matrix holds every pair",
        ),
        (
            {"nodes": 1, "node_names": ["a"]},
            ("nodes",),
            "a single node has no other to differ from",
        ),
        (
            {"nodes": 300, "slow_links": [{"nodes": [0, 1], "bandwidth": "1GB/s"}]},
            ("nodes",),
            "300 nodes that differ are more than 256",
        ),
        (
            {
                "nodes": 64,
                "links": [{"name": "leaf", "nodes": 32}, {"name": "spine", "oversubscription": 2.0}],
                "slow_links": [{"nodes": [0, 1], "bandwidth": "1GB/s"}],
            },
            ("links",),
            f"leaf and spine differ in bandwidth: {ONE_LEVEL}",
        ),
        (
            {"preset": "gb200-nvl72", "nodes": 36, "slow_links": [{"nodes": [0, 1], "bandwidth": "1GB/s"}]},
            ("nvlink_domain",),
            f"NVLink joins 72 GPUs, more than a node of 4: {OWN_NVLINK}",
        ),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(
    fields: dict[str, object], place: tuple[int | str, ...], message: str
) -> None:
    assert findings(ClusterEntry, {"preset": "dgx-h100", "nodes": 4, **fields}) == [(place, message)]


@pytest.mark.parametrize(
    ("second", "place", "message"),
    [
        (
            {"preset": "dgx-a100", "gpus_per_node": 4, "nvlink_domain": 4},
            ("groups", 1, "gpus_per_node"),
            "4 GPUs a node beside 8: all nodes need equally many",
        ),
        (
            {"preset": "mi300x-8"},
            ("groups", 1, "gpu"),
            "mi300x beside h100-sxm-80gb: GPUs of two vendors run no collective together",
        ),
        (
            {"preset": "dgx-a100", "nodes": 2, "node_names": ["a", "b"]},
            ("groups", 1, "node_names"),
            "node_names stands beside groups, not in one of them",
        ),
        (
            {"gpu": "a100-sxm-80gb", "gpus_per_node": 8, "nodes": 1, "host_ram": "1TiB"},
            ("groups", 1, "nics"),
            "nics are needed to join 2 nodes: write for example {count: 8, bandwidth: 400Gb/s}",
        ),
    ],
)
def test_groups_that_make_no_cluster_are_refused(
    second: dict[str, object], place: tuple[int | str, ...], message: str
) -> None:
    assert findings(MixedClusterEntry, {"groups": [{"preset": "dgx-h100", "nodes": 1}, second]}) == [(place, message)]


def test_equal_links_cost_what_equal_nodes_cost() -> None:
    measured = NOMINAL * NETWORK_FRACTION.value / 1e9
    unequal = model_of(cluster(node_bandwidth={"unit": "GB/s", "rows": [[measured] * 4] * 4}))
    equal = cost_model_on(cluster())
    assert unequal.collective(ACROSS).seconds == pytest.approx(equal.collective(ACROSS).seconds, rel=1e-12)
    assert unequal.compute(GEMM) == equal.compute(GEMM)
    assert unequal.overlap_slowdown == equal.overlap_slowdown
    assert unequal.transfer_slowdown == equal.transfer_slowdown


def test_a_collective_takes_as_long_as_over_its_slowest_link() -> None:
    model = model_of(cluster(slow_links=[{"nodes": [0, 1], "bandwidth": "9GB/s"}]))
    slow = ClusterEntry.model_validate({"preset": "dgx-h100", "nodes": 4, "nics": {"count": 8, "bandwidth": "80Gb/s"}})
    expected = cost_model_on(slow.to_cluster()).collective(ACROSS).seconds
    assert model.slowest_collective(ACROSS, (0,), 1e10).seconds == expected
    assert model.slowest_collective(ACROSS, (0,), NOMINAL).seconds == model.collective(ACROSS).seconds < expected


def test_mixed_nodes_are_priced_between_the_best_and_the_slowest() -> None:
    model = model_of(MixedClusterEntry.model_validate(MIXED).to_cluster())
    alone = [
        cost_model_on(ClusterEntry.model_validate({"preset": preset, "nodes": 4}).to_cluster()).compute(GEMM).seconds
        for preset in ("dgx-h100", "dgx-a100")
    ]
    assert model.compute(GEMM).seconds == min(alone)
    assert model.slowest_compute(GEMM, (0, 1)).seconds == max(alone)
    assert model.slowest_compute(GEMM, (0,)).seconds == alone[0]
    assert model.slowdown((0, 1), transfers=False) >= model.overlap_slowdown
