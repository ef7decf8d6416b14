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
    GEMM,
    GEMM_HALF_RATE_SIZE,
    GEMM_PROLOGUE_STEPS,
    GEMM_WHOLE_WAVE_FRACTION,
    KERNEL_LAUNCH,
    MEMORY_FRACTION,
    P2P_CHANNELS,
    SCAN_FRACTION,
    TILES,
)
from profiles.errors import CoverageError
from profiles.estimate import Source
from profiles.gemm_surface import CACHE_OVER_MEMORY, SHARPNESS
from profiles.ops import Attention, Collective, CollectiveKind, ComputeOp, Gemm, MemoryBound, StateScan
from profiles.software import AttentionKernels, Software
from tests.builders import tiny_device
from tests.unit.profiles.small_cluster import cluster

LAWS = settings(max_examples=200, deadline=None, derandomize=True)


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
        step = 2 * rows * columns / (unit_rate * size / (size + GEMM_HALF_RATE_SIZE.value))
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
    rate *= size / (size + GEMM_HALF_RATE_SIZE.value)
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


def test_overlap_takes_compute_units_away_and_at_most_half_of_them() -> None:
    channels = COLLECTIVE_CHANNELS.value
    assert MODEL.overlap_slowdown == channels / (100 - channels)
    small = replace(cluster(), device=replace(tiny_device(), num_compute_units=16))
    assert AnalyticCostModel(small).overlap_slowdown == 1.0


def test_a_transfer_to_one_peer_takes_fewer_compute_units_than_a_collective() -> None:
    channels = P2P_CHANNELS.value
    assert MODEL.transfer_slowdown == channels / (100 - channels)
    assert MODEL.transfer_slowdown < MODEL.overlap_slowdown


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


def test_a_note_names_every_constant_that_decides_the_price() -> None:
    constants = GEMM["hopper", "bf16"]
    assert MODEL.compute(gemm(128, 128, 128)).note == (
        f"bf16 tiles and waves; burst rate: {constants.peak_fraction.source}; "
        f"sustained: {constants.sustained_fraction.source}"
    )
    assert MODEL.compute(MemoryBound(name="norm", num_bytes=1)).note == (
        f"bytes at {MEMORY_FRACTION.value} of tiny-gpu memory bandwidth; {MEMORY_FRACTION.source}"
    )
