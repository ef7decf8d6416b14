"""`shardwright accuracy`: predictions beside measured rows, and how good they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json, progress_line
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.accuracy.measurements import Kind, Row
    from planner.accuracy.tables import Tables
    from planner.accuracy.training import Prediction
    from profiles.profile import Profile

EXAMPLES = (
    "shardwright accuracy runs.csv --by source_group,hardware",
    "shardwright accuracy gemm.csv --left-out 5 --by system,dtype",
)

GENERATION = "generation"
"""What no column says but the hardware."""

NODES = "nodes"
"""Collectives are left out by their number of nodes."""

MOST_PARTS = 100

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
        help="Profile that prices kernels instead of the shipped tables: what `profile run` wrote, or tables of one's"
        " own.",
        show_default=False,
    ),
]
LeftOutOption = Annotated[
    str | None,
    typer.Option(
        "--left-out",
        metavar=f"K|{NODES}",
        help=f"Deal the kernels of the files to K parts (2 to {MOST_PARTS}), or collectives by their number of nodes,"
        " and predict each part by tables of the others.",
        show_default=False,
    ),
]
RefitOption = Annotated[
    bool, typer.Option("--refit", help="Fit the constants of runs of this kind to them, and list both; minutes.")
]
RefitWithoutOption = Annotated[
    str | None,
    typer.Option(
        "--refit-without",
        metavar="COLUMN",
        help="Fit the constants anew without each value of a column, such as source_group, hardware or model, or of"
        f" training runs without each {GENERATION} of GPUs, and predict its runs by them; minutes.",
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
    refit: RefitOption = False,
    refit_without: RefitWithoutOption = None,
    constants: ConstantsOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Predict every measured row of CSV files, and say how good the predictions are.

    The kind of a file is recognised by its columns: training runs, serving runs, matrix products, attention, latent
    attention, experts, collectives. A row that cannot be priced is counted, with the reason. Kernels are priced by
    measured tables where there are some: a row that such a table holds is no test of it, rows left out are.
    """
    from cli.render_accuracy import constants_blocks
    from planner.accuracy.measurements import Kind
    from planner.accuracy.tables import Basis, Tables
    from profiles.errors import ProfileFileError

    if sum((profile is not None, left_out is not None, surface_only)) > 1:
        raise InputError("--profile, --left-out and --surface-only exclude one another.", hint="Give one of them.")
    kind, rows = _read(files)
    of_kernels = profile is not None or left_out is not None or surface_only
    of_training = refit or refit_without is not None
    of_runs = kind in {Kind.TRAINING, Kind.SERVING}
    if of_kernels if of_runs else of_training:
        raise InputError(
            "--profile, --left-out and --surface-only are for kernels, --refit and --refit-without for runs.",
            location=Location(file=str(files[0])),
            hint="Leave the option out.",
        )
    if kind is Kind.TRAINING:
        refits = Refits(everything=refit, without=refit_without)
        _training(rows, _columns(rows, by, ("source_group",)), refits, format_)
    elif kind is Kind.SERVING:
        refits = Refits(everything=refit, without=refit_without)
        _serving(rows, _columns(rows, by, ("engine", "hardware", "quant")), refits, format_)
    else:
        columns = _columns(rows, by, ("system", *FORMAT_COLUMNS))
        try:
            if left_out is not None:
                tables = _left_out(left_out, kind)
            else:
                found_profile = None if profile is None else _profile_in(profile)
                tables = Tables(basis=Basis.SURFACE if surface_only else Basis.TABLES, profile=found_profile)
            _kernels(kind, rows, columns, tables, format_)
        except ProfileFileError as error:
            raise InputError(
                f"{error.message}.", location=Location(file=error.file, line=error.line), hint=error.remedy
            ) from None
    if constants and format_ is Format.TEXT:
        print_blocks(constants_blocks())


def _profile_in(directory: Path) -> "Profile":
    """Return the profile in a directory: the store of `profile run`, or tables beside a `profile.json`."""
    from profiles.measure.journal import FILE
    from profiles.recorded import read_recording
    from profiles.recorded_tables import profile_of
    from profiles.store import read_profile

    return profile_of(read_recording(directory)) if (directory / FILE).is_file() else read_profile(directory)


def _read(files: Sequence[Path]) -> tuple["Kind", list["Row"]]:
    """Return what files measure, and the rows of all of them."""
    from planner.accuracy.measurements import read_measurements

    given = [file.resolve() for file in files]
    if len(set(given)) < len(given):
        raise InputError("A file is given twice, so its rows would count twice.", hint="Give each file once.")
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


