"""Collectives against hand computation: bandwidth by level, hops by algorithm, waits between nodes."""

import math
from dataclasses import replace

import pytest

from profiles.analytic import AnalyticCostModel
from profiles.constants import (
    CHUNK_BYTES,
    COLLECTIVE_RAMP,
    COLLECTIVE_RAMP_BYTES,
    COLLECTIVE_START,
    COLLECTIVES_IN_TRAINING,
    EXCHANGE_FRACTION,
    NETWORK_FRACTION,
    OTHER_NETWORKS,
    PCIE_FRACTION,
    PEER_FRACTION,
    PEER_HOP_FRACTION,
    RENDEZVOUS_BYTES,
    RENDEZVOUS_SECONDS,
    Constant,
)
from profiles.estimate import Source
from profiles.hardware import PeerTopology
from profiles.ops import Collective, CollectiveKind
from profiles.schema.cluster import ClusterEntry
from profiles.software import Software
from tests.builders import tiny_device
from tests.unit.profiles.small_cluster import cluster, level

WAIT = RENDEZVOUS_SECONDS[OTHER_NETWORKS]
HOPPER = PEER_FRACTION["hopper", "all_gather"]
HOP = 2e-6 * PEER_HOP_FRACTION.value
MODEL = AnalyticCostModel(cluster())
BURST = AnalyticCostModel(cluster(), sustained=False)


def test_collectives_of_training_keep_a_part_of_their_bandwidth() -> None:
    size = 1 << 36
    gather = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=size, size=32, stride=1)
    kept = BURST.collective(gather).seconds / MODEL.collective(gather).seconds
    assert kept == pytest.approx(COLLECTIVES_IN_TRAINING.value, rel=1e-3)


@pytest.mark.parametrize(("size", "units"), [(8, 8), (32, 4)])
def test_forwarded_rows_travel_once_to_each_unit_that_has_a_member_for_them(size: int, units: int) -> None:
    # 8 copies of each row: in a domain of 8 a row reaches 7 (1 - (7/8)^8) others, over 4 nodes 3 (1 - (3/4)^8).
    buffer = 1 << 36
    exchange = Collective(kind=CollectiveKind.ALL_TO_ALL, buffer_bytes=buffer, size=size, stride=1, copies=8)
    forwarding = AnalyticCostModel(cluster(), Software(forwards_tokens=True), sustained=False)
    sent = buffer / 8 * (units - 1) * (1 - (1 - 1 / units) ** 8)
    ratio = forwarding.collective(exchange).seconds / BURST.collective(exchange).seconds
    # What NCCL exchanges between nodes reaches a part of a ring's bandwidth only.
    plain = EXCHANGE_FRACTION.value if size > 8 else 1.0
    assert ratio == pytest.approx(plain * sent / (buffer * (units - 1) / units), rel=1e-3)
    once = forwarding.collective(replace(exchange, copies=1)).seconds / BURST.collective(exchange).seconds
    assert once == pytest.approx(plain, rel=1e-3)


def overhead(buffer_bytes: int) -> float:
    """Return the start of a collective on this hardware."""
    ramp = COLLECTIVE_RAMP["hopper"].value * buffer_bytes / (buffer_bytes + COLLECTIVE_RAMP_BYTES.value)
    return COLLECTIVE_START["hopper"].value + ramp


def message(num_bytes: float) -> float:
    """Return what one message between nodes takes beside its bytes."""
    return 5e-6 + WAIT.value * num_bytes / (num_bytes + RENDEZVOUS_BYTES.value)


def collective(kind: CollectiveKind, size: int, stride: int = 1, *, buffer_bytes: int = 1 << 30) -> float:
    return BURST.collective(Collective(kind=kind, buffer_bytes=buffer_bytes, size=size, stride=stride)).seconds


@pytest.mark.parametrize("kind", CollectiveKind)
def test_a_group_of_one_sends_nothing(kind: CollectiveKind) -> None:
    assert collective(kind, 1) == 0.0


