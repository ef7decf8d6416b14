"""Reads back the plan that `plan` wrote."""

from pathlib import Path

from planner.errors import InputError, Location
from planner.plan import Plan, PlannedLayout

PLAN_FILE = "plan.json"


def read_plan(path: Path) -> Plan:
    """Return the plan in a JSON file, or in the `plan.json` of a directory.

    Raises:
        InputError: When there is no such file, or it holds no plan.
    """
    from planner.documents import load_document
    from planner.schema.plan import plan_from_document

    document = load_document(path / PLAN_FILE if path.is_dir() else path)
    if isinstance(document.data, dict) and "workload" in document.data and "plans" not in document.data:
        raise InputError(
            "This is a spec, not a plan.",
            location=Location(file=str(path)),
            hint=f"Plan it first: shardwright plan {path} --out DIR",
        )
    return plan_from_document(document)


def pick(plan: Plan, index: int, *, path: Path) -> PlannedLayout:
    """Return the layout at `index`, 0 being the best.

    Raises:
        InputError: When the plan has no such layout.
    """
    if not plan.plans:
        raise InputError(
            "This plan holds no layout, because none fits.",
            location=Location(file=str(path)),
            hint=f"`shardwright explain {path}` says why and which changes would fit.",
        )
    if index >= len(plan.plans):
        raise InputError(
            f"--index {index} is none of its {len(plan.plans)} layouts.",
            location=Location(file=str(path)),
            hint=f"Give an index from 0 (the best) to {len(plan.plans) - 1}.",
        )
    return plan.plans[index]
