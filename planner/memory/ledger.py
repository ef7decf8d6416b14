"""The memory ledger: every term of one rank's memory, in exact bytes, phase by phase.

Phases: initialisation (weights, gradient buffer, master weights; moments are made at the first update), the worst
moment of forward and backward (everything, with as many micro-batches in flight as the schedule keeps), and the
optimizer step. The heaviest phase of the heaviest rank decides whether a plan fits.

Weights, gradients and states follow Megatron-LM's distributed optimizer (Rajbhandari et al., arXiv 1910.02054, for
the stages); activations are the saved tensors of `planner.models.graph`, which Korthikanti et al. (arXiv 2205.05198)
published as formulas.
"""

import math
from dataclasses import dataclass

from planner.frameworks.habits import PLANNED, Habits
from planner.memory.saved import activation_peaks, working_set_bytes
from planner.memory.terms import FRAGMENTATION, dynamic_terms, loss_bytes, rank_phases
from planner.plans.plan import MemoryLine, Phase
from planner.ranks.placement import PlacedModel

WORKING_TERMS = frozenset(
    {
        "activations",
        "backward temporaries",
        "gradients on their way",
        "gradients to reduce",
        "logits and loss",
        "pipeline buffers",
        "stage outputs",
    }
)
"""Terms that come and go within a step: the allocator loses a part of these."""


def memory_ledger(
    placed: PlacedModel, habits: Habits = PLANNED, *, activation_bytes_R: tuple[int, ...] | None = None
) -> tuple[MemoryLine, ...]:
    """Return every line of every pipeline rank's memory, as a framework of `habits` keeps it.

    Args:
        placed: The model under its layout.
        habits: What the framework keeps.
        activation_bytes_R: The most activations that each pipeline rank holds at once; None for those of the layout's
            own schedule.
    """
    layout = placed.layout
    peaks = activation_bytes_R or activation_peaks(placed)
    return tuple(
        MemoryLine(
            rank=layout.first_global_rank(pipeline_rank),
            phase=phase,
            term=term.name,
            num_bytes=term.num_bytes,
            source=term.source,
        )
        for pipeline_rank in range(layout.pp)
        for phase, terms in rank_phases(
            placed, pipeline_rank, dynamic_terms(placed, pipeline_rank, peaks[pipeline_rank], habits), habits
        )
        for term in terms
    )


def room_bytes(placed: PlacedModel, pipeline_rank: int, *, limit_bytes: int) -> int:
    """Return the most that saved tensors, and temporaries or the loss beside them, may take of one pipeline rank.

    Args:
        placed: A layout that recomputes nothing.
        pipeline_rank: The rank; what it needs at other times must fit by itself.
        limit_bytes: What each GPU may use.
    """
    has_head = any(stage.has_head for stage in placed.layout.chunks(pipeline_rank))
    beside = max(working_set_bytes(placed, pipeline_rank), loss_bytes(placed, PLANNED) if has_head else 0)
    return activation_room_bytes(placed, pipeline_rank, limit_bytes=limit_bytes) + beside


def activation_room_bytes(placed: PlacedModel, pipeline_rank: int, *, limit_bytes: int) -> int:
    """Return the most that saved tensors alone may take of one pipeline rank; below 0 where it is full without any."""
    need = rank_need(placed, pipeline_rank)
    more = math.floor((limit_bytes - need.kept_bytes) / (1.0 + need.lost_fraction)) - need.passing_bytes
    while need.working_bytes(more) > limit_bytes:
        more -= 1
    while need.working_bytes(more + 1) <= limit_bytes:
        more += 1
    return more


@dataclass(frozen=True, slots=True, kw_only=True)
class RankNeed:
    """What one pipeline rank holds beside saved tensors.

    Args:
        kept_bytes: What stays between passes.
        passing_bytes: What comes and goes with them, the allocator's loss left out.
        lost_fraction: What the allocator loses of that and of saved tensors.
        other_bytes: The larger of the phases that have no saved tensors.
    """

    kept_bytes: int
    passing_bytes: int
    lost_fraction: float
    other_bytes: int

    def working_bytes(self, activation_bytes: int) -> int:
        """Return what forward and backward passes take with these saved tensors."""
        passing = self.passing_bytes + activation_bytes
        return self.kept_bytes + passing + round(passing * self.lost_fraction)

    def peak_bytes(self, activation_bytes: int) -> int:
        """Return the largest phase."""
        return max(self.other_bytes, self.working_bytes(activation_bytes))


def rank_need(placed: PlacedModel, pipeline_rank: int) -> RankNeed:
    """Return what one pipeline rank of a planned layout holds beside saved tensors."""
    dynamic = dynamic_terms(placed, pipeline_rank, 0, PLANNED)
    phases = rank_phases(placed, pipeline_rank, dynamic, PLANNED)
    totals = {phase: sum(term.num_bytes for term in terms) for phase, terms in phases}
    working = totals.pop(Phase.FORWARD_BACKWARD)
    return RankNeed(
        kept_bytes=working - sum(term.num_bytes for term in dynamic),
        passing_bytes=sum(term.num_bytes for term in dynamic if term.name != FRAGMENTATION),
        lost_fraction=placed.capabilities.overheads.lost_fraction,
        other_bytes=max(totals.values()),
    )


def peak_memory_bytes(lines: tuple[MemoryLine, ...]) -> int:
    """Return the largest phase of the heaviest rank."""
    return max(peaks_of_ranks(lines))


def peaks_of_ranks(lines: tuple[MemoryLine, ...]) -> tuple[int, ...]:
    """Return the largest phase of each pipeline rank, lowest rank first."""
    totals: dict[tuple[int, Phase], int] = {}
    for line in lines:
        key = (line.rank, line.phase)
        totals[key] = totals.get(key, 0) + line.num_bytes
    peaks: dict[int, int] = {}
    for (rank, _), num_bytes in totals.items():
        peaks[rank] = max(peaks.get(rank, 0), num_bytes)
    return tuple(peaks[rank] for rank in sorted(peaks))


def memory_limit_bytes(device_bytes: int, headroom: float) -> int:
    """Return what a plan may use of a GPU's memory."""
    return int(device_bytes * (1.0 - headroom))
