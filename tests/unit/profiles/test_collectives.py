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
    return 5e-6 + RENDEZVOUS_SECONDS.value * num_bytes / (num_bytes + RENDEZVOUS_BYTES.value)


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
    chunk = size * CHUNK_BYTES.value / (size + CHUNK_BYTES.value) / reached
    expected = overhead(size) + 2 * 3 * (message(size) + chunk) + size * 2 * 7 / 8 / reached
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


def test_a_note_names_every_constant_that_decides_the_price() -> None:
    across = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=32, stride=1)
    sources = (HOPPER.eight_ranks, NETWORK_FRACTION, RENDEZVOUS_SECONDS, COLLECTIVE_RAMP["hopper"])
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


def test_large_rings_run_at_the_cards_and_two_nodes_with_reducing_switches_send_once() -> None:
    num_bytes, cards = 1 << 40, 8 * 25e9 * NETWORK_FRACTION.value
    large = of_preset("dgx-a100", CollectiveKind.ALL_REDUCE, nodes=8, num_bytes=num_bytes)
    assert large == pytest.approx(2 * 63 / 64 * num_bytes / cards, rel=1e-3)
    once = of_preset("dgx-h100", CollectiveKind.ALL_REDUCE, nodes=2, num_bytes=num_bytes)
    inside = 2 * 15 / 16 * num_bytes / (450e9 * PEER_FRACTION["hopper", "all_reduce"].eight_ranks.value)
    assert once == pytest.approx(max(num_bytes / (2 * cards), inside), rel=1e-3)


def test_a_short_message_does_not_wait_for_its_receiver() -> None:
    # Over 4 nodes of 8: 2 log2(4) messages between nodes and 2 log2(8) inside.
    short = overhead(8) + 4 * 5e-6 + 6 * 2e-6
    assert collective(CollectiveKind.ALL_REDUCE, 32, buffer_bytes=8) == pytest.approx(short, rel=2e-3)
    longer = collective(CollectiveKind.ALL_REDUCE, 32, buffer_bytes=1 << 16)
    assert longer > overhead(1 << 16) + 4 * (5e-6 + 0.75 * RENDEZVOUS_SECONDS.value) + 6 * 2e-6


@pytest.mark.parametrize(("forwards", "messages"), [(False, 24), (True, 3)])
def test_an_exchange_sends_to_every_rank_of_other_nodes_or_once_to_every_node(*, forwards: bool, messages: int) -> None:
    model = AnalyticCostModel(cluster(), Software(forwards_tokens=forwards), sustained=False)
    exchange = Collective(kind=CollectiveKind.ALL_TO_ALL, buffer_bytes=8, size=32, stride=1)
    # Hops inside: 7 in each of 4 nodes.
    expected = overhead(8) + messages * 5e-6 + 28 * HOP
    assert model.collective(exchange).seconds == pytest.approx(expected, rel=1e-3)
