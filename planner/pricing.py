"""The time of a layer's steps on one cluster, by term, with where each figure comes from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.steps import Step, Term
from profiles.constants import RECOMPUTE_LAUNCHES
from profiles.estimate import CostModel, Estimate, Source
from profiles.ops import Collective, CollectiveKind
from profiles.software import TensorParallelOverlap

_IN_PIECES = frozenset({CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER})
"""Collectives that user buffers cut into pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Seconds by term.

    Args:
        seconds: Seconds of each term that occurs.
        notes: Where the figures come from: term, source, note.
    """

    seconds: Mapping[Term, float]
    notes: frozenset[tuple[Term, Source, str]]

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
    for term, part, estimate in _parts(steps, cost_model):
        seconds[term] = seconds.get(term, 0.0) + part
        notes.add((term, estimate.source, estimate.note))
    return Price(seconds=seconds, notes=frozenset(notes))


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
    for step in steps:
        compute_seconds = 0.0
        if step.compute is not None:
            estimate = cost_model.compute(step.compute)
            compute_seconds = estimate.seconds
            yield step.term, compute_seconds, estimate
        if step.collective is not None:
            estimate = cost_model.collective(step.collective)
            exposed = _exposed_seconds(step, step.collective, estimate.seconds, compute_seconds, cost_model)
            yield step.collective_term, exposed, estimate


def _exposed_seconds(
    step: Step, collective: Collective, seconds: float, compute_seconds: float, cost_model: CostModel
) -> float:
    """Return what a step's collective, of `seconds` each time, adds to the kernel that it runs beside."""
    transfers = collective.kind is CollectiveKind.SEND_RECV
    slowdown = cost_model.transfer_slowdown if transfers else cost_model.overlap_slowdown
    if step.collective_term is Term.TENSOR_PARALLEL:
        match cost_model.tensor_parallel_overlap:
            case TensorParallelOverlap.NOTHING:
                again = step.compute is not None and collective.kind is CollectiveKind.ALL_GATHER
                return 0.0 if again else step.repeats * seconds
            case TensorParallelOverlap.EVERY_PRODUCT if step.compute is None and collective.kind in _IN_PIECES:
                first = step.repeats * seconds / collective.size
                return first + slowdown * (step.repeats * seconds - first)
    return added_seconds(step.repeats * seconds, compute_seconds, slowdown=slowdown)


def added_seconds(collective_seconds: float, compute_seconds: float, *, slowdown: float) -> float:
    """Return what a collective that runs beside a computation adds to it.

    Args:
        collective_seconds: The collective alone.
        compute_seconds: The computation alone; 0 exposes all of the collective.
        slowdown: Seconds that the computation loses for each second of the collective.
    """
    hidden = min(collective_seconds, compute_seconds)
    return max(collective_seconds - compute_seconds, hidden * slowdown)
