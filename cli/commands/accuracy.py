"""`shardwright accuracy`: predictions beside measured rows, and how good they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json, progress_line
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.accuracy.measurements import Kind, Row
    from planner.accuracy.tables import Tables

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
RefitOption = Annotated[
    str | None,
    typer.Option(
        "--refit-without",
        metavar="COLUMN",
        help="Fit the constants of training anew without each value of a column, such as source_group, and predict its"
        " runs by them; minutes.",
        show_default=False,
    ),
]
ConstantsOption = Annotated[
    bool, typer.Option("--constants", help="List the constants behind the predictions, too; JSON always has them.")
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
    refit_without: RefitOption = None,
    constants: ConstantsOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Predict every measured row of CSV files, and say how good the predictions are.

    The kind of a file is recognised by its columns: training runs, matrix products, attention, latent attention,
    experts, collectives. A row that cannot be priced is counted, with the reason. Kernels are priced by measured
    tables where there are some: a row that such a table holds is no test of it, rows left out are.
    """
    from cli.render_accuracy import constants_blocks
    from planner.accuracy.measurements import Kind
    from planner.accuracy.tables import Basis, Tables
    from profiles.errors import ProfileFileError
    from profiles.store import read_profile

    if sum((profile is not None, left_out is not None, surface_only)) > 1:
        raise InputError("--profile, --left-out and --surface-only exclude one another.", hint="Give one of them.")
    kind, rows = _read(files)
    of_kernels = profile is not None or left_out is not None or surface_only
    if (kind is Kind.TRAINING and of_kernels) or (kind is not Kind.TRAINING and refit_without is not None):
        raise InputError(
            "--profile, --left-out and --surface-only are for kernels, --refit-without is for training runs.",
            location=Location(file=str(files[0])),
            hint="Leave the option out.",
        )
    if kind is Kind.TRAINING:
        _training(rows, _columns(rows, by, ("source_group",)), refit_without, format_)
    else:
        columns = _columns(rows, by, ("system", *FORMAT_COLUMNS))
        try:
            if left_out is not None:
                tables = Tables(basis=Basis.LEFT_OUT, parts=left_out)
            else:
                found_profile = None if profile is None else read_profile(profile)
                tables = Tables(basis=Basis.SURFACE if surface_only else Basis.TABLES, profile=found_profile)
            _kernels(kind, rows, columns, tables, format_)
        except ProfileFileError as error:
            raise InputError(
                f"{error.message}.", location=Location(file=error.file, line=error.line), hint=error.remedy
            ) from None
    if constants and format_ is Format.TEXT:
        print_blocks(constants_blocks())


def _read(files: Sequence[Path]) -> tuple["Kind", list["Row"]]:
    """Return what files measure, and the rows of all of them."""
    from planner.accuracy.measurements import read_measurements

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
    given = [file.resolve() for file in files]
    if len(set(given)) < len(given):
        raise InputError("A file is given twice, so its rows would count twice.", hint="Give each file once.")
    if not rows:
        raise InputError(
            "The file has no rows.", location=Location(file=read[0].file), hint="Give a file with measurements."
        )
    return kind, rows


def _kernels(kind: "Kind", rows: Sequence["Row"], columns: Sequence[str], tables: "Tables", format_: Format) -> None:
    """Print predictions of single operations."""
    from cli.render_operations import operation_blocks, operation_document
    from planner.accuracy.operations import OperationPredictor

    found = OperationPredictor(kind, tables).predict(rows)
    if format_ is Format.JSON:
        print_json(operation_document(kind, tables, found))
    else:
        print_blocks(operation_blocks(kind, tables, found, columns))


def _training(rows: Sequence["Row"], columns: Sequence[str], refit_without: str | None, format_: Format) -> None:
    """Print predictions of training runs."""
    from cli.render_accuracy import refit_blocks, refit_document, training_blocks, training_document
    from planner.accuracy.fit import TrainingFit
    from planner.accuracy.training import TrainingPredictor

    if refit_without is not None and rows and refit_without not in rows[0].cells:
        raise InputError(
            f"--refit-without {refit_without}: the file has no such column.", hint="Name a column of the file."
        )
    predictor = TrainingPredictor()
    runs = [predictor.predict(row) for row in rows]
    without = None
    if refit_without is not None:
        column = refit_without
        if len({row.text(column) for row in rows}) < 2:
            raise InputError(
                f"--refit-without {column}: every row says the same there, so nothing is left to fit.",
                hint="Give files with several, or name another column.",
            )
        with progress_line() as progress:
            without = TrainingFit(rows, progress=progress).leave_out(lambda entry: entry.row.text(column))
    if format_ is Format.JSON:
        refit = {} if without is None else {"refit_without": refit_document(without)}
        print_json(training_document(runs) | refit)
        return
    print_blocks(training_blocks(runs, columns))
    if without is not None:
        print_blocks(refit_blocks(without))


def _columns(rows: Sequence["Row"], by: str | None, preferred: Sequence[str]) -> list[str]:
    """Return the columns whose values get a line each: those that were named, or the preferred that the file has."""
    if by is None:
        return [name for name in preferred if not rows or name in rows[0].cells]
    columns = [name.strip() for name in by.split(",") if name.strip()]
    if not columns:
        raise InputError("--by names no column.", hint="Name columns of the file, with commas between them.")
    unknown = [name for name in columns if rows and name not in rows[0].cells]
    if unknown:
        raise InputError(f"--by {by}: the file has no column {unknown[0]}.", hint="Name columns of the file.")
    return columns
