"""Reads back the plan that `plan` wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import CombinedInputError, InputError, Location
from planner.plans.plan import Plan, PlannedLayout
from planner.requests.request import Target

if TYPE_CHECKING:
    from planner.serving_plans.layout import ServingLayout
    from planner.serving_plans.plan import ServePlan

PLAN_FILE = "plan.json"
PLAN_AGAIN = "Plan again from the spec; a plan file is not edited by hand."


def read_plan(path: Path) -> Plan:
    """Return the plan in a JSON file, or in the `plan.json` of a directory.

    Raises:
        InputError: When there is no such file, it holds no plan, or one that breaks a rule that every plan obeys.
    """
    from planner.documents import load_document
    from planner.schema.plan import plan_from_document

    file = path / PLAN_FILE if path.is_dir() else path
    document = load_document(file)
    if isinstance(document.data, dict) and document.data.get("kind") == "serve":
        raise InputError(
            "This is a serving plan; the command reads training plans.",
            location=Location(file=str(path)),
            hint="`shardwright emit` and `shardwright explain` read it.",
        )
    if isinstance(document.data, dict) and "plans" not in document.data:
        if "workload" in document.data:
            raise InputError(
                "This is a spec, not a plan.",
                location=Location(file=str(path)),
                hint=f"Plan it first: shardwright plan {path} --out DIR",
            )
        raise InputError(
            "The file is damaged or no plan: `plans` is missing.", location=Location(file=str(file)), hint=PLAN_AGAIN
        )
    plan = plan_from_document(document)
    broken = list(_broken_rules(plan, file))
    if broken:
        raise CombinedInputError(broken)
    return plan


def read_serve_plan(path: Path) -> "ServePlan | None":
    """Return the serving plan in a file, or in the `plan.json` of a directory; None where it holds something else.

    Raises:
        InputError: When there is no such file, or it holds a damaged serving plan.
    """
    from planner.documents import load_document
    from planner.schema.serve_plan_file import is_serve_plan, serve_plan_from_document

    document = load_document(path / PLAN_FILE if path.is_dir() else path)
    return serve_plan_from_document(document) if is_serve_plan(document) else None


def read_serving_layout(path: Path) -> "ServingLayout | None":
    """Return the serving layout in a file, or in the `plan.json` of a directory; None where it holds something else.

    Raises:
        InputError: When there is no such file, or it holds a damaged serving layout.
    """
    from planner.documents import load_document
    from planner.schema.serving_layout import is_serving_layout, serving_layout_from_document

    document = load_document(path / PLAN_FILE if path.is_dir() else path)
    return serving_layout_from_document(document) if is_serving_layout(document) else None


def _broken_rules(plan: Plan, file: Path) -> Iterator[InputError]:
    """Return every rule that a layout of the file breaks, as edited files do."""
    from planner.documents.document import format_path
    from planner.validation.plan_rules import broken_rules

    for place, violation in broken_rules(plan):
        message = f"This layout cannot be: {violation.message}."
        yield InputError(message, location=Location(file=str(file), path=format_path(place)), hint=PLAN_AGAIN)


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


def launch_target(target: Target) -> Target:
    """Return the framework that launch files are written for: a plan for any target is written for Megatron-LM."""
    return Target.MEGATRON if target is Target.ANY else target
