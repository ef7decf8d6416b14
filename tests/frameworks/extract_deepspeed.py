# ruff: noqa: PLC0415 - DeepSpeed looks for a GPU while it is imported
"""Runs in DeepSpeed's own environment: writes the table of the keys that its JSON takes to standard output.

A table is `{"framework", "keys", "package", "version"}`, written with sorted keys, and one line for each key of the top
and for each field of a section. A key holds, as far as DeepSpeed's source tells:

- `type`: integer | number | boolean | string | array | object, a list of those, or null where the source does not say;
- `nullable`: whether null is taken, where a model says so;
- `choices`: the values that are taken; `minimum`, `maximum`, `exclusive_minimum`, `exclusive_maximum`;
- `default`: what stands in for an absent key;
- `section`: the keys inside; `forbids_unknown`: whether DeepSpeed refuses others there (elsewhere it ignores them);
- `alias_of`: the other name of the same field; `deprecated`: what DeepSpeed says; `new_name`: its replacement;
- `removed`: the words with which DeepSpeed refuses the key.

Which keys are read is found by following `deepspeed.initialize(config=...)` through the source (`trace_reads`). Where a
section is handed to a pydantic model, its fields are the model's; a number there may be written as text or with an
exponent (5e8), and "auto" stands for an absent key. Elsewhere the type is that of the default, and DeepSpeed does not
check it. The keys found are those of the reader's `TOP_LEVEL_KEYS`, and besides: the removed ones, which DeepSpeed
reads to refuse them, and `allgather_size`, which is read where `zero_optimization` is a truth value (long deprecated).
"""

import contextlib
import enum
import inspect
import json
import logging
import os
import re
import sys
import types
import typing
from importlib.metadata import version
from pathlib import Path as FilePath
from typing import Any

import annotated_types
import pydantic

from tests.frameworks.flag_tables import plain
from tests.frameworks.trace_reads import Path, Reads, Tracer

KINDS: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    tuple: "array",
    set: "array",
    dict: "object",
    FilePath: "string",
}

KINDS_WITHOUT_DEFAULT = {
    ("communication_data_type",): "string",
    ("data_parallel_size",): "integer",
    ("data_types", "buffer_dtype"): "string",
    ("data_types", "grad_accum_dtype"): "string",
    ("data_types", "param_dtype"): "string",
    ("gradient_accumulation_steps",): "integer",
    ("log_level",): "string",
    ("optimizer", "params"): "object",
    ("optimizer", "type"): "string",
    ("scheduler", "params"): "object",
    ("scheduler", "type"): "string",
    ("sequence_parallel_size",): "integer",
    ("steps_per_print",): "integer",
    ("train_batch_size",): "integer",
    ("train_micro_batch_size_per_gpu",): "integer",
    ("vocabulary_size",): "integer",
}
"""Types that no default tells: from the documentation of DeepSpeed's JSON, or from what is done with the value."""

BOUNDS = {
    annotated_types.Ge: ("ge", "minimum"),
    annotated_types.Le: ("le", "maximum"),
    annotated_types.Gt: ("gt", "exclusive_minimum"),
    annotated_types.Lt: ("lt", "exclusive_maximum"),
}

Key = dict[str, Any]


def kind_of_default(values: list[Any]) -> str | None:
    """Return the type that all the defaults have; null, "auto" and defaults that disagree tell none."""
    if "auto" in values:
        return None
    kinds = {next((kind for type_, kind in KINDS.items() if isinstance(value, type_)), None) for value in values}
    return kinds.pop() if len(kinds) == 1 else None


def key_of_annotation(annotation: Any) -> Key:
    """Return type, choices and section of a field that is annotated so."""
    match typing.get_origin(annotation), typing.get_args(annotation):
        case None, _:
            return key_of_type(annotation) if isinstance(annotation, type) else {"type": None}
        case typing.Annotated, (inside, *metadata):
            return key_of_annotation(inside) | bounds(metadata)
        case ((typing.Union | types.UnionType), parts):
            return key_of_union([part for part in parts if part is not type(None)], nullable=type(None) in parts)
        case typing.Literal, choices:
            return {"type": kind_of_default(list(choices)), "choices": list(choices)}
        case origin, _:
            return key_of_annotation(origin)


def key_of_type(annotation: type) -> Key:
    """Return type, choices and section of a field of one class."""
    if issubclass(annotation, pydantic.BaseModel):
        return {"type": "object"} | section_of_model(annotation)
    if issubclass(annotation, enum.Enum):
        values = [member.value for member in annotation]
        key: Key = {"type": kind_of_default(values), "choices": values}
        if key["type"] is None:  # values that JSON does not have
            return {"type": "string"}
        return key | ({"minimum": min(values), "maximum": max(values)} if key["type"] == "integer" else {})
    return {"type": next((kind for type_, kind in KINDS.items() if issubclass(annotation, type_)), None)}


