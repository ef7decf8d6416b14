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


def directory(text: str) -> Path:
    """Return the directory that an option names; the empty string, which would mean the current one, is refused."""
    if not text:
        raise typer.BadParameter("The name is empty; write . for the current directory.")
    return Path(text)


OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        parser=directory,
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

CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Multiply predictions by what `shardwright calibrate` found in a real run; the plan says so.",
        show_default=False,
    ),
]

IndexOption = Annotated[
    int, typer.Option("--index", min=0, help="Which layout of the plan: 0 is the best, 1 the first runner-up.")
]

ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        parser=directory,
        metavar="DIR",
        help="Price with what `shardwright profile run` has measured on this cluster; what it lacks is interpolated or"
        " analytic, and the plan says how much.",
        show_default=False,
    ),
]
StrictDataOption = Annotated[
    bool,
    typer.Option(
        "--strict-data",
        help="Refuse a profile that is stale or of other hardware, or rows that its gates leave out, instead of naming"
        " them.",
    ),
]