def test_a_ring_inside_the_domain_moves_p_minus_1_over_p_of_the_buffer() -> None:
    size = 1 << 30
    expected = overhead(size) + 7 * HOP + size * 7 / 8 / (100e9 * HOPPER.eight_ranks.value)
    assert collective(CollectiveKind.ALL_GATHER, 8) == pytest.approx(expected, rel=1e-12)
    expected = overhead(size) + 1 * HOP + size * 1 / 2 / (100e9 * HOPPER.two_ranks.value)
    assert collective(CollectiveKind.ALL_GATHER, 2) == pytest.approx(expected, rel=1e-12)


def test_an_all_reduce_moves_twice_as_much_and_takes_no_more_hops_than_a_tree() -> None:
    size = 1 << 30
    fraction = PEER_FRACTION["hopper", "all_reduce"].eight_ranks.value
    expected = overhead(size) + 2 * 3 * 2e-6 + size * 2 * 7 / 8 / (100e9 * fraction)
    assert collective(CollectiveKind.ALL_REDUCE, 8) == pytest.approx(expected, rel=1e-12)


def test_one_member_a_node_has_one_network_link() -> None:
    size = 1 << 30
    expected = overhead(size) + 3 * message(size / 4) + size * 3 / 4 / (10e9 * NETWORK_FRACTION.value)
    assert collective(CollectiveKind.ALL_GATHER, 4, stride=8) == pytest.approx(expected, rel=1e-12)


def test_members_of_one_node_leave_it_on_as_many_links() -> None:
    size = 1 << 30
    # 2 members in each of 4 nodes: 20 GB/s between nodes; 3 hops between nodes, 1 in each node.
    expected = overhead(size) + 3 * message(size / 8) + 4 * HOP + size * 7 / 8 / (20e9 * NETWORK_FRACTION.value)
    assert collective(CollectiveKind.ALL_GATHER, 8, stride=4) == pytest.approx(expected, rel=1e-12)
    # All 32: 8 links a node are 80 GB/s, and the domain has 100.
    narrowest = min(80e9 * NETWORK_FRACTION.value, 100e9 * HOPPER.eight_ranks.value)
    expected = overhead(size) + 3 * message(size / 32) + 4 * 7 * HOP + size * 31 / 32 / narrowest
    assert collective(CollectiveKind.ALL_GATHER, 32) == pytest.approx(expected, rel=1e-12)


def test_a_group_across_nodes_costs_more_than_one_inside() -> None:
    assert collective(CollectiveKind.ALL_REDUCE, 4, stride=8) > 5 * collective(CollectiveKind.ALL_REDUCE, 4)


def test_a_group_that_does_not_divide_the_domain_is_priced_where_it_lies_across_two() -> None:
    # 18 nodes of 4 in domains of 24: of the groups of 16 from ranks 0, 16, 32 the second holds ranks 16 to 31.
    model = AnalyticCostModel(cluster(gpus_per_node=4, num_nodes=18, domain=24), sustained=False)
    crossing = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=16, stride=1)
    inside = replace(crossing, size=8)
    narrowest = 8 * 10e9 * NETWORK_FRACTION.value
    assert model.collective(crossing).seconds > (1 << 30) * 15 / 16 / narrowest
    assert model.collective(inside).seconds < 2 * (1 << 30) / (100e9 * HOPPER.two_ranks.value)
    # A level that is larger than the cluster holds every group, whatever its size.
    narrow = replace(cluster(num_nodes=3), levels=(level("nvlink", 8, 100e9, 2e-6), level("rail", 1024, 10e9, 5e-6)))
    everyone = AnalyticCostModel(narrow, sustained=False).collective(replace(crossing, size=24)).seconds
    assert everyone > (1 << 30) * 23 / 24 / narrowest


@pytest.mark.parametrize(
    ("first_rank", "stride", "crosses"), [(0, 4, False), (4, 4, True), (0, 8, True), (8, 4, False), (12, 4, True)]
)
def test_a_send_crosses_a_node_only_where_its_first_rank_says_so(first_rank: int, stride: int, crosses: bool) -> None:
    size = 1 << 26
    send = Collective(kind=CollectiveKind.SEND_RECV, buffer_bytes=size, size=2, stride=stride, first_rank=first_rank)
    inside = overhead(size) + 2e-6 + size / (100e9 * HOPPER.two_ranks.value)
    outside = overhead(size) + message(size) + size / (10e9 * NETWORK_FRACTION.value)
    assert BURST.collective(send).seconds == pytest.approx(outside if crosses else inside, rel=1e-12)


