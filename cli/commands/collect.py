"""`shardwright collect`: what the short runs of `verify/` measured, beside what the plan predicted."""

from pathlib import Path
from typing import Annotated

import typer

from cli.exits import ExitCode
from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json, write_file
from planner.errors import InputError, Location

EXAMPLES = ("shardwright collect run/verify", "shardwright collect run/verify --format json")

MEASUREMENTS_FILE = "measurements.csv"

FolderArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="The verify directory that `plan --out` wrote, or the one that it is in.",
        show_default=False,
    ),
]


def collect(folder: FolderArgument, *, format_: FormatOption = Format.TEXT) -> None:
    """Read the logs of the short runs of a plan's best layouts, and say which is best.

    Writes measurements.csv beside them, anew each time, in the form that `accuracy` reads. Ends with 1 where some run
    has left no measurement, with 2 where none has; one that ran out of memory is a measurement.
    """
    from cli.render_collect import collect_blocks, collect_document
    from planner.verification.collect import collect as collected
    from planner.verification.kit import FOLDER
    from planner.verification.rows import ROWS_FILE, table_text

    found = next((path for path in (folder, folder / FOLDER) if (path / ROWS_FILE).is_file()), None)
    if found is None:
        raise InputError(
            f"There is no {ROWS_FILE} here, which names the runs.",
            location=Location(file=str(folder)),
            hint="Give the verify directory that `shardwright plan SPEC --out DIR` writes.",
        )
    runs = collected(found)
    path = found / MEASUREMENTS_FILE
    write_file(path, table_text(run.cells for run in runs if not run.problem), force=True)
    if format_ is Format.JSON:
        print_json(collect_document(runs, path))
    else:
        print_blocks(collect_blocks(runs, path))
    if any(run.problem for run in runs):
        raise typer.Exit(ExitCode.FINDINGS)
