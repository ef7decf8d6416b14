"""Pydantic's complaints -> our errors: where it stands in the user's file, what is allowed, what to do.

All complaints about a document are reported at once, in the order of the document. Validators of ours raise
`PydanticCustomError` through `complaint`, which carries a hint.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from planner.documents import Document
from planner.documents.document import format_path
from planner.errors import CombinedInputError, InputError, Location
from planner.schema.usual_words import usual_word

MAX_REPORTED = 20
"""Complaints shown about one document; more do not help."""

MAX_TRANSLATED = 200
"""Complaints that are looked at; a document with more is damaged as a whole."""

KIND = "kind"
"""Key that says which of several kinds its mapping is."""

PRESET = "preset"
"""Key that gives all the others of its mapping."""

Path = tuple[str | int, ...]
T = TypeVar("T", bound=BaseModel)

_UNKNOWN_KEY = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_MISSING = frozenset({"missing", "missing_argument", "missing_keyword_only_argument"})
_HARDWARE = "hardware"
"""Kind of the findings of `profiles.schema`."""
_EXPECTATION = "Input should be "
"""How pydantic begins what it expects."""
_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "none_required": "null",
}
_SHORT_NUMBER = re.compile(r"[0-9.]+ ?[kKmM]")
"""How people shorten a number."""
_EMPTY_HINT = "Check that this is the file you mean; `shardwright init` writes a spec to start from."
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def validated(validate: Callable[[], T], *, model: type[BaseModel], document: Document, path: Path = ()) -> T:
    """Return what `validate` returns; its complaints become an `InputError`.

    Args:
        validate: Runs the validation.
        model: What is validated, for the lists of allowed keys.
        document: Where the data come from.
        path: Where in the document they stand.
    """
    try:
        return validate()
    except ValidationError as error:
        raise translated(error, model=model, document=document, path=path) from None


def translated(error: ValidationError, *, model: type, document: Document, path: Path = ()) -> InputError:
    """Return every complaint of `error`, in the order of the document."""
    found: dict[tuple[str, str], InputError] = {}
    complaints = _of_its_kind(error.errors(include_url=False), model=model)[:MAX_TRANSLATED]
    misspelt = {details["loc"][:-1] for details in complaints if _is_nearly_a_preset(details, model)}
    for details in complaints:
        if details["type"] in _MISSING and details["loc"][:-1] in misspelt:
            continue
        translation = _translate(details, model=model, document=document, base=path)
        found.setdefault((str(translation.location), translation.message), translation)
    return all_of(found.values())


def _of_its_kind(complaints: Sequence[ErrorDetails], *, model: type) -> list[ErrorDetails]:
    """Return the complaints without those of other branches of a union than the one that a mapping's `kind` names.

    Pydantic tries every branch, and names it in the location. Where `kind` names none, one complaint lists them all.
    """
    others = {
        details["loc"][:-1]: details
        for details in complaints
        if details["type"] == "literal_error" and details["loc"][-1] == KIND and _is_branch(model, details["loc"][:-1])
    }
    ours = [details for details in complaints if not any(details["loc"][: len(branch)] == branch for branch in others)]
    unknown: dict[tuple[int | str, ...], ErrorDetails] = {}
    for branch, details in others.items():
        parent = branch[:-1]
        if any(known["loc"][: len(parent)] == parent for known in ours):
            continue
        said = unknown.setdefault(parent, details)
        if said is not details:
            expected = f"{said['ctx']['expected']}, {details['ctx']['expected']}"
            unknown[parent] = {**said, "ctx": {"expected": expected}}
    return [*ours, *unknown.values()]


def _is_branch(model: type, loc: tuple[int | str, ...]) -> bool:
    """Return whether the last part of a location names the branch of a union, not a key."""
    return bool(loc) and any(owner.__name__ == loc[-1] for owner in _owners(model, loc[:-1]))


def _is_nearly_a_preset(details: ErrorDetails, model: type) -> bool:
    """Return whether an unknown key was meant to be `preset`, which would give everything that is missing beside it."""
    if details["type"] not in _UNKNOWN_KEY:
        return False
    *parent, key = details["loc"]
    known = _known_keys(model, parent)
    return PRESET in known and f"`{PRESET}`" in suggestion(str(key), known)


def all_of(errors: Iterable[InputError]) -> InputError:
    """Return one error that reports all of these, in the order of their places."""
    ordered = sorted(errors, key=lambda error: _order(error.location))
    if len(ordered) == 1:
        return ordered[0]
    if len(ordered) > MAX_REPORTED:
        rest = len(ordered) - MAX_REPORTED
        follow = "1 more error follows" if rest == 1 else f"{rest} more errors follow"
        ordered = [*ordered[:MAX_REPORTED], InputError(f"{follow}.", hint="Correct these first.")]
    return CombinedInputError(ordered)


def complaint(message: str, hint: str, *, field: str = "") -> PydanticCustomError:
    """Return what a validator raises: what is wrong, what to do, and in a mapping's validator which field it is."""
    return PydanticCustomError("input", "{message}", {"message": message, "hint": hint, "field": field})


def shown(value: object) -> str:
    """Return a value as it would be written in YAML, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a sentence that proposes the known word that is called so elsewhere, else the nearest one, or nothing."""
    words, usual = list(known), usual_word(word)
    nearest = [usual] if usual in words else difflib.get_close_matches(word[:100], words, n=1, cutoff=0.6)
    return f"Did you mean `{nearest[0]}`? " if nearest else ""