def _left_out(text: str, kind: "Kind") -> "Tables":
    """Return tables from which the rows that they predict are left out."""
    from planner.accuracy.measurements import Kind
    from planner.accuracy.tables import Basis, Tables

    if text == NODES:
        if kind is not Kind.COLLECTIVES:
            raise InputError(
                f"--left-out {NODES} is for collectives, and these files measure {kind}.",
                hint="Give a number of parts.",
            )
        return Tables(basis=Basis.NODES_LEFT_OUT)
    if not text.isascii() or not text.isdigit() or not 2 <= int(text) <= MOST_PARTS:
        raise InputError(
            f"--left-out {text}: neither a number from 2 to {MOST_PARTS} nor {NODES}.", hint="Write --left-out 5."
        )
    return Tables(basis=Basis.LEFT_OUT, parts=int(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refits:
    """Which fits were asked for."""

    everything: bool
    without: str | None


def _training(rows: Sequence["Row"], columns: Sequence[str], refits: Refits, format_: Format) -> None:
    """Print predictions of training runs."""
    from cli.render_accuracy import training_blocks, training_document
    from cli.render_refit import refit_blocks, refit_document, without_blocks, without_document
    from planner.accuracy.fit import TrainingFit
    from planner.accuracy.training import TrainingPredictor

    without = refits.without
    if without is not None and without != GENERATION and without not in rows[0].cells:
        raise InputError(f"--refit-without {without}: the file has no such column.", hint="Name a column of the file.")
    predictor = TrainingPredictor()
    runs = [predictor.predict(row) for row in rows]
    if without is not None and len({_group(entry, without) for entry in runs if entry.error is None}) < 2:
        raise InputError(
            f"--refit-without {without}: every row says the same there, so nothing is left to fit.",
            hint="Give files with several, or name another column.",
        )
    document, blocks = training_document(runs), training_blocks(runs, columns)
    if refits.everything or without is not None:
        with progress_line() as progress:
            fit = TrainingFit(predictor, runs, progress=progress)
            if refits.everything:
                fitted = fit.fitted()
                document["refit"] = refit_document(fit.constants, fitted)
                blocks += refit_blocks(fit.constants, fitted)
            if without is not None:
                left_out = fit.leave_out(lambda entry: _group(entry, without))
                document["refit_without"] = without_document(left_out)
                blocks += without_blocks(left_out)
    print_json(document) if format_ is Format.JSON else print_blocks(blocks)


def _serving(rows: Sequence["Row"], columns: Sequence[str], refits: Refits, format_: Format) -> None:
    """Print predictions of serving runs."""
    from cli.render_serving import (
        constants_of,
        serving_blocks,
        serving_document,
        serving_refit_blocks,
        serving_without_blocks,
        serving_without_document,
    )
    from planner.accuracy.serving import ServingPredictor, predict_all
    from planner.accuracy.serving_exclusions import sort_rows
    from planner.accuracy.serving_fit import ServingFit, group_of
    from planner.serving.engines import calibration

    without = refits.without
    if without is not None and without not in rows[0].cells:
        raise InputError(f"--refit-without {without}: the file has no such column.", hint="Name a column of the file.")
    if without is not None and len({row.text(without) for row in rows}) < 2:
        raise InputError(
            f"--refit-without {without}: every row says the same there, so nothing is left to fit.",
            hint="Give files with several, or name another column.",
        )
    with progress_line() as progress:
        found = predict_all(ServingPredictor(), rows, progress=progress)
        sorting = sort_rows(rows)
        document = serving_document(found, sorting, calibration())
        blocks = serving_blocks(found, sorting, columns)
        if refits.everything or without is not None:
            fit = ServingFit(calibration(), found, sorting, progress=progress)
            if refits.everything:
                fitted = fit.fitted()
                document["refit"] = constants_of(fitted)
                blocks += serving_refit_blocks(calibration(), fitted)
            if without is not None:
                left_out = fit.leave_out(lambda entry: group_of(entry, without))
                document["refit_without"] = serving_without_document(left_out, sorting)
                blocks += serving_without_blocks(left_out, sorting)
    print_json(document) if format_ is Format.JSON else print_blocks(blocks)


def _group(entry: "Prediction", column: str) -> str:
    """Return what is left out together with a run."""
    return entry.architecture if column == GENERATION else entry.row.text(column)


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
