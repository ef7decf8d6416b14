"""What one rank runs for each operator: kernels and the collectives around and beside them.

The shapes of `planner.models.graph` are rewritten for every degree that cuts a layer: `planner.ranks.linear_steps`
(tp), `planner.ranks.sequence_steps` (cp), `planner.ranks.expert_steps` (ep, etp).
"""

from collections.abc import Iterable

from planner.models.graph import (
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
from planner.ranks.expert_steps import (
    expert_backward_steps,
    expert_forward_steps,
    expert_shape,
    from_expert_steps,
    moved_bytes,
    to_expert_steps,
)
from planner.ranks.linear_steps import (
    linear_backward_steps,
    linear_forward_steps,
    linear_tokens,
    local_linear,
    region_exit,
    region_exit_backward,
    spreads_heads,
)
from planner.ranks.sequence_steps import attention_steps, key_value_bytes, scan_steps
from planner.ranks.sharding import Sharding, split_features
from planner.ranks.step import Step, Term, residual_bytes, tp_collective
from profiles.ops import CollectiveKind, MemoryBound


def forward_steps(operator: Operator, sharding: Sharding) -> Iterable[Step]:  # noqa: C901 - a table of the kinds of work
    """Yield what the forward pass of one operator runs on a rank."""
    work = operator.work
    match work:
        case Linear():
            yield from linear_forward_steps(work, sharding)
        case ExpertLinear():
            yield from expert_forward_steps(work, sharding)
        case Dispatch():
            yield from to_expert_steps(work, sharding)
        case Combine():
            yield from from_expert_steps(work, sharding)
        case CoreAttention():
            yield from attention_steps(work, sharding, backward=False)
        case StateScan():
            yield from scan_steps(work, sharding, backward=False)
        case Pointwise():
            yield _pointwise(work, work.forward_bytes_per_token, sharding)
        case Lookup():
            num_bytes = 2 * residual_bytes(work.hidden_size, sharding, work.dtype.num_bytes)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding look-up", num_bytes=num_bytes))
            yield from region_exit(work.hidden_size, sharding)
        case LossReduction():
            if sharding.tp > 1:
                reduction = tp_collective(CollectiveKind.ALL_REDUCE, sharding.tokens * 4, sharding)
                for _ in range(work.num_reductions):
                    yield Step(term=Term.TENSOR_PARALLEL, collective=reduction)


def backward_steps(operator: Operator, sharding: Sharding) -> Iterable[Step]:
    """Yield what the backward pass of one operator runs on a rank."""
    work = operator.work
    match work:
        case Linear():
            yield from linear_backward_steps(work, sharding)
        case ExpertLinear():
            yield from expert_backward_steps(work, sharding)
        case Dispatch():
            yield from from_expert_steps(work, sharding)
        case Combine():
            yield from to_expert_steps(work, sharding)
        case CoreAttention():
            yield from attention_steps(work, sharding, backward=True)
        case StateScan():
            yield from scan_steps(work, sharding, backward=True)
        case Pointwise():
            yield _pointwise(work, work.backward_bytes_per_token, sharding)
        case Lookup():
            yield from region_exit_backward(work.hidden_size, sharding)
            # Each token's gradient is read and added to its fp32 row.
            num_bytes = sharding.tokens * work.hidden_size * (work.dtype.num_bytes + 8)
            yield Step(term=Term.POINTWISE, compute=MemoryBound(name="embedding gradient", num_bytes=num_bytes))
        case LossReduction():
            return


def _pointwise(work: Pointwise, bytes_per_token: int, sharding: Sharding) -> Step:
    num_bytes = _pointwise_bytes(work, bytes_per_token, sharding)
    compute = MemoryBound(name=work.kernel, num_bytes=num_bytes, num_kernels=work.num_kernels, is_norm=work.is_norm)
    return Step(term=Term.POINTWISE, compute=compute)


def output_gradient_bytes(operator: Operator, sharding: Sharding) -> int:
    """Return the output's gradient that an operator's gradient of weights reads; 0 where it has no product for it."""
    work = operator.work
    match work:
        case Linear() if work.trains_weight or work.adapter_rank:
            _, out_features = local_linear(work, sharding)
            element_bytes = work.dtype.num_bytes if work.trains_weight else 2
            return linear_tokens(work, sharding) * out_features * element_bytes
        case ExpertLinear() if work.trains_weight:
            experts, rows, _, out_features = expert_shape(work, sharding, at_peak=True)
            return experts * rows * out_features * work.dtype.num_bytes
        case _:
            return 0


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
            in_features, out_features = local_linear(work, sharding)
            features = in_features + out_features
            if work.parallel is Parallel.COLUMN and sharding.tp > 1 and sharding.sequence_parallel:
                features += in_features
            if spreads_heads(work, sharding):
                features += work.out_features
            return linear_tokens(work, sharding) * features * 2
        case ExpertLinear():
            experts, rows, in_features, out_features = expert_shape(work, sharding, at_peak=True)
            moved = (1 + work.trains_weight) * moved_bytes(work, sharding.peak_moved_experts, sharding)
            return experts * rows * (in_features + out_features) * 2 + moved
        case Dispatch() | Combine():
            return 2 * sharding.peak_expert_rows(work.visits) * work.features * work.dtype.num_bytes
        case CoreAttention():
            queries = split_features(work.num_heads * work.qk_head_dim, sharding.tp, work.qk_head_dim)
            outputs = split_features(work.num_heads * work.v_head_dim, sharding.tp, work.v_head_dim)
            keys = split_features(work.num_kv_heads * work.qk_head_dim, sharding.tp, work.qk_head_dim)
            values = split_features(work.num_kv_heads * work.v_head_dim, sharding.tp, work.v_head_dim)
            ring_bytes = 4 * key_value_bytes(work, sharding) if sharding.ring > 1 else 0
            heads = split_features(work.num_heads, sharding.tp, 1)
            scores = 0 if work.fused else 2 * heads * sharding.seq_len
            return sharding.tokens * (queries + outputs + keys + values + scores) * 2 + ring_bytes
        case StateScan():
            return sharding.tokens * (work.in_features + work.num_heads * work.value_dim) // sharding.tp * 2
        case _:
            return 0
