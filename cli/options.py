"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format

FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        envvar="SHARDWRIGHT_FORMAT",
        help="Tables for people, or one JSON document on standard output.",
    ),
]

OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="Directory to write the files into, all of them or none.",
        show_default=False,
    ),
]

ForceOption = Annotated[
    bool,
    typer.Option("--force", "-f", help="Overwrite files of the same names; others are left alone."),
]

PlanArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN",
        help="A plan.json, or the directory that `plan --out` wrote.",
        show_default=False,
    ),
]
