"""What one rank runs for each operator: kernels and the collectives around and beside them.

The shapes of `planner.graph` are rewritten for every degree that cuts a layer:

- tp: column-parallel entry gathers the input with sequence parallelism, nothing without; backward reduces the input
  gradient (reduce-scatter, or all-reduce). Row-parallel exit reduce-scatters or all-reduces the output; backward
  gathers the output gradient, or nothing. Backward of a column-parallel layer gathers its input again beside the
  input-gradient product and reduces the input gradient beside the weight-gradient product, as Megatron-LM's
  `LinearWithGradAccumulationAndAsyncCommunication` does.
- cp: a rank holds two pieces of each sequence, one from either end, so that causal work is even. Ulysses exchanges
  heads for tokens in an all-to-all before and after attention; a ring passes keys and values round beside it, and in
  backward their gradients too. Recurrences exchange heads over all of cp, or one state a head (Sun et al., LASP-2,
  arXiv 2502.07563).
- ep, etp: tokens travel to their experts' ranks in an all-to-all and are gathered over etp; results come back.

A `Step` is what runs at the same time; it takes as long as its longer part.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from planner.graph import (
    Combine,
    CoreAttention,
    Dispatch,
    ExpertLinear,
    Linear,
    Lookup,
    LossReduction,
    Operator,
    Parallel,
    Pointwise,
    Region,
    StateScan,
)
from planner.sharding import Sharding, split_features
from planner.workload import DType
from profiles import ops
from profiles.constants import ROUTING_KERNELS
from profiles.ops import Attention, Collective, CollectiveKind, Gemm, KernelOp, MemoryBound

ADAPTER_FORWARD_PASSES = 5  # scale: read, write; add: read two, write
ADAPTER_BACKWARD_PASSES = 2  # scale the gradient: read, write
STATE_BYTES = 4  # a recurrence keeps its states in fp32
COUNT_BYTES = 8  # how many tokens go to each expert


class Term(StrEnum):
    """What a stretch of time is spent on, as reports name it."""

    GEMM = "linear layers"
    EXPERT_GEMM = "experts"
    ATTENTION = "attention"
    SCAN = "recurrences"
    POINTWISE = "memory-bound kernels"
    TENSOR_PARALLEL = "tensor-parallel collectives"
    CONTEXT_PARALLEL = "context-parallel collectives"
    EXPERT_PARALLEL = "expert-parallel collectives"
    LAUNCHES = "waiting for the host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Work that runs at the same time: one kernel, a collective some times over, or both.

    Args:
        term: What the kernel's time counts as.
        compute: The kernel.
        collective: The collective beside it.
        repeats: How often the collective runs, one after the other.
        collective_term: What the collective's time counts as.
        of_weights: The kernel computes a gradient of weights, which nothing in the backward pass waits for.
    """

    term: Term
    compute: KernelOp | None = None
    collective: Collective | None = None
    repeats: int = 1
    collective_term: Term = Term.TENSOR_PARALLEL
    of_weights: bool = False

    @property
    def num_launches(self) -> int:
        """Return what the host starts for it: kernels and collectives."""
        launches = 0 if self.compute is None else self.compute.num_launches
        return launches + self.repeats * (self.collective is not None)


def _local_linear(work: Linear, sharding: Sharding) -> tuple[int, int]:
    """Return (in, out) features of one rank's part of a linear layer."""
    out_features = sharding.padded_vocab_size(work.out_features) if work.vocab_output else work.out_features
    match work.parallel:
        case Parallel.COLUMN:
            return work.in_features, out_features // sharding.tp
        case Parallel.ROW:
            return work.in_features // sharding.tp, out_features
        case Parallel.REPLICATED:
            return work.in_features, out_features


def _tp_collective(kind: CollectiveKind, buffer_bytes: int, sharding: Sharding) -> Collective:
    return Collective(kind=kind, buffer_bytes=buffer_bytes, size=sharding.tp, stride=1)


def _stream_bytes(features: int, sharding: Sharding, element_bytes: int = 2) -> int:
    return sharding.tokens * features * element_bytes


