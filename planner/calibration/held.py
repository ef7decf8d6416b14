"""What a memory snapshot of a real run says of the ledger: what it loses, and what it holds beside permanent terms.

Of one rank at its peak, `found` is what the allocator held from the driver. Permanent terms of the ledger are weights,
gradients, states and what else is there all the time; working terms are activations and temporaries, of which a
fraction `lost` goes to the allocator. Two figures reproduce the run's peak:

    fixed = what permanent terms that the snapshot tells hold beyond the ledger
    found = permanent + fixed + working (1 + lost)

Neither goes below 0: no run is planned to hold less than the bytes that the ledger counts. What no frame and no size
tells is part of what is lost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.errors import InputError, Location
from planner.memory.ledger import WORKING_TERMS
from planner.memory.terms import FRAGMENTATION
from planner.plans.plan import MemoryLine, Phase
from planner.reconcile.snapshots import Snapshot
from planner.reconcile.terms import OUTSIDE, UNASSIGNED, reconciled
from profiles.hardware import MOST_LOST, MemoryCalibration


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFit:
    """What a snapshot says.

    Args:
        calibration: The two figures.
        rank: Rank of the ledger that it stands beside.
        predicted_bytes: What the ledger says of the allocator, before.
        calibrated_bytes: After.
        found_bytes: What the allocator held.
        remarks: What the snapshot does not show, one sentence each.
    """

    calibration: MemoryCalibration
    rank: int
    predicted_bytes: int
    calibrated_bytes: int
    found_bytes: int
    remarks: tuple[str, ...]


def memory_fit(snapshot: Snapshot, memory: Sequence[MemoryLine], *, rank: int) -> MemoryFit:
    """Return what a snapshot says of one rank's ledger.

    Args:
        snapshot: With the history of at least one step.
        memory: The ledger.
        rank: Lowest global rank of the pipeline rank that was recorded.

    Raises:
        InputError: It shows no peak, or is of something else.
    """
    if not snapshot.at_peak:
        raise InputError(
            "The snapshot has no history, so it does not show the peak.",
            location=Location(file=snapshot.file),
            hint="Call torch.cuda.memory._record_memory_history() before a step, and dump behind it.",
        )
    phase = Phase.FORWARD_BACKWARD
    planned = {line.term: line.num_bytes for line in memory if line.rank == rank and line.phase is phase}
    permanent = {
        term: num_bytes for term, num_bytes in planned.items() if term not in (*WORKING_TERMS, *OUTSIDE, FRAGMENTATION)
    }
    working = sum(num_bytes for term, num_bytes in planned.items() if term in WORKING_TERMS)
    beside = reconciled(snapshot, memory, rank=rank, phase=phase)
    told = {entry.term: entry.found_bytes or 0 for entry in beside.terms if entry.num_blocks}
    found = max(snapshot.reserved_bytes, sum(block.num_bytes for block in snapshot.blocks))
    more = sum(told[term] - num_bytes for term, num_bytes in permanent.items() if term in told)
    held = sum(permanent.values())
    fixed = max(0, more)
    lost = (found - held - fixed) / working - 1.0
    predicted = held + working + planned.get(FRAGMENTATION, 0)
    if not predicted / MOST_LOST < found < predicted * MOST_LOST or lost >= MOST_LOST:
        raise InputError(
            f"By this a rank holds {found / predicted:.3g} times what the plan says: it is a run of something else.",
            location=Location(file=snapshot.file),
            hint="Give a snapshot of the layout that --index names, of the rank that --rank names.",
        )
    calibration = MemoryCalibration(lost_fraction=max(0.0, lost), fixed_bytes=fixed)
    return MemoryFit(
        calibration=calibration,
        rank=rank,
        predicted_bytes=predicted,
        calibrated_bytes=held + fixed + working + round(working * calibration.lost_fraction),
        found_bytes=found,
        remarks=tuple(_remarks(permanent, told, below=lost < 0)),
    )


def _remarks(permanent: Mapping[str, int], told: Mapping[str, int], *, below: bool) -> list[str]:
    """Return what a snapshot does not show."""
    found = ["context and communicators are no part of torch's allocator: `profile run --suite memory` measures them"]
    untold = [term for term, num_bytes in permanent.items() if num_bytes and term not in told]
    if untold:
        found.append(f"no frame and no size tells {', '.join(untold)}: taken to be what the ledger says")
    if told.get(UNASSIGNED):
        found.append("what neither tells counts as lost beside activations and temporaries")
    if below:
        found.append("it held less than the ledger counts: no plan goes below the ledger's own bytes")
    return found
