"""Reads what two plans are compared by: a plan, its lock, or a launch script priced where a plan runs."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cli.plan_file import PLAN_FILE, launch_target, read_plan, read_serve_plan
from planner.errors import InputError, Location
from planner.locks.plan_lock import LOCK_FILE, PlanLock
from planner.validation.locked import lock_of, serve_lock_of

if TYPE_CHECKING:
    from planner.locks.serve_lock import ServeLock
    from planner.serving_plans.plan import ServePlan
    from planner.validation.held_servers import ServeBaseline
    from planner.validation.pricing import Baseline


def read_lock(path: Path) -> "PlanLock | ServeLock":
    """Return the lock of a plan, of training or of servers: a lock file, a plan file, or a directory with one of them.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from planner.documents import load_document
    from planner.schema.plan_lock import lock_from_document
    from planner.schema.serve_plan_file import is_serve_plan, serve_plan_from_document
    from planner.schema.serve_plan_lock import is_serve_lock, serve_lock_from_document

    if path.is_dir():
        lock = path / LOCK_FILE
        path = lock if lock.is_file() and not (path / PLAN_FILE).is_file() else path / PLAN_FILE
    document = load_document(path)
    if is_serve_lock(document):
        return serve_lock_from_document(document)
    if is_serve_plan(document):
        return _lock_of_serve_plan(path, serve_plan_from_document(document))
    if isinstance(document.data, dict) and "plans" not in document.data and "ranks" in document.data:
        return lock_from_document(document)
    return _lock_of_plan(path)


def is_script(path: Path) -> bool:
    """Return whether a path is a launch script rather than a plan."""
    return path.is_file() and path.suffix.lower() != ".json"


def read_baseline(path: Path) -> "Baseline | ServeBaseline":
    """Return a locked plan, of training or of servers, with the plan itself.

    Args:
        path: A plan file, its directory, or a lock with the plan file beside it.

    Raises:
        InputError: There is no plan, or it is damaged.
    """
    lock = read_lock(path)
    file = _plan_beside(path)
    if isinstance(lock, PlanLock):
        from planner.validation.pricing import Baseline

        return Baseline(lock=lock, plan=read_plan(file))
    from planner.validation.held_servers import ServeBaseline

    plan = read_serve_plan(file)
    if plan is None:
        raise InputError(
            "The lock is of a serving plan, and the plan beside it is none.",
            location=Location(file=str(file)),
            hint="Keep the plan file beside its lock.",
        )
    return ServeBaseline(lock=lock, plan=plan)


def _plan_beside(path: Path) -> Path:
    """Return the plan file of a plan, its directory or its lock."""
    file = path / PLAN_FILE if path.is_dir() else path.with_name(PLAN_FILE) if path.name == LOCK_FILE else path
    if not file.is_file():
        raise InputError(
            f"A script is priced with the inputs of a plan, and there is no {PLAN_FILE} here.",
            location=Location(file=str(file)),
            hint="Keep the plan file beside its lock, or name the directory that `plan --out` wrote.",
        )
    return file


def _lock_of_serve_plan(path: Path, plan: "ServePlan") -> "ServeLock":
    if not plan.deployments:
        raise _no_layout(path)
    from planner.serving_search.launch import serve_files

    return serve_lock_of(plan, files=_files_beside(path, serve_files(plan)))


def _no_layout(path: Path) -> InputError:
    return InputError(
        "This plan holds no layout, because none fits.",
        location=Location(file=str(path)),
        hint=f"`shardwright explain {path}` says why and which changes would fit.",
    )


def _files_beside(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the text of each file that stands beside a plan, by name."""
    return {name: (path.parent / name).read_text(encoding="utf-8") for name in names if (path.parent / name).is_file()}


def _lock_of_plan(path: Path) -> PlanLock:
    plan = read_plan(path)
    if not plan.plans:
        raise _no_layout(path)
    from planner.targets.launch import launch_file_names

    names = launch_file_names(plan.request.workload, plan.cluster, target=launch_target(plan.target))
    return lock_of(plan, files=_files_beside(path, names))