@pytest.mark.parametrize(("ranks", "stride", "crosses"), [(4, 1, False), (2, 4, False), (6, 1, True), (3, 2, True)])
def test_a_ring_hops_over_the_network_where_some_ring_does_not_lie_in_one_node(
    ranks: int, stride: int, crosses: bool
) -> None:
    hop = Collective(kind=CollectiveKind.SEND_RECV, buffer_bytes=1 << 26, size=ranks, stride=stride, first_rank=None)
    across = replace(hop, size=2, stride=8, first_rank=0)
    inside = replace(hop, size=2, stride=1, first_rank=0)
    expected = BURST.collective(across if crosses else inside).seconds
    assert BURST.collective(hop).seconds == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["network", "infiniband", "spine"])
def test_a_network_is_never_priced_as_nvlink_even_where_it_is_the_innermost_level(name: str) -> None:
    lone = replace(cluster(gpus_per_node=1, num_nodes=8), levels=(level(name, 8, 50e9, 5e-6),))
    size = 1 << 30
    reduce = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=size, size=8, stride=1)
    estimate = AnalyticCostModel(lone, sustained=False).collective(reduce)
    reached = 50e9 * NETWORK_FRACTION.value
    expected = overhead(size) + 2 * 7 * message(size / 8) + size * 2 * 7 / 8 / reached
    assert estimate.seconds == pytest.approx(expected, rel=1e-12)
    assert NETWORK_FRACTION.source in estimate.note
    assert "NVLS" not in estimate.note


def test_pcie_has_a_fraction_of_its_own_that_is_an_assumption() -> None:
    slots = replace(cluster(), num_nodes=1, levels=(level("pcie", 8, 32e9, 2.5e-6),))
    size = 1 << 30
    gather = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=size, size=8, stride=1)
    estimate = AnalyticCostModel(slots, sustained=False).collective(gather)
    expected = overhead(size) + 7 * 2.5e-6 + size * 7 / 8 / (32e9 * PCIE_FRACTION.value)
    assert estimate.seconds == pytest.approx(expected, rel=1e-12)
    assert estimate.source is Source.ASSUMED
    assert PCIE_FRACTION.source in estimate.note


def mesh() -> AnalyticCostModel:
    """Return the model of a node of 8 in which each pair of GPUs shares one link."""
    device = replace(tiny_device(), peer_topology=PeerTopology.MESH)
    node = replace(cluster(), num_nodes=1, levels=(level("nvlink", 8, 100e9, 2e-6),))
    return AnalyticCostModel(replace(node, device=device), sustained=False)


@pytest.mark.parametrize(("members", "fraction"), [(2, HOPPER.two_ranks), (8, HOPPER.eight_ranks)])
@pytest.mark.parametrize("kind", [CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER, CollectiveKind.ALL_TO_ALL])
def test_a_group_in_a_mesh_has_only_the_links_between_its_members(
    kind: CollectiveKind, members: int, fraction: Constant
) -> None:
    size = 1 << 30
    estimate = mesh().collective(Collective(kind=kind, buffer_bytes=size, size=members, stride=1))
    factor, latency = (
        (2, 2 * math.log2(members) * 2e-6) if kind is CollectiveKind.ALL_REDUCE else (1, (members - 1) * HOP)
    )
    bandwidth = 100e9 * (members - 1) / 7 * fraction.value
    traffic = factor * size * (members - 1) / members / bandwidth
    assert estimate.seconds == pytest.approx(overhead(size) + latency + traffic, rel=1e-12)
    assert estimate.source is Source.ASSUMED
    assert "NVLS" not in estimate.note


@pytest.mark.parametrize("kind", [CollectiveKind.ALL_REDUCE, CollectiveKind.ALL_GATHER, CollectiveKind.ALL_TO_ALL])
def test_a_group_with_a_lone_member_in_one_of_two_meshes_is_priced(kind: CollectiveKind) -> None:
    # Ranks 0, 4 and 8: two in the first node, one in the second.
    nodes = ClusterEntry.model_validate({"preset": "mi300x-8", "nodes": 3}).to_cluster()
    across = Collective(kind=kind, buffer_bytes=1 << 20, size=3, stride=4)
    inside = Collective(kind=kind, buffer_bytes=1 << 20, size=2, stride=4)
    model = AnalyticCostModel(nodes)
    assert model.collective(inside).seconds < model.collective(across).seconds < 1.0


