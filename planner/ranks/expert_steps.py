"""Experts on one rank: their products, and how tokens come to them and go back.

Tokens travel to their experts' ranks in an all-to-all over ep and are gathered over etp; results come back.
"""

import math
from collections.abc import Iterable

from planner.models.graph import (
    Combine,
    Dispatch,
    ExpertLinear,
    Parallel,
)
from planner.ranks.sharding import Sharding
from planner.ranks.step import Step, Term, fp8_cast, gemm
from planner.requests.workload import DType
from profiles.constants import ROUTING_KERNELS
from profiles.ops import Collective, CollectiveKind, MemoryBound

COUNT_BYTES = 8  # how many tokens go to each expert
MOVED_BYTES = 2
"""Bytes of an element of an expert's weights, or of their gradients, between ranks: 16 bit, whatever is multiplied."""


def expert_shape(work: ExpertLinear, sharding: Sharding, *, at_peak: bool = False) -> tuple[int, int, int, int]:
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


def moved_bytes(work: ExpertLinear, experts: float, sharding: Sharding) -> int:
    """Return the weights of so many experts on one rank."""
    _, _, in_features, out_features = expert_shape(work, sharding)
    return math.ceil(experts * in_features * out_features) * MOVED_BYTES


def _moved_experts(work: ExpertLinear, sharding: Sharding, *, times: int) -> Iterable[Step]:
    """Return the sending of experts' weights, or of their gradients, as an all-to-all of what the busiest rank has."""
    if sharding.moved_experts:
        sent_bytes = times * moved_bytes(work, sharding.moved_experts, sharding)
        exchange = Collective(
            kind=CollectiveKind.ALL_TO_ALL,
            # Of an all-to-all the rank's own part stays.
            buffer_bytes=-(-sent_bytes * sharding.ep // (sharding.ep - 1)),
            size=sharding.ep,
            stride=sharding.etp,
        )
        yield Step(term=Term.EXPERT_PARALLEL, collective=exchange, collective_term=Term.EXPERT_PARALLEL)


def expert_forward_steps(work: ExpertLinear, sharding: Sharding) -> Iterable[Step]:
    """Yield what one layer of a rank's experts runs forward, weights that are sent for balance first."""
    experts, rows, in_features, out_features = expert_shape(work, sharding)
    yield from _moved_experts(work, sharding, times=1)
    if work.dtype is DType.FP8:
        yield fp8_cast(experts * rows * in_features)
    product = gemm(rows, out_features, in_features, work.dtype, batch=experts)
    yield Step(term=Term.EXPERT_GEMM, compute=product)


def expert_backward_steps(work: ExpertLinear, sharding: Sharding) -> Iterable[Step]:
    """Yield what it runs backward: gradients of inputs and, where they train, of weights."""
    experts, rows, in_features, out_features = expert_shape(work, sharding)
    # Weights that were sent are not kept; their gradients go back to where they belong.
    yield from _moved_experts(work, sharding, times=1 + work.trains_weight)
    if work.dtype is DType.FP8:
        yield fp8_cast(experts * rows * out_features)
    yield Step(term=Term.EXPERT_GEMM, compute=gemm(rows, in_features, out_features, work.dtype, batch=experts))
    if work.trains_weight:
        gradient = gemm(out_features, in_features, rows, work.dtype, accumulate=True, batch=experts)
        yield Step(term=Term.EXPERT_GEMM, compute=gradient, of_weights=True)


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


def to_expert_steps(work: Dispatch | Combine, sharding: Sharding) -> Iterable[Step]:
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


def from_expert_steps(work: Dispatch | Combine, sharding: Sharding) -> Iterable[Step]:
    """Return what it takes to bring results back to their tokens and to sum them."""
    row_bytes = work.features * work.dtype.num_bytes
    if sharding.ep * sharding.etp > 1:
        yield _routed("rows by expert", 2 * sharding.expert_rows(work.visits) * row_bytes)
    yield from reversed(tuple(_between_experts(work, sharding, CollectiveKind.REDUCE_SCATTER)))
    yield _permutation(work, sharding)