def _gemm(  # noqa: PLR0913 - the facts of a product
    m: int, n: int, k: int, dtype: DType, *, accumulate: bool = False, batch: int = 1
) -> Gemm:
    """Return a product; weight gradients are added to an fp32 buffer, everything else leaves in 16 bit."""
    return Gemm(
        m=m,
        n=n,
        k=k,
        dtype=dtype.value,
        input_bytes_per_element=dtype.num_bytes,
        output_bytes_per_element=4 if accumulate else 2,
        accumulate=accumulate,
        batch=batch,
    )


def forward_steps(operator: Operator, sharding: Sharding) -> Iterable[Step]:  # noqa: C901 - a table of the kinds of work
    """Yield what the forward pass of one operator runs on a rank."""
    work = operator.work
    match work:
        case Linear():
            yield from _linear_forward(work, sharding)
        case ExpertLinear():
            yield from _expert_forward(work, sharding)
        case Dispatch():
            yield from _to_experts(work, sharding)
        case Combine():
            yield from _from_experts(work, sharding)
        case CoreAttention():
            yield from _attention(work, sharding, backward=False)
        case StateScan():
            yield from _scan(work, sharding, backward=False)
        case Pointwise():
            yield _pointwise(operator.name, work, work.forward_bytes_per_token, sharding)
        case Lookup():
            num_bytes = 2 * _stream_bytes(work.hidden_size, sharding, work.dtype.num_bytes)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding look-up", num_bytes=num_bytes))
            yield from _exit(work.hidden_size, sharding)
        case LossReduction():
            if sharding.tp > 1:
                reduction = _tp_collective(CollectiveKind.ALL_REDUCE, sharding.tokens * 4, sharding)
                for _ in range(work.num_reductions):
                    yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)


def backward_steps(operator: Operator, sharding: Sharding) -> Iterable[Step]:
    """Yield what the backward pass of one operator runs on a rank."""
    work = operator.work
    match work:
        case Linear():
            yield from _linear_backward(work, sharding)
        case ExpertLinear():
            yield from _expert_backward(work, sharding)
        case Dispatch():
            yield from _from_experts(work, sharding)
        case Combine():
            yield from _to_experts(work, sharding)
        case CoreAttention():
            yield from _attention(work, sharding, backward=True)
        case StateScan():
            yield from _scan(work, sharding, backward=True)
        case Pointwise():
            yield _pointwise(operator.name, work, work.backward_bytes_per_token, sharding)
        case Lookup():
            yield from _exit_backward(work.hidden_size, sharding)
            # Each token's gradient is read and added to its fp32 row.
            num_bytes = sharding.tokens * work.hidden_size * (work.dtype.num_bytes + 8)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding gradient", num_bytes=num_bytes))
        case LossReduction():
            return


def _pointwise(name: str, work: Pointwise, bytes_per_token: int, sharding: Sharding) -> Step:
    num_bytes = _pointwise_bytes(work, bytes_per_token, sharding)
    compute = MemoryBound(name=name, num_bytes=num_bytes, num_kernels=work.num_kernels, is_norm=work.is_norm)
    return Step(term=Term.POINTWISE, compute=compute)


def _exit(features: int, sharding: Sharding) -> Iterable[Step]:
    """Return the sum over tp of partial results that leave the tensor-parallel region."""
    if sharding.tp > 1:
        kind = CollectiveKind.REDUCE_SCATTER if sharding.sequence_parallel else CollectiveKind.ALL_REDUCE
        yield Step(
            term=Term.TENSOR_PARALLEL, collective=_tp_collective(kind, _stream_bytes(features, sharding), sharding)
        )


