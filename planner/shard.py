"""One rank's share of a layer: its operations forward and backward, its weights, its saved tensors.

`shard_layer` rewrites the shapes of `planner.graph` for tp (with or without sequence parallelism) and cp, and adds
the collectives at the region boundaries:

- column-parallel entry: all-gather of the input with sequence parallelism, nothing without; backward reduces the
  input gradient (reduce-scatter, or all-reduce);
- row-parallel exit: reduce-scatter or all-reduce of the output; backward gathers the output gradient, or nothing.

Backward of a column-parallel layer gathers its input again beside the input-gradient product and reduces the input
gradient beside the weight-gradient product, as Megatron-LM's `LinearWithGradAccumulationAndAsyncCommunication` does.
A `Step` is what runs at the same time; it takes as long as its longer part.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from planner.graph import (
    CoreAttention,
    LayerGraph,
    Linear,
    Lookup,
    LossReduction,
    Module,
    Operator,
    Parallel,
    Pointwise,
    Region,
    Saved,
    Weight,
)
from planner.layout import Granularity, Layout, Recompute
from planner.workload import DType
from profiles.ops import Attention, Collective, CollectiveKind, ComputeOp, Gemm, MemoryBound

ADAPTER_FORWARD_PASSES = 5  # scale: read, write; add: read two, write
ADAPTER_BACKWARD_PASSES = 2  # scale the gradient: read, write

VOCAB_DIVISOR = 128
"""Megatron-LM's default `--make-vocab-size-divisible-by`; the table is padded to a multiple of this times tp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """What of a layout decides one layer's operations on one rank.

    Args:
        tp: Tensor-parallel degree.
        sequence_parallel: The residual region's tokens are split over tp.
        cp: Context-parallel degree.
        micro_batch_size: Sequences of one micro-batch.
        seq_len: Tokens of one sequence.
    """

    tp: int
    sequence_parallel: bool
    cp: int
    micro_batch_size: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Return the tokens of one micro-batch on one tp group."""
        return self.micro_batch_size * self.seq_len // self.cp

    @property
    def residual_tokens(self) -> int:
        """Return the tokens of one micro-batch that one rank holds in the residual region."""
        return self.tokens // self.tp if self.sequence_parallel else self.tokens


def sharding_of(layout: Layout, seq_len: int) -> Sharding:
    """Return the part of `layout` that shards a layer."""
    return Sharding(
        tp=layout.tp,
        sequence_parallel=layout.sequence_parallel,
        cp=layout.cp,
        micro_batch_size=layout.micro_batch_size,
        seq_len=seq_len,
    )


class Term(StrEnum):
    """What a stretch of time is spent on, as reports name it."""

    GEMM = "linear layers"
    ATTENTION = "attention"
    POINTWISE = "memory-bound kernels"
    TENSOR_PARALLEL = "tensor-parallel collectives"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Work that runs at the same time: one kernel, one collective, or both.

    Args:
        term: What the kernel's time counts as.
        compute: The kernel.
        collective: The collective beside it.
    """

    term: Term
    compute: ComputeOp | None = None
    collective: Collective | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWeight:
    """One rank's part of a weight.

    Args:
        weight: The whole weight.
        num_elements: Elements on this rank, vocabulary padding included.
    """

    weight: Weight
    num_elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSaved:
    """One rank's part of a saved tensor, for one micro-batch."""

    saved: Saved
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayer:
    """One rank's share of one layer, for one micro-batch.

    Args:
        name: What kind of layer it is.
        forward: Steps of the forward pass.
        backward: Steps of the backward pass, recomputation not included.
        forward_of_module: Forward steps by recompute module, for selective recompute.
        weights: This rank's weights.
        saved: Tensors kept for backward.
        layer_input_bytes: What full recompute keeps instead.
        transient_bytes: Largest set of tensors that live only inside one operator's backward.
    """

    name: str
    forward: tuple[Step, ...]
    backward: tuple[Step, ...]
    forward_of_module: tuple[tuple[Module, tuple[Step, ...]], ...]
    weights: tuple[RankWeight, ...]
    saved: tuple[RankSaved, ...]
    layer_input_bytes: int
    transient_bytes: int

    def saved_bytes(self, recompute: Recompute) -> int:
        """Return the bytes that one micro-batch keeps under `recompute` (every layer recomputed if full)."""
        if recompute.granularity is Granularity.FULL:
            return self.layer_input_bytes
        return sum(part.num_bytes for part in self.saved if part.saved.dropped_by not in recompute.modules)

    @property
    def all_saved_bytes(self) -> int:
        """Return the bytes that one micro-batch keeps without recompute."""
        return sum(part.num_bytes for part in self.saved)

    def recomputed_steps(self, recompute: Recompute) -> tuple[Step, ...]:
        """Return the forward steps that backward runs again under `recompute`."""
        if recompute.granularity is Granularity.FULL:
            return self.forward
        return tuple(step for module, steps in self.forward_of_module if module in recompute.modules for step in steps)

    def num_elements(self, *, trainable: bool | None = None, gemm_operand: bool | None = None) -> int:
        """Return the weight elements on this rank, filtered by what is asked."""
        return sum(
            part.num_elements
            for part in self.weights
            if (trainable is None or part.weight.trainable is trainable)
            and (gemm_operand is None or part.weight.gemm_operand is gemm_operand)
        )