def test_a_send_in_a_mesh_has_one_link() -> None:
    size = 1 << 26
    send = Collective(kind=CollectiveKind.SEND_RECV, buffer_bytes=size, size=2, stride=4)
    expected = overhead(size) + 2e-6 + size / (100e9 / 7 * HOPPER.two_ranks.value)
    assert mesh().collective(send).seconds == pytest.approx(expected, rel=1e-12)


def test_a_ramp_of_another_generation_makes_a_collective_an_assumption() -> None:
    across = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=4, stride=8)
    blackwell = replace(cluster(), device=replace(tiny_device(), architecture="blackwell"))
    assert BURST.collective(across).source is Source.ANALYTIC
    assert AnalyticCostModel(blackwell).collective(across).source is Source.ASSUMED


def test_a_note_names_what_bandwidth_and_waits_rest_on() -> None:
    across = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=32, stride=1)
    sources = (HOPPER.eight_ranks, NETWORK_FRACTION, WAIT, COLLECTIVE_RAMP["hopper"])
    expected = "; ".join(("all_gather over link levels", *(constant.source for constant in sources)))
    assert BURST.collective(across).note == expected


def of_preset(preset: str, kind: CollectiveKind, *, nodes: int, num_bytes: int) -> float:
    """Return the time of a collective of all GPUs of so many nodes."""
    whole = ClusterEntry.model_validate({"preset": preset, "nodes": nodes}).to_cluster()
    operation = Collective(kind=kind, buffer_bytes=num_bytes, size=whole.world_size, stride=1)
    return AnalyticCostModel(whole, sustained=False).collective(operation).seconds


@pytest.mark.parametrize("kind", [kind for kind in CollectiveKind if kind is not CollectiveKind.SEND_RECV])
def test_more_nodes_and_more_bytes_take_longer(kind: CollectiveKind) -> None:
    by_nodes = [of_preset("dgx-a100", kind, nodes=nodes, num_bytes=1 << 20) for nodes in (2, 4, 8, 16)]
    assert by_nodes == sorted(by_nodes)
    by_bytes = [of_preset("dgx-a100", kind, nodes=4, num_bytes=1 << power) for power in range(3, 34)]
    assert by_bytes == sorted(by_bytes)


def test_large_rings_run_at_the_cards() -> None:
    num_bytes, cards = 1 << 40, 8 * 25e9 * NETWORK_FRACTION.value
    large = of_preset("dgx-a100", CollectiveKind.ALL_REDUCE, nodes=8, num_bytes=num_bytes)
    assert large == pytest.approx(2 * 63 / 64 * num_bytes / cards, rel=1e-3)


@pytest.mark.parametrize(
    ("architecture", "inner", "num_nodes", "factor"),
    [
        ("hopper", "nvlink", 2, 1.0),
        ("ampere", "nvlink", 2, 2 * 15 / 16),
        ("hopper", "pcie", 2, 2 * 15 / 16),
        ("hopper", "nvlink", 4, 2 * 31 / 32),
    ],
)
def test_a_tree_sends_once_over_two_nodes_of_hopper_with_nvlink(
    architecture: str, inner: str, num_nodes: int, factor: float
) -> None:
    # The network is slow enough to decide; a spine above the leaves of four nodes does not make them two.
    narrow = replace(
        cluster(num_nodes=num_nodes),
        device=replace(tiny_device(), architecture=architecture),
        levels=(
            level(inner, 8, 100e9, 2e-6),
            *((level("leaf", 16, 1e9, 5e-6),) if num_nodes > 2 else ()),
            level("spine", 8 * num_nodes, 1e9, 5e-6),
        ),
    )
    reduce = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=1 << 34, size=8 * num_nodes, stride=1)
    found = AnalyticCostModel(narrow, sustained=False).collective(reduce).seconds
    # The eight links of a node are the narrowest everywhere.
    assert found == pytest.approx(factor * (1 << 34) / (8e9 * NETWORK_FRACTION.value), rel=5e-3)


