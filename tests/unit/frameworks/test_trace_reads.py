"""Which keys are found that a function reads from a dictionary."""

import copy
from typing import Any

from tests.frameworks.trace_reads import Reads, Tracer

SECTION = "section"
REMOVED = {"old": "'old' has been removed."}


class Model:
    """Stands for a class that takes a section's keys as keywords."""

    model_fields: dict[str, Any] = {}  # noqa: RUF012 - as pydantic has it

    def __init__(self, **_keywords: object) -> None:
        pass


class Part:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self._read(config.get("inner", {}))

    def _read(self, inner: dict[str, Any]) -> None:
        self.depth = inner.get("depth", 3)
        self._later()

    def _later(self) -> None:
        self.late = self.config.get("late", "yes")


def scalar(config: dict[str, Any], name: str, default: object) -> object:
    return config.get(name, default)


def by_name(config: dict[str, Any], name: str = "named") -> object:
    return scalar(config, name, 0.5)


def refuse(config: dict[str, Any]) -> None:
    for key, words in REMOVED.items():
        if key in config:
            raise ValueError(words)


def section(config: dict[str, Any]) -> dict[str, Any]:
    return copy.copy(config[SECTION]) if SECTION in config else {}


def pipeline(config: dict[str, Any]) -> dict[str, Any]:
    merged = {"stages": 1}
    for key, value in config.get("pipeline", {}).items():
        merged[key] = value  # noqa: PERF403 - the loop is what is followed
    return merged


def monitors(config: dict[str, Any]) -> Model:
    parts = {name: config.get(name, {}) for name in ("first", "second")}
    return Model(**parts)


def read_all(config: dict[str, Any]) -> list[object]:
    refuse(config)
    held = config.get("new") or config.get("former", {})
    return [
        scalar(config, "size", 8),
        by_name(config),
        section(config)["width"],
        Part(config),
        pipeline(config),
        Model(**held),
        monitors(config),
    ]


def reads_of_all() -> Reads:
    tracer = Tracer(lambda called: called is Model)
    Model.model_fields = {name: type("Field", (), {"annotation": int}) for name in ("first", "second")}
    tracer.follow(read_all, {"config": frozenset({()})}, {}, None)
    return tracer.reads


def test_every_key_is_found_with_its_defaults() -> None:
    assert reads_of_all().defaults == {
        ("old",): [],
        ("new",): [None],
        ("former",): [{}],
        ("size",): [8],
        ("named",): [0.5],
        ("section",): [],
        ("section", "width"): [],
        ("inner",): [{}],
        ("inner", "depth"): [3],
        ("late",): ["yes"],
        ("pipeline",): [{}],
        ("pipeline", "stages"): [1],
        ("first",): [{}],
        ("second",): [{}],
    }


def test_a_key_that_is_only_refused_is_removed() -> None:
    assert reads_of_all().removed == {("old",): "'old' has been removed."}


def test_models_are_found_where_sections_are_their_keywords() -> None:
    assert reads_of_all().models == {("new",): Model, ("former",): Model, ("first",): int, ("second",): int}
