"""Runs that are priced before they are judged: memory, speed, and the lock that they are held against.

The strict reader of `evaluate` reads the script anew, because a price needs every setting. What it cannot read, or what
has no price, leaves these rules undecided; so does a search that advice needs and that ends with nothing.
"""

from dataclasses import dataclass
from pathlib import Path

from planner.advice import SingleChanges, best_of_all, single_changes
from planner.lock_changes import changes
from planner.locked import lock_of
from planner.plan import Plan
from planner.plan_lock import PlanLock
from planner.report import layout_in_words
from planner.rules.held_against_lock import HeldRun
from planner.rules.priced import Change, PricedRun
from planner.running import inputs_of, priced, read_running, request_of
from planner.validation.sources import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where runs are priced.

    Args:
        cluster: Name of a cluster preset; None where a spec says it.
        spec: A spec with model, cluster and workload; None where a preset is named.
        advice: Also search for the best layout, and for single changes that help.
    """

    cluster: str | None
    spec: Path | None
    advice: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A locked plan.

    Args:
        lock: Its lock.
        plan: The plan itself, whose inputs runs are priced with.
    """

    lock: PlanLock
    plan: Plan


def priced_run(script: Path, run: Run, machine: Machine) -> PricedRun:
    """Return a script's run with its price.

    Raises:
        InputError: The script does not say all of it, or not what can be planned.
        profiles.errors.CoverageError: Something has no cost.
    """
    running = read_running(script)
    inputs = inputs_of(running, script=script, cluster=machine.cluster, spec=machine.spec)
    plan, _ = priced(running.layout, inputs.model, inputs.cluster, inputs.request)
    found = best_of_all(inputs) if machine.advice else None
    single = single_changes(plan.best, inputs) if machine.advice else SingleChanges(helping=(), open={})
    return PricedRun(
        place=run.start,
        planned=plan.best,
        memory_bytes=inputs.cluster.device.memory_bytes,
        best=found.best if found is not None and found.plans else None,
        changes=tuple(
            Change(
                part=advice.part,
                layout=layout_in_words(advice.planned.layout),
                saved_fraction=advice.saved_fraction,
            )
            for advice in single.helping
        ),
        open_parts=single.open,
    )


def lock_of_script(script: Path, plan: Plan) -> PlanLock:
    """Return the lock of a launch script's layout, priced with the model, cluster and workload of a plan.

    Raises:
        InputError: The script says no layout.
        profiles.errors.CoverageError: Something has no cost.
    """
    running = read_running(script)
    request = request_of(running, workload=plan.request.workload, memory_headroom=plan.request.memory_headroom)
    found, _ = priced(running.layout, plan.model, plan.cluster, request)
    files = {script.name: script.read_text(encoding="utf-8")}
    # A script pins everything; what it is held against is the plan's own question.
    return lock_of(found, files=files, asked_of=plan)


def held_run(script: Path, run: Run, baseline: Baseline) -> HeldRun:
    """Return a script's run with what changed since its plan was locked.

    Raises:
        InputError: The script says no layout.
        profiles.errors.CoverageError: Something has no cost.
    """
    return HeldRun(place=run.start, changes=changes(baseline.lock, lock_of_script(script, baseline.plan)))
