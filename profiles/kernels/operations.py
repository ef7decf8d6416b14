"""Single kernels as benchmarks run them: frozen, with what they compute and move.

A multiply-add is two flops. Formats carry the names that serving engines give them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How a kernel holds its numbers.

    Args:
        rate: Datasheet rate at which it multiplies.
        activation_bytes: Bytes of one activation.
        weight_bytes: Bytes of one weight, its scales left out unless they come with each group of 32 or fewer.
    """

    rate: str
    activation_bytes: float
    weight_bytes: float


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "bfloat16": Format(rate="bf16", activation_bytes=2, weight_bytes=2),
        "float16": Format(rate="fp16", activation_bytes=2, weight_bytes=2),
        "fp8": Format(rate="fp8", activation_bytes=1, weight_bytes=1),
        "fp8_block": Format(rate="fp8", activation_bytes=1, weight_bytes=1),
        "fp8_static": Format(rate="fp8", activation_bytes=1, weight_bytes=1),
        "mxfp8": Format(rate="fp8", activation_bytes=1 + 1 / 32, weight_bytes=1 + 1 / 32),
        "sq": Format(rate="int8", activation_bytes=1, weight_bytes=1),
        "int8": Format(rate="int8", activation_bytes=1, weight_bytes=1),
        "int8_wo": Format(rate="bf16", activation_bytes=2, weight_bytes=1),
        "int4_wo": Format(rate="bf16", activation_bytes=2, weight_bytes=0.5),
        "w4afp8": Format(rate="fp8", activation_bytes=1, weight_bytes=0.5),
        "w4a16_mxfp4": Format(rate="bf16", activation_bytes=2, weight_bytes=0.5 + 1 / 32),
        "w4a8_mxfp4_mxfp8": Format(rate="fp8", activation_bytes=1 + 1 / 32, weight_bytes=0.5 + 1 / 32),
        "nvfp4": Format(rate="fp4", activation_bytes=0.5 + 1 / 16, weight_bytes=0.5 + 1 / 16),
    }
)
"""Number formats by name. Group scales: one byte for 32 (OCP Microscaling Formats 1.0), for 16 in nvfp4."""

CACHE_BYTES: Mapping[str, float] = MappingProxyType({"bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1})
"""Bytes of one cached key or value by format."""


MOST_EXPERTS = 65536
"""Far above any model's, and small enough to count each one's tokens."""


def format_named(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ValueError: There is no such format.
    """
    if name not in FORMATS:
        raise ValueError(f"format {name[:40]!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixProduct:
    """`C[m, n] = A[m, k] B[k, n]` with A of activations, B of weights and C in two bytes an element."""

    m: int
    n: int
    k: int
    format: Format

    @property
    def num_bytes(self) -> float:
        """Return each operand once and the result once."""
        return (
            self.m * self.k * self.format.activation_bytes
            + self.k * self.n * self.format.weight_bytes
            + (2 * self.m * self.n)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """Causal attention of `batch` sequences over themselves, and their keys and values written to the cache.

    Args:
        batch: Sequences.
        tokens: Tokens of one.
        num_heads: Query heads.
        num_kv_heads: Key/value heads.
        qk_head_dim: Width of a query or key head.
        v_head_dim: Width of a value head.
        rate: Datasheet rate of its products.
        cache_elements: Numbers that the cache keeps of one token.
        cache_bytes: Bytes of one of them.
    """

    batch: int
    tokens: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rate: str
    cache_elements: int
    cache_bytes: float

    @property
    def tensor_bytes(self) -> float:
        """Return the bytes of queries, keys, values and output, two an element, each once."""
        widths = self.qk_head_dim + self.v_head_dim
        return 2.0 * self.batch * self.tokens * (self.num_heads + self.num_kv_heads) * widths

    @property
    def written_bytes(self) -> float:
        """Return the bytes that the cache takes up."""
        return self.batch * self.tokens * self.cache_elements * self.cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Attention of one query token in each of `batch` sequences over cached keys and values.

    Args:
        batch: Sequences.
        kv_tokens: Cached tokens of one.
        num_heads: Query heads.
        num_kv_heads: Key/value heads; 1 for latent attention, whose heads share one latent vector a token.
        qk_head_dim: Width that scores are taken over.
        v_head_dim: Width of what is summed up.
        rate: Datasheet rate of its products.
        cache_elements: Numbers that the cache keeps of one token.
        cache_bytes: Bytes of one of them.
    """

    batch: int
    kv_tokens: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rate: str
    cache_elements: int
    cache_bytes: float

    @property
    def read_bytes(self) -> float:
        """Return the bytes of cache that are read."""
        return self.batch * self.kv_tokens * self.cache_elements * self.cache_bytes

    @property
    def query_bytes(self) -> float:
        """Return the bytes of queries and output, two an element."""
        return 2.0 * self.batch * self.num_heads * (self.qk_head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedExperts:
    """Gated experts of the busiest rank: gate and up projection, activation, down projection, sorting and summing.

    Args:
        tokens: Tokens of all ranks together.
        hidden: Width of a token.
        inter: Width of an expert, unsharded.
        topk: Experts of one token.
        experts: Experts in all.
        tp: Ranks that share each expert.
        ep: Ranks that the experts are dealt to.
        power: Exponent of the power law that loads follow; 0 where all experts get alike.
        format: Of weights and activations.
    """

    tokens: int
    hidden: int
    inter: int
    topk: int
    experts: int
    tp: int
    ep: int
    power: float
    format: Format

    def __post_init__(self) -> None:
        """Check what must divide, and that no more experts are counted out than models have."""
        if self.experts > MOST_EXPERTS:
            raise ValueError(f"{self.experts} experts are more than {MOST_EXPERTS}")
        if self.experts % self.ep:
            raise ValueError(f"{self.experts} experts cannot be dealt to ep = {self.ep} ranks")
        if self.inter % self.tp:
            raise ValueError(f"inter_size {self.inter} cannot be split over moe_tp_size {self.tp}")
        if self.topk > self.experts:
            raise ValueError(f"topk {self.topk} is more than {self.experts} experts")

    @property
    def experts_on_rank(self) -> int:
        """Return the experts of one rank."""
        return self.experts // self.ep

    @property
    def inter_on_rank(self) -> int:
        """Return the width of one rank's share of an expert."""
        return self.inter // self.tp


KernelOp = MatrixProduct | Prefill | Decode | GroupedExperts
