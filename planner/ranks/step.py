"""What runs at the same time on a rank: one kernel, a collective beside it, or both; and what steps are made of.

A `Step` takes as long as its longer part.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from planner.ranks.sharding import Sharding
from planner.requests.workload import DType
from profiles import ops
from profiles.ops import Collective, CollectiveKind, Gemm, KernelOp, MemoryBound


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


def tp_collective(kind: CollectiveKind, buffer_bytes: int, sharding: Sharding) -> Collective:
    """Return a collective over the ranks of a tensor-parallel group, which are neighbours."""
    return Collective(kind=kind, buffer_bytes=buffer_bytes, size=sharding.tp, stride=1)


def residual_bytes(features: int, sharding: Sharding, element_bytes: int = 2) -> int:
    """Return what all tokens of a tensor-parallel group hold of `features`; 16 bit unless told."""
    return sharding.tokens * features * element_bytes


def gemm(  # noqa: PLR0913 - the facts of a product
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


def fp8_cast(elements: int) -> Step:
    """Return the quantisation of one fp8 operand: read 16 bit, write it and its transpose in 8.

    The input of a column-parallel layer leaves its norm in fp8 (Transformer Engine's `LayerNormLinear`), for no more
    bytes than in 16 bit.
    """
    return Step(term=Term.POINTWISE, compute=MemoryBound(name="fp8 quantisation", num_bytes=elements * 4))


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
