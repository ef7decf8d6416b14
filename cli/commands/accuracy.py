"""`shardwright accuracy`: predictions beside measured rows, and how good they are."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.errors import InputError, Location

EXAMPLES = (
    "shardwright accuracy runs.csv --by source_group,hardware",
    "shardwright accuracy gemm.csv --format json",
)

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
        " source_group of training runs, system of operations, unless given.",
        show_default=False,
    ),
]


def accuracy(files: FilesArgument, *, by: ByOption = None, format_: FormatOption = Format.TEXT) -> None:
    """Predict every measured row of CSV files, and say how good the predictions are.

    The kind of a file is recognised by its columns: training runs, matrix products, collectives. A row that cannot be
    priced is counted, with the reason.
    """
    from cli.render_accuracy import operation_blocks, operation_document, training_blocks, training_document
    from planner.accuracy.measurements import Kind, read_measurements
    from planner.accuracy.operations import OperationPredictor
    from planner.accuracy.training import TrainingPredictor

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
    if by is None:
        columns = ["source_group" if kind is Kind.TRAINING else "system"]
    else:
        columns = [name.strip() for name in by.split(",") if name.strip()]
        unknown = [name for name in columns if rows and name not in rows[0].cells]
        if unknown:
            raise InputError(f"--by {by}: the file has no column {unknown[0]}.", hint="Name columns of the file.")
    if kind is Kind.TRAINING:
        predictor = TrainingPredictor()
        runs = [predictor.predict(row) for row in rows]
        print_json(training_document(runs)) if format_ is Format.JSON else print_blocks(training_blocks(runs, columns))
        return
    operations = OperationPredictor(kind)
    found = [operations.predict(row) for row in rows]
    if format_ is Format.JSON:
        print_json(operation_document(kind, found))
    else:
        print_blocks(operation_blocks(kind, found, columns))
