"""Tables of measured kernels: which columns each kind has, what a row says, and where it lies among the others.

A row is a shape (whole numbers), words that choose a kernel (formats, phase), who ran it (`Implementation`), and the
time. The same columns stand in a profile's files and in files of measurements.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from profiles.kernels.operations import (
    CACHE_BYTES,
    Decode,
    GroupedExperts,
    KernelOp,
    MatrixProduct,
    Prefill,
    format_named,
)

LATENT_WIDTH = 512
ROPE_WIDTH = 64
LATENT_HEAD_DIM = 128
"""Widths of multi-head latent attention as DeepSeek-V2 and V3 have them (arXiv 2405.04434, section 2.1)."""

LARGEST = 1 << 40
"""Largest whole number of a row."""


class TableKind(StrEnum):
    """What a table measures; the value is its file's stem."""

    GEMM = "gemm"
    ATTENTION_PREFILL = "attention_prefill"
    ATTENTION_DECODE = "attention_decode"
    MLA = "mla"
    MOE = "moe"
    COLLECTIVES = "collectives"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Implementation:
    """Who ran a kernel; empty where it is not said.

    Args:
        framework: Serving engine, or library of collectives.
        version: Its version.
        kernel_source: The kernel that it chose.
    """

    framework: str = ""
    version: str = ""
    kernel_source: str = ""

    @property
    def text(self) -> str:
        """Return what messages call it."""
        return " ".join(part for part in (self.framework, self.version, self.kernel_source) if part) or "unnamed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What was run: the words and sizes of one row, in the order of its table's columns.

    Args:
        words: Formats and such; rows of different words are never interpolated between.
        sizes: Whole numbers.
    """

    words: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One measured kernel.

    Args:
        shape: What was run.
        latency_us: Its time in microseconds, as it is written.
        samples: How often it was timed; None where it is not said.
        implementation: Who ran it.
    """

    shape: Shape
    latency_us: float
    samples: int | None
    implementation: Implementation

    @property
    def seconds(self) -> float:
        """Return the time in seconds."""
        return self.latency_us * 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """One kind of table.

    Args:
        kind: The kind.
        words: Columns of words.
        sizes: Columns of whole numbers.
        operation: The kernel that a shape is, for its analytic price; None of collectives, which a cluster prices.
        coordinates: Where a shape lies, in octaves, weighted by how fast residuals change along each.
        words_apart: How unlike two rows' words are whose residuals stand in for one another; None where they do not.
    """

    kind: TableKind
    words: tuple[str, ...]
    sizes: tuple[str, ...]
    operation: Callable[[Shape], KernelOp] | None
    coordinates: Callable[[Shape], tuple[float, ...]]
    words_apart: Callable[[tuple[str, ...], tuple[str, ...]], float | None]


