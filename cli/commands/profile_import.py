"""`shardwright profile import`: measurements of other programs, as a profile that planning uses."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.profile import OutDirectory, show
from cli.options import ForceOption, FormatOption
from cli.output import Format, note, write_files
from planner.errors import InputError, Location

EXAMPLES = (
    "shardwright profile import all_reduce.log all_gather.log --out measured",
    "shardwright profile import tables/h100 --gpus-per-node 8 --out measured",
    "shardwright profile import old.log --collective all_gather --called h100-sxm-80gb --out measured",
)


class Collective(StrEnum):
    """Collectives, by the names of their tests."""

    ALL_REDUCE = "all_reduce"
    ALL_GATHER = "all_gather"
    REDUCE_SCATTER = "reduce_scatter"
    ALLTOALL = "alltoall"
    SENDRECV = "sendrecv"


FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Logs of nccl-tests or rccl-tests; folders of operator tables as aiconfigurator lays them out.",
        show_default=False,
    ),
]
CollectiveOption = Annotated[
    Collective | None,
    typer.Option("--collective", help="What was tested, where a log does not say it.", show_default=False),
]
PerNodeOption = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-node", min=1, max=1024, help="GPUs of a node, where a test used only some.", show_default=False
    ),
]
CalledOption = Annotated[
    str, typer.Option("--called", help="Name of the GPU, where the catalogue does not know its driver's.")
]
LARGEST_FILE = 256 << 20


def import_(
    files: FilesArgument,
    *,
    out: OutDirectory,
    collective: CollectiveOption = None,
    gpus_per_node: PerNodeOption = None,
    called: CalledOption = "",
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Make a profile of what other programs have measured; every row keeps its file and line.

    A row that contradicts itself is an error, a test whose values came out wrong is listed as failed.
    """
    from profiles.imports.imported import ImportedRun, journal_text
    from profiles.imports.nccl_tests import Said, is_nccl_tests, read_nccl_tests
    from profiles.imports.operator_tables import read_tables
    from profiles.measure.journal import FILE

    said = Said(collective="" if collective is None else collective.value, gpus_per_node=gpus_per_node, called=called)
    runs: list[ImportedRun] = []
    for path in files:
        if path.is_dir():
            tables = read_tables(path, said=said)
            runs += tables.runs
            for reason, count in sorted(tables.left_out.items()):
                note(f"{path}: left out {count} x {reason}")
            continue
        text = read_text(path)
        if not is_nccl_tests(text):
            raise InputError(
                "This is no log of nccl-tests or rccl-tests: no line begins with # nThread.",
                location=Location(file=str(path)),
                hint="Give the whole output of all_reduce_perf and the like.",
            )
        runs += read_nccl_tests(text, file=str(path), said=said)
    write_files(out, {FILE: journal_text(runs, called=called)}, force=force)
    show(out, format_=format_)


def read_text(path: Path) -> str:
    """Return the text of a file; bytes that are no UTF-8 are kept as escapes.

    Raises:
        InputError: It cannot be read, or is larger than any log.
    """
    location = Location(file=str(path))
    try:
        if path.is_dir():
            raise InputError("This is a directory.", location=location, hint="Give the path of a file.")
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The file cannot be read: {reason}.", location=location, hint="Check the path.") from None
    if len(raw) > LARGEST_FILE:
        raise InputError(
            f"The file is larger than {LARGEST_FILE >> 20} MiB.", location=location, hint="Give the part that matters."
        )
    return raw.decode("utf-8-sig", "surrogateescape")
