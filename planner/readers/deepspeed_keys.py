"""What is wrong with the keys and values of a DeepSpeed configuration, each with its place.

Sections that DeepSpeed hands to pydantic models refuse unknown keys and check kinds and bounds; everywhere else it
reads what it knows and says nothing of the rest (`planner.readers.key_tables`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum

from planner.documents.document import format_path
from planner.documents.nodes import Node
from planner.errors import Location
from planner.readers.deepspeed_run import AUTO, DeepSpeedRun
from planner.readers.flag_tables import Framework, versions
from planner.readers.key_tables import IGNORE_KEY, KeySpec, key_table, number_of

ENUMERATIONS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("communication_data_type",): ("fp16", "bf16", "fp32"),
    ("seq_parallel_communication_data_type",): ("fp16", "bf16", "fp32"),
    ("gradient_allreduce_op",): ("mean", "sum"),
    ("checkpoint", "tag_validation"): ("WARN", "IGNORE", "FAIL"),
    ("checkpoint", "writer", "type"): ("MOCK", "PYTHON", "FAST"),
    ("checkpoint", "writer", "data_parallel"): ("REPLICA", "SOCKET", "MACHINE"),
    ("torch_autocast", "dtype"): (
        *("torch.float16", "fp16", "float16", "half", "torch.float32", "fp32", "float32", "float"),
        *("torch.int8", "int8", "torch.bfloat16", "bf16", "bfloat16"),
    ),
}
"""Words that functions of `deepspeed/runtime/config.py` and `model_checkpointing/config.py` check, in any case but for
the last; the tables hold those that a model declares."""

TAKES_NULL = frozenset({("bf16",), ("aio",), ("expert_parallel",), ("zero_optimization", "leaf_module")})
"""Sections for which null stands for none (`get_bfloat16_config`, `get_aio_config`, `parse_autoep_config`)."""

FREE = frozenset({("optimizer", "params"), ("scheduler", "params"), ("data_efficiency",), ("autotuning",)})
"""Sections whose inner keys are handed on, or read in further places: nothing is said of them here."""


class KeyMistakeKind(StrEnum):
    """What is wrong with a key or a value."""

    MISSPELT = "misspelt"
    IGNORED = "ignored"
    REFUSED = "refused"
    REMOVED = "removed"
    WRONG_KIND = "wrong-kind"
    UNCHECKED_KIND = "unchecked-kind"
    OUT_OF_BOUNDS = "out-of-bounds"
    NO_CHOICE = "no-choice"
    DEPRECATED = "deprecated"
    TWICE = "twice"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMistake:
    """One thing that is wrong.

    Args:
        kind: What it is.
        key: The key, as written.
        location: Where it stands, the key or the value.
        message: What is wrong.
        hint: What to do.
        nearest: What may have been meant, best first; nothing where it is given too.
    """

    kind: KeyMistakeKind
    key: str
    location: Location
    message: str
    hint: str
    nearest: tuple[str, ...] = ()


def key_mistakes(run: DeepSpeedRun) -> Iterator[KeyMistake]:
    """Yield everything that is wrong with keys and values, in the order of the file."""
    yield from _section(run, run.document.root, run.table.keys, (), checked=False)


def _section(
    run: DeepSpeedRun, node: Node, keys: Mapping[str, KeySpec], path: tuple[str, ...], *, checked: bool
) -> Iterator[KeyMistake]:
    """Yield what is wrong inside a section; `checked` says that DeepSpeed checks it itself."""
    if not isinstance(node.content, dict) or path in FREE:
        return
    used: dict[str, str] = {}
    for name, child in node.content.items():
        spec, place = keys.get(name), run.document.locate((*path, name), key=True)
        if spec is None:
            if path or name != IGNORE_KEY:
                mistake = _unknown(run, place, keys, (*path, name), checked=checked)
                there = any(near in node.content for near in mistake.nearest)
                yield replace(mistake, nearest=()) if there else mistake
            continue
        if spec.removed:
            yield KeyMistake(
                kind=KeyMistakeKind.REMOVED,
                key=name,
                location=place,
                message=f"DeepSpeed {run.version} refuses the key `{name}`, which it no longer has",
                hint=_after_removal(spec.removed),
            )
            continue
        before = used.setdefault(spec.field, name)
        if before != name and checked:
            yield KeyMistake(
                kind=KeyMistakeKind.TWICE,
                key=name,
                location=place,
                message=f"`{name}` and `{before}` are names of one setting",
                hint="Keep one of the two.",
            )
        if spec.deprecated:
            yield from _deprecated(node, name, spec, place)
        yield from _value(run, child, spec, (*path, name), checked=checked)


def _unknown(
    run: DeepSpeedRun, place: Location, keys: Mapping[str, KeySpec], path: tuple[str, ...], *, checked: bool
) -> KeyMistake:
    """Return what is wrong with the key at a path, which this version does not have."""
    *above, name = path
    plain = name.strip().replace("-", "_").lower()
    candidates = {key.lower(): key for key, spec in keys.items() if not spec.removed and not spec.deprecated}
    nearest = tuple(candidates[found] for found in get_close_matches(plain, sorted(candidates), n=2, cutoff=0.85))
    elsewhere = _sections_with(run, plain) if not nearest else ()
    others = [
        version
        for version in versions(Framework.DEEPSPEED)
        if version != run.version and (known := key_table(version).at(path)) is not None and not known.removed
    ]
    where = f"in `{'.'.join(above)}`" if above else "at the top"
    message = f"DeepSpeed {run.version} has no key `{name}` {where}"
    hint = ""
    if nearest:
        hint = f"Did you mean {' or '.join(nearest)}?"
    elif others:
        hint = f"DeepSpeed {' and '.join(others)} has it; remove it, or judge for that version."
    elif elsewhere:
        hint = f"It belongs into {' or '.join(f'`{section}`' for section in elsewhere)}."
    else:
        hint = "Remove it."
    if checked:
        kind = KeyMistakeKind.REFUSED
    else:
        kind = KeyMistakeKind.MISSPELT if nearest or elsewhere else KeyMistakeKind.IGNORED
        message = f"{message}, and ignores it"
    return KeyMistake(kind=kind, key=name, location=place, message=message, hint=hint, nearest=nearest)


def _sections_with(run: DeepSpeedRun, name: str) -> tuple[str, ...]:
    """Return the sections at the top that have a key of a name that stands in no more than two of them."""
    if name in {"enabled", "type", "params"}:
        return ()
    found = [key for key, spec in run.table.keys.items() if spec.section is not None and name in spec.section]
    return tuple(found) if len(found) <= 2 else ()


def _after_removal(words: str) -> str:
    """Return what to do about a removed key: what DeepSpeed advises, or to remove it."""
    advice = [part.strip() for part in re.split(r"(?<=\.)\s+", words) if part.strip().startswith(("Use ", "Set "))]
    return f"Remove it. {advice[0]}" if advice else "Remove it."


def _deprecated(node: Node, name: str, spec: KeySpec, place: Location) -> Iterator[KeyMistake]:
    fields = node.content if isinstance(node.content, dict) else {}
    if spec.new_name in fields:
        yield KeyMistake(
            kind=KeyMistakeKind.TWICE,
            key=name,
            location=place,
            message=f"`{name}` is the old name of `{spec.new_name}`, and both are given",
            hint=f"Remove `{name}`.",
        )
        return
    yield KeyMistake(
        kind=KeyMistakeKind.DEPRECATED,
        key=name,
        location=place,
        message=f"`{name}` is deprecated",
        hint=f"{spec.deprecated[:1].upper()}{spec.deprecated[1:]}.",
    )


def _value(
    run: DeepSpeedRun, node: Node, spec: KeySpec, path: tuple[str, ...], *, checked: bool
) -> Iterator[KeyMistake]:
    """Yield what is wrong with a value, and below it."""
    content, name = node.data(), path[-1]
    completed = content == AUTO and spec.default != AUTO and (spec.kinds or spec.section is not None)
    if completed and (checked or spec.section is None):
        yield _mistake(
            KeyMistakeKind.AUTO, node, path, f'`{name}` is "auto", which only Hugging Face\'s Trainer completes'
        )
        return
    inner = spec.forbids_unknown
    if spec.section is not None and not isinstance(content, dict):
        deprecated = path == ("zero_optimization",) and isinstance(content, bool)
        absent = content is None and (spec.nullable or path in TAKES_NULL)
        if not deprecated and not absent:
            yield _mistake(
                KeyMistakeKind.WRONG_KIND,
                node,
                path,
                f"`{name}` takes a section, {shown(content)} is given",
                "Write {...}.",
            )
        return
    if spec.section is not None:
        yield from _section(run, node, spec.section, path, checked=inner)
        return
    yield from _scalar(node, content, spec, path, checked=checked)


def _scalar(
    node: Node, content: object, spec: KeySpec, path: tuple[str, ...], *, checked: bool
) -> Iterator[KeyMistake]:
    name = path[-1]
    words = ENUMERATIONS.get(path)
    if words is not None:
        yield from _word(node, content, words, path, nullable=spec.default is None)
        return
    takes = spec.takes(content) if checked else _plainly_takes(content, spec)
    if not takes:
        kind = KeyMistakeKind.WRONG_KIND if checked else KeyMistakeKind.UNCHECKED_KIND
        yield _mistake(
            kind, node, path, f"`{name}` takes {spec.wanted}, {shown(content)} is given", _written(content, spec)
        )
        return
    number = number_of(content) if {"integer", "number"} & set(spec.kinds) else None
    if spec.choices is not None and content is not None:
        known = {str(choice) for choice in spec.choices}
        text = str(int(number)) if number is not None and number == int(number) else str(content)
        if text not in known:
            numbers = all(isinstance(choice, int) for choice in spec.choices)
            nearest = (
                (str(min(known, key=lambda choice: (abs(int(choice) - (number or 0)), choice))),)
                if numbers
                else tuple(get_close_matches(text.lower(), sorted(known), n=2, cutoff=0.5))
            )
            yield _no_choice(node, path, content, tuple(str(choice) for choice in spec.choices), nearest)
    elif number is not None and not spec.is_within(number):
        yield _mistake(
            KeyMistakeKind.OUT_OF_BOUNDS,
            node,
            path,
            f"`{name}` is {content!r}",
            f"It is {spec.bounds}.",
        )


def _word(
    node: Node, content: object, words: tuple[str, ...], path: tuple[str, ...], *, nullable: bool
) -> Iterator[KeyMistake]:
    """Yield a value that is none of some words, which DeepSpeed compares in any case."""
    if content is None and nullable:
        return
    exact = path == ("torch_autocast", "dtype")
    if isinstance(content, str) and (content if exact else content.lower()) in {
        word if exact else word.lower() for word in words
    }:
        return
    nearest = get_close_matches(str(content).lower(), [word.lower() for word in words], n=2, cutoff=0.5)
    yield _no_choice(
        node, path, content, words, tuple(word for near in nearest for word in words if word.lower() == near)
    )


def _no_choice(
    node: Node, path: tuple[str, ...], content: object, words: tuple[str, ...], nearest: tuple[str, ...]
) -> KeyMistake:
    return KeyMistake(
        kind=KeyMistakeKind.NO_CHOICE,
        key=path[-1],
        location=replace(node.location, path=format_path(path)),
        message=f"`{path[-1]}` is {shown(content)}, not one of {', '.join(words)}",
        hint=f"Did you mean {' or '.join(nearest)}?" if nearest else f"Use {words[0]}.",
        nearest=nearest,
    )


def _plainly_takes(content: object, spec: KeySpec) -> bool:
    """Return whether a value that DeepSpeed takes as it stands is of the key's kind; null stands for absent."""
    if content is None or not spec.kinds:
        return True
    plain = {
        "integer": isinstance(content, int) and not isinstance(content, bool),
        "number": isinstance(content, int | float) and not isinstance(content, bool),
        "boolean": isinstance(content, bool),
        "string": isinstance(content, str),
        "array": isinstance(content, list),
        "object": isinstance(content, dict),
    }
    return any(plain[kind] for kind in spec.kinds)


def _written(content: object, spec: KeySpec) -> str:
    """Return how the value would be written."""
    number = number_of(content)
    if number is None and isinstance(content, str):
        try:
            number = float(content)
        except ValueError:
            return f"Write {spec.wanted}."
    if number is not None and number == int(number) and "integer" in spec.kinds:
        return f"Write {int(number)}."
    if number is not None and "number" in spec.kinds:
        return f"Write {number:g}."
    return f"Write {spec.wanted}."


def _mistake(kind: KeyMistakeKind, node: Node, path: tuple[str, ...], message: str, hint: str = "") -> KeyMistake:
    return KeyMistake(
        kind=kind, key=path[-1], location=replace(node.location, path=format_path(path)), message=message, hint=hint
    )


def shown(content: object) -> str:
    """Return a value as messages show it."""
    if isinstance(content, dict | list):
        return "a section" if isinstance(content, dict) else "a list"
    if content is None or isinstance(content, bool):
        return {None: "null", True: "true", False: "false"}[content]
    return f"`{content}`" if isinstance(content, int | float) else f'"{content}"'
