"""`shardwright plan` of a serving spec: from the spec to the engines, their commands and what becomes of requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from cli.exits import ExitCode
from cli.output import Format, Stopwatch, check_writable, note, print_blocks, print_text, write_files
from cli.plan_file import PLAN_FILE
from planner.errors import InputError, Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """Where an answer goes, and how much of it.

    Args:
        top: How many engines to list.
        out: Directory for the plan and its files; None writes nothing.
        force: Files of the same names are overwritten.
        format_: Form of what is printed.
        timings: Say where the time went.
        quiet: No notes.
        verbose: Also every reason for pruning.
    """

    top: int
    out: Path | None
    force: bool
    format_: Format
    timings: bool
    quiet: bool
    verbose: bool


def refuse(given: Mapping[str, object], spec: Path) -> None:
    """Raise for options that only training plans have."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name} asks of training plans, and this spec is of servers.",
                location=Location(file=str(spec)),
                hint="Leave it out; the front of speed and throughput is always there.",
            )


def plan_server(
    spec: Path,
    overrides: Sequence[str],
    options: Mapping[str, str],
    printed: Printed,
    *,
    profile: Path | None = None,
    strict_data: bool = False,
) -> None:
    """Plan a serving spec, print the plan, write it and its files; exit with 3 where nothing keeps the targets."""
    from cli.priced_inputs import clusters_priced_by
    from cli.render_serve import serve_blocks
    from planner.locks.plan_lock import LOCK_FILE
    from planner.schema.serve_plan_file import serve_plan_to_text
    from planner.schema.serve_plan_lock import serve_lock_to_text
    from planner.serving_search.inputs import load_serve_inputs
    from planner.serving_search.launch import serve_files
    from planner.serving_search.search import plan_serving
    from planner.validation.locked import serve_lock_of

    stopwatch = Stopwatch()
    inputs = load_serve_inputs(spec, overrides, options=options)
    clusters = clusters_priced_by(inputs.clusters, profile=profile, strict_data=strict_data)
    stopwatch.lap("read inputs")
    plan = plan_serving(inputs.model, clusters, inputs.request, top=printed.top)
    stopwatch.lap("search")
    document = serve_plan_to_text(plan)
    launched = serve_files(plan)
    files = {PLAN_FILE: document, **launched}
    if plan.deployments:
        lock = serve_lock_to_text(serve_lock_of(plan, files=launched))
        files = {PLAN_FILE: document, LOCK_FILE: lock, **launched}
    if printed.out is not None and plan.deployments:
        check_writable(printed.out, files, force=printed.force)
    if printed.format_ is Format.TEXT:
        print_blocks(serve_blocks(plan, verbose=printed.verbose))
    else:
        print_text(document)
    stopwatch.lap("print")
    if printed.out is not None and plan.deployments:
        write_files(printed.out, files, force=printed.force)
        if printed.format_ is Format.TEXT:
            print_text(f"\nWritten to {printed.out}: {', '.join(files)}\n")
        stopwatch.lap("write")
    if printed.timings:
        note("\n".join(stopwatch.lines()))
    if not plan.deployments:
        if printed.out is not None and not printed.quiet:
            note(f"{printed.out}: nothing was written, because no plan keeps the targets.")
        raise typer.Exit(ExitCode.INFEASIBLE)
