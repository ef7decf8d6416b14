"""The analytic cost model against hand computation, and its monotonicity."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.analytic import AnalyticCostModel
from profiles.catalogue import device_names, load_device, load_preset
from profiles.constants import (
    COLLECTIVE_CHANNELS,
    COLLECTIVE_RAMP,
    COLLECTIVE_RAMP_BYTES,
    COLLECTIVE_START,
    COLLECTIVES_IN_TRAINING,
    GEMM,
    GEMM_PROLOGUE_STEPS,
    GEMM_WHOLE_WAVE_FRACTION,
    KERNEL_LAUNCH,
    MEMORY_FRACTION,
    NETWORK_FRACTION,
    P2P_CHANNELS,
    PCIE_FRACTION,
    PEER_FRACTION,
    PEER_HOP_FRACTION,
    SCAN_FRACTION,
    TILES,
    Constant,
)
from profiles.errors import CoverageError
from profiles.estimate import Source
from profiles.gemm_surface import CACHE_OVER_MEMORY, SHARPNESS
from profiles.hardware import Cluster, LinkKind, LinkLevel, PeerTopology
from profiles.kernel_constants import EXCHANGE_FRACTION
from profiles.ops import Attention, Collective, CollectiveKind, ComputeOp, Gemm, MemoryBound, StateScan
from profiles.software import AttentionKernels, Software
from tests.builders import tiny_device

LAWS = settings(max_examples=200, deadline=None, derandomize=True)
HOPPER = PEER_FRACTION["hopper", "all_gather"]
HOP = 2e-6 * PEER_HOP_FRACTION.value


def level(name: str, num_gpus: int, bytes_per_second: float, latency_seconds: float) -> LinkLevel:
    return LinkLevel(
        name=name,
        kind={"nvlink": LinkKind.PEER, "pcie": LinkKind.HOST}.get(name, LinkKind.NETWORK),
        num_gpus=num_gpus,
        bytes_per_second=bytes_per_second,
        latency_seconds=latency_seconds,
        source="test",
    )


def cluster(*, gpus_per_node: int = 8, num_nodes: int = 4, domain: int | None = None) -> Cluster:
    """Return 100 GB/s inside a domain of 8 and 10 GB/s beyond."""
    world = gpus_per_node * num_nodes
    levels = (level("nvlink", domain or gpus_per_node, 100e9, 2e-6), level("rail", world, 10e9, 5e-6))
    return Cluster(
        name="test",
        device=tiny_device(),
        gpus_per_node=gpus_per_node,
        num_nodes=num_nodes,
        levels=levels,
        host_memory_bytes=1 << 40,
        nvme_bytes_per_second=None,
        nvme_bytes=None,
        price_per_gpu_hour=None,
        watts_per_gpu=None,
    )


MODEL = AnalyticCostModel(cluster())
BURST = AnalyticCostModel(cluster(), sustained=False)


def gemm(m: int, n: int, k: int, *, dtype: str = "bf16", batch: int = 1) -> Gemm:
    width = 1 if dtype == "fp8" else 2
    return Gemm(m=m, n=n, k=k, dtype=dtype, input_bytes_per_element=width, output_bytes_per_element=2, batch=batch)


def attention(seq_len: int, *, fused: bool = True, backward: bool = False) -> Attention:
    return Attention(
        batch=1,
        query_len=seq_len,
        kv_len=seq_len,
        pairs=seq_len * (seq_len + 1) // 2,
        num_heads=8,
        num_kv_heads=8,
        qk_head_dim=128,
        v_head_dim=128,
        dtype="bf16",
        bytes_per_element=2,
        backward=backward,
        fused=fused,
    )


def seconds(operation: ComputeOp) -> float:
    return MODEL.compute(operation).seconds


SIZES = st.integers(1, 20_000)


@LAWS
@given(m=SIZES, n=SIZES, k=SIZES, more=st.integers(0, 5_000))
def test_a_product_never_gets_cheaper_with_any_dimension(m: int, n: int, k: int, more: int) -> None:
    here = seconds(gemm(m, n, k))
    assert here <= seconds(gemm(m + more, n, k))
    assert here <= seconds(gemm(m, n + more, k))
    assert here <= seconds(gemm(m, n, k + more))
    assert here <= seconds(gemm(m, n, k, batch=2))


@LAWS
@given(num_bytes=st.integers(0, 1 << 40), more=st.integers(0, 1 << 30))
def test_traffic_and_collectives_never_get_cheaper_with_bytes(num_bytes: int, more: int) -> None:
    less, plenty = (MemoryBound(name="norm", num_bytes=size) for size in (num_bytes, num_bytes + more))
    assert seconds(less) <= seconds(plenty)
    for kind in CollectiveKind:
        one, other = (
            Collective(kind=kind, buffer_bytes=size, size=2, stride=8) for size in (num_bytes, num_bytes + more)
        )
        assert MODEL.collective(one).seconds <= MODEL.collective(other).seconds


def by_hand(m: int, n: int, k: int) -> float:
    """Return a bf16 product's seconds on the 100 units of the tests' GPU, tiling by tiling."""
    constants, tiles = GEMM["hopper", "bf16"], TILES["hopper"]
    unit_rate = 4e14 / 100 * constants.peak_fraction.value * constants.sustained_fraction.value
    bandwidth = 1e12 * tiles.memory_fraction.value
    found = []
    for rows, columns in ((256, 128), (128, 256), (128, 128), (64, 128), (64, 64)):
        size = 2 * rows * columns / (rows + columns)
        step = 2 * rows * columns / (unit_rate * size / (size + tiles.half_rate_size.value))
        for split in (1, 2, 4, 8):
            count = math.ceil(m / rows) * math.ceil(n / columns)
            waves = max(count * split / 100, 1.0)
            waves += GEMM_WHOLE_WAVE_FRACTION.value * (math.ceil(waves) - waves)
            sums = 0.0 if split == 1 else count * rows * columns * split * 8 / (bandwidth * CACHE_OVER_MEMORY)
            found.append(waves * (math.ceil(k / split) + GEMM_PROLOGUE_STEPS.value) * step + sums)
    moving = 2 * (m * k + k * n + m * n) / bandwidth
    return tiles.start.value + float((min(found) ** SHARPNESS + moving**SHARPNESS) ** (1 / SHARPNESS))


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1280, 2560, 1 << 20), (1281, 2560, 8192), (1, 8192, 8192), (100, 300, 70_000), (64, 64, 1), (4096, 4095, 4097)],
)
def test_a_product_takes_its_fastest_tiling_or_its_traffic(m: int, n: int, k: int) -> None:
    assert seconds(gemm(m, n, k)) == pytest.approx(by_hand(m, n, k), rel=1e-12)


def test_a_large_product_runs_at_the_fitted_part_of_the_datasheet_rate() -> None:
    # 100 units, tiles of 128 x 256: 10 x 10 tiles are one whole wave.
    operation = gemm(1280, 2560, 1 << 20)
    constants, tiles = GEMM["hopper", "bf16"], TILES["hopper"]
    rate = 4e14 * constants.peak_fraction.value * constants.sustained_fraction.value
    size = 2 * 128 * 256 / (128 + 256)
    rate *= size / (size + tiles.half_rate_size.value)
    computing = operation.flops / rate * (operation.k + GEMM_PROLOGUE_STEPS.value) / operation.k
    moving = operation.num_bytes / (1e12 * tiles.memory_fraction.value)
    expected = (computing**SHARPNESS + moving**SHARPNESS) ** (1 / SHARPNESS) + tiles.start.value
    assert seconds(operation) == pytest.approx(expected, rel=1e-12)


def test_one_tile_more_than_a_wave_pays_for_part_of_a_second_wave() -> None:
    # 100 units, and tiles of 64 x 64, the smallest: 10 x 10 tiles are one whole wave.
    one_wave, one_row_more, two_waves = (seconds(gemm(m, 640, 8192)) for m in (640, 641, 1280))
    assert one_row_more - one_wave > 0.4 * (two_waves - one_wave)
    # Within the tiles that are paid for anyway, rows cost no more than their traffic.
    rows = seconds(gemm(660, 640, 8192)) - one_row_more
    assert 0 <= rows < 19 * (640 + 8192) * 2 / (1e12 * TILES["hopper"].memory_fraction.value)


def test_a_short_product_is_bound_by_its_traffic() -> None:
    operation = gemm(1, 8192, 8192)
    tiles = TILES["hopper"]
    traffic = operation.num_bytes / (1e12 * tiles.memory_fraction.value)
    assert 0 < seconds(operation) - tiles.start.value - traffic < 1e-3 * traffic


def test_a_board_with_less_power_for_its_rate_sustains_less_of_it() -> None:
    operation = gemm(8192, 8192, 8192)
    boards = [replace(cluster(), device=replace(tiny_device(), tdp_watts=watts)) for watts in (1e4, 100.0)]
    strong, weak = (AnalyticCostModel(board).compute(operation).seconds for board in boards)
    assert strong < weak
    bursts = {AnalyticCostModel(board, sustained=False).compute(operation).seconds for board in boards}
    assert len(bursts) == 1
    assert bursts.pop() < strong


def test_an_fp8_product_is_faster_than_a_bf16_one() -> None:
    assert seconds(gemm(8192, 8192, 8192, dtype="fp8")) < seconds(gemm(8192, 8192, 8192))


def test_a_kernel_of_no_work_still_takes_its_launch() -> None:
    assert seconds(MemoryBound(name="nothing", num_bytes=0, num_kernels=3)) == 3 * KERNEL_LAUNCH.value


@pytest.mark.parametrize(
    ("kernels", "forward_passes", "backward_passes"),
    [(AttentionKernels.FUSED_SOFTMAX, 4.5, 5.5), (AttentionKernels.PLAIN, 17.0, 19.0)],
)
def test_unfused_attention_pays_for_its_products_and_for_passes_over_its_scores(
    kernels: AttentionKernels, forward_passes: float, backward_passes: float
) -> None:
    model = AnalyticCostModel(cluster(), Software(scores=kernels))
    for backward, passes in ((False, forward_passes), (True, backward_passes)):
        unfused = attention(4096, fused=False, backward=backward)
        assert model.compute(unfused).seconds > model.compute(attention(4096, backward=backward)).seconds
        assert sum(product.flops for product in unfused.products) == unfused.flops
        products = sum(model.compute(product).seconds for product in unfused.products)
        traffic = passes * unfused.score_bytes / (1e12 * MEMORY_FRACTION.value)
        expected = products + traffic + 2 * KERNEL_LAUNCH.value
        assert model.compute(unfused).seconds == pytest.approx(expected, rel=1e-12)


def test_older_kernels_and_plain_norms_are_slower() -> None:
    norm, fused = MemoryBound(name="attention norm", num_bytes=1 << 30, is_norm=True), attention(8192)
    times = [
        AnalyticCostModel(cluster(), Software(attention=kernels)).compute(fused).seconds
        for kernels in (AttentionKernels.CURRENT, AttentionKernels.FLASH_2, AttentionKernels.FLASH_1)
    ]
    assert times == sorted(times)
    plain = AnalyticCostModel(cluster(), Software(fused_norms=False))
    assert plain.compute(norm).seconds > 3 * seconds(norm)
    rotary = MemoryBound(name="rotary", num_bytes=1 << 30)
    assert plain.compute(rotary).seconds == seconds(rotary) == seconds(norm)


def test_attention_through_a_window_does_less_at_a_lower_rate() -> None:
    causal = attention(8192)
    windowed = replace(causal, pairs=8192 * 128 - 127 * 64)
    assert seconds(windowed) < seconds(causal)
    assert seconds(windowed) / windowed.flops > 1.5 * seconds(causal) / causal.flops


def test_a_recurrence_takes_its_part_of_the_rate_or_its_traffic() -> None:
    scan = StateScan(
        tokens=8192,
        num_heads=64,
        num_groups=8,
        key_dim=128,
        value_dim=64,
        chunk_size=256,
        corrects=False,
        io_bytes_per_token=100,
        dtype="bf16",
        backward=False,
    )
    launches = scan.num_launches * KERNEL_LAUNCH.value
    assert seconds(scan) == pytest.approx(scan.flops / (4e14 * SCAN_FRACTION.value) + launches, rel=1e-12)
    wide = replace(scan, io_bytes_per_token=1_000_000)
    assert seconds(wide) == pytest.approx(wide.num_bytes / (1e12 * MEMORY_FRACTION.value) + launches, rel=1e-12)
    assert MODEL.compute(scan).source is Source.ASSUMED


# Collectives.


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
    expected = overhead(size) + 3 * 5e-6 + size * 3 / 4 / (10e9 * NETWORK_FRACTION.value)
    assert collective(CollectiveKind.ALL_GATHER, 4, stride=8) == pytest.approx(expected, rel=1e-12)


def test_members_of_one_node_leave_it_on_as_many_links() -> None:
    size = 1 << 30
    # 2 members in each of 4 nodes: 20 GB/s between nodes; 3 hops between nodes, 1 in each node.
    expected = overhead(size) + 3 * 5e-6 + 4 * HOP + size * 7 / 8 / (20e9 * NETWORK_FRACTION.value)
    assert collective(CollectiveKind.ALL_GATHER, 8, stride=4) == pytest.approx(expected, rel=1e-12)
    # All 32: 8 links a node are 80 GB/s, and the domain has 100.
    narrowest = min(80e9 * NETWORK_FRACTION.value, 100e9 * HOPPER.eight_ranks.value)
    expected = overhead(size) + 3 * 5e-6 + 4 * 7 * HOP + size * 31 / 32 / narrowest
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
    outside = overhead(size) + 5e-6 + size / (10e9 * NETWORK_FRACTION.value)
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


def test_overlap_takes_compute_units_away_and_at_most_half_of_them() -> None:
    channels = COLLECTIVE_CHANNELS.value
    assert MODEL.overlap_slowdown == channels / (100 - channels)
    small = replace(cluster(), device=replace(tiny_device(), num_compute_units=16))
    assert AnalyticCostModel(small).overlap_slowdown == 1.0


def test_a_transfer_to_one_peer_takes_fewer_compute_units_than_a_collective() -> None:
    channels = P2P_CHANNELS.value
    assert MODEL.transfer_slowdown == channels / (100 - channels)
    assert MODEL.transfer_slowdown < MODEL.overlap_slowdown


@pytest.mark.parametrize("name", ["network", "infiniband", "spine"])
def test_a_network_is_never_priced_as_nvlink_even_where_it_is_the_innermost_level(name: str) -> None:
    lone = replace(cluster(gpus_per_node=1, num_nodes=8), levels=(level(name, 8, 50e9, 4e-6),))
    size = 1 << 30
    reduce = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=size, size=8, stride=1)
    estimate = AnalyticCostModel(lone, sustained=False).collective(reduce)
    expected = overhead(size) + 2 * 3 * 4e-6 + size * 2 * 7 / 8 / (50e9 * NETWORK_FRACTION.value)
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


# Coverage.


def test_a_format_that_the_gpu_has_no_rate_for_is_an_error_that_names_it() -> None:
    model = AnalyticCostModel(replace(cluster(), device=load_device("v100-sxm-32gb")))
    with pytest.raises(CoverageError) as caught:
        model.compute(gemm(128, 256, 512))
    assert str(caught.value) == (
        "bf16 GEMM 128 x 256 x 512 cannot be priced: v100-sxm-32gb has no bf16 rate in the catalogue\n"
        "Use one of fp16, fp32."
    )
    with pytest.raises(CoverageError, match="a100-sxm-80gb has no fp8 rate in the catalogue"):
        AnalyticCostModel(replace(cluster(), device=load_device("a100-sxm-80gb"))).compute(
            gemm(128, 256, 512, dtype="fp8")
        )


def test_an_unknown_architecture_is_an_error_that_names_it() -> None:
    model = AnalyticCostModel(replace(cluster(), device=replace(tiny_device(), architecture="tesla")))
    with pytest.raises(CoverageError) as caught:
        model.compute(gemm(128, 256, 512))
    assert str(caught.value) == (
        "bf16 GEMM 128 x 256 x 512 cannot be priced: no bf16 GEMM efficiency is known for architecture tesla\n"
        "Use a GPU of the catalogue."
    )
    with pytest.raises(CoverageError, match=r"attention .*: no efficiency is known for architecture tesla"):
        model.compute(attention(128))


@pytest.mark.parametrize("name", device_names())
def test_every_gpu_of_the_catalogue_can_be_priced_in_each_of_its_formats(name: str) -> None:
    device = load_device(name)
    model = AnalyticCostModel(replace(cluster(), device=device))
    for dtype in {"bf16", "fp16", "fp8"} & set(device.dense_flops_per_second):
        estimate = model.compute(gemm(8192, 8192, 8192, dtype=dtype))
        rate = 2 * 8192**3 / estimate.seconds
        assert 0.2 < rate / device.dense_flops_per_second[dtype] < 1.0
        if dtype != "fp8":
            operation = replace(attention(4096), dtype=dtype)
            assert 0.0 < model.compute(operation).seconds < math.inf
    for kind in CollectiveKind:
        sent = Collective(kind=kind, buffer_bytes=1 << 20, size=2, stride=1)
        assert 0.0 < model.collective(sent).seconds < 1.0


def test_figures_of_another_generation_are_marked_as_assumed() -> None:
    hopper = load_preset("dgx-h100").to_cluster()
    ada = load_preset("l40s-pcie-4").to_cluster()
    assert AnalyticCostModel(hopper).compute(gemm(4096, 4096, 4096)).source is Source.ANALYTIC
    assert AnalyticCostModel(ada).compute(gemm(4096, 4096, 4096)).source is Source.ASSUMED
    reduce = Collective(kind=CollectiveKind.ALL_REDUCE, buffer_bytes=1 << 20, size=4, stride=1)
    assert AnalyticCostModel(hopper).collective(reduce).source is Source.ANALYTIC
    assert AnalyticCostModel(ada).collective(reduce).source is Source.ASSUMED


def test_a_ramp_of_another_generation_makes_a_collective_an_assumption() -> None:
    across = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=4, stride=8)
    blackwell = replace(cluster(), device=replace(tiny_device(), architecture="blackwell"))
    assert BURST.collective(across).source is Source.ANALYTIC
    assert AnalyticCostModel(blackwell).collective(across).source is Source.ASSUMED


def test_a_note_names_every_constant_that_decides_the_price() -> None:
    constants = GEMM["hopper", "bf16"]
    assert MODEL.compute(gemm(128, 128, 128)).note == (
        f"bf16 tiles and waves; burst rate: {constants.peak_fraction.source}; "
        f"sustained: {constants.sustained_fraction.source}"
    )
    assert MODEL.compute(MemoryBound(name="norm", num_bytes=1)).note == (
        f"bytes at {MEMORY_FRACTION.value} of tiny-gpu memory bandwidth; {MEMORY_FRACTION.source}"
    )
    across = Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 30, size=32, stride=1)
    assert BURST.collective(across).note == (
        f"ring all_gather over link levels; {HOPPER.eight_ranks.source}; {NETWORK_FRACTION.source}; "
        f"{COLLECTIVE_RAMP['hopper'].source}"
    )
