"""The ledger of a plan by pipeline rank and phase: which rank is heaviest, and what it holds at its peak."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from planner.plans.plan import MemoryLine, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """The memory of one pipeline rank, phase by phase.

    Args:
        rank: Lowest global rank of the pipeline rank.
        phase_bytes: Total of each phase.
        limit_bytes: What the rank may use.
    """

    rank: int
    phase_bytes: Mapping[Phase, int]
    limit_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Return the largest phase."""
        return max(self.phase_bytes.values())

    @property
    def peak_phase(self) -> Phase:
        """Return the phase that peaks; the earlier one of equals."""
        return max(self.phase_bytes, key=self.phase_bytes.__getitem__)

    @property
    def left_bytes(self) -> int:
        """Return what is left below the limit; negative when the rank does not fit."""
        return self.limit_bytes - self.peak_bytes


def memory_by_rank(lines: Iterable[MemoryLine], *, limit_bytes: int | tuple[int, ...]) -> tuple[RankMemory, ...]:
    """Return each pipeline rank's memory by phase, lowest rank first.

    Args:
        lines: A ledger.
        limit_bytes: What each GPU may use: one number, or one for each pipeline rank.
    """
    totals: dict[int, dict[Phase, int]] = {}
    for line in lines:
        phases = totals.setdefault(line.rank, {})
        phases[line.phase] = phases.get(line.phase, 0) + line.num_bytes
    limits = (limit_bytes,) * len(totals) if isinstance(limit_bytes, int) else limit_bytes
    return tuple(
        RankMemory(
            rank=rank,
            phase_bytes={phase: totals[rank][phase] for phase in Phase if phase in totals[rank]},
            limit_bytes=limit,
        )
        for rank, limit in zip(sorted(totals), limits, strict=True)
    )


def heaviest_rank(ranks: Iterable[RankMemory]) -> RankMemory:
    """Return the rank that has least left, which with one limit is the one that peaks highest; the lowest of equals."""
    return min(ranks, key=lambda memory: (memory.left_bytes, memory.rank))


def peak_terms(lines: Iterable[MemoryLine], heaviest: RankMemory) -> tuple[MemoryLine, ...]:
    """Return the ledger of one rank in its peak phase, largest term first."""
    at_peak = (line for line in lines if line.rank == heaviest.rank and line.phase is heaviest.peak_phase)
    return tuple(sorted(at_peak, key=lambda line: (-line.num_bytes, line.term)))