def key_of_union(parts: list[Any], *, nullable: bool) -> Key:
    """Return what a field takes that takes one of several things."""
    keys = [key_of_annotation(part) for part in parts]
    merged: Key = {name: value for key in keys for name, value in key.items()}
    kinds = list(dict.fromkeys(key["type"] for key in keys))
    merged["type"] = None if None in kinds else kinds[0] if len(kinds) == 1 else kinds
    return merged | ({"nullable": True} if nullable else {})


def bounds(metadata: Any) -> Key:
    """Return the bounds among a field's constraints."""
    found = {}
    for constraint in metadata:
        if type(constraint) in BOUNDS:
            attribute, name = BOUNDS[type(constraint)]
            found[name] = getattr(constraint, attribute)
    return found


def section_of_model(model: type[pydantic.BaseModel]) -> Key:
    """Return the keys of a section that a pydantic model reads."""
    fields: dict[str, Key] = {}
    for name, info in model.model_fields.items():
        key = key_of_annotation(info.annotation) | bounds(info.metadata)
        if not info.is_required():
            default = info.get_default(call_default_factory=True)
            key["default"] = {} if isinstance(default, pydantic.BaseModel) else plain(default)
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        if extra.get("deprecated"):
            new_name = str(extra.get("new_param", ""))
            key["deprecated"] = str(extra.get("deprecated_msg") or (f"use {new_name}" if new_name else "deprecated"))
            key |= {"new_name": new_name} if new_name else {}
        fields[name] = key
        if info.alias:
            by_name = bool(model.model_config.get("populate_by_name"))
            fields[info.alias] = key | ({"alias_of": name} if by_name else {})
            if not by_name:
                del fields[name]
    return {"section": fields, "forbids_unknown": model.model_config.get("extra") == "forbid"}


def key_at(path: Path, reads: Reads) -> Key:
    """Return what is known of the key at a path, and of those inside."""
    if path in reads.removed:
        return {"removed": re.sub(r"\s*See https?://\S+", "", reads.removed[path]).strip()}
    depth = len(path)
    inside = {found[depth] for found in reads.defaults if len(found) > depth and found[:depth] == path}
    below = {name: key_at((*path, name), reads) for name in sorted(inside)}
    if path in reads.models:
        key = key_of_annotation(reads.models[path])
        removed = {name: found for name, found in below.items() if "removed" in found}
        return key | {"section": key["section"] | removed}
    values = reads.defaults[path]
    if below:
        return {"type": "object", "section": below, "forbids_unknown": False}
    key = {"type": KINDS_WITHOUT_DEFAULT.get(path, kind_of_default(values))}
    return key | ({"default": plain(values[0])} if values else {})


def table() -> str:
    """Return the table of the DeepSpeed that is installed here."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    logging.disable(logging.WARNING)
    import deepspeed

    tracer = Tracer(lambda called: issubclass(called, pydantic.BaseModel))
    tracer.follow(inspect.unwrap(deepspeed.initialize), {"config": frozenset({()})}, {}, None)
    keys = {name: key_at((name,), tracer.reads) for name in sorted({path[0] for path in tracer.reads.defaults})}
    found = version("deepspeed")
    lines = ",\n".join(_lines(name, key) for name, key in keys.items())
    rest = f'  "package": "deepspeed=={found}",\n  "version": "{found}"'
    return f'{{\n  "framework": "deepspeed",\n  "keys": {{\n{lines}\n  }},\n{rest}\n}}\n'


def _lines(name: str, key: Key) -> str:
    """Return a top-level key: on one line, or with a line for each key of its section."""
    if "section" not in key:
        return f"    {json.dumps(name)}: {json.dumps(key, sort_keys=True)}"
    rest = {word: value for word, value in key.items() if word != "section"}
    opening = json.dumps(rest, sort_keys=True)[:-1]
    fields = ",\n".join(
        f"      {json.dumps(field)}: {json.dumps(inside, sort_keys=True)}"
        for field, inside in sorted(key["section"].items())
    )
    # "section" is the last of these words in their order but for "type".
    before, separator, kind = opening.rpartition(', "type"')
    return f'    {json.dumps(name)}: {before}, "section": {{\n{fields}\n    }}{separator}{kind}}}'


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        text = table()
    sys.stdout.write(text)
