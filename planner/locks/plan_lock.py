"""A plan in short, for keeping beside the code: what it was made of, what it says, what it predicts.

The lock holds hashes of the inputs and of the files that were written, the layout setting by setting, and the figures
that a later plan or a changed launch script is held against: step time by term, memory by rank and phase, the bound.
Hashes are SHA-256 of the canonical JSON of each input as the plan file holds it, so that they change exactly when
something changes that a price may depend on, a profile's figures among them; not with comments or the order of keys.
`planner.validation.locked` makes it of a plan; its JSON form is in `planner.schema.plan_lock`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

LOCK_FILE = "plan.lock.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """Memory of one pipeline rank.

    Args:
        rank: Lowest global rank of the pipeline rank.
        phase_bytes: Total of each phase, by its name.
        limit_bytes: What the rank may use.
    """

    rank: int
    phase_bytes: Mapping[str, int]
    limit_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Return the largest phase."""
        return max(self.phase_bytes.values())

    @property
    def left_bytes(self) -> int:
        """Return what is left below the limit; negative where it does not fit."""
        return self.limit_bytes - self.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLock:
    """A plan in short.

    Args:
        planner: The planner and its version.
        target: The framework.
        objective: What was optimised.
        status: What is known about the layout: optimal, or feasible.
        inputs: What it was made of: a name and a hash of model, cluster, workload and what was wanted of the plan.
        layout: The layout in one line.
        settings: Every setting of the layout.
        step_seconds: Time of one optimizer step.
        tokens_per_second_per_gpu: Trained tokens.
        bound: Nothing of the searched space has a better objective; None for a layout that was not searched.
        gap: What of it could still be saved; None likewise.
        band_fraction: Half-width of the band around the step time, as a factor less one; None where it is not known.
        ratio_fraction: Half-width of the band around a ratio of two step times, likewise.
        seconds_by_term: The step, term by term.
        ranks: Memory of each pipeline rank.
        files: Hash of each file that was written, by name.
    """

    planner: str
    target: str
    objective: str
    status: str
    inputs: Mapping[str, tuple[str, str]]
    layout: str
    settings: Mapping[str, str]
    step_seconds: float
    tokens_per_second_per_gpu: float
    bound: float | None
    gap: float | None
    band_fraction: float | None
    ratio_fraction: float | None
    seconds_by_term: Mapping[str, float]
    ranks: tuple[RankBytes, ...]
    files: Mapping[str, str]

    @property
    def tightest(self) -> RankBytes:
        """Return the rank that has least left; the lowest of equals."""
        return min(self.ranks, key=lambda rank: (rank.left_bytes, rank.rank))
