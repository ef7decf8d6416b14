import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.catalogue import device_names
from profiles.device_names import catalogue_name
from profiles.measure.grid import default_points
from profiles.measure.points import COLUMNS
from profiles.measured_operations import FAMILIES, operation_of, place_of, points_of, seen_pairs
from profiles.ops import Collective, CollectiveKind, Gemm, HostCopy, MemoryBound

GRID = default_points(COLUMNS, dtypes=["bf16", "fp16", "fp8", "int8", "fp32"], world_size=16, per_node=8)


def test_every_point_of_an_operation_has_a_place() -> None:
    for entry in GRID:
        operation = operation_of(entry)
        if operation is None:
            assert entry.suite in ("overlap", "memory", "launch", "layer", "copies")
            continue
        place = place_of(operation)
        assert place is not None, entry.key
        family, shape = place
        assert all(size >= 1 for size in shape.sizes)
        assert all(abs(at) < 64 for at in FAMILIES[family].coordinates(shape))


@pytest.mark.parametrize(
    "operation",
    [
        Gemm(m=8, n=16, k=32, dtype="bf16", input_bytes_per_element=2, output_bytes_per_element=2),
        Gemm(m=8, n=16, k=32, dtype="fp8", input_bytes_per_element=1, output_bytes_per_element=2),
        Gemm(
            m=8,
            n=16,
            k=32,
            dtype="bf16",
            input_bytes_per_element=2,
            output_bytes_per_element=4,
            accumulate=True,
            batch=4,
        ),
        HostCopy(num_bytes=1 << 20, pinned=True),
        Collective(kind=CollectiveKind.ALL_GATHER, buffer_bytes=1 << 20, size=4, stride=2),
        MemoryBound(name="adam step", num_bytes=1 << 25),
        MemoryBound(name="attention norm", num_bytes=1 << 20, is_norm=True),
    ],
)
def test_what_is_measured_for_an_operation_lies_where_it_does(operation: object) -> None:
    assert isinstance(operation, Gemm | HostCopy | Collective | MemoryBound)
    (measured,) = points_of(operation, node=8)
    again = operation_of(measured)
    assert again is not None
    found, expected = place_of(again), place_of(operation)
    assert found is not None
    assert expected is not None
    assert (found[0], found[1].words) == (expected[0], expected[1].words)
    # A whole number of elements is measured.
    assert found[1].sizes == pytest.approx(expected[1].sizes, rel=1e-5)


def test_pairs_across_nodes_are_measured_across_nodes() -> None:
    hop = Collective(kind=CollectiveKind.SEND_RECV, buffer_bytes=5 << 20, size=4, stride=3)
    inside, across = (next(points_of(hop, node=8, crosses=crosses)) for crosses in (False, True))
    assert [entry.sizes for entry in (inside, across)] == [(2, 1, 1 << 22), (2, 8, 1 << 22)]


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 80), st.booleans())
def test_pairs_are_those_that_the_mask_lets_through(query_len: int, before: int, window: int, causal: bool) -> None:
    kv_len = query_len + before
    seen = sum(
        1
        for row in range(before, kv_len)
        for column in range(kv_len)
        if (column <= row if causal else True) and (not window or column > row - window)
    )
    if not causal and window:
        return  # a window without a causal mask is not measured
    assert seen_pairs(query_len, kv_len, causal=causal, window=window) == seen


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_a_driver_s_name_means_a_gpu_of_the_catalogue(reported: str, name: str | None) -> None:
    assert catalogue_name(reported) == name
    assert name is None or name in device_names()
