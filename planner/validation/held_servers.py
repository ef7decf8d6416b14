"""A vLLM engine held against a locked serving plan: which pool it is of, and what it is told otherwise."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from planner.errors import InputError, Location
from planner.locks.serve_lock import ServeLock
from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework, chosen_version
from planner.readers.vllm_engine import settings_of, shape_of
from planner.readers.vllm_run import VllmRun, read_vllm_runs
from planner.rules.served_against_lock import HeldServer
from planner.serving_plans.layout import EngineSettings, EngineShape
from planner.serving_plans.plan import PlannedPool, ServePlan
from planner.serving_search.held import Told, held_engine, plan_told
from planner.validation.locked import serve_lock_of, text_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBaseline:
    """A locked serving plan.

    Args:
        lock: Its lock.
        plan: The plan itself.
    """

    lock: ServeLock
    plan: ServePlan


def held_server(run: VllmRun, baseline: ServeBaseline) -> HeldServer:
    """Return an engine with what changed since its plan was locked.

    Raises:
        NotSaidError: Nothing says which pool it is of, or the command leaves a size open.
        profiles.errors.CoverageError: Something has no cost.
    """
    run.require_whole()
    plan, entry = baseline.plan, _pool(run, baseline.plan)
    shape, settings = shape_of(run), settings_of(run)
    changed = _changed(entry, shape, settings)
    targets = plan.request.workload.targets.given
    return HeldServer(
        place=run.start,
        pool=entry.pool.name,
        settings=changed,
        engine=held_engine(plan, entry, shape, settings) if changed else None,
        targets=", ".join(f"{name} {seconds * 1e3:g} ms" for name, seconds in targets.items()) or "none",
    )


def lock_of_served(text: str, *, file: Path, baseline: ServeBaseline) -> ServeLock:
    """Return the lock of a serving plan with one pool told as a script of `vllm serve` tells it.

    Args:
        text: The script.
        file: Where it stands; the pool is the one that it is called after, or the only one.
        baseline: The plan.

    Raises:
        InputError: It starts no server, or several; it leaves a size open; engines do not fit; or a pool that makes
            caches cannot pass them on.
        profiles.errors.CoverageError: Something has no cost.
    """
    node = baseline.plan.pools[0].pool.gpus_per_node
    runs = read_vllm_runs(text, file=str(file), version=chosen_version(Framework.VLLM, None), gpus_per_node=node)
    if len(runs) != 1:
        raise InputError(
            f"The script starts {len(runs) or 'no'} server{'' if len(runs) == 1 else 's'}, and one is compared.",
            location=Location(file=str(file)),
            hint="Give the script of one pool, with its `vllm serve` command.",
        )
    (run,) = runs
    try:
        run.require_whole()
        entry, told = _pool(run, baseline.plan), Told(shape=shape_of(run), settings=settings_of(run))
    except NotSaidError as error:
        raise InputError(
            f"The script does not say {error.what}.",
            location=run.start,
            hint="Give max-num-seqs, max-num-batched-tokens and max-model-len, as the plan's own files do.",
        ) from None
    found = plan_told(baseline.plan, {entry.pool.name: told})
    lock = serve_lock_of(found, files={})
    return replace(lock, files={**baseline.lock.files, file.name: text_hash(text)})


def _pool(run: VllmRun, plan: ServePlan) -> PlannedPool:
    """Return the pool of the plan that an engine is of: the one that its file is called after, or the only one."""
    name = Path(run.arguments.file).stem
    found = [entry for entry in plan.pools if entry.pool.name == name]
    if not found and len(plan.pools) == 1:
        return plan.pools[0]
    if not found:
        names = ", ".join(entry.pool.name for entry in plan.pools)
        raise NotSaidError(f"which pool of the plan it is (name the file after one of {names})")
    return found[0]


def _changed(entry: PlannedPool, shape: EngineShape, settings: EngineSettings) -> dict[str, tuple[str, str]]:
    locked = {**asdict(entry.pool.shape), **asdict(entry.pool.settings)}
    told = {**asdict(shape), **asdict(settings)}
    return {name: (str(locked[name]), str(told[name])) for name in locked if locked[name] != told[name]}
