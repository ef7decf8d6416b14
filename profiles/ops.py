"""Operations that can be priced: frozen, with their flop and byte counts.

A multiply-add is two flops. Byte counts are the least traffic to device memory that the operation needs. An operation
knows nothing of models or parallelism.
"""

from dataclasses import dataclass
from enum import StrEnum


class CollectiveKind(StrEnum):
    """Collectives, by their NCCL names."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_TO_ALL = "all_to_all"
    SEND_RECV = "send_recv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """`C[m, n] = A[m, k] B[k, n]`, `batch` times.

    Args:
        m: Rows of the result.
        n: Columns of the result.
        k: Inner dimension.
        dtype: Format of A and B ("bf16", "fp16", "fp8", "fp32").
        output_bytes_per_element: Bytes of one element of C.
        accumulate: C is read and added to (weight gradients).
        batch: Independent products of this shape.
    """

    m: int
    n: int
    k: int
    dtype: str
    input_bytes_per_element: int
    output_bytes_per_element: int
    accumulate: bool = False
    batch: int = 1

    @property
    def flops(self) -> int:
        """Return 2 m n k a product."""
        return 2 * self.batch * self.m * self.n * self.k

    @property
    def num_bytes(self) -> int:
        """Return each operand once, the result once (twice when accumulated)."""
        operands = (self.m * self.k + self.k * self.n) * self.input_bytes_per_element
        result = self.m * self.n * self.output_bytes_per_element * (2 if self.accumulate else 1)
        return self.batch * (operands + result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Scaled dot-product attention of `batch` sequences, forward or backward.

    Args:
        batch: Sequences.
        query_len: Query tokens of one sequence.
        kv_len: Key tokens of one sequence.
        num_heads: Query heads on this rank.
        num_kv_heads: Key/value heads on this rank.
        head_dim: Width of one head.
        dtype: Format of q, k, v.
        bytes_per_element: Bytes of one element.
        causal: A query sees only keys up to its own position.
        backward: The gradient of q, k, v instead of the output.
        fused: The score matrix is never written to memory (flash and cuDNN kernels).
    """

    batch: int
    query_len: int
    kv_len: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    bytes_per_element: int
    causal: bool
    backward: bool
    fused: bool

    @property
    def flops(self) -> int:
        """Return the flops that the kernel executes.

        Two products forward; backward has four, and a fused kernel recomputes the scores, which makes five (Dao,
        arXiv 2307.08691, section 3.1). A causal fused kernel skips the masked half; an unfused one does not.
        """
        products = (5 if self.fused else 4) if self.backward else 2
        full = 2 * self.batch * self.num_heads * self.query_len * self.kv_len * self.head_dim * products
        if not (self.causal and self.fused):
            return full
        if self.query_len == self.kv_len:
            return full * (self.kv_len + 1) // (2 * self.kv_len)
        return full * (2 * self.kv_len - self.query_len + 1) // (2 * self.kv_len)

    @property
    def num_bytes(self) -> int:
        """Return the traffic of q, k, v, output and, unfused, of the score matrix.

        Unfused: scores written and read by softmax, probabilities written and read again, in 16 bit: 4 passes
        forward, twice that backward.
        """
        tensors = (2 * self.query_len * self.num_heads + 2 * self.kv_len * self.num_kv_heads) * self.head_dim
        total = self.batch * tensors * self.bytes_per_element * (2 if self.backward else 1)
        if not self.fused:
            scores = self.batch * self.num_heads * self.query_len * self.kv_len * self.bytes_per_element
            total += scores * (8 if self.backward else 4)
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBound:
    """An element-wise or reducing operation whose time is its traffic.

    Args:
        name: What it is ("rmsnorm", "swiglu", "adam"), for sources and messages.
        num_bytes: Bytes read and written.
        num_kernels: Kernel launches it takes.
    """

    name: str
    num_bytes: int
    num_kernels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective of `size` ranks that stand `stride` ranks apart.

    Consecutive ranks fill a node, consecutive nodes a leaf, and so on; so size and stride say how many members share
    each level of the network.

    Args:
        kind: Which collective.
        buffer_bytes: Bytes of the full (unsharded) tensor: what all_reduce holds on each rank, what all_gather
            produces, what reduce_scatter consumes, what one rank of all_to_all sends in all, what send_recv moves.
        size: Ranks in the group; with 1 nothing is sent.
        stride: Distance between neighbouring members in the global rank order.
        first_rank: Lowest global rank, for send_recv: it decides which boundaries the pair crosses. Other groups
            are taken as aligned.
    """

    kind: CollectiveKind
    buffer_bytes: int
    size: int
    stride: int
    first_rank: int = 0


ComputeOp = Gemm | Attention | MemoryBound
