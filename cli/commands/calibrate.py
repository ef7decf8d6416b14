"""`shardwright calibrate`: factors on predictions from one short real run of a plan."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.evaluate import ClusterOption, SpecOption
from cli.options import ForceOption, FormatOption, IndexOption
from cli.output import Format, note, print_blocks, print_json, write_file
from cli.ran_plan import RanArgument, ran_plan
from planner.errors import InputError

EXAMPLES = (
    "shardwright calibrate run run.log --out calibration.json",
    "shardwright calibrate run run.log trace.json.gz --index 1 --out calibration.json",
    "shardwright calibrate run snapshot.pickle --rank 0 --out calibration.json",
    "shardwright calibrate launch.sh run.log --cluster dgx-h100 --out calibration.json",
    "shardwright plan spec.yaml --calibration calibration.json",
)

RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="A log of Megatron-LM or of the shipped DeepSpeed program, a torch profiler's chrome trace, a memory"
        " snapshot of torch: one of each at most.",
        show_default=False,
    ),
]
OutFile = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the calibration.", show_default=False)
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", min=0, help="Rank that was recorded, where the trace does not say it.", show_default=False),
]


def calibrate(
    plan: RanArgument,
    runs: RunsArgument,
    *,
    out: OutFile = None,
    index: IndexOption = 0,
    cluster: ClusterOption = None,
    spec: SpecOption = None,
    rank: RankOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Hold a real run of a plan against its prediction, and keep by how much each class of operations is off.

    A log shows the step time: one factor for all classes. A trace shows the kernels of a rank: a factor for each. A
    memory snapshot shows what a rank held: what the allocator loses, and what is held beside the ledger.
    """
    from cli.render_calibration import calibration_account, calibration_blocks
    from planner.calibration.fit import fitted
    from planner.schema.calibration import calibration_text

    read = ran_plan(plan, index, cluster=cluster, spec=spec)
    fit = fitted(read, index, runs, rank=rank, sources=[_named(path) for path in runs])
    account = calibration_account(fit)
    if out is not None:
        write_file(out, calibration_text(fit.calibration, device=fit.device, account=account), force=force)
        note(f"{out} written. Plan with it: shardwright plan SPEC --calibration {out}")
    if format_ is Format.JSON:
        print_json({"factors": dict(fit.calibration.factors), "source": fit.calibration.source, **account})
    else:
        print_blocks(calibration_blocks(fit))


def _named(path: Path) -> str:
    """Return a file's name with the start of its SHA-256."""
    import hashlib

    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: The file cannot be read: {error.strerror}.", hint="Check the path.") from None
    return f"{path.name} (sha256 {digest[:12]})"
