"""Kernel models: what every GPU must obey, and what physics bounds."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import pytest

from profiles.analytic import AnalyticCostModel
from profiles.catalogue import device_names, load_device, load_preset
from profiles.errors import CoverageError
from profiles.hardware import Device
from profiles.kernels.experts import expert_loads, rank_loads
from profiles.kernels.operations import (
    FORMATS,
    Decode,
    GroupedExperts,
    KernelOp,
    MatrixProduct,
    Prefill,
)
from profiles.kernels.rates import burst_rates
from profiles.kernels.surface import KernelSurface
from profiles.ops import Gemm

H100 = load_device("h100-sxm-80gb")
BF16 = FORMATS["bfloat16"]
PRODUCT = MatrixProduct(m=4096, n=8192, k=2048, format=BF16)
PREFILL = Prefill(
    batch=4,
    tokens=4096,
    num_heads=32,
    num_kv_heads=8,
    qk_head_dim=128,
    v_head_dim=128,
    rate="bf16",
    cache_elements=2 * 8 * 128,
    cache_bytes=2,
)
DECODE = Decode(
    batch=64,
    kv_tokens=4096,
    num_heads=32,
    num_kv_heads=8,
    qk_head_dim=128,
    v_head_dim=128,
    rate="bf16",
    cache_elements=2 * 8 * 128,
    cache_bytes=2,
)
EXPERTS = GroupedExperts(tokens=4096, hidden=4096, inter=14336, topk=2, experts=8, tp=1, ep=1, power=0.0, format=BF16)
KERNELS: Mapping[str, KernelOp] = {"product": PRODUCT, "prefill": PREFILL, "decode": DECODE, "experts": EXPERTS}


def seconds(operation: KernelOp, device: Device = H100) -> float:
    return KernelSurface(device).seconds(operation)


def faster(device: Device, factor: float) -> Device:
    rates = {name: factor * rate for name, rate in device.dense_flops_per_second.items()}
    memory = factor * device.memory_bytes_per_second
    return replace(device, dense_flops_per_second=rates, memory_bytes_per_second=memory)


@pytest.mark.parametrize("name", KERNELS)
def test_a_faster_gpu_is_not_slower(name: str) -> None:
    operation = KERNELS[name]
    for factor in (1.5, 2.0, 8.0):
        assert seconds(operation) / factor < seconds(operation, faster(H100, factor)) < seconds(operation)
    memory = replace(H100, memory_bytes_per_second=2 * H100.memory_bytes_per_second)
    assert seconds(operation, memory) <= seconds(operation)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("device", device_names())
def test_every_gpu_of_the_catalogue_has_a_price_no_better_than_its_datasheet(name: str, device: str) -> None:
    operation, gpu = KERNELS[name], load_device(device)
    if "bf16" not in gpu.dense_flops_per_second:
        with pytest.raises(CoverageError, match="has no bf16 rate"):
            seconds(operation, gpu)
        return
    flops = {
        "product": 2 * 4096 * 8192 * 2048,
        "prefill": 4 * 4 * 32 * 128 * 4096 * 4097 / 2,
        "decode": 4 * 64 * 32 * 128 * 4096,
        "experts": 2 * 3 * 2 * 4096 * 4096 * 14336,
    }[name]
    num_bytes = {
        "product": PRODUCT.num_bytes,
        "prefill": PREFILL.tensor_bytes,
        "decode": DECODE.read_bytes,
        "experts": 2 * 8 * 3 * 4096 * 14336,
    }[name]
    # A burst may pass the datasheet's rate by the 4 % that its clock does.
    least = max(flops / gpu.dense_flops_per_second["bf16"] / 1.04, num_bytes / gpu.memory_bytes_per_second)
    assert least < seconds(operation, gpu) < 5 * least


GROWN: Mapping[str, Callable[[int], KernelOp]] = {
    "rows": lambda size: replace(PRODUCT, m=size),
    "depth": lambda size: replace(PRODUCT, k=size),
    "prefill batch": lambda size: replace(PREFILL, batch=size),
    "prefill tokens": lambda size: replace(PREFILL, tokens=size),
    "decode batch": lambda size: replace(DECODE, batch=size),
    "decode cache": lambda size: replace(DECODE, kv_tokens=size),
    "experts tokens": lambda size: replace(EXPERTS, tokens=size),
    "experts width": lambda size: replace(EXPERTS, hidden=size),
}


@pytest.mark.parametrize("name", GROWN)
def test_more_work_takes_no_less(name: str) -> None:
    times = [seconds(GROWN[name](1 << power)) for power in range(4, 17)]
    # Splits and tiles change with the size: steps down of 1 % are allowed.
    assert all(later > 0.99 * earlier for earlier, later in pairwise(times))
    assert times[-1] > 10 * times[0]


def test_long_prefill_grows_with_the_square_and_long_decode_with_the_cache() -> None:
    assert seconds(replace(PREFILL, tokens=65536)) / seconds(replace(PREFILL, tokens=32768)) == pytest.approx(
        4, rel=0.1
    )
    assert seconds(replace(DECODE, kv_tokens=65536)) / seconds(replace(DECODE, kv_tokens=32768)) == pytest.approx(
        2, rel=0.05
    )


def test_decode_of_one_short_sequence_takes_a_start_and_little_more() -> None:
    assert 5e-6 < seconds(replace(DECODE, batch=1, kv_tokens=1)) < 20e-6


def test_a_narrower_cache_is_read_faster() -> None:
    assert seconds(replace(DECODE, cache_bytes=1)) < 0.65 * seconds(DECODE)


@pytest.mark.parametrize("rate", ["bf16", "fp8"])
def test_products_cost_what_the_cost_model_says_in_a_burst(rate: str) -> None:
    width = 2 if rate == "bf16" else 1
    product = Gemm(m=4096, n=8192, k=2048, dtype=rate, input_bytes_per_element=width, output_bytes_per_element=2)
    model = AnalyticCostModel(load_preset("dgx-h100").to_cluster(), sustained=False)
    kernel = replace(PRODUCT, format=FORMATS["bfloat16" if rate == "bf16" else "fp8"])
    assert seconds(kernel) == pytest.approx(model.compute(product).seconds, rel=1e-12)


def test_narrow_formats_take_the_rate_of_the_nearest_that_is_known() -> None:
    b200 = load_device("b200")
    assert burst_rates(b200, "fp4").flops_per_second == pytest.approx(2 * burst_rates(b200, "fp8").flops_per_second)
    with pytest.raises(CoverageError, match="h100-sxm-80gb has no fp4 rate"):
        burst_rates(H100, "fp4")
    few = replace(PRODUCT, m=1)
    assert seconds(replace(few, format=FORMATS["int4_wo"])) < 0.6 * seconds(few)


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0, 1.2, 2.0])
@pytest.mark.parametrize(("tokens", "topk", "experts"), [(1, 2, 8), (7, 1, 128), (4096, 8, 256), (64, 4, 4)])
def test_loads_of_experts_sum_to_what_arrives(tokens: int, topk: int, experts: int, power: float) -> None:
    loads = expert_loads(tokens=tokens, topk=topk, experts=experts, power=power)
    assert sum(loads) == pytest.approx(tokens * topk)
    assert list(loads) == sorted(loads, reverse=True)
    assert loads[0] <= tokens * (1 + 1e-9)


def test_the_busiest_of_many_ranks_has_more_than_its_share() -> None:
    even = sum(rows * count for rows, count in rank_loads(replace(EXPERTS, ep=8)).items())
    skewed = sum(rows * count for rows, count in rank_loads(replace(EXPERTS, ep=8, power=1.2)).items())
    assert even == 4096 * 2 / 8
    assert even < skewed <= 4096
    assert seconds(replace(EXPERTS, ep=8, power=1.2)) > seconds(replace(EXPERTS, ep=8))


def test_few_tokens_read_few_experts() -> None:
    many = replace(EXPERTS, experts=128, topk=1, inter=1024)
    assert seconds(replace(many, tokens=1)) < 0.2 * seconds(replace(many, tokens=128))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: replace(EXPERTS, ep=3), "8 experts cannot be dealt to ep = 3 ranks"),
        (lambda: replace(EXPERTS, tp=5), "inter_size 14336 cannot be split over moe_tp_size 5"),
        (lambda: replace(EXPERTS, topk=9), "topk 9 is more than 8 experts"),
        (lambda: replace(EXPERTS, experts=1 << 20), "1048576 experts are more than 65536"),
    ],
)
def test_experts_that_cannot_be_are_refused(changed: Callable[[], GroupedExperts], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed()