def _order(location: Location | None) -> tuple[bool, int, int, str]:
    if location is None or location.line is None:
        return True, 0, 0, str(location)
    return False, location.line, location.column or 0, str(location)


def _translate(details: ErrorDetails, *, model: type, document: Document, base: Path) -> InputError:
    kind = details["type"]
    path = _document_path(document, base, details["loc"], keep_last=kind in _UNKNOWN_KEY | _MISSING)
    name = _name(path)
    if kind in _MISSING:
        parent = path[:-1]
        location = document.locate(parent)
        where = f" in `{format_path(parent)}`" if parent else ""
        return InputError(f"{name} is missing{where}.", location=location, hint=_description(model, details["loc"]))
    if kind in _UNKNOWN_KEY:
        known = _known_keys(model, details["loc"][:-1])
        hint = f"{suggestion(str(path[-1]), known)}Known keys: {', '.join(known)}." if known else "Remove it."
        return InputError(f"{name} is not a known key.", location=document.locate(path, key=True), hint=hint)
    if kind == "input":
        context = details["ctx"]
        blamed = (*path, context["field"]) if context["field"] else path
        return InputError(context["message"], location=document.locate(blamed), hint=context["hint"])
    if not path and details["input"] is None:
        return InputError("The file is empty.", location=document.locate(), hint=_EMPTY_HINT)
    message, hint = _problem(details, name)
    return InputError(message, location=document.locate(path), hint=hint)


def _name(path: Path) -> str:
    """Return what messages call a value: its key, with the indices behind it."""
    keys = [depth for depth, part in enumerate(path) if isinstance(part, str)]
    return f"`{format_path(path[keys[-1] :])}`" if keys else "The document"


def _problem(details: ErrorDetails, name: str) -> tuple[str, str]:
    """Return the message and hint of a complaint about a value that is there."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    given = name if isinstance(value, dict | list) else f"{name} = {shown(value)}"
    if kind in ("enum", "literal_error"):
        expected = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        words = expected.split(", ")
        return f"{given} is not a known value.", f"{suggestion(str(value), words)}Allowed: {expected}."
    if kind in _WANTED:
        return f"{given} is not {_WANTED[kind]}.", f"Give {_WANTED[kind]}{_written(value, kind)}."
    if kind in _BOUNDS:
        words_before, key = _BOUNDS[kind]
        return f"{given} is out of range.", f"Give a value of {words_before} {context[key]}."
    for length, key, extreme in (("too_short", "min_length", "least"), ("too_long", "max_length", "most")):
        if kind.removeprefix("string_") == length:
            return f"{name} is {length.replace('_', ' ')}.", f"Give at {extreme} {context[key]}."
    return _said_otherwise(str(context["error"]) if kind == "value_error" else str(details["msg"]), kind, name, given)


def _written(value: object, kind: str) -> str:
    """Return how a number is written that stands there as text."""
    if not isinstance(value, str) or not kind.startswith(("int_", "float_")):
        return ""
    if value.isascii() and value.isdigit():
        return ", without quotes"
    return ", written out, such as 8192" if _SHORT_NUMBER.fullmatch(value) else ""


def _said_otherwise(reason: str, kind: str, name: str, given: str) -> tuple[str, str]:
    """Return the message and hint of a complaint that explains itself."""
    if kind == _HARDWARE:
        # Says itself what it is about, and stands behind the field's path.
        return f"{reason.rstrip('.')}.", ""
    if reason.startswith(_EXPECTATION):
        return f"{given} should be {reason.removeprefix(_EXPECTATION).rstrip('.')}.", "Correct the value."
    return f"{name}: {reason.rstrip('.')}.", ""


def _document_path(document: Document, base: Path, loc: Sequence[str | int], *, keep_last: bool) -> Path:
    """Return the part of pydantic's location that names places in the document.

    Pydantic also names the branch of a union that it tried; such a part is not in the document.
    """
    path = base
    node = document.node(base)
    for depth, part in enumerate(loc):
        child = node.child(part) if node is not None else None
        if child is not None:
            node = child
            path = (*path, part)
        elif keep_last and depth == len(loc) - 1:
            path = (*path, part)
    return path


def _known_keys(model: type, loc: Sequence[str | int]) -> list[str]:
    owners = _owners(model, loc)
    return [*_members(owners[0])] if owners else []


def _description(model: type, loc: Sequence[str | int]) -> str:
    owners = _owners(model, loc[:-1])
    if owners and issubclass(owners[0], BaseModel):
        for name, field in owners[0].model_fields.items():
            if loc[-1] in (name, field.alias) and field.description:
                return field.description
    return "Add it."


def _owners(model: type, loc: Sequence[str | int]) -> list[type]:
    """Return the classes that may describe the mapping at `loc`: one, or where a union branches all of them."""
    owners = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        named = [owner for owner in owners if owner.__name__ == part]
        owners = named or [found for owner in owners[:1] for found in _described(_members(owner).get(part))]
    return owners


def _members(owner: type) -> Mapping[str, object]:
    if issubclass(owner, BaseModel):
        return {field.alias or name: field.annotation for name, field in owner.model_fields.items()}
    if is_dataclass(owner):
        hints = get_type_hints(owner)
        return {field.name: hints[field.name] for field in fields(owner)}
    return {}


def _described(annotation: object) -> list[type]:
    """Return the models and dataclasses inside an annotation such as `tuple[Stage, ...] | None`."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _described(argument)]
