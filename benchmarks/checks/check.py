"""A check: what is run, and what is read of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.checks.targets import Target

ROOT = Path(__file__).resolve().parents[2]

MEASUREMENTS = "{measurements}"
"""Stands in the words of a command for the folder of published measurements."""

NOT_LONG = "not frameworks and not gpu and not long"
"""Which tests run unless a check says so: the slow ones too."""

FOLDER = "{folder}"
"""Stands there for a folder of the run's own, empty when it starts."""


class Need(StrEnum):
    """What not every machine has."""

    GPU = "a GPU"
    GIT = "a git checkout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command has left.

    Args:
        exit_code: Its exit code.
        output: Its standard output.
        seconds: Wall time from its start to its end.
        measurements: Folder of the published measurements; None where it was not given.
    """

    exit_code: int
    output: str
    seconds: float
    measurements: Path | None = None

    @property
    def document(self) -> Any:
        """Return the JSON document that it printed.

        Raises:
            ValueError: It printed none.
        """
        return json.loads(self.output)

    @property
    def lines(self) -> list[Any]:
        """Return the JSON documents that it printed, one a line; raises as `document` does."""
        return [json.loads(line) for line in self.output.splitlines()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One figure of a run, and what it must keep to.

    Args:
        name: What is measured.
        target: What is wanted of it.
        read: The figure, in the target's unit; None where the run has none. It may raise LookupError, TypeError or
            ValueError where the output is not what it should be.
    """

    name: str
    target: Target
    read: Callable[[Answer], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command of Python's, and what is read of its output.

    Args:
        words: What follows the interpreter; `MEASUREMENTS` and `FOLDER` may stand in them.
        measures: What is read.
        exits: Exit codes with which its output can be read.
        before: What is run first, in the same folder.
        needs: What must be there.
    """

    words: tuple[str, ...]
    measures: tuple[Measure, ...]
    exits: tuple[int, ...] = (0,)
    before: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """Return the files of published measurements that it reads, relative to their folder."""
        marked = f"{MEASUREMENTS}/"
        return tuple(word.removeprefix(marked) for word in self.words if word.startswith(marked))


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """Tests of the suite, all of which must pass.

    Args:
        nodes: Files, folders or single tests, as pytest takes them, relative to the repository.
        marker: Marker expression: which of them run; the slow ones do, the long ones and those of frameworks do not.
        needs: What must be there.
    """

    nodes: tuple[str, ...]
    marker: str = NOT_LONG
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """What nothing in the repository can run: it is listed, and counts as not run.

    Args:
        wanted: What is to be measured, with its target.
        reason: What is missing.
    """

    wanted: tuple[tuple[str, Target], ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Args:
        area: What it belongs to.
        name: Its own name, unique in the area.
        about: What holds if it is met, in one sentence.
        run: What is run.
    """

    area: str
    name: str
    about: str
    run: Command | Suite | ByHand

    @property
    def full_name(self) -> str:
        """Return "area.name"."""
        return f"{self.area}.{self.name}"

    @property
    def wanted(self) -> tuple[tuple[str, str], ...]:
        """Return each measure's name with its target in words."""
        if isinstance(self.run, Suite):
            return (("tests", "all pass"),)
        if isinstance(self.run, ByHand):
            return tuple((name, target.text) for name, target in self.run.wanted)
        return tuple((measure.name, measure.target.text) for measure in self.run.measures)


def tests_in(file: str, *names: str) -> tuple[str, ...]:
    """Return some tests of a file as pytest takes them."""
    return tuple(f"{file}::{name}" for name in names)


def seconds_at_most(seconds: float) -> Measure:
    """Return the measure of a command's wall time, the interpreter's start included."""
    return Measure(name="wall time", target=Target(high=seconds, unit="s"), read=lambda answer: answer.seconds)
