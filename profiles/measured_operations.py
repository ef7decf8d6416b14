"""Measured points and the operations of the planner: which is which, and where each lies among the others.

A family is what residuals are interpolated within. Words decide which kernel is meant; rows of unlike words stand in
for one another only where `words_apart` says so, and are then assumed. Coordinates are octaves, weighted by how fast
residuals change along each, as in `profiles.tables`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from profiles.measure.points import Point, point
from profiles.ops import Attention, Collective, CollectiveKind, ComputeOp, Gemm, HostCopy, MemoryBound
from profiles.tables import Shape

Operation = ComputeOp | Collective


class Family(StrEnum):
    """Operations that are interpolated together."""

    PRODUCTS = "matrix products"
    ATTENTION = "attention"
    MEMORY_BOUND = "memory-bound kernels"
    COLLECTIVES = "collectives"
    COPIES = "host copies"


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySpec:
    """How the shapes of a family lie; a `profiles.residuals.Places`.

    Args:
        coordinates: Where a shape lies.
        words_apart: How unlike two rows' words are whose residuals stand in for one another; None where they do not.
    """

    coordinates: Callable[[Shape], tuple[float, ...]]
    words_apart: Callable[[tuple[str, ...], tuple[str, ...]], float | None]


_WIDTHS = {"fp32": 4, "fp8": 1, "int8": 1}
_SAME_WIDTH = {"fp16": "bf16"}


def _alike(one: tuple[str, ...], other: tuple[str, ...]) -> float | None:
    """Return 0 for words that differ in which 16-bit format they name: kernels are alike in both."""
    named = [tuple(_SAME_WIDTH.get(word, word) for word in words) for words in (one, other)]
    return 0.0 if named[0] == named[1] else None


def _any_kernel(_one: tuple[str, ...], _other: tuple[str, ...]) -> float | None:
    """Return that any memory-bound kernel stands in for any other: all of them move bytes."""
    return 1.0


def _octaves(sizes: tuple[int, ...], weights: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(weight * math.log2(max(size, 1)) for size, weight in zip(sizes, weights, strict=True))


def _product_coordinates(shape: Shape) -> tuple[float, ...]:
    # How many tiles a product is cut into decides more than its rows and columns by themselves.
    m, n, k, batch = shape.sizes
    tiles = (batch * math.ceil(m / rows) * math.ceil(n / columns) for rows, columns in ((128, 256), (128, 128)))
    return _octaves((m, n, k, batch, *tiles), (0.3, 0.7, 1, 0.5, 1, 1))


def _attention_coordinates(shape: Shape) -> tuple[float, ...]:
    batch, query_len, _, seen, heads, kv_heads, qk, v = shape.sizes
    sizes = (batch * heads, query_len, seen, max(1, heads // kv_heads), qk, v)
    return _octaves(sizes, (0.5, 1, 1, 0.5, 2, 2))


FAMILIES: Mapping[Family, FamilySpec] = MappingProxyType(
    {
        Family.PRODUCTS: FamilySpec(coordinates=_product_coordinates, words_apart=_alike),
        Family.ATTENTION: FamilySpec(coordinates=_attention_coordinates, words_apart=_alike),
        Family.MEMORY_BOUND: FamilySpec(coordinates=lambda shape: _octaves(shape.sizes, (1,)), words_apart=_any_kernel),
        Family.COLLECTIVES: FamilySpec(
            coordinates=lambda shape: _octaves(shape.sizes, (1, 0.5, 1)), words_apart=_alike
        ),
        Family.COPIES: FamilySpec(coordinates=lambda shape: _octaves(shape.sizes, (1,)), words_apart=_alike),
    }
)
"""Every family."""


def kernel_named(name: str, *, is_norm: bool) -> str:
    """Return which measured kernel a memory-bound operation is, by the name that the planner gives it."""
    if is_norm:
        return "norm"
    for part, kernel in (
        ("rotary", "rotary"),
        ("cross entropy", "cross entropy"),
        (" step", "optimizer"),
        ("permutation", "permutation"),
        ("rows by expert", "permutation"),
        ("activation", "activation"),
        ("swiglu", "activation"),
        ("gelu", "activation"),
        ("silu", "activation"),
    ):
        if part in name:
            return kernel
    return "copy"


def place_of(operation: Operation, *, crosses: bool = False) -> tuple[Family, Shape] | None:
    """Return the family and the shape of an operation; None for one that is not measured.

    Args:
        operation: The operation.
        crosses: A collective leaves a node.
    """
    match operation:
        case Gemm():
            words = (operation.dtype, "added" if operation.accumulate else "written")
            sizes = (operation.m, operation.n, operation.k, operation.batch)
            return Family.PRODUCTS, Shape(words=words, sizes=sizes)
        case Attention() if operation.fused and operation.v_head_dim:
            return Family.ATTENTION, _attention_shape(operation)
        case MemoryBound() if operation.num_bytes:
            kernel = kernel_named(operation.name, is_norm=operation.is_norm)
            return Family.MEMORY_BOUND, Shape(words=(kernel,), sizes=(operation.num_bytes,))
        case HostCopy() if operation.num_bytes:
            memory = "pinned" if operation.pinned else "pageable"
            return Family.COPIES, Shape(words=(memory,), sizes=(operation.num_bytes,))
        case Collective() if operation.size > 1 and operation.buffer_bytes:
            words = (operation.kind.value, "between nodes" if crosses else "inside a node")
            # All pairs inside a node are alike, and all across nodes.
            is_pair = operation.kind is CollectiveKind.SEND_RECV
            shape = (2, 1) if is_pair else (operation.size, operation.stride)
            return Family.COLLECTIVES, Shape(words=words, sizes=(*shape, operation.buffer_bytes))
    return None


def _attention_shape(operation: Attention) -> Shape:
    """Return the shape of one call: the calls of a ring are each over an equal part of the keys.

    Whole keys that a query sees on average stand for the mask, whether or not the diagonal of a causal one counts.
    """
    calls = operation.calls
    return Shape(
        words=(operation.dtype, "backward" if operation.backward else "forward"),
        sizes=(
            operation.batch,
            operation.query_len,
            max(1, operation.kv_len // calls),
            max(1, operation.pairs // (calls * operation.query_len)),
            operation.num_heads,
            operation.num_kv_heads,
            operation.qk_head_dim,
            operation.v_head_dim,
        ),
    )


_PASSES: Mapping[tuple[str, str], tuple[str, float]] = MappingProxyType(
    {
        ("rmsnorm", "forward"): ("norm", 2),
        ("rmsnorm", "backward"): ("norm", 3),
        ("layernorm", "forward"): ("norm", 2),
        ("layernorm", "backward"): ("norm", 3),
        ("rotary", "forward"): ("rotary", 2),
        ("rotary", "backward"): ("rotary", 2),
        ("swiglu", "forward"): ("activation", 1.5),
        ("swiglu", "backward"): ("activation", 2.5),
        ("gelu", "forward"): ("activation", 2),
        ("gelu", "backward"): ("activation", 3),
        ("cross_entropy", "forward"): ("cross entropy", 1),
        ("cross_entropy", "backward"): ("cross entropy", 2),
        ("permute", "forward"): ("permutation", 3),
        ("permute", "backward"): ("permutation", 3),
        ("copy", "forward"): ("copy", 2),
    }
)
"""By measured operation and phase: the kernel that it stands for, and its passes over the elements: each input read,
each output written, once."""

ADAM_BYTES = 28
"""Of an element in fp32: parameter, gradient and two moments read, all but the gradient written."""


def operation_of(measured: Point) -> Operation | None:
    """Return the operation that a point measures; None for suites that measure no operation."""
    match measured.suite:
        case "gemm" | "experts":
            return _product(measured)
        case "attention":
            return _attention(measured)
        case "elementwise":
            return _elementwise(measured)
        case "collectives":
            size, stride, num_bytes = measured.sizes
            return Collective(
                kind=CollectiveKind(measured.word("kind")), buffer_bytes=num_bytes, size=size, stride=stride
            )
        case "copies" if measured.word("direction") in ("to_device", "to_host"):
            return HostCopy(num_bytes=measured.size("bytes"), pinned=measured.word("memory") == "pinned")
    return None


def _product(measured: Point) -> Gemm:
    batch, m, n, k = measured.sizes
    dtype, adds = measured.word("dtype"), measured.word("part") == "grad_weight"
    return Gemm(
        m=m,
        n=n,
        k=k,
        dtype=dtype,
        input_bytes_per_element=_WIDTHS.get(dtype, 2),
        output_bytes_per_element=4 if adds or dtype in ("fp32", "int8") else 2,
        accumulate=adds,
        batch=batch,
    )


def seen_pairs(query_len: int, kv_len: int, *, causal: bool, window: int) -> int:
    """Return the query-key pairs that a mask lets through, the last query being the last key's own."""
    before = kv_len - query_len
    if not causal:
        return query_len * (min(kv_len, window) if window else kv_len)
    first, last = before + 1, kv_len
    if not window or window >= last:
        return (first + last) * query_len // 2
    if window <= first:
        return window * query_len
    ramp = window - first
    return (first + window - 1) * ramp // 2 + window * (query_len - ramp)


