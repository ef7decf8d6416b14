"""`shardwright reconcile`: the memory of a real run beside the ledger of its plan, term by term."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.evaluate import ClusterOption, SpecOption
from cli.options import FormatOption, IndexOption
from cli.output import Format, print_blocks, print_json
from cli.ran_plan import RanArgument, ran_plan
from planner.errors import InputError

EXAMPLES = (
    "shardwright reconcile run snapshot.pickle",
    "shardwright reconcile run snapshot.pickle --index 1 --rank 8 --format json",
)

SnapshotArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SNAPSHOT", help="What torch.cuda.memory._dump_snapshot wrote on one rank.", show_default=False
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank", min=0, help="Rank that it is of; with one pipeline stage all are alike.", show_default=False
    ),
]


class PhaseName(StrEnum):
    """Phases of the ledger."""

    INITIALISATION = "initialisation"
    FORWARD_BACKWARD = "forward-backward"
    OPTIMIZER_STEP = "optimizer-step"


PhaseOption = Annotated[
    PhaseName | None,
    typer.Option(
        "--phase",
        help="Phase of the ledger; left out, forward-backward for the peak of a recorded history, and optimizer-step"
        " for a snapshot without one.",
        show_default=False,
    ),
]


def reconcile(
    plan: RanArgument,
    snapshot: SnapshotArgument,
    *,
    index: IndexOption = 0,
    cluster: ClusterOption = None,
    spec: SpecOption = None,
    rank: RankOption = None,
    phase: PhaseOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Say which term of the memory ledger is wrong, and by how much.

    Blocks are told apart by the stack frames that torch.cuda.memory._record_memory_history keeps, else by their size;
    what neither tells is named. The snapshot is read without running anything that is in it.
    """
    from cli.render_reconcile import reconciled_blocks, reconciled_document
    from planner.plans.plan import Phase
    from planner.reconcile.snapshots import read_snapshot
    from planner.reconcile.terms import reconciled

    read = ran_plan(plan, index, cluster=cluster, spec=spec)
    layout = read.plans[index].layout
    if rank is None and layout.pp > 1:
        raise InputError(
            f"Which of the {layout.pp} pipeline stages the snapshot is of is not said.", hint="Say it with --rank."
        )
    if rank is not None and rank >= layout.world_size:
        raise InputError(f"There is no rank {rank}.", hint=f"The layout has {layout.world_size}, counted from 0.")
    found = read_snapshot(snapshot)
    chosen = Phase.FORWARD_BACKWARD if found.at_peak else Phase.OPTIMIZER_STEP
    chosen = chosen if phase is None else Phase(phase.value)
    first = layout.first_global_rank((rank or 0) // layout.stage_distance % layout.pp)
    beside = reconciled(found, read.plans[index].memory, rank=first, phase=chosen)
    if format_ is Format.JSON:
        print_json(reconciled_document(beside, found))
    else:
        print_blocks(reconciled_blocks(beside, found))
