"""All training frameworks: whether a run fits into memory, and how much faster it could be.

These rules look at a run that was priced on a cluster (`planner.validation.pricing`); without a cluster they are not
asked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planner.errors import Location
from planner.plans.comparison import WORTH_SAYING
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Phase, PlannedLayout
from planner.plans.rank_memory import RankMemory, memory_by_rank, peak_terms
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, NoPriceError, Rule, Severity, rule
from planner.units import GIB

TRAINING = (Framework.MEGATRON, Framework.DEEPSPEED)

PHASE_WORDS = {
    Phase.INITIALISATION: "before the first step",
    Phase.FORWARD_BACKWARD: "in forward and backward",
    Phase.OPTIMIZER_STEP: "in the optimizer step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one part of the layout.

    Args:
        part: What changes.
        layout: The layout with it, in words.
        saved_fraction: The share of the step that it saves.
    """

    part: str
    layout: str
    saved_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedRun:
    """A run with its price.

    Args:
        place: Where the run is started.
        planned: Its layout with time and memory.
        memory_bytes: Memory of a GPU.
        best: The best layout that the planner finds for the same run, and its step's seconds; None where nobody asked.
        changes: Single changes that help, the best first.
        open_parts: Each part of the layout of which it is not known whether another choice helps, and why.
    """

    place: Location
    planned: PlannedLayout
    memory_bytes: int
    best: PlannedLayout | None
    changes: tuple[Change, ...]
    open_parts: Mapping[str, str]

    @property
    def ranks(self) -> tuple[RankMemory, ...]:
        """Return the memory of each pipeline rank."""
        return memory_by_rank(self.planned.memory, limit_bytes=self.planned.rank_limits)


def _largest(run: PricedRun, rank: RankMemory) -> str:
    """Return the largest terms of a rank at its peak."""
    terms = peak_terms(run.planned.memory, rank)[:3]
    return ", ".join(f"{line.term} {line.num_bytes / GIB:.1f} GiB" for line in terms)


@rule(
    id="MEM001",
    name="out-of-memory",
    framework=TRAINING,
    prevents="torch.OutOfMemoryError: CUDA out of memory",
    found_at=FoundAt.STEP,
    source="the planner's memory ledger, rank by rank and phase by phase",
)
def out_of_memory(run: PricedRun) -> Iterator[Found]:
    """Every rank's predicted peak is below the memory of its GPU.

    The ledger counts weights, gradients, optimizer states, activations of the micro-batches in flight, workspaces and
    what the allocator loses, in each phase of a step: a run that starts may still fail when the optimizer first makes
    its states.
    """
    for rank in run.ranks:
        if rank.peak_bytes > run.memory_bytes:
            over = (rank.peak_bytes - run.memory_bytes) / GIB
            yield Found(
                place=run.place,
                message=f"Rank {rank.rank} needs {rank.peak_bytes / GIB:.1f} GiB {PHASE_WORDS[rank.peak_phase]}, "
                f"{over:.1f} GiB more than its GPU has.",
                hint=f"Largest: {_largest(run, rank)}. More recompute, a smaller micro-batch, or more tp, pp or cp.",
            )


@rule(
    id="MEM002",
    name="little-memory-left",
    framework=TRAINING,
    severity=Severity.WARNING,
    prevents="torch.OutOfMemoryError at a step with longer documents, worse routing or more fragments",
    found_at=FoundAt.LATER,
    source="the planner's memory ledger, rank by rank and phase by phase",
)
def little_memory_left(run: PricedRun) -> Iterator[Found]:
    """Every rank's predicted peak leaves the headroom that plans leave free: 5 % of the GPU unless a spec says else."""
    for rank in run.ranks:
        if rank.limit_bytes < rank.peak_bytes <= run.memory_bytes:
            yield Found(
                place=run.place,
                message=f"Rank {rank.rank} needs {rank.peak_bytes / GIB:.1f} GiB {PHASE_WORDS[rank.peak_phase]}, "
                f"which leaves {(run.memory_bytes - rank.peak_bytes) / GIB:.1f} GiB of its GPU.",
                hint=f"Plans stay below {rank.limit_bytes / GIB:.1f} GiB. Largest: {_largest(run, rank)}.",
            )


