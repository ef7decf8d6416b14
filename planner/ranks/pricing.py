"""The time of a layer's steps on one cluster, by term, with where each figure comes from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.ranks.step import Step, Term
from profiles.constants import RECOMPUTE_LAUNCHES
from profiles.estimate import CostModel, Estimate, Source
from profiles.ops import CollectiveKind, Gemm
from profiles.software import TensorParallelOverlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Seconds by term.

    Args:
        seconds: Seconds of each term that occurs.
        notes: Where the figures come from: term, source, note.
        of_sources: Seconds by where they come from; they add up to the same.
    """

    seconds: Mapping[Term, float]
    notes: frozenset[tuple[Term, Source, str]]
    of_sources: Mapping[Source, float]

    @property
    def total_seconds(self) -> float:
        """Return the sum over terms."""
        return sum(self.seconds.values())


def price_steps(steps: Iterable[Step], cost_model: CostModel) -> Price:
    """Return what `steps` cost one after the other.

    A kernel with a collective beside it is slowed down while that runs; the step takes as long as the longer of both.
    All that it takes beyond the lone kernel counts as communication.

    Raises:
        profiles.errors.CoverageError: A step has no cost.
    """
    seconds: dict[Term, float] = {}
    notes: set[tuple[Term, Source, str]] = set()
    of_sources: dict[Source, float] = {}
    for term, part, estimate in _parts(steps, cost_model):
        seconds[term] = seconds.get(term, 0.0) + part
        of_sources[estimate.source] = of_sources.get(estimate.source, 0.0) + part
        notes.add((term, estimate.source, estimate.note))
    return Price(seconds=seconds, notes=frozenset(notes), of_sources=of_sources)


def launches_seconds(steps: Iterable[Step], cost_model: CostModel) -> float:
    """Return the host's time for starting `steps`: what runs them takes no less."""
    return sum(step.num_launches for step in steps) * cost_model.launch_seconds


def restart_seconds(num_regions: int, cost_model: CostModel) -> float:
    """Return the host's time for running `num_regions` checkpointed regions again, their kernels left out."""
    return num_regions * RECOMPUTE_LAUNCHES.value * cost_model.launch_seconds


def steps_seconds(steps: Iterable[Step], cost_model: CostModel) -> float:
    """Return what `price_steps` costs in all, without the account of it."""
    return sum(part for _, part, _ in _parts(steps, cost_model))


def _parts(steps: Iterable[Step], cost_model: CostModel) -> Iterable[tuple[Term, float, Estimate]]:
    """Yield the seconds that each kernel and each collective adds, under which term, and the estimate behind it."""
    listed = tuple(steps)
    for index, step in enumerate(listed):
        compute_seconds = 0.0
        if step.compute is not None:
            estimate = cost_model.compute(step.compute)
            compute_seconds = estimate.seconds
            yield step.term, compute_seconds, estimate
        if step.collective is not None:
            estimate = cost_model.collective(step.collective)
            seconds = step.repeats * estimate.seconds
            if step.collective_term is Term.TENSOR_PARALLEL:
                exposed = _tensor_parallel_seconds(listed, index, seconds, compute_seconds, cost_model)
            else:
                transfers = step.collective.kind is CollectiveKind.SEND_RECV
                slowdown = cost_model.transfer_slowdown if transfers else cost_model.overlap_slowdown
                exposed = added_seconds(seconds, compute_seconds, slowdown=slowdown)
            yield step.collective_term, exposed, estimate


def _tensor_parallel_seconds(
    steps: tuple[Step, ...], index: int, seconds: float, compute_seconds: float, cost_model: CostModel
) -> float:
    """Return what the tensor-parallel collective of one step, of `seconds`, adds to what it runs beside.

    Cut into pieces, all but the first of a gather run beside the product behind it, and all but the last of a scatter
    beside the product in front of it.
    """
    step, slowdown = steps[index], cost_model.overlap_slowdown
    assert step.collective is not None, "a step is asked what its collective adds"
    kind = step.collective.kind
    match cost_model.tensor_parallel_overlap:
        case TensorParallelOverlap.NOTHING:
            again = step.compute is not None and kind is CollectiveKind.ALL_GATHER
            return 0.0 if again else seconds
        case TensorParallelOverlap.EVERY_PRODUCT if step.compute is None:
            product = _product_beside(steps, index, kind)
            if product is not None:
                lone = seconds / step.collective.size
                product_seconds = cost_model.compute(product).seconds
                return lone + added_seconds(seconds - lone, product_seconds, slowdown=slowdown)
    return added_seconds(seconds, compute_seconds, slowdown=slowdown)


def _product_beside(steps: tuple[Step, ...], index: int, kind: CollectiveKind) -> Gemm | None:
    """Return the product that waits for a gather, or that a scatter waits for; a quantisation may stand between."""
    near: tuple[Step, ...] = ()
    if kind is CollectiveKind.ALL_GATHER:
        near = steps[index + 1 : index + 3]
    elif kind is CollectiveKind.REDUCE_SCATTER:
        near = steps[max(0, index - 2) : index][::-1]
    return next((step.compute for step in near if isinstance(step.compute, Gemm)), None)


def added_seconds(collective_seconds: float, compute_seconds: float, *, slowdown: float) -> float:
    """Return what a collective that runs beside a computation adds to it.

    Args:
        collective_seconds: The collective alone.
        compute_seconds: The computation alone; 0 exposes all of the collective.
        slowdown: Seconds that the computation loses for each second of the collective.
    """
    hidden = min(collective_seconds, compute_seconds)
    return max(collective_seconds - compute_seconds, hidden * slowdown)
