"""Runs that are priced before they are judged: memory, speed, and the lock that they are held against.

The strict reader of `evaluate` reads the script anew, because a price needs every setting. What it cannot read, or what
has no price, leaves these rules undecided; so does a search that advice needs and that ends with nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from planner.inputs.running import (
    Running,
    inputs_of,
    preset_named,
    priced,
    read_running,
    request_of,
    require_buffers,
)
from planner.locks.lock_changes import changes
from planner.locks.plan_lock import PlanLock
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Plan
from planner.readers.arguments import NotSaidError
from planner.readers.deepspeed import workload_of
from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.vllm_run import VllmRun
from planner.rules.held_against_lock import HeldRun
from planner.rules.priced import Change, PricedRun
from planner.rules.served_against_lock import HeldServer
from planner.rules.served_memory import ServedRun
from planner.validation.advice import SingleChanges, best_of_all, single_changes
from planner.validation.held_servers import ServeBaseline, held_server
from planner.validation.locked import lock_of
from planner.validation.serving import served_run
from planner.validation.source import Run
from planner.validation.sources import text_of


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """The text that starts a run.

    Args:
        script: What messages call it: a script, or a command line.
        text: The text.
        config: DeepSpeed's configuration, if it has one.
    """

    script: Path
    text: str
    config: Path | None = None

    def read(self) -> Running:
        """Return what is started.

        Raises:
            InputError: It is not said, or not what can be planned.
        """
        return read_running(self.script, text=self.text, config=self.config)


def on_links(runs: Sequence[Run], preset: str) -> tuple[Run, ...]:
    """Return runs with the GPUs that a preset's fast links join."""
    domain_gpus = preset_named(preset).to_cluster().fast_domain_size
    return tuple(replace(cast("Any", run), domain_gpus=domain_gpus) for run in runs)


def launched(run: Run, *, file: str, text: str) -> Launched:
    """Return the text that starts a run: the file that holds it, or the script that names DeepSpeed's configuration.

    Raises:
        NotSaidError: No script names the configuration, or none that says how the model is split.
    """
    if not isinstance(run, DeepSpeedRun):
        return Launched(script=Path(file), text=text)
    if run.launch is None:
        raise NotSaidError("the command that starts the program (name its script beside the configuration)")
    if not run.launch.ours:
        raise NotSaidError("how the program splits the model (of DeepSpeed only what `plan` writes has a price)")
    script = Path(run.launch.start.file)
    return Launched(script=script, text=text_of(script), config=Path(file))


def priced_run(source: Launched, run: Run, machine: Machine) -> PricedRun | ServedRun:
    """Return a run with its price; of a server the memory.

    Raises:
        InputError: The text does not say all of it, or not what can be planned.
        NotSaidError: The model is not said.
        profiles.errors.CoverageError: Something has no cost.
    """
    if isinstance(run, VllmRun):
        return served_run(run, preset=machine.cluster)
    running = source.read()
    if machine.spec is None and not running.names_model:
        raise NotSaidError("the model (name its facts by --model-facts, or give --spec with a spec)")
    inputs = inputs_of(running, script=source.script, cluster=machine.cluster, spec=machine.spec)
    plan, _ = priced(running.laid_out(inputs.model), inputs.model, inputs.cluster, inputs.request)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchedLock:
    """A launched layout, priced with the inputs of a plan.

    Args:
        lock: Its lock.
        faults: Why it is no run of these inputs, a sentence each; none where it is one.
    """

    lock: PlanLock
    faults: tuple[str, ...]


def lock_of_launched(source: Launched, plan: Plan) -> LaunchedLock:
    """Return the lock of a launched layout, priced with the model, cluster and workload of a plan.

    Raises:
        InputError: The script says no layout.
        profiles.errors.CoverageError: Something has no cost.
    """
    running = source.read()
    request = request_of(running, workload=plan.request.workload, memory_headroom=plan.request.memory_headroom)
    require_buffers(running, plan.model, request.workload)
    found, broken = priced(running.laid_out(plan.model), plan.model, plan.cluster, request)
    files = {source.script.name: source.text}
    # A script pins everything; what it is held against is the plan's own question.
    lock = lock_of(found, files=files, asked_of=plan)
    faults = [f"The plan's run cannot have this layout: {entry.message}." for entry in broken if entry.rule != MEMORY]
    return LaunchedLock(lock=lock, faults=(*_other_inputs(running, plan), *faults))


MEMORY = "memory"
"""The rule of `planner.evaluation.validate` that the remarks on a lock speak of themselves."""


def _other_inputs(running: Running, plan: Plan) -> Iterator[str]:
    """Yield what a script says of its run that the plan says otherwise; its batch and layers are in its layout."""
    job, planned = running.deepspeed, plan.request.workload
    workload = running.workload if job is None else workload_of(job)
    if workload is not None and workload.seq_len != planned.seq_len:
        yield f"The script's sequences have {workload.seq_len:,} tokens, the plan's {planned.seq_len:,}."
    if workload is not None and workload.precision is not planned.precision:
        yield f"The script runs in {workload.precision.value}, the plan in {planned.precision.value}."
    if running.model is not None and running.model.hidden_size != plan.model.hidden_size:
        yield f"The script's hidden size is {running.model.hidden_size:,}, the plan's {plan.model.hidden_size:,}."


def held_against(source: Launched, run: Run, baseline: Baseline | ServeBaseline) -> HeldRun | HeldServer:
    """Return a run, of training or of a server, with what changed since its plan was locked.

    Raises:
        NotSaidError: The plan is of the other kind, or the run does not say all of it.
        InputError: The script says no layout.
        profiles.errors.CoverageError: Something has no cost.
    """
    if isinstance(baseline, ServeBaseline):
        if not isinstance(run, VllmRun):
            raise NotSaidError("what a training run has to do with a serving plan (give the lock of its own plan)")
        return held_server(run, baseline)
    if isinstance(run, VllmRun):
        raise NotSaidError("what a server has to do with a training plan (give the lock of its own plan)")
    return held_run(source, run, baseline)


def held_run(source: Launched, run: Run, baseline: Baseline) -> HeldRun:
    """Return a run with what changed since its plan was locked.

    Raises:
        InputError: The script says no layout.
        profiles.errors.CoverageError: Something has no cost.
    """
    new = lock_of_launched(source, baseline.plan)
    return HeldRun(place=run.start, changes=changes(baseline.lock, new.lock, faults=new.faults))
