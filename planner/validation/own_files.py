"""Reads a file of our own (a spec, a plan, a serving layout) for what is wrong; what plans is loaded only here."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import CombinedInputError, InputError
from planner.readers.arguments import NotSaidError
from planner.readers.flag_tables import Framework
from planner.readers.named_files import is_regular_file
from planner.rules.own_files import OwnFile, OwnKind
from planner.rules.registry import rules_of
from planner.rules.rule import Severity

if TYPE_CHECKING:
    from planner.documents import Document
    from planner.readers.vllm_run import VllmRun
    from planner.serving_plans.layout import Pool, ServingLayout

PLAN_AGAIN = "Plan again from the spec; a plan file is not edited by hand."
SPEC_KEYS = frozenset({"model", "cluster", "clusters", "workload"})
SPEC_MARKS = frozenset({"workload", "schema"})
"""Keys one of which a spec has beside another of `SPEC_KEYS`."""

PLAN_KEYS = (frozenset({"plans", "search"}), frozenset({"deployments", "search"}))
"""Keys of a training plan and of a serving plan."""

SERVING_KEYS = frozenset({"schema_version", "target", "pools"})

PLAN_START = re.compile(
    r"""\s*\{\s*"schema_version":\s*\d+,\s*(?:"kind":\s*"\w+",\s*)?"target":\s*"(?:megatron|deepspeed|vllm|any)\b"""
)
"""How `plan` begins a plan file."""

PLAN_NAME = "plan.json"
"""What `plan --out` calls a plan, beside its lock."""


def own_kind(content: object) -> OwnKind | None:
    """Return which file of ours a mapping is; None for none."""
    if not isinstance(content, dict):
        return None
    if any(content.keys() >= keys for keys in PLAN_KEYS):
        return OwnKind.PLAN
    if content.keys() >= SERVING_KEYS:
        return OwnKind.SERVING_LAYOUT
    return OwnKind.SPEC if content.keys() & SPEC_MARKS and len(content.keys() & SPEC_KEYS) > 1 else None


def is_damaged_plan(text: str, path: Path) -> bool:
    """Return whether a text that cannot be read is what is left of a plan: by its keys, its beginning or its place."""
    from planner.locks.plan_lock import LOCK_FILE  # noqa: PLC0415 - most files are not damaged

    beside_its_lock = path.name == PLAN_NAME and is_regular_file(path.with_name(LOCK_FILE))
    return beside_its_lock or names_plan_keys(text) or PLAN_START.match(text) is not None


def names_plan_keys(text: str) -> bool:
    """Return whether a text names the keys of a plan."""
    return any(all(f'"{key}"' in text for key in keys) for keys in PLAN_KEYS)


def read_own_file(path: Path, kind: OwnKind) -> OwnFile:
    """Return what is wrong with a file of ours."""
    match kind:
        case OwnKind.SPEC:
            return _read_spec(path)
        case OwnKind.PLAN:
            return _read_plan(path)
        case OwnKind.SERVING_LAYOUT:
            return _read_serving_layout(path)


def _read_spec(path: Path) -> OwnFile:
    from planner.inputs.load import SERVE, kind_of, load_alternative, spec_document  # noqa: PLC0415 - loads pydantic
    from planner.serving_search.inputs import checked_serve_inputs  # noqa: PLC0415 - as above

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
    from planner.schema.plan import plan_from_document  # noqa: PLC0415 - as above
    from planner.schema.serve_plan_file import is_serve_plan  # noqa: PLC0415 - as above
    from planner.validation.plan_rules import broken_rules  # noqa: PLC0415 - as above

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
    from planner.serving_search.launch import serve_files  # noqa: PLC0415 - as above

    try:
        plan = serve_plan_from_document(document)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, damage=_each(error))
    try:
        serve_files(plan)
    except InputError as error:
        return OwnFile(kind=OwnKind.PLAN, file=file, broken=_each(error))
    return OwnFile(kind=OwnKind.PLAN, file=file)


def _read_serving_layout(path: Path) -> OwnFile:
    """Return what is wrong with a serving layout: its fields, or what vLLM would refuse of the files of a pool."""
    from planner.documents import load_document  # noqa: PLC0415 - as above
    from planner.emit.vllm import VERSION  # noqa: PLC0415 - as above
    from planner.schema.serving_layout import serving_layout_from_document  # noqa: PLC0415 - as above

    file, document = str(path), load_document(path)
    try:
        layout = serving_layout_from_document(document)
    except InputError as error:
        return OwnFile(kind=OwnKind.SERVING_LAYOUT, file=file, damage=_each(error))
    refused: list[InputError] = []
    not_said: dict[str, None] = {}
    for index, pool in enumerate(layout.pools):
        run = _run_of(layout, pool)
        for rule in rules_of(Framework.VLLM, VERSION):
            try:
                found = tuple(rule.check(run)) if rule.severity is Severity.ERROR else ()
            except NotSaidError as error:
                not_said[error.what] = None
                continue
            refused += [
                InputError(
                    f"Pool {pool.name}: {rule.id} {one.message}",
                    location=document.locate(("pools", index)),
                    hint=one.hint,
                )
                for one in found
            ]
    return OwnFile(kind=OwnKind.SERVING_LAYOUT, file=file, refused=tuple(refused), not_said=tuple(not_said))


def _run_of(layout: "ServingLayout", pool: "Pool") -> "VllmRun":
    """Return the run that the configuration of a pool describes."""
    from planner.emit.vllm import VERSION, config_name, emit_vllm  # noqa: PLC0415 - as above
    from planner.readers.vllm_run import read_vllm_config  # noqa: PLC0415 - as above

    name = config_name(pool)
    text = emit_vllm(layout)[name]
    return read_vllm_config(text, file=name, version=VERSION, num_gpus=None, gpus_per_node=pool.gpus_per_node)


def _each(error: InputError) -> tuple[InputError, ...]:
    """Return the errors that one stands for."""
    return tuple(error.errors) if isinstance(error, CombinedInputError) else (error,)
