"""The plan of a run that is held against its prediction: a plan file, or a launch script priced as `evaluate` does."""

from pathlib import Path
from typing import Annotated

import typer

from planner.errors import InputError
from planner.plans.plan import Plan

RanArgument = Annotated[
    Path,
    typer.Argument(
        metavar="PLAN",
        help="A plan.json, the directory that `plan --out` wrote, or a launch script as `evaluate` reads it.",
        show_default=False,
    ),
]


def ran_plan(path: Path, index: int, *, cluster: str | None, spec: Path | None) -> Plan:
    """Return the plan whose layout ran.

    Args:
        path: A plan, its directory, or a launch script.
        index: Which layout of it.
        cluster: Preset that a launch script runs on.
        spec: Spec of what a launch script does not say.

    Raises:
        InputError: It cannot be read, or has no such layout.
    """
    if path.is_dir() or path.suffix.lower() == ".json":
        from cli.plan_file import read_plan

        if cluster is not None or spec is not None:
            raise InputError("A plan says its cluster and its spec itself.", hint="Leave --cluster and --spec out.")
        plan = read_plan(path)
    else:
        from planner.inputs.running import inputs_of, priced, read_running

        running = read_running(path)
        inputs = inputs_of(running, script=path, cluster=cluster, spec=spec)
        plan, _ = priced(running.laid_out(inputs.model), inputs.model, inputs.cluster, inputs.request)
    if index >= len(plan.plans):
        raise InputError(f"The plan has no layout {index}.", hint=f"It has {len(plan.plans)}, counted from 0.")
    return plan