def _attention(measured: Point) -> Attention:
    batch, query_len, kv_len, window, heads, kv_heads, qk, v = measured.sizes
    dtype = measured.word("dtype")
    causal = measured.word("mask") == "causal"
    return Attention(
        batch=batch,
        query_len=query_len,
        kv_len=kv_len,
        pairs=seen_pairs(query_len, kv_len, causal=causal, window=window),
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=qk,
        v_head_dim=v,
        dtype=dtype,
        bytes_per_element=_WIDTHS.get(dtype, 2),
        backward=measured.word("phase") == "backward",
        fused=True,
    )


def _elementwise(measured: Point) -> MemoryBound:
    rows, features = measured.sizes
    operation = measured.word("operation")
    if operation == "adam":
        return MemoryBound(name="adam step", num_bytes=ADAM_BYTES * rows * features)
    kernel, passes = _PASSES[operation, measured.word("phase")]
    num_bytes = int(passes * rows * features * _WIDTHS.get(measured.word("dtype"), 2))
    return MemoryBound(name=kernel, num_bytes=num_bytes, is_norm=kernel == "norm")


def points_of(operation: Operation, *, node: int, crosses: bool = False) -> Iterator[Point]:
    """Yield what is to be measured for an operation; nothing for one that no suite measures.

    Sizes of collectives and of memory-bound kernels are rounded to powers of two: between them a price is smooth.

    Args:
        operation: The operation.
        node: GPUs of one node.
        crosses: A collective leaves a node.
    """
    match operation:
        case Gemm() if operation.dtype in ("bf16", "fp16", "fp8", "fp32"):
            suite = "gemm" if operation.batch == 1 else "experts"
            sizes = {"batch": operation.batch, "m": operation.m, "n": operation.n, "k": operation.k}
            part = "grad_weight" if operation.accumulate else "forward"
            yield point(suite, dtype=operation.dtype, part=part, **sizes)
        case Attention() if operation.fused and operation.v_head_dim and operation.calls == 1:
            yield from _attention_points(operation)
        case MemoryBound() if operation.num_bytes:
            yield from _elementwise_points(operation)
        case Collective() if operation.size > 1 and operation.buffer_bytes:
            is_pair = operation.kind is CollectiveKind.SEND_RECV
            yield point(
                "collectives",
                kind=operation.kind.value,
                mode="eager",
                beside="concurrent",
                size=2 if is_pair else operation.size,
                stride=(node if crosses else 1) if is_pair else operation.stride,
                bytes=_rounded(operation.buffer_bytes, least=1 << 10, most=1 << 30),
            )
        case HostCopy() if operation.num_bytes:
            yield point(
                "copies",
                direction="to_host",
                memory="pinned" if operation.pinned else "pageable",
                beside="concurrent",
                bytes=_rounded(operation.num_bytes, least=1 << 16, most=1 << 28),
            )


