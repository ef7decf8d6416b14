"""Linear layers on one rank, cut by tensor parallelism, with their adapters.

Column-parallel entry gathers the input with sequence parallelism, nothing without; backward reduces the input gradient
(reduce-scatter, or all-reduce). Row-parallel exit reduce-scatters or all-reduces the output; backward gathers the
output gradient, or nothing. Backward of a column-parallel layer gathers its input again beside the input-gradient
product and reduces the input gradient beside the weight-gradient product, as Megatron-LM's
`LinearWithGradAccumulationAndAsyncCommunication` does.
"""

from collections.abc import Iterable
from dataclasses import replace

from planner.models.graph import (
    Linear,
    Parallel,
)
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step, Term, fp8_cast, gemm, residual_bytes, tp_collective
from planner.requests.workload import DType
from profiles.ops import Collective, CollectiveKind, MemoryBound

ADAPTER_FORWARD_PASSES = 5  # scale: read, write; add: read two, write
ADAPTER_BACKWARD_PASSES = 2  # scale the gradient: read, write


def local_linear(work: Linear, sharding: Sharding) -> tuple[int, int]:
    """Return (in, out) features of one rank's part of a linear layer."""
    out_features = sharding.padded_vocab_size(work.out_features) if work.vocab_output else work.out_features
    match work.parallel:
        case Parallel.COLUMN:
            return work.in_features, out_features // sharding.tp
        case Parallel.ROW:
            return work.in_features // sharding.tp, out_features
        case Parallel.REPLICATED:
            return work.in_features, out_features


def region_exit(features: int, sharding: Sharding) -> Iterable[Step]:
    """Return the sum over tp of partial results that leave the tensor-parallel region."""
    if sharding.tp > 1:
        kind = CollectiveKind.REDUCE_SCATTER if sharding.sequence_parallel else CollectiveKind.ALL_REDUCE
        yield Step(
            term=Term.TENSOR_PARALLEL, collective=tp_collective(kind, residual_bytes(features, sharding), sharding)
        )


def region_exit_backward(features: int, sharding: Sharding) -> Iterable[Step]:
    """Return the gathering of its gradient: with sequence parallelism each rank has a part of the tokens."""
    if sharding.tp > 1 and sharding.sequence_parallel:
        gather = tp_collective(CollectiveKind.ALL_GATHER, residual_bytes(features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=gather)


def linear_forward_steps(work: Linear, sharding: Sharding) -> Iterable[Step]:
    """Yield what one linear layer runs forward."""
    in_features, out_features = local_linear(work, sharding)
    tokens = linear_tokens(work, sharding)
    if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
        gather = tp_collective(CollectiveKind.ALL_GATHER, residual_bytes(work.in_features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=gather)
    if work.dtype is DType.FP8 and work.parallel is not Parallel.COLUMN:
        yield fp8_cast(tokens * in_features)
    yield Step(term=Term.GEMM, compute=gemm(tokens, out_features, in_features, work.dtype))
    yield from _adapter(work, sharding, passes=ADAPTER_FORWARD_PASSES)
    yield from _whole_heads(work, sharding, CollectiveKind.ALL_GATHER)
    if work.parallel is Parallel.ROW:
        yield from region_exit(work.out_features, sharding)


def linear_tokens(work: Linear, sharding: Sharding) -> int:
    """Return the tokens that a linear layer works on: every one of a tp group, or replicated those of the rank."""
    return sharding.residual_tokens if work.parallel is Parallel.REPLICATED else sharding.tokens


def linear_backward_steps(work: Linear, sharding: Sharding) -> Iterable[Step]:
    """Yield what it runs backward, the gradient of its input first."""
    in_features, out_features = local_linear(work, sharding)
    tokens = linear_tokens(work, sharding)
    column = work.parallel is Parallel.COLUMN
    yield from _whole_heads(work, sharding, CollectiveKind.REDUCE_SCATTER)
    if work.parallel is Parallel.ROW:
        yield from region_exit_backward(work.out_features, sharding)
    if work.dtype is DType.FP8:
        yield fp8_cast(tokens * out_features)
    reduction: Collective | None = None
    gather: Collective | None = None
    if column and sharding.tp > 1:
        stream_bytes = residual_bytes(work.in_features, sharding)
        if sharding.sequence_parallel:
            reduction = tp_collective(CollectiveKind.REDUCE_SCATTER, stream_bytes, sharding)
            if work.trains_weight:
                gather = tp_collective(CollectiveKind.ALL_GATHER, stream_bytes, sharding)
        else:
            reduction = tp_collective(CollectiveKind.ALL_REDUCE, stream_bytes, sharding)
    if work.needs_input_gradient:
        yield Step(
            term=Term.GEMM,
            compute=gemm(tokens, in_features, out_features, work.dtype),
            collective=gather,
        )
    if work.trains_weight:
        yield Step(
            term=Term.GEMM,
            compute=gemm(out_features, in_features, tokens, work.dtype, accumulate=True),
            collective=reduction,
            of_weights=True,
        )
    elif reduction is not None:
        yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)
    # Gradients of the input through both adapter matrices and of these themselves: the forward products twice.
    yield from _adapter(work, sharding, passes=ADAPTER_BACKWARD_PASSES)
    yield from (replace(step, of_weights=True) for step in _adapter(work, sharding, passes=0))


def spreads_heads(work: Linear, sharding: Sharding) -> bool:
    """Return whether tp cuts through the key/value heads that the layer computes."""
    return work.whole_heads is not None and work.whole_heads < sharding.tp


def _whole_heads(work: Linear, sharding: Sharding, kind: CollectiveKind) -> Iterable[Step]:
    """Return the gathering of q, k and v where there are fewer key/value heads than ranks, or its gradient.

    Megatron-LM's `get_query_key_value_tensors` splits the weight over tp all the same, gathers the whole output, and
    lets each rank pick its query heads and one key/value head.
    """
    if spreads_heads(work, sharding):
        whole = tp_collective(kind, residual_bytes(work.out_features, sharding), sharding)
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
    in_features, out_features = local_linear(replace(work, vocab_output=False), sharding)
    dtype = DType.BF16 if work.dtype is DType.FP8 else work.dtype
    yield Step(term=Term.GEMM, compute=gemm(sharding.tokens, work.adapter_rank, in_features, dtype))
    yield Step(term=Term.GEMM, compute=gemm(sharding.tokens, out_features, work.adapter_rank, dtype))
    if not passes:
        return
    if sharding.tp > 1:
        column = work.parallel is Parallel.COLUMN
        kind = CollectiveKind.ALL_REDUCE
        if sharding.sequence_parallel:
            kind = CollectiveKind.ALL_GATHER if column else CollectiveKind.REDUCE_SCATTER
        thin_bytes = residual_bytes(work.adapter_rank, sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=tp_collective(kind, thin_bytes, sharding))
    sum_bytes = passes * sharding.tokens * out_features * 2
    yield Step(term=Term.POINTWISE, compute=MemoryBound(name="adapter sum", num_bytes=sum_bytes, num_kernels=2))
