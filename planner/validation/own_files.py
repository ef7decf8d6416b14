"""Reads a spec or a plan of our own for what is wrong with it; everything that plans is loaded only here."""

from pathlib import Path

from planner.errors import CombinedInputError, InputError
from planner.rules.own_files import OwnFile, OwnKind

PLAN_AGAIN = "Plan again from the spec; a plan file is not edited by hand."
SPEC_KEYS = frozenset({"model", "cluster", "workload"})
PLAN_KEYS = frozenset({"plans", "search"})


def own_kind(content: object) -> OwnKind | None:
    """Return which file of ours a mapping is; None for none."""
    if not isinstance(content, dict):
        return None
    if content.keys() >= PLAN_KEYS:
        return OwnKind.PLAN
    return OwnKind.SPEC if "workload" in content and len(content.keys() & SPEC_KEYS) > 1 else None


def read_own_file(path: Path, kind: OwnKind) -> OwnFile:
    """Return what is wrong with a spec or a plan."""
    return _read_spec(path) if kind is OwnKind.SPEC else _read_plan(path)


def _read_spec(path: Path) -> OwnFile:
    from planner.inputs import load_alternative  # noqa: PLC0415 - loads numpy and pydantic

    file = str(path)
    try:
        _, contradictions = load_alternative(path, (), ())
    except InputError as error:
        return OwnFile(kind=OwnKind.SPEC, file=file, damage=_each(error))
    return OwnFile(kind=OwnKind.SPEC, file=file, contradictions=contradictions)


def _read_plan(path: Path) -> OwnFile:
    from planner.documents import load_document  # noqa: PLC0415 - as above
    from planner.plan_rules import broken_rules  # noqa: PLC0415 - as above
    from planner.schema.plan import plan_from_document  # noqa: PLC0415 - as above

    file = str(path)
    document = load_document(path)
    try:
        plan = plan_from_document(document)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, damage=_each(error))
    broken = (
        InputError(f"This layout cannot be: {violation.message}.", location=document.locate(place), hint=PLAN_AGAIN)
        for place, violation in broken_rules(plan)
    )
    return OwnFile(kind=OwnKind.PLAN, file=file, broken=tuple(broken))


def _each(error: InputError) -> tuple[InputError, ...]:
    """Return the errors that one stands for."""
    return tuple(error.errors) if isinstance(error, CombinedInputError) else (error,)