def _exit_backward(features: int, sharding: Sharding) -> Iterable[Step]:
    if sharding.tp > 1 and sharding.sequence_parallel:
        gather = _tp_collective(CollectiveKind.ALL_GATHER, _stream_bytes(features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=gather)


def _linear_forward(work: Linear, sharding: Sharding) -> Iterable[Step]:
    in_features, out_features = _local_linear(work, sharding)
    tokens = _linear_tokens(work, sharding)
    if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
        gather = _tp_collective(CollectiveKind.ALL_GATHER, _stream_bytes(work.in_features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=gather)
    if work.dtype is DType.FP8 and work.parallel is not Parallel.COLUMN:
        yield _cast(tokens * in_features)
    yield Step(term=Term.GEMM, compute=_gemm(tokens, out_features, in_features, work.dtype))
    yield from _adapter(work, sharding, passes=ADAPTER_FORWARD_PASSES)
    yield from _whole_heads(work, sharding, CollectiveKind.ALL_GATHER)
    if work.parallel is Parallel.ROW:
        yield from _exit(work.out_features, sharding)


def _linear_tokens(work: Linear, sharding: Sharding) -> int:
    """Return the tokens that a linear layer works on: every one of a tp group, or replicated those of the rank."""
    return sharding.residual_tokens if work.parallel is Parallel.REPLICATED else sharding.tokens


def _linear_backward(work: Linear, sharding: Sharding) -> Iterable[Step]:
    in_features, out_features = _local_linear(work, sharding)
    tokens = _linear_tokens(work, sharding)
    column = work.parallel is Parallel.COLUMN
    yield from _whole_heads(work, sharding, CollectiveKind.REDUCE_SCATTER)
    if work.parallel is Parallel.ROW:
        yield from _exit_backward(work.out_features, sharding)
    if work.dtype is DType.FP8:
        yield _cast(tokens * out_features)
    reduction: Collective | None = None
    gather: Collective | None = None
    if column and sharding.tp > 1:
        stream_bytes = _stream_bytes(work.in_features, sharding)
        if sharding.sequence_parallel:
            reduction = _tp_collective(CollectiveKind.REDUCE_SCATTER, stream_bytes, sharding)
            if work.trains_weight:
                gather = _tp_collective(CollectiveKind.ALL_GATHER, stream_bytes, sharding)
        else:
            reduction = _tp_collective(CollectiveKind.ALL_REDUCE, stream_bytes, sharding)
    if work.needs_input_gradient:
        yield Step(
            term=Term.GEMM,
            compute=_gemm(tokens, in_features, out_features, work.dtype),
            collective=gather,
        )
    if work.trains_weight:
        yield Step(
            term=Term.GEMM,
            compute=_gemm(out_features, in_features, tokens, work.dtype, accumulate=True),
            collective=reduction,
            of_weights=True,
        )
    elif reduction is not None:
        yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)
    # Gradients of the input through both adapter matrices and of these themselves: the forward products twice.
    yield from _adapter(work, sharding, passes=ADAPTER_BACKWARD_PASSES)
    yield from (replace(step, of_weights=True) for step in _adapter(work, sharding, passes=0))


def _spreads_heads(work: Linear, sharding: Sharding) -> bool:
    """Return whether tp cuts through the key/value heads that the layer computes."""
    return work.whole_heads is not None and work.whole_heads < sharding.tp


def _whole_heads(work: Linear, sharding: Sharding, kind: CollectiveKind) -> Iterable[Step]:
    """Return the gathering of q, k and v where there are fewer key/value heads than ranks, or its gradient.

    Megatron-LM's `get_query_key_value_tensors` splits the weight over tp all the same, gathers the whole output, and
    lets each rank pick its query heads and one key/value head.
    """
    if _spreads_heads(work, sharding):
        whole = _tp_collective(kind, _stream_bytes(work.out_features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=whole)


def _adapter(work: Linear, sharding: Sharding, *, passes: int) -> Iterable[Step]:
    """Return the two thin products of a low-rank adapter, what joins them over tp, and the sum with the layer.

    Args:
        work: The layer beside which the adapter runs.
        sharding: How it is split.
        passes: Passes over the layer's output that scaling and adding take; 0 leaves them and the collective out.
    """
    if not work.adapter_rank:
        return
    in_features, out_features = _local_linear(replace(work, vocab_output=False), sharding)
    dtype = DType.BF16 if work.dtype is DType.FP8 else work.dtype
    yield Step(term=Term.GEMM, compute=_gemm(sharding.tokens, work.adapter_rank, in_features, dtype))
    yield Step(term=Term.GEMM, compute=_gemm(sharding.tokens, out_features, work.adapter_rank, dtype))
    if not passes:
        return
    if sharding.tp > 1:
        column = work.parallel is Parallel.COLUMN
        kind = CollectiveKind.ALL_REDUCE
        if sharding.sequence_parallel:
            kind = CollectiveKind.ALL_GATHER if column else CollectiveKind.REDUCE_SCATTER
        thin_bytes = _stream_bytes(work.adapter_rank, sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=_tp_collective(kind, thin_bytes, sharding))
    sum_bytes = passes * sharding.tokens * out_features * 2
    yield Step(term=Term.POINTWISE, compute=MemoryBound(name="adapter sum", num_bytes=sum_bytes, num_kernels=2))


def _cast(elements: int) -> Step:
    """Return the quantisation of one fp8 operand: read 16 bit, write it and its transpose in 8.

    The input of a column-parallel layer leaves its norm in fp8 (Transformer Engine's `LayerNormLinear`), for no more
    bytes than in 16 bit.
    """
    return Step(term=Term.POINTWISE, compute=MemoryBound(name="fp8 quantisation", num_bytes=elements * 4))


def _expert_shape(work: ExpertLinear, sharding: Sharding, *, at_peak: bool = False) -> tuple[int, int, int, int]:
    """Return (experts, rows of each, in, out) of one rank's part of an expert layer, the rows spread evenly.

    Args:
        work: The layer.
        sharding: How it is cut.
        at_peak: Of the layer where the busiest rank gets the most, which memory is counted of.
    """
    experts = max(work.num_experts // sharding.ep, 1)
    of_rank = sharding.peak_expert_rows(work.visits) if at_peak else sharding.expert_rows(work.visits)
    rows = max(-(-of_rank // experts), 1)
    if work.parallel is Parallel.COLUMN:
        return experts, rows, work.in_features, work.out_features // sharding.etp
    return experts, rows, work.in_features // sharding.etp, work.out_features


MOVED_BYTES = 2
"""Bytes of an element of an expert's weights, or of their gradients, between ranks: 16 bit, whatever is multiplied."""


def _moved_bytes(work: ExpertLinear, experts: float, sharding: Sharding) -> int:
    """Return the weights of so many experts on one rank."""
    _, _, in_features, out_features = _expert_shape(work, sharding)
    return math.ceil(experts * in_features * out_features) * MOVED_BYTES


def _moved_experts(work: ExpertLinear, sharding: Sharding, *, times: int) -> Iterable[Step]:
    """Return the sending of experts' weights, or of their gradients, as an all-to-all of what the busiest rank has."""
    if sharding.moved_experts:
        sent_bytes = times * _moved_bytes(work, sharding.moved_experts, sharding)
        exchange = Collective(
            kind=CollectiveKind.ALL_TO_ALL,
            # Of an all-to-all the rank's own part stays.
            buffer_bytes=-(-sent_bytes * sharding.ep // (sharding.ep - 1)),
            size=sharding.ep,
            stride=sharding.etp,
        )
        yield Step(term=Term.EXPERT_PARALLEL, collective=exchange, collective_term=Term.EXPERT_PARALLEL)


def _expert_forward(work: ExpertLinear, sharding: Sharding) -> Iterable[Step]:
    experts, rows, in_features, out_features = _expert_shape(work, sharding)
    yield from _moved_experts(work, sharding, times=1)
    if work.dtype is DType.FP8:
        yield _cast(experts * rows * in_features)
    product = _gemm(rows, out_features, in_features, work.dtype, batch=experts)
    yield Step(term=Term.EXPERT_GEMM, compute=product)


def _expert_backward(work: ExpertLinear, sharding: Sharding) -> Iterable[Step]:
    experts, rows, in_features, out_features = _expert_shape(work, sharding)
    # Weights that were sent are not kept; their gradients go back to where they belong.
    yield from _moved_experts(work, sharding, times=1 + work.trains_weight)
    if work.dtype is DType.FP8:
        yield _cast(experts * rows * out_features)
    yield Step(term=Term.EXPERT_GEMM, compute=_gemm(rows, in_features, out_features, work.dtype, batch=experts))
    if work.trains_weight:
        gradient = _gemm(out_features, in_features, rows, work.dtype, accumulate=True, batch=experts)
        yield Step(term=Term.EXPERT_GEMM, compute=gradient, of_weights=True)


def split_backward(steps: Iterable[Step]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Return what computes the gradients of inputs, and what those of weights, each to be run without the other.

    Linear layers, adapters and grouped experts have gradients of weights that are products of their own; those of
    norms and of the embedding come out of the kernels that compute their inputs' gradients, and stay there. In a
    column-parallel layer each product has the other's collective beside it (the input is gathered for the gradient of
    the weight, the gradient of the input is summed): apart, each collective goes with the product that it belongs to.
    """
    inputs: list[Step] = []
    weights: list[Step] = []
    for step in steps:
        own, other = (weights, inputs) if step.of_weights else (inputs, weights)
        if isinstance(step.compute, ops.Gemm) and step.collective is not None:
            other.append(Step(term=step.collective_term, collective=step.collective, repeats=step.repeats))
            own.append(replace(step, collective=None, repeats=1))
        else:
            own.append(step)
    return tuple(inputs), tuple(weights)


def output_gradient_bytes(operator: Operator, sharding: Sharding) -> int:
    """Return the output's gradient that an operator's gradient of weights reads; 0 where it has no product for it."""
    work = operator.work
    match work:
        case Linear() if work.trains_weight or work.adapter_rank:
            _, out_features = _local_linear(work, sharding)
            element_bytes = work.dtype.num_bytes if work.trains_weight else 2
            return _linear_tokens(work, sharding) * out_features * element_bytes
        case ExpertLinear() if work.trains_weight:
            experts, rows, _, out_features = _expert_shape(work, sharding, at_peak=True)
            return experts * rows * out_features * work.dtype.num_bytes
        case _:
            return 0


def _routed(name: str, num_bytes: int) -> Step:
    return Step(term=Term.POINTWISE, compute=MemoryBound(name=name, num_bytes=num_bytes))


def _permutation(work: Dispatch | Combine, sharding: Sharding) -> Step:
    """Return the sorting of a rank's tokens by expert, or its undoing, with the many small kernels that it takes."""
    num_bytes = sharding.residual_tokens * (1 + work.visits) * work.features * work.dtype.num_bytes
    kernels = int(ROUTING_KERNELS.value)
    return Step(
        term=Term.POINTWISE, compute=MemoryBound(name="token permutation", num_bytes=num_bytes, num_kernels=kernels)
    )


def _between_experts(work: Dispatch | Combine, sharding: Sharding, kind: CollectiveKind) -> Iterable[Step]:
    """Return the all-to-all over ep and the gathering (or scattering) over etp, in the order of dispatch."""
    received_bytes = sharding.received_rows(work.visits) * work.features * work.dtype.num_bytes
    if sharding.ep > 1:
        exchange = Collective(
            kind=CollectiveKind.ALL_TO_ALL,
            buffer_bytes=received_bytes,
            size=sharding.ep,
            stride=sharding.etp,
            copies=work.visits,
        )
        yield Step(term=Term.EXPERT_PARALLEL, collective=exchange, collective_term=Term.EXPERT_PARALLEL)
    if sharding.etp > 1:
        joined = Collective(kind=kind, buffer_bytes=received_bytes * sharding.etp, size=sharding.etp, stride=1)
        yield Step(term=Term.EXPERT_PARALLEL, collective=joined, collective_term=Term.EXPERT_PARALLEL)


def _to_experts(work: Dispatch | Combine, sharding: Sharding) -> Iterable[Step]:
    """Return what it takes to bring tokens to their experts: sort, count, send, and sort by expert."""
    row_bytes = work.features * work.dtype.num_bytes
    yield _permutation(work, sharding)
    ranks = sharding.ep * sharding.etp
    if ranks > 1:
        counts = Collective(
            kind=CollectiveKind.ALL_GATHER, buffer_bytes=ranks * work.num_experts * COUNT_BYTES, size=ranks, stride=1
        )
        yield Step(term=Term.EXPERT_PARALLEL, collective=counts, collective_term=Term.EXPERT_PARALLEL)
    yield from _between_experts(work, sharding, CollectiveKind.ALL_GATHER)
    if ranks > 1:
        yield _routed("rows by expert", 2 * sharding.expert_rows(work.visits) * row_bytes)


def _from_experts(work: Dispatch | Combine, sharding: Sharding) -> Iterable[Step]:
    """Return what it takes to bring results back to their tokens and to sum them."""
    row_bytes = work.features * work.dtype.num_bytes
    if sharding.ep * sharding.etp > 1:
        yield _routed("rows by expert", 2 * sharding.expert_rows(work.visits) * row_bytes)
    yield from reversed(tuple(_between_experts(work, sharding, CollectiveKind.REDUCE_SCATTER)))
    yield _permutation(work, sharding)


def _ulysses_exchange(features: int, dtype: DType, sharding: Sharding, *, ranks: int) -> Iterable[Step]:
    """Return the all-to-all that trades heads for tokens, or back, of tensors with `features` over all heads."""
    if ranks > 1:
        buffer_bytes = sharding.tokens * features // sharding.tp * dtype.num_bytes
        exchange = Collective(kind=CollectiveKind.ALL_TO_ALL, buffer_bytes=buffer_bytes, size=ranks, stride=sharding.tp)
        # Packed before and unpacked behind: each reads and writes all of it.
        packing = MemoryBound(name="packing of heads", num_bytes=4 * buffer_bytes, num_kernels=2)
        yield Step(term=Term.CONTEXT_PARALLEL, compute=packing)
        yield Step(term=Term.CONTEXT_PARALLEL, collective=exchange, collective_term=Term.CONTEXT_PARALLEL)


def _attention(work: CoreAttention, sharding: Sharding, *, backward: bool) -> Iterable[Step]:
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
            collective=_ring_hop(_key_value_bytes(work, sharding) * (2 if backward else 1), sharding),
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


def _key_value_bytes(work: CoreAttention, sharding: Sharding) -> int:
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


def _scan(work: StateScan, sharding: Sharding, *, backward: bool) -> Iterable[Step]:
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


def _pointwise_bytes(work: Pointwise, bytes_per_token: int, sharding: Sharding) -> int:
    if work.vocab_features:
        vocab = sharding.padded_vocab_size(work.vocab_features) // sharding.tp
        return sharding.tokens * vocab * bytes_per_token
    match work.region:
        case Region.RESIDUAL:
            return sharding.residual_tokens * bytes_per_token
        case Region.SHARDED:
            return sharding.tokens * bytes_per_token // sharding.tp
        case Region.ROUTED:
            return sharding.expert_rows(work.visits) * bytes_per_token
        case Region.EXPERT:
            return sharding.expert_rows(work.visits) * bytes_per_token // sharding.etp


def transient_bytes(operator: Operator, sharding: Sharding) -> int:
    """Return what one operator's backward holds besides saved tensors: gradients of its output and input, 16 bit.

    A column-parallel layer under sequence parallelism also holds its gathered input, one that spreads key/value heads
    over more ranks its gathered output; a ring holds keys and values on their way and their gradients; unfused
    attention holds the gradients of its probabilities and of its scores.
    """
    work = operator.work
    match work:
        case Linear():
            in_features, out_features = _local_linear(work, sharding)
            features = in_features + out_features
            if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
                features += in_features
            if _spreads_heads(work, sharding):
                features += work.out_features
            return _linear_tokens(work, sharding) * features * 2
        case ExpertLinear():
            experts, rows, in_features, out_features = _expert_shape(work, sharding, at_peak=True)
            moved = (1 + work.trains_weight) * _moved_bytes(work, sharding.peak_moved_experts, sharding)
            return experts * rows * (in_features + out_features) * 2 + moved
        case Dispatch() | Combine():
            return 2 * sharding.peak_expert_rows(work.visits) * work.features * work.dtype.num_bytes
        case CoreAttention():
            queries = split_features(work.num_heads * work.qk_head_dim, sharding.tp, work.qk_head_dim)
            outputs = split_features(work.num_heads * work.v_head_dim, sharding.tp, work.v_head_dim)
            keys = split_features(work.num_kv_heads * work.qk_head_dim, sharding.tp, work.qk_head_dim)
            values = split_features(work.num_kv_heads * work.v_head_dim, sharding.tp, work.v_head_dim)
            ring_bytes = 4 * _key_value_bytes(work, sharding) if sharding.ring > 1 else 0
            heads = split_features(work.num_heads, sharding.tp, 1)
            scores = 0 if work.fused else 2 * heads * sharding.seq_len
            return sharding.tokens * (queries + outputs + keys + values + scores) * 2 + ring_bytes
        case StateScan():
            return sharding.tokens * (work.in_features + work.num_heads * work.value_dim) // sharding.tp * 2
        case _:
            return 0
