"""Attention and recurrences on one rank, cut by context parallelism.

A rank holds two pieces of each sequence, one from either end, so that causal work is even. Ulysses exchanges heads for
tokens in an all-to-all before and after attention; a ring passes keys and values round beside it, and in backward their
gradients too. Recurrences exchange heads over all of cp, or one state a head (Sun et al., LASP-2, arXiv 2502.07563).
"""

from collections.abc import Iterable

from planner.models.graph import (
    CoreAttention,
    StateScan,
)
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step, Term
from planner.requests.workload import DType
from profiles import ops
from profiles.ops import Attention, Collective, CollectiveKind, MemoryBound

STATE_BYTES = 4  # a recurrence keeps its states in fp32


def _ulysses_exchange(features: int, dtype: DType, sharding: Sharding, *, ranks: int) -> Iterable[Step]:
    """Return the all-to-all that trades heads for tokens, or back, of tensors with `features` over all heads."""
    if ranks > 1:
        buffer_bytes = sharding.tokens * features // sharding.tp * dtype.num_bytes
        exchange = Collective(kind=CollectiveKind.ALL_TO_ALL, buffer_bytes=buffer_bytes, size=ranks, stride=sharding.tp)
        # Packed before and unpacked behind: each reads and writes all of it.
        packing = MemoryBound(name="packing of heads", num_bytes=4 * buffer_bytes, num_kernels=2)
        yield Step(term=Term.CONTEXT_PARALLEL, compute=packing)
        yield Step(term=Term.CONTEXT_PARALLEL, collective=exchange, collective_term=Term.CONTEXT_PARALLEL)


def attention_steps(work: CoreAttention, sharding: Sharding, *, backward: bool) -> Iterable[Step]:
    """Return attention with what context parallelism puts around and beside it; backward mirrors forward."""
    ranks = sharding.tp * sharding.ulysses
    num_kv_heads = max(work.num_kv_heads // ranks, 1)
    widths = work.qk_head_dim + work.v_head_dim
    entering = work.num_heads * work.qk_head_dim + work.num_kv_heads * widths
    leaving = work.num_heads * work.v_head_dim
    kernel = Attention(
        batch=sharding.micro_batch_size,
        query_len=sharding.seq_len // sharding.ring,
        kv_len=sharding.seq_len,
        pairs=-(-work.pairs // sharding.ring),
        num_heads=max(work.num_heads // ranks, 1),
        num_kv_heads=num_kv_heads,
        qk_head_dim=work.qk_head_dim,
        v_head_dim=work.v_head_dim,
        dtype=work.dtype.value,
        bytes_per_element=work.dtype.num_bytes,
        backward=backward,
        fused=work.fused,
        calls=sharding.ring,
    )
    before, after = (leaving, entering) if backward else (entering, leaving)
    yield from _ulysses_exchange(before, work.dtype, sharding, ranks=sharding.ulysses)
    if sharding.ring > 1:
        yield Step(
            term=Term.ATTENTION,
            compute=kernel,
            collective=_ring_hop(key_value_bytes(work, sharding) * (2 if backward else 1), sharding),
            repeats=sharding.ring - 1,
            collective_term=Term.CONTEXT_PARALLEL,
        )
        yield _ring_sums(work, sharding, backward=backward)
    else:
        yield Step(term=Term.ATTENTION, compute=kernel)
    yield from _ulysses_exchange(after, work.dtype, sharding, ranks=sharding.ulysses)


def _ring_sums(work: CoreAttention, sharding: Sharding, *, backward: bool) -> Step:
    """Return what adds up the parts of a ring: each is read and added to a sum that is kept in fp32.

    Forward the outputs, rescaled by their log-sum-exp; backward the gradients of queries, keys and values.
    """
    tokens = sharding.micro_batch_size * sharding.seq_len // sharding.ring
    heads = max(work.num_heads // (sharding.tp * sharding.ulysses), 1)
    num_bytes = tokens * heads * work.v_head_dim
    if backward:
        widths = work.qk_head_dim + work.v_head_dim
        kv_heads = max(work.num_kv_heads // (sharding.tp * sharding.ulysses), 1)
        num_bytes = tokens * (heads * work.qk_head_dim + kv_heads * widths)
    passes = work.dtype.num_bytes + 2 * DType.FP32.num_bytes
    compute = MemoryBound(
        name="sums of a ring", num_bytes=sharding.ring * num_bytes * passes, num_kernels=sharding.ring
    )
    return Step(term=Term.CONTEXT_PARALLEL, compute=compute)


def key_value_bytes(work: CoreAttention, sharding: Sharding) -> int:
    """Return the keys and values that one rank of a ring holds and passes on."""
    num_kv_heads = max(work.num_kv_heads // (sharding.tp * sharding.ulysses), 1)
    tokens = sharding.micro_batch_size * sharding.seq_len // sharding.ring
    return tokens * num_kv_heads * (work.qk_head_dim + work.v_head_dim) * work.dtype.num_bytes


def _ring_hop(num_bytes: int, sharding: Sharding) -> Collective:
    """Return one hop of a ring, of whichever ring is worst off."""
    apart = sharding.ulysses * sharding.tp
    return Collective(
        kind=CollectiveKind.SEND_RECV, buffer_bytes=num_bytes, size=sharding.ring, stride=apart, first_rank=None
    )


def scan_steps(work: StateScan, sharding: Sharding, *, backward: bool) -> Iterable[Step]:
    """Return a recurrence with what context parallelism puts around it."""
    exchanged = 1 if sharding.state_exchange else sharding.cp
    ranks = sharding.tp * exchanged
    heads = max(work.num_heads // ranks, 1)
    leaving = work.num_heads * work.value_dim
    io_bytes = (work.in_features + leaving) // ranks * work.dtype.num_bytes
    kernel = ops.StateScan(
        tokens=sharding.tokens * exchanged,
        num_heads=heads,
        num_groups=max(work.num_groups // ranks, 1),
        key_dim=work.key_dim,
        value_dim=work.value_dim,
        chunk_size=work.chunk_size,
        corrects=work.corrects,
        io_bytes_per_token=io_bytes,
        dtype=work.dtype.value,
        backward=backward,
    )
    before, after = (leaving, work.in_features) if backward else (work.in_features, leaving)
    yield from _ulysses_exchange(before, work.dtype, sharding, ranks=exchanged)
    yield Step(term=Term.SCAN, compute=kernel)
    if sharding.state_exchange and sharding.cp > 1:
        state_bytes = sharding.micro_batch_size * heads * work.key_dim * work.value_dim * STATE_BYTES
        states = Collective(
            kind=CollectiveKind.ALL_GATHER, buffer_bytes=sharding.cp * state_bytes, size=sharding.cp, stride=sharding.tp
        )
        yield Step(term=Term.CONTEXT_PARALLEL, collective=states, collective_term=Term.CONTEXT_PARALLEL)
    yield from _ulysses_exchange(after, work.dtype, sharding, ranks=exchanged)
