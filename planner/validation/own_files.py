"""Reads a spec or a plan of our own for what is wrong with it; everything that plans is loaded only here."""

from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import CombinedInputError, InputError
from planner.rules.own_files import OwnFile, OwnKind

if TYPE_CHECKING:
    from planner.documents import Document

PLAN_AGAIN = "Plan again from the spec; a plan file is not edited by hand."
SPEC_KEYS = frozenset({"model", "cluster", "clusters", "workload"})
PLAN_KEYS = (frozenset({"plans", "search"}), frozenset({"deployments", "search"}))
"""Keys of a training plan and of a serving plan."""


def own_kind(content: object) -> OwnKind | None:
    """Return which file of ours a mapping is; None for none."""
    if not isinstance(content, dict):
        return None
    if any(content.keys() >= keys for keys in PLAN_KEYS):
        return OwnKind.PLAN
    return OwnKind.SPEC if "workload" in content and len(content.keys() & SPEC_KEYS) > 1 else None


def names_plan_keys(text: str) -> bool:
    """Return whether a text names the keys of a plan."""
    return any(all(f'"{key}"' in text for key in keys) for keys in PLAN_KEYS)


def read_own_file(path: Path, kind: OwnKind) -> OwnFile:
    """Return what is wrong with a spec or a plan."""
    return _read_spec(path) if kind is OwnKind.SPEC else _read_plan(path)


def _read_spec(path: Path) -> OwnFile:
    from planner.inputs import SERVE, kind_of, load_alternative, spec_document  # noqa: PLC0415 - loads pydantic
    from planner.serve_inputs import checked_serve_inputs  # noqa: PLC0415 - as above

    file = str(path)
    try:
        document = spec_document(path)
        if kind_of(document) == SERVE:
            _, contradictions = checked_serve_inputs(document, base=path.parent)
        else:
            _, contradictions = load_alternative(path, (), ())
    except InputError as error:
        return OwnFile(kind=OwnKind.SPEC, file=file, damage=_each(error))
    return OwnFile(kind=OwnKind.SPEC, file=file, contradictions=contradictions)


def _read_plan(path: Path) -> OwnFile:
    from planner.documents import load_document  # noqa: PLC0415 - as above
    from planner.plan_rules import broken_rules  # noqa: PLC0415 - as above
    from planner.schema.plan import plan_from_document  # noqa: PLC0415 - as above
    from planner.schema.serve_plan_file import is_serve_plan  # noqa: PLC0415 - as above

    file = str(path)
    document = load_document(path)
    if is_serve_plan(document):
        return _read_serve_plan(document, file)
    try:
        plan = plan_from_document(document)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, damage=_each(error))
    broken = (
        InputError(f"This layout cannot be: {violation.message}.", location=document.locate(place), hint=PLAN_AGAIN)
        for place, violation in broken_rules(plan)
    )
    return OwnFile(kind=OwnKind.PLAN, file=file, broken=tuple(broken))


def _read_serve_plan(document: "Document", file: str) -> OwnFile:
    """Return what is wrong with a serving plan: its fields, or engines that its nodes do not hold."""
    from planner.schema.serve_plan_file import serve_plan_from_document  # noqa: PLC0415 - as above
    from planner.serve_launch import serve_files  # noqa: PLC0415 - as above

    try:
        plan = serve_plan_from_document(document)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, damage=_each(error))
    try:
        serve_files(plan)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, broken=_each(error))
    return OwnFile(kind=OwnKind.PLAN, file=file)


def _each(error: InputError) -> tuple[InputError, ...]:
    """Return the errors that one stands for."""
    return tuple(error.errors) if isinstance(error, CombinedInputError) else (error,)
