"""The files of `verify/`: short runs of the best layouts of a plan, with the same emitters as the long run."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.emit.megatron import LAUNCH_SCRIPT
from planner.errors import NotExpressibleError
from planner.plans.plan import Plan
from planner.requests.request import Target
from planner.targets.launch import launch_files
from planner.targets.registry import FRAMEWORKS
from planner.verification.rows import ROWS_FILE, row_of, table_text
from planner.verification.script import BATCH_SCRIPT, RUN_SCRIPT, TimedRun, batch_script, run_script

FOLDER = "verify"

NUM_RUNS = 3
"""The regret of the best among the three best predicted is a few times smaller than that of the best predicted."""

STEPS = 10
"""Steps of a run: the first ones warm up, the median of the others counts."""

START_SECONDS = 900
"""Allowed for a start: processes, communicators, kernels, data. An allowance, no prediction."""

SLOWEST = 3
"""A step may take this many times its predicted time before a run reaches its time limit."""

KIT_FILES = tuple(f"{FOLDER}/{name}" for name in (RUN_SCRIPT, BATCH_SCRIPT, ROWS_FILE))
"""What stands in every kit beside the runs' own folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """The files of a verification.

    Args:
        files: Text by name.
        num_runs: Layouts to run.
        steps: Steps of each.
        steps_seconds: Predicted time of all steps of all runs, without their starts.
    """

    files: Mapping[str, str]
    num_runs: int
    steps: int
    steps_seconds: float


def verification_kit(plan: Plan, *, target: Target) -> Kit | None:
    """Return short runs of the best layouts that a framework can express; None where it can express none.

    A folder's name holds a digest of its files, so that logs of another plan are never taken for this one's.

    Raises:
        InputError: The plan breaks a rule, or no files can be written for the target.
    """
    short = short_plan(plan)
    files: dict[str, str] = {}
    runs: list[TimedRun] = []
    rows: list[Mapping[str, str]] = []
    steps_seconds = 0.0
    for index, planned in enumerate(plan.plans):
        if len(runs) == NUM_RUNS:
            break
        try:
            of_run = launch_files(short, index=index, target=target)
        except NotExpressibleError:
            continue
        folder = f"layout-{index}-{_digest(of_run)}"
        files |= {f"{FOLDER}/{folder}/{name}": text for name, text in of_run.items()}
        limit_seconds = START_SECONDS + math.ceil(SLOWEST * STEPS * planned.step_seconds)
        runs.append(TimedRun(folder=folder, limit_seconds=limit_seconds))
        rows.append(row_of(plan, index, name=folder, framework=FRAMEWORKS[target].title))
        steps_seconds += STEPS * planned.step_seconds
    if not runs:
        return None
    scripts = {
        RUN_SCRIPT: run_script(plan, runs, launch_script=LAUNCH_SCRIPT, steps=STEPS),
        BATCH_SCRIPT: batch_script(plan, runs, launch_script=BATCH_SCRIPT, steps=STEPS),
        ROWS_FILE: table_text(rows),
    }
    named = {f"{FOLDER}/{name}": text for name, text in scripts.items()}
    return Kit(files={**named, **files}, num_runs=len(runs), steps=STEPS, steps_seconds=steps_seconds)


def short_plan(plan: Plan) -> Plan:
    """Return the plan with a token budget of a few steps, which emitters turn into their number."""
    workload = plan.request.workload
    budget = math.floor(STEPS * workload.useful_tokens_per_step)
    return replace(plan, request=replace(plan.request, workload=replace(workload, tokens_to_train=budget)))


def _digest(files: Mapping[str, str]) -> str:
    """Return eight characters that other files would not have."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{files[name]}\0".encode())
    return whole.hexdigest()[:8]
