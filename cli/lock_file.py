"""Reads what two plans are compared by: a plan, its lock, or a launch script priced where a plan runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.plan_file import PLAN_FILE, launch_target, read_plan
from planner.errors import InputError, Location
from planner.locked import lock_of
from planner.plan import Plan
from planner.plan_lock import LOCK_FILE, PlanLock

if TYPE_CHECKING:
    from planner.validation.pricing import Baseline


def read_lock(path: Path) -> PlanLock:
    """Return the lock of a plan: a lock file, a plan file, or a directory with one of them.

    Raises:
        InputError: There is none, or it is damaged.
    """
    from planner.documents import load_document
    from planner.schema.plan_lock import lock_from_document

    if path.is_dir():
        lock = path / LOCK_FILE
        path = lock if lock.is_file() and not (path / PLAN_FILE).is_file() else path / PLAN_FILE
    document = load_document(path)
    if isinstance(document.data, dict) and "plans" not in document.data and "ranks" in document.data:
        return lock_from_document(document)
    return _lock_of_plan(path)


def is_script(path: Path) -> bool:
    """Return whether a path is a launch script rather than a plan."""
    return path.is_file() and path.suffix.lower() != ".json"


def read_baseline(path: Path) -> "Baseline":
    """Return a locked plan with the plan itself.

    Args:
        path: A plan file, its directory, or a lock with the plan file beside it.

    Raises:
        InputError: There is no plan, or it is damaged.
    """
    from planner.validation.pricing import Baseline

    return Baseline(lock=read_lock(path), plan=_plan_beside(path))


def _plan_beside(path: Path) -> Plan:
    file = path / PLAN_FILE if path.is_dir() else path.with_name(PLAN_FILE) if path.name == LOCK_FILE else path
    if not file.is_file():
        raise InputError(
            f"A script is priced with the inputs of a plan, and there is no {PLAN_FILE} here.",
            location=Location(file=str(file)),
            hint="Keep the plan file beside its lock, or name the directory that `plan --out` wrote.",
        )
    return read_plan(file)


def _lock_of_plan(path: Path) -> PlanLock:
    plan = read_plan(path)
    if not plan.plans:
        raise InputError(
            "This plan holds no layout, because none fits.",
            location=Location(file=str(path)),
            hint=f"`shardwright explain {path}` says why and which changes would fit.",
        )
    from planner.launch import launch_file_names

    names = launch_file_names(plan.request.workload, target=launch_target(plan.target))
    files = {name: (path.parent / name).read_text(encoding="utf-8") for name in names if (path.parent / name).is_file()}
    return lock_of(plan, files=files)
