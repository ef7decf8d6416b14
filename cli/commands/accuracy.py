"""`shardwright accuracy`: predictions beside measured rows, and how good they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.accuracy.measurements import Row

EXAMPLES = (
    "shardwright accuracy runs.csv --by source_group,hardware",
    "shardwright accuracy gemm.csv --left-out 5 --by system,dtype",
)

FORMAT_COLUMNS = ("phase", "dtype", "attn_dtype", "mla_dtype", "moe_dtype", "kv_cache_dtype", "op", "framework")

FilesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FILE...", help="CSV files of measurements, all of one kind.", show_default=False),
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMNS",
        help="Columns of the file, with commas between them, whose values get a line each:"
        " source_group of training runs, system and format of operations, unless given.",
        show_default=False,
    ),
]
ProfileOption = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="DIR",
        help="Profile whose tables price kernels instead of the shipped ones.",
        show_default=False,
    ),
]
LeftOutOption = Annotated[
    int | None,
    typer.Option(
        "--left-out",
        metavar="K",
        min=2,
        max=100,
        help="Deal the kernels of the files to K parts, and predict each part by tables of the others.",
        show_default=False,
    ),
]
SurfaceOption = Annotated[
    bool, typer.Option("--surface-only", help="Price kernels by the analytic models alone, without any table.")
]


def accuracy(
    files: FilesArgument,
    *,
    by: ByOption = None,
    profile: ProfileOption = None,
    left_out: LeftOutOption = None,
    surface_only: SurfaceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Predict every measured row of CSV files, and say how good the predictions are.

    The kind of a file is recognised by its columns: training runs, matrix products, attention, latent attention,
    experts, collectives. A row that cannot be priced is counted, with the reason. Kernels are priced by measured
    tables where there are some: a row that such a table holds is no test of it, rows left out are.
    """
    from cli.render_accuracy import training_blocks, training_document
    from cli.render_operations import operation_blocks, operation_document
    from planner.accuracy.measurements import Kind, read_measurements
    from planner.accuracy.operations import OperationPredictor
    from planner.accuracy.tables import Basis, Tables
    from planner.accuracy.training import TrainingPredictor
    from profiles.errors import ProfileFileError
    from profiles.store import read_profile

    if sum((profile is not None, left_out is not None, surface_only)) > 1:
        raise InputError("--profile, --left-out and --surface-only exclude one another.", hint="Give one of them.")
    read = [read_measurements(file) for file in files]
    kind = read[0].kind
    for measurements in read:
        if measurements.kind is not kind:
            raise InputError(
                f"This file measures {measurements.kind}, the first one {kind}.",
                location=Location(file=measurements.file),
                hint="Give files of one kind at a time.",
            )
    rows = [row for measurements in read for row in measurements.rows]
    if kind is Kind.TRAINING:
        if profile is not None or left_out is not None or surface_only:
            raise InputError(
                "Training runs are priced without tables: --profile, --left-out and --surface-only are for kernels.",
                location=Location(file=read[0].file),
                hint="Leave the option out.",
            )
        columns = _columns(rows, by, ("source_group",))
        predictor = TrainingPredictor()
        runs = [predictor.predict(row) for row in rows]
        print_json(training_document(runs)) if format_ is Format.JSON else print_blocks(training_blocks(runs, columns))
        return
    columns = _columns(rows, by, ("system", *FORMAT_COLUMNS))
    try:
        found_profile = None if profile is None else read_profile(profile)
        if left_out is not None:
            tables = Tables(basis=Basis.LEFT_OUT, parts=left_out)
        else:
            tables = Tables(basis=Basis.SURFACE if surface_only else Basis.TABLES, profile=found_profile)
        found = OperationPredictor(kind, tables).predict(rows)
    except ProfileFileError as error:
        raise InputError(
            f"{error.message}.", location=Location(file=error.file, line=error.line), hint=error.remedy
        ) from None
    if format_ is Format.JSON:
        print_json(operation_document(kind, tables, found))
    else:
        print_blocks(operation_blocks(kind, tables, found, columns))


def _columns(rows: Sequence["Row"], by: str | None, preferred: Sequence[str]) -> list[str]:
    """Return the columns whose values get a line each: those that were named, or the preferred that the file has."""
    if by is None:
        return [name for name in preferred if not rows or name in rows[0].cells]
    columns = [name.strip() for name in by.split(",") if name.strip()]
    unknown = [name for name in columns if rows and name not in rows[0].cells]
    if unknown:
        raise InputError(f"--by {by}: the file has no column {unknown[0]}.", hint="Name columns of the file.")
    return columns