def _as_wide(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("bfloat16" if word == "float16" else word for word in words)


def _same_width(one: tuple[str, ...], other: tuple[str, ...]) -> float | None:
    """Return 0 for words that differ in which 16-bit format they name: kernels are alike in both."""
    return 0.0 if _as_wide(one) == _as_wide(other) else None


def _same_experts(one: tuple[str, ...], other: tuple[str, ...]) -> float | None:
    """Return by how much two distributions of tokens differ, of experts in one format."""
    return abs(power_of(one[1]) - power_of(other[1])) if _as_wide(one[:1]) == _as_wide(other[:1]) else None


def _product(shape: Shape) -> KernelOp:
    m, n, k = shape.sizes
    return MatrixProduct(m=m, n=n, k=k, format=format_named(shape.words[0]))


def cache_bytes(name: str) -> float:
    """Return the bytes of one cached number.

    Raises:
        ValueError: There is no such format.
    """
    if name not in CACHE_BYTES:
        raise ValueError(f"kv_cache_dtype {name[:40]!r} is not one of {', '.join(CACHE_BYTES)}")
    return CACHE_BYTES[name]


def _prefill(shape: Shape) -> KernelOp:
    batch, tokens, heads, kv_heads, width = shape.sizes
    if heads % kv_heads:
        raise ValueError(f"num_heads {heads} is no multiple of num_kv_heads {kv_heads}")
    return Prefill(
        batch=batch,
        tokens=tokens,
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=width,
        v_head_dim=width,
        rate=format_named(shape.words[0]).rate,
        cache_elements=2 * kv_heads * width,
        cache_bytes=cache_bytes(shape.words[1]),
    )


def _decode(shape: Shape) -> KernelOp:
    batch, tokens, heads, kv_heads, width = shape.sizes
    if heads % kv_heads:
        raise ValueError(f"num_heads {heads} is no multiple of num_kv_heads {kv_heads}")
    return Decode(
        batch=batch,
        kv_tokens=tokens,
        num_heads=heads,
        num_kv_heads=kv_heads,
        qk_head_dim=width,
        v_head_dim=width,
        rate=format_named(shape.words[0]).rate,
        cache_elements=2 * kv_heads * width,
        cache_bytes=cache_bytes(shape.words[1]),
    )


def _latent(shape: Shape) -> KernelOp:
    phase, dtype, cache = shape.words
    heads, batch, tokens, kv_tokens = shape.sizes
    rate, width = format_named(dtype).rate, cache_bytes(cache)
    kept = LATENT_WIDTH + ROPE_WIDTH
    if phase == "context":
        return Prefill(
            batch=batch,
            tokens=tokens,
            num_heads=heads,
            num_kv_heads=heads,
            qk_head_dim=LATENT_HEAD_DIM + ROPE_WIDTH,
            v_head_dim=LATENT_HEAD_DIM,
            rate=rate,
            cache_elements=kept,
            cache_bytes=width,
        )
    if phase == "generation":
        return Decode(
            batch=batch,
            kv_tokens=kv_tokens,
            num_heads=heads,
            num_kv_heads=1,
            qk_head_dim=kept,
            v_head_dim=LATENT_WIDTH,
            rate=rate,
            cache_elements=kept,
            cache_bytes=width,
        )
    raise ValueError(f"phase {phase[:40]!r} is not one of context, generation")


def power_of(distribution: str) -> float:
    """Return the exponent of the power law that a distribution of tokens over experts names; 0 for an even one.

    Raises:
        ValueError: It names none.
    """
    if distribution in ("balanced", "uniform", ""):
        return 0.0
    head, _, tail = distribution.rpartition("_")
    try:
        power = float(tail)
    except ValueError:
        power = math.nan
    if head != "power_law" or not 0 < power <= 10:
        raise ValueError(f"distribution {distribution[:40]!r} is neither balanced nor power_law_<exponent>")
    return power


def _experts(shape: Shape) -> KernelOp:
    tokens, hidden, inter, topk, experts, tp, ep = shape.sizes
    return GroupedExperts(
        tokens=tokens,
        hidden=hidden,
        inter=inter,
        topk=topk,
        experts=experts,
        tp=tp,
        ep=ep,
        power=power_of(shape.words[1]),
        format=format_named(shape.words[0]),
    )


def _octaves(sizes: tuple[int, ...], weights: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(weight * math.log2(size) for size, weight in zip(sizes, weights, strict=True))


def _product_coordinates(shape: Shape) -> tuple[float, ...]:
    # How many tiles a product is cut into decides more than its rows and columns by themselves.
    m, n, k = shape.sizes
    tiles = (math.ceil(m / rows) * math.ceil(n / columns) for rows, columns in ((128, 256), (128, 128), (64, 64)))
    return _octaves((m, n, k, *tiles), (0.3, 0.7, 1, 1, 1, 1))


def _prefill_coordinates(shape: Shape) -> tuple[float, ...]:
    return _octaves(shape.sizes, (1, 1, 1, 0.5, 2))


def _decode_coordinates(shape: Shape) -> tuple[float, ...]:
    batch, tokens, heads, kv_heads, width = shape.sizes
    return _octaves((batch * kv_heads, tokens, heads // kv_heads, batch, width), (1, 1, 3, 0.5, 3))


def _experts_coordinates(shape: Shape) -> tuple[float, ...]:
    tokens, hidden, inter, topk, experts, tp, ep = shape.sizes
    return _octaves((tokens, hidden, inter, topk, experts, tp, ep), (1, 1, 1, 1, 1, 1, 1))


SPECS: Mapping[TableKind, TableSpec] = MappingProxyType(
    {
        spec.kind: spec
        for spec in (
            TableSpec(
                kind=TableKind.GEMM,
                words=("dtype",),
                sizes=("m", "n", "k"),
                operation=_product,
                coordinates=_product_coordinates,
                words_apart=_same_width,
            ),
            TableSpec(
                kind=TableKind.ATTENTION_PREFILL,
                words=("attn_dtype", "kv_cache_dtype"),
                sizes=("batch_size", "isl", "num_heads", "num_kv_heads", "head_dim"),
                operation=_prefill,
                coordinates=_prefill_coordinates,
                words_apart=_same_width,
            ),
            TableSpec(
                kind=TableKind.ATTENTION_DECODE,
                words=("attn_dtype", "kv_cache_dtype"),
                sizes=("batch_size", "kv_len", "num_heads", "num_kv_heads", "head_dim"),
                operation=_decode,
                coordinates=_decode_coordinates,
                words_apart=_same_width,
            ),
            TableSpec(
                kind=TableKind.MLA,
                words=("phase", "mla_dtype", "kv_cache_dtype"),
                sizes=("num_heads", "batch_size", "isl", "kv_len"),
                operation=_latent,
                coordinates=lambda shape: _octaves(shape.sizes, (1, 1, 1, 1)),
                words_apart=_same_width,
            ),
            TableSpec(
                kind=TableKind.MOE,
                words=("moe_dtype", "distribution"),
                sizes=("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size"),
                operation=_experts,
                coordinates=_experts_coordinates,
                words_apart=_same_experts,
            ),
            TableSpec(
                kind=TableKind.COLLECTIVES,
                words=("op",),
                sizes=("num_gpus", "bytes"),
                operation=None,
                coordinates=lambda shape: _octaves(shape.sizes, (1, 1)),
                words_apart=_same_width,
            ),
        )
    }
)
"""Every kind of table."""
