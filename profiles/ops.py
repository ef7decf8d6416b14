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
        input_bytes_per_element: Bytes of one element of A and B.
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
    def num_launches(self) -> int:
        """Return the kernels that the host starts."""
        return 1

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
        query_len: Query tokens of one sequence on this rank.
        kv_len: Key tokens of one sequence that they may see.
        pairs: Query-key pairs of one sequence on this rank that the mask lets through, for each head.
        num_heads: Query heads on this rank.
        num_kv_heads: Key/value heads on this rank.
        qk_head_dim: Width of a query or key head.
        v_head_dim: Width of a value head; 0 where only scores are computed.
        dtype: Format of q, k, v.
        bytes_per_element: Bytes of one element.
        backward: The gradient of q, k, v instead of the output.
        fused: The score matrix is never written to memory (flash and cuDNN kernels).
        calls: Kernel calls that it is made of, each over an equal part of the keys.
    """

    batch: int
    query_len: int
    kv_len: int
    pairs: int
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    dtype: str
    bytes_per_element: int
    backward: bool
    fused: bool
    calls: int = 1

    @property
    def num_launches(self) -> int:
        """Return the kernels that the host starts: one a call, or the products, softmax and dropout."""
        return self.calls if self.fused else len(self.products) + 2

    @property
    def flops(self) -> int:
        """Return the flops that the kernel executes.

        Forward the products q k and p v; backward two over the value width and two over the key width, and a fused
        kernel computes the scores again (Dao, arXiv 2307.08691, section 3.1). A fused kernel skips what the mask
        hides; an unfused one does not.
        """
        pairs = self.pairs if self.fused else self.query_len * self.kv_len
        widths = self.qk_head_dim + self.v_head_dim
        if self.backward:
            widths = (3 if self.fused else 2) * self.qk_head_dim + 2 * self.v_head_dim
        return 2 * self.batch * self.num_heads * pairs * widths

    @property
    def num_bytes(self) -> int:
        """Return the traffic of q, k, v and output, q and output once a call; the score matrix left out."""
        widths = self.qk_head_dim + self.v_head_dim
        tensors = (self.query_len * self.num_heads * self.calls + self.kv_len * self.num_kv_heads) * widths
        return self.batch * tensors * self.bytes_per_element * (2 if self.backward else 1)

    @property
    def products(self) -> tuple[Gemm, ...]:
        """Return the products of an unfused kernel: scores and output, or backward the gradients of both factors."""
        heads = self.batch * self.num_heads
        scores = self._product(self.query_len, self.kv_len, self.qk_head_dim, heads)
        output = self._product(self.query_len, self.v_head_dim, self.kv_len, heads)
        if not self.backward:
            return scores, output
        of_scores = self._product(self.query_len, self.kv_len, self.v_head_dim, heads)
        of_values = self._product(self.kv_len, self.v_head_dim, self.query_len, heads)
        of_queries = self._product(self.query_len, self.qk_head_dim, self.kv_len, heads)
        of_keys = self._product(self.kv_len, self.qk_head_dim, self.query_len, heads)
        return tuple(product for product in (of_values, of_scores, of_queries, of_keys) if product.flops)

    def _product(self, m: int, n: int, k: int, batch: int) -> Gemm:
        width = self.bytes_per_element
        return Gemm(
            m=m,
            n=n,
            k=k,
            batch=batch,
            dtype=self.dtype,
            input_bytes_per_element=width,
            output_bytes_per_element=width,
        )

    @property
    def score_bytes(self) -> int:
        """Return the bytes of the score matrix, were it kept."""
        return self.batch * self.num_heads * self.query_len * self.kv_len * self.bytes_per_element


@dataclass(frozen=True, slots=True, kw_only=True)
class StateScan:
    """A recurrence over states of `key_dim` times `value_dim`, chunk by chunk, forward or backward.

    Inside a chunk every token's score with every other is multiplied out, as in attention; between chunks the state
    is read and written once a token (Dao and Gu, arXiv 2405.21060, section 6).

    Args:
        tokens: Tokens on this rank.
        num_heads: Heads on this rank, each with a state.
        num_groups: Groups of heads on this rank that share scores.
        key_dim: Rows of a state.
        value_dim: Columns of a state.
        chunk_size: Tokens of a chunk.
        corrects: A delta rule: keys are scored against keys too, and both results are corrected inside the chunk.
        io_bytes_per_token: Bytes read and written for each token.
        dtype: Format of the products.
        backward: The gradient instead of the output.
    """

    tokens: int
    num_heads: int
    num_groups: int
    key_dim: int
    value_dim: int
    chunk_size: int
    corrects: bool
    io_bytes_per_token: int
    dtype: str
    backward: bool

    @property
    def num_launches(self) -> int:
        """Return the kernels that the host starts.

        Cumulative decays, scores, states of chunks, states passed on, output (`mamba_ssm/ops/triton/ssd_combined.py`).
        """
        return 5

    @property
    def flops(self) -> int:
        """Return the flops that the kernels execute; backward takes twice the forward pass, and that pass again."""
        scores = 2 * self.chunk_size * self.num_groups * self.key_dim
        applied = 2 * self.chunk_size * self.num_heads * self.value_dim
        state = 4 * self.num_heads * self.key_dim * self.value_dim
        if self.corrects:
            scores += 2 * self.chunk_size * self.num_heads * self.key_dim
            applied += 2 * self.chunk_size * self.num_heads * (self.key_dim + self.value_dim)
        return self.tokens * (scores + applied + state) * (3 if self.backward else 1)

    @property
    def num_bytes(self) -> int:
        """Return the traffic of inputs and outputs, and of one fp32 state a chunk, written and read."""
        states = 2 * 4 * self.num_heads * self.key_dim * self.value_dim // self.chunk_size
        return self.tokens * (self.io_bytes_per_token + states) * (2 if self.backward else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBound:
    """An element-wise or reducing operation whose time is its traffic.

    Args:
        name: What it is ("rmsnorm", "swiglu", "adam"), for sources and messages.
        num_bytes: Bytes read and written.
        num_kernels: Kernel launches it takes.
        is_norm: It normalises, which some software does in a chain of operations.
    """

    name: str
    num_bytes: int
    num_kernels: int = 1
    is_norm: bool = False

    @property
    def num_launches(self) -> int:
        """Return the kernels that the host starts."""
        return self.num_kernels


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
        first_rank: Lowest global rank, for send_recv: it decides which boundaries the pair crosses. None is a hop of
            the worst ring of `size` ranks. Other groups are taken as aligned.
        copies: For all_to_all, members that each row of the buffer goes to, drawn at random: the buffer holds every
            row that often.
    """

    kind: CollectiveKind
    buffer_bytes: int
    size: int
    stride: int
    first_rank: int | None = 0
    copies: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """A copy between a GPU and its host's memory, while every GPU of the node makes an equal one.

    Args:
        num_bytes: Bytes that one GPU sends or receives.
        pinned: The host's side is page-locked.
    """

    num_bytes: int
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPass:
    """Work of one GPU's process on the CPUs that is bound by host memory, while every other process does as much.

    Args:
        name: What it is, for sources and messages.
        num_bytes: Bytes that one process reads and writes.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveCopy:
    """A copy between a process's page-locked memory and the drives of its node, while every other process makes one.

    Args:
        num_bytes: Bytes that one process reads or writes.
        written: They go to the drives.
    """

    num_bytes: int
    written: bool


KernelOp = Gemm | Attention | StateScan | MemoryBound
ComputeOp = KernelOp | HostCopy | HostPass | DriveCopy