def padded_vocab_size(vocab_size: int, tp: int) -> int:
    """Return the vocabulary as Megatron-LM pads it for `tp` ranks."""
    multiple = VOCAB_DIVISOR * tp
    return -(-vocab_size // multiple) * multiple


def split_features(features: int, tp: int, granule: int = 1) -> int:
    """Return the features that one of `tp` ranks holds when whole granules are split, at least one each."""
    groups = features // granule
    return max(groups // tp, 1) * granule if granule > 1 else features // tp


def rank_weight(weight: Weight, tp: int) -> RankWeight:
    """Return one rank's part of `weight`.

    Raises:
        ValueError: The split dimension is not a multiple of tp; legality rules keep such layouts out.
    """
    total = 1
    for dim, size in enumerate(weight.shape):
        padded = padded_vocab_size(size, tp) if dim == weight.vocab_dim else size
        if dim == weight.split_dim:
            if padded % tp:
                raise ValueError(f"{weight.name}: dimension of {padded} cannot be split over tp = {tp}")
            padded //= tp
        total *= padded
    return RankWeight(weight=weight, num_elements=total)


def rank_saved(saved: Saved, sharding: Sharding) -> RankSaved:
    """Return one rank's part of a saved tensor."""
    if saved.region is Region.RESIDUAL:
        elements = sharding.residual_tokens * saved.features
    else:
        features = padded_vocab_size(saved.features, sharding.tp) if saved.vocab_features else saved.features
        elements = sharding.tokens * split_features(features, sharding.tp, saved.granule)
    return RankSaved(saved=saved, num_bytes=elements * saved.element_bytes)


def shard_layer(layer: LayerGraph, sharding: Sharding) -> RankLayer:
    """Return one rank's share of `layer`."""
    forward: list[Step] = []
    backward: list[Step] = []
    of_module: dict[Module, list[Step]] = {}
    transient = 0
    for operator in layer.operators:
        forth = tuple(_forward(operator, sharding))
        forward += forth
        if operator.module is not None:
            of_module.setdefault(operator.module, []).extend(forth)
        transient = max(transient, _transient_bytes(operator, sharding))
    for operator in reversed(layer.operators):
        backward += _backward(operator, sharding)
    return RankLayer(
        name=layer.name,
        forward=tuple(forward),
        backward=tuple(backward),
        forward_of_module=tuple((module, tuple(steps)) for module, steps in of_module.items()),
        weights=tuple(rank_weight(weight, sharding.tp) for weight in layer.weights),
        saved=tuple(rank_saved(saved, sharding) for operator in layer.operators for saved in operator.saved),
        layer_input_bytes=0 if layer.layer_input is None else rank_saved(layer.layer_input, sharding).num_bytes,
        transient_bytes=transient,
    )


def _local_linear(work: Linear, sharding: Sharding) -> tuple[int, int]:
    """Return (in, out) features of one rank's part of a linear layer."""
    out_features = work.out_features
    if work.vocab_output:
        out_features = padded_vocab_size(out_features, sharding.tp)
    if work.parallel is Parallel.COLUMN:
        return work.in_features, out_features // sharding.tp
    return work.in_features // sharding.tp, out_features


def _tp_collective(kind: CollectiveKind, buffer_bytes: int, sharding: Sharding) -> Collective:
    return Collective(kind=kind, buffer_bytes=buffer_bytes, size=sharding.tp, stride=1)


def _stream_bytes(features: int, sharding: Sharding, element_bytes: int = 2) -> int:
    return sharding.tokens * features * element_bytes


def _gemm(m: int, n: int, k: int, dtype: DType, *, accumulate: bool = False) -> Gemm:
    """Return a product; weight gradients are added to an fp32 buffer, everything else leaves in 16 bit."""
    return Gemm(
        m=m,
        n=n,
        k=k,
        dtype=dtype.value,
        input_bytes_per_element=dtype.num_bytes,
        output_bytes_per_element=4 if accumulate else 2,
        accumulate=accumulate,
    )


def _forward(operator: Operator, sharding: Sharding) -> Iterable[Step]:
    work = operator.work
    match work:
        case Linear():
            yield from _linear_forward(work, sharding)
        case CoreAttention():
            yield Step(term=Term.ATTENTION, compute=_attention(work, sharding, backward=False))
        case Pointwise():
            yield Step(
                term=Term.POINTWISE,
                compute=MemoryBound(
                    name=operator.name,
                    num_bytes=_pointwise_bytes(work, work.forward_bytes_per_token, sharding),
                    num_kernels=work.num_kernels,
                ),
            )
        case Lookup():
            num_bytes = 2 * _stream_bytes(work.hidden_size, sharding, work.dtype.num_bytes)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding look-up", num_bytes=num_bytes))
            yield from _exit(work.hidden_size, sharding)
        case LossReduction():
            if sharding.tp > 1:
                reduction = _tp_collective(CollectiveKind.ALL_REDUCE, sharding.tokens * 4, sharding)
                for _ in range(work.num_reductions):
                    yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)


def _backward(operator: Operator, sharding: Sharding) -> Iterable[Step]:
    work = operator.work
    match work:
        case Linear():
            yield from _linear_backward(work, sharding)
        case CoreAttention():
            yield Step(term=Term.ATTENTION, compute=_attention(work, sharding, backward=True))
        case Pointwise():
            yield Step(
                term=Term.POINTWISE,
                compute=MemoryBound(
                    name=operator.name,
                    num_bytes=_pointwise_bytes(work, work.backward_bytes_per_token, sharding),
                    num_kernels=work.num_kernels,
                ),
            )
        case Lookup():
            yield from _exit_backward(work.hidden_size, sharding)
            # Each token's gradient is read and added to its fp32 row.
            num_bytes = sharding.tokens * work.hidden_size * (work.dtype.num_bytes + 8)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding gradient", num_bytes=num_bytes))
        case LossReduction():
            return


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
    if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
        gather = _tp_collective(CollectiveKind.ALL_GATHER, _stream_bytes(work.in_features, sharding), sharding)
        yield Step(term=Term.TENSOR_PARALLEL, collective=gather)
    if work.dtype is DType.FP8:
        yield _cast(in_features, sharding)
    yield Step(term=Term.GEMM, compute=_gemm(sharding.tokens, out_features, in_features, work.dtype))
    yield from _adapter(work, sharding, passes=ADAPTER_FORWARD_PASSES)
    yield from _whole_heads(work, sharding, CollectiveKind.ALL_GATHER)
    if work.parallel is Parallel.ROW:
        yield from _exit(work.out_features, sharding)


def _linear_backward(work: Linear, sharding: Sharding) -> Iterable[Step]:
    in_features, out_features = _local_linear(work, sharding)
    tokens = sharding.tokens
    column = work.parallel is Parallel.COLUMN
    yield from _whole_heads(work, sharding, CollectiveKind.REDUCE_SCATTER)
    if not column:
        yield from _exit_backward(work.out_features, sharding)
    if work.dtype is DType.FP8:
        yield _cast(out_features, sharding)
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
        )
    elif reduction is not None:
        yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)
    # Gradients of both adapter matrices and of the input through them: the forward products twice.
    yield from _adapter(work, sharding, passes=ADAPTER_BACKWARD_PASSES)
    yield from _adapter(work, sharding, passes=0)


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