def test_a_short_message_does_not_wait_for_its_receiver() -> None:
    # Over 4 nodes of 8: 2 log2(4) messages between nodes and 2 log2(8) inside.
    short = overhead(8) + 4 * 5e-6 + 6 * 2e-6
    assert collective(CollectiveKind.ALL_REDUCE, 32, buffer_bytes=8) == pytest.approx(short, rel=2e-3)
    size = 1 << 16
    chunk = size / 8 * CHUNK_BYTES.value / (size / 8 + CHUNK_BYTES.value) / (10e9 * NETWORK_FRACTION.value)
    traffic = 2 * 31 / 32 * size / (80e9 * NETWORK_FRACTION.value)
    longer = overhead(size) + 4 * (message(size) + chunk) + 6 * 2e-6 + traffic
    assert collective(CollectiveKind.ALL_REDUCE, 32, buffer_bytes=size) == pytest.approx(longer, rel=1e-9)


def test_a_ring_serves_where_it_waits_less_than_a_tree() -> None:
    # Two members in two nodes: the ring's two messages carry half of the buffer each, and wait for no chunk.
    size = 1 << 24
    ring = overhead(size) + 2 * message(size / 2) + size / (10e9 * NETWORK_FRACTION.value)
    assert collective(CollectiveKind.ALL_REDUCE, 2, stride=8, buffer_bytes=size) == pytest.approx(ring, rel=1e-9)


def test_slingshot_waits_longer_than_other_networks() -> None:
    levels = (level("nvlink", 8, 100e9, 2e-6), level("slingshot", 32, 10e9, 5e-6))
    model = AnalyticCostModel(replace(cluster(), levels=levels), sustained=False)
    gather = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=4, stride=8)
    longer = model.collective(gather).seconds - BURST.collective(gather).seconds
    assert longer == pytest.approx(3 * (RENDEZVOUS_SECONDS["slingshot"].value - WAIT.value), rel=1e-3)


@pytest.mark.parametrize(("forwards", "messages"), [(False, 24), (True, 3)])
def test_an_exchange_sends_to_every_rank_of_other_nodes_or_once_to_every_node(*, forwards: bool, messages: int) -> None:
    model = AnalyticCostModel(cluster(), Software(forwards_tokens=forwards), sustained=False)
    exchange = Collective(kind=CollectiveKind.ALL_TO_ALL, buffer_bytes=8, size=32, stride=1)
    # A rank sends to 7 others in its node; all messages agree at the same time.
    expected = overhead(8) + messages * 5e-6 + 7 * HOP
    assert model.collective(exchange).seconds == pytest.approx(expected, rel=1e-3)
    large = replace(exchange, buffer_bytes=1 << 20)
    waits = (
        model.collective(large).seconds
        - AnalyticCostModel(
            replace(cluster(), levels=(level("nvlink", 8, 100e9, 2e-6), level("slingshot", 32, 10e9, 5e-6))),
            Software(forwards_tokens=forwards),
            sustained=False,
        )
        .collective(large)
        .seconds
    )
    agreed = (1 << 15) / ((1 << 15) + RENDEZVOUS_BYTES.value)
    assert waits == pytest.approx(agreed * (WAIT.value - RENDEZVOUS_SECONDS["slingshot"].value), rel=1e-6)


def test_a_group_in_two_domains_crosses_once_however_small_its_part() -> None:
    # 64 ranks over domains of 72: some group has 8 in one domain and 56 in the next, and a ring crosses once each way.
    model = AnalyticCostModel(cluster(gpus_per_node=4, num_nodes=36, domain=72), sustained=False)
    gather = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=8, size=64, stride=1)
    assert model.collective(gather).seconds == pytest.approx(overhead(8) + 62 * HOP + 5e-6, rel=1e-3)


def test_more_ranks_than_gpus_are_refused() -> None:
    with pytest.raises(ValueError, match="all_gather of 64 ranks on 32 GPUs"):
        collective(CollectiveKind.ALL_GATHER, 64)