def _rounded(number: int, *, least: int, most: int) -> int:
    """Return the nearest power of two between two."""
    return 1 << min(max(round(math.log2(number)), least.bit_length() - 1), most.bit_length() - 1)


def _attention_points(operation: Attention) -> Iterator[Point]:
    """Yield the point whose mask lets as many pairs through, if there is one: causal, full, or a causal window."""
    query_len, kv_len = operation.query_len, operation.kv_len
    masks = {
        "causal": seen_pairs(query_len, kv_len, causal=True, window=0),
        "full": seen_pairs(query_len, kv_len, causal=False, window=0),
    }
    # The planner counts the half square of a causal mask, with or without its diagonal.
    mask = min(masks, key=lambda name: abs(masks[name] - operation.pairs))
    window = 0
    if abs(masks[mask] - operation.pairs) > query_len:
        window = max(1, operation.pairs // query_len)
        mask = "causal"
    yield point(
        "attention",
        dtype=operation.dtype,
        phase="backward" if operation.backward else "forward",
        mask=mask,
        batch=operation.batch,
        query_len=query_len,
        kv_len=kv_len,
        window=window,
        heads=operation.num_heads,
        kv_heads=operation.num_kv_heads,
        qk_dim=operation.qk_head_dim,
        v_dim=operation.v_head_dim,
    )


_POINT_OF_KERNEL = {
    "norm": ("rmsnorm", "forward", 8192),
    "rotary": ("rotary", "forward", 4096),
    "cross entropy": ("cross_entropy", "backward", 32768),
    "optimizer": ("adam", "forward", 0),
    "permutation": ("permute", "forward", 4096),
    "activation": ("swiglu", "forward", 8192),
    "copy": ("copy", "forward", 0),
}
"""By kernel: what measures it, in which phase, and over how many features; 0 where all is one row."""


def _elementwise_points(operation: MemoryBound) -> Iterator[Point]:
    kernel = kernel_named(operation.name, is_norm=operation.is_norm)
    measured, phase, features = _POINT_OF_KERNEL[kernel]
    num_bytes = _rounded(operation.num_bytes, least=1 << 16, most=1 << 32)
    element = ADAM_BYTES if measured == "adam" else 2 * _PASSES[measured, phase][1]
    elements = max(1, int(num_bytes / element))
    rows = max(1, elements // features) if features else 1
    yield point(
        "elementwise",
        dtype="bf16",
        operation=measured,
        phase=phase,
        rows=rows,
        features=features or elements,
    )