def _cast(features: int, sharding: Sharding) -> Step:
    """Return the quantisation of one fp8 operand: read 16 bit, write it and its transpose in 8."""
    num_bytes = sharding.tokens * features * 4
    return Step(term=Term.POINTWISE, compute=MemoryBound(name="fp8 quantisation", num_bytes=num_bytes))


def _attention(work: CoreAttention, sharding: Sharding, *, backward: bool) -> Attention:
    spec = work.attention
    query_len = sharding.seq_len // sharding.cp
    return Attention(
        batch=sharding.micro_batch_size,
        query_len=query_len,
        kv_len=sharding.seq_len,
        num_heads=spec.num_attention_heads // sharding.tp,
        num_kv_heads=max(spec.num_key_value_heads // sharding.tp, 1),
        head_dim=spec.head_dim,
        dtype=work.dtype.value,
        bytes_per_element=work.dtype.num_bytes,
        causal=True,
        backward=backward,
        fused=work.fused,
    )


def _pointwise_bytes(work: Pointwise, bytes_per_token: int, sharding: Sharding) -> int:
    if work.vocab_features:
        vocab = padded_vocab_size(work.vocab_features, sharding.tp) // sharding.tp
        return sharding.tokens * vocab * bytes_per_token
    if work.region is Region.RESIDUAL:
        return sharding.residual_tokens * bytes_per_token
    return sharding.tokens * bytes_per_token // sharding.tp


def _transient_bytes(operator: Operator, sharding: Sharding) -> int:
    """Return what one operator's backward holds besides saved tensors: gradients of its output and input, 16 bit.

    A column-parallel layer under sequence parallelism also holds its gathered input, one that spreads key/value heads
    over more ranks its gathered output.
    """
    work = operator.work
    if isinstance(work, Linear):
        in_features, out_features = _local_linear(work, sharding)
        features = in_features + out_features
        if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
            features += in_features
        if _spreads_heads(work, sharding):
            features += work.out_features
        return sharding.tokens * features * 2
    if isinstance(work, CoreAttention):
        spec = work.attention
        heads = spec.query_size * 2 + spec.key_value_size * 2
        return sharding.tokens * split_features(heads, sharding.tp, spec.head_dim) * 2
    return 0