@rule(
    id="MEM003",
    name="host-out-of-memory",
    framework=TRAINING,
    prevents="Killed: the kernel ends a process (signal 9) when a node has no memory left",
    found_at=FoundAt.STEP,
    source="planner/memory/host.py: the ledger of the node that keeps most",
)
def host_out_of_memory(run: PricedRun) -> Iterator[Found]:
    """What a run keeps in host memory fits into each node, beside its processes and the system.

    Optimizer states, weights and activations that are sent to the host are counted for all ranks of a node, as the
    framework pins and rounds them.
    """
    host = run.planned.host_memory
    if host is not None and host.num_bytes > host.limit_bytes:
        largest = sorted(host.lines, key=lambda line: -line.num_bytes)[:3]
        yield Found(
            place=run.place,
            message=f"A node needs {host.num_bytes / GIB:,.0f} GiB of host memory, and has "
            f"{host.limit_bytes / GIB:,.0f} GiB.",
            hint=f"Largest: {', '.join(f'{line.term} {line.num_bytes / GIB:,.0f} GiB' for line in largest)}. "
            "Offload less, or spread the run over more nodes.",
        )


@rule(
    id="MEM004",
    name="drives-full",
    framework=TRAINING,
    prevents="OSError: [Errno 28] No space left on device, or an assertion on the number of writes that were finished",
    found_at=FoundAt.STEP,
    source="planner/memory/host.py: the ledger of the drives",
)
def drives_full(run: PricedRun) -> Iterator[Found]:
    """What all ranks of a node write to its drives fits there: states, gradients of the last step, weights."""
    drives = run.planned.drive_memory
    if drives is not None and drives.num_bytes > drives.limit_bytes:
        yield Found(
            place=run.place,
            message=f"A node needs {drives.num_bytes / GIB:,.0f} GiB of its drives, which hold "
            f"{drives.limit_bytes / GIB:,.0f} GiB.",
            hint=f"Largest: {', '.join(f'{line.term} {line.num_bytes / GIB:,.0f} GiB' for line in drives.lines)}. "
            "Keep something in host memory, add drives, or spread the run over more nodes.",
        )


@rule(
    id="ADV001",
    name="slower-than-best",
    framework=TRAINING,
    severity=Severity.NOTE,
    prevents="GPU-hours that another layout would not need",
    found_at=FoundAt.UNNOTICED,
    source="the planner's search with nothing pinned",
)
def slower_than_best(run: PricedRun) -> Iterator[Found]:
    """No layout of the same run on the same GPUs is predicted to be faster by 2 % or more."""
    if run.best is None:
        return
    ratio = run.planned.step_seconds / run.best.step_seconds
    if ratio >= 1 + WORTH_SAYING:
        yield Found(
            place=run.place,
            message=f"A step takes {run.planned.step_seconds:.3f} s, {ratio - 1:.0%} more than the best layout's "
            f"{run.best.step_seconds:.3f} s.",
            hint=f"The best: {layout_in_words(run.best.layout)}.",
        )


@rule(
    id="ADV002",
    name="one-change-helps",
    framework=TRAINING,
    severity=Severity.NOTE,
    prevents="GPU-hours that one change would save",
    found_at=FoundAt.UNNOTICED,
    source="the planner's search with everything but one part of the layout pinned",
)
def one_change_helps(run: PricedRun) -> Iterator[Found]:
    """No change of one part of the layout alone, such as recompute or the micro-batch, saves 2 % or more."""
    for change in run.changes:
        yield Found(
            place=run.place,
            message=f"Another choice of {change.part} alone saves {change.saved_fraction:.0%} of the step.",
            hint=f"With it: {change.layout}.",
        )
    if run.open_parts:
        raise NoPriceError("; ".join(f"another choice of {part}: {why}" for part, why in run.open_parts.items()))


RULES: tuple[Rule[PricedRun], ...] = (
    out_of_memory,
    little_memory_left,
    host_out_of_memory,
    drives_full,
    slower_than_best,
    one_change_helps,
)
