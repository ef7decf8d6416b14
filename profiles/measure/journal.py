"""The store of raw measurements: JSON Lines that are only ever appended to, one line a fact.

Every line is an object with `type`:

- `run`: provenance of one run of the collector (`profiles.measure.provenance`), numbered from 1 by `run`; the lines
  behind it are its.
- `point`: one measured point: `run`, `point` (suite and columns, `profiles.measure.points`), `result`.
- `failed`: a point that cannot be measured there: `run`, `point`, `reason`; it is not tried again.
- `conditions`: clocks, temperature and power at one moment: `run`, and what the driver says.

A result with `refused` names kernels that were tried first, each with the reason why it does not take the point.

`result` of a point holds `seconds` (the median), `p10`, `p90`, `best`, `samples`, `dropped` (outliers), `mode` (how it
was timed), `kernel` (what ran), and where several ranks measured it `ranks` and `fastest` (the median of the fastest
rank; `seconds` is the slowest's). Suite `memory` has `bytes` in place of seconds. Suite `overlap` has `alone`, `beside`
(seconds of the product), `other_alone`, `other_beside` (of what runs beside it). Suite `layer` may have `peak_bytes`.

A line is written in one call and reaches the disk (fsync) before the next point begins, so a kill loses at most the
point in flight. It may leave a torn last line, which readers leave out and the next writer cuts off. One writer at a
time holds a lock on the file.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from profiles.measure.points import Point, point_from_json

FILE = "points.jsonl"
COLLECTOR = 2
"""Version of what is measured and how; raised whenever a figure would come out differently."""


class JournalError(Exception):
    """A journal that cannot be read or written, a full disk for one.

    Args:
        path: The file.
        line: Line in it, from 1; None for the whole.
        message: What is wrong.
        remedy: What to do.
    """

    def __init__(self, path: Path, line: int | None, message: str, remedy: str) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {message}\n{remedy}")
        self.path, self.line, self.message, self.remedy = path, line, message, remedy


@dataclass(frozen=True)
class Entry:
    """A measured point, or one that could not be.

    Args:
        line: Its line in the file, from 1.
        run: The run that it belongs to.
        point: What was measured.
        result: What was found; empty where it failed.
        reason: Why it failed; empty where it did not.
    """

    line: int
    run: int
    point: Point
    result: Mapping[str, object]
    reason: str


@dataclass
class Content:
    """What a journal holds.

    Args:
        runs: Provenance by number.
        entries: Points in the order of the file.
        conditions: What the driver said, in the order of the file, each with its `run`.
        torn: The last line is not whole.
    """

    runs: dict[int, Mapping[str, object]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    conditions: list[Mapping[str, object]] = field(default_factory=list)
    torn: bool = False


def read_journal(path: Path) -> Content:
    """Return what a journal holds; a torn last line is left out.

    Raises:
        JournalError: It cannot be read, or a whole line of it is no fact.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise JournalError(path, None, f"the file cannot be read: {error.strerror}", "Give a profile.") from None
    content = Content(torn=bool(raw) and not raw.endswith(b"\n"))
    lines = raw.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            _take(content, number, json.loads(line.decode("utf-8")))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
            remedy = "Remove the line, or measure again into another directory."
            raise JournalError(path, number, f"this is no line of a journal: {said}", remedy) from None
    return content


def _take(content: Content, number: int, data: object) -> None:
    """Add one line to what a journal holds.

    Raises:
        ValueError: It is no fact, or belongs to no run.
        KeyError: A part of it is missing.
        TypeError: A part of it is of another kind.
    """
    if not isinstance(data, dict):
        raise TypeError("it is not a mapping")
    kind, run = data["type"], int(data["run"])
    if kind == "run":
        if run in content.runs:
            raise ValueError(f"there is a run {run} already")
        content.runs[run] = data
        return
    if run not in content.runs:
        raise ValueError(f"there is no run {run} before it")
    if kind == "conditions":
        content.conditions.append(data)
        return
    if kind not in ("point", "failed"):
        raise ValueError(f"type {str(kind)[:40]!r} is not one of run, point, failed, conditions")
    result = data["result"] if kind == "point" else {}
    if not isinstance(result, dict):
        raise TypeError("result is not a mapping")
    reason = str(data["reason"]) if kind == "failed" else ""
    entry = Entry(line=number, run=run, point=point_from_json(data["point"]), result=result, reason=reason)
    content.entries.append(entry)


SAME_JOB = ("kind", "device", "world_size", "gpus_per_node", "software")
"""What a point that failed depends on: under others it is tried again."""


def done_points(content: Content, provenance: Mapping[str, object]) -> Iterator[Point]:
    """Yield every point that a run with this provenance need not measure again."""
    for entry in content.entries:
        earlier = content.runs[entry.run]
        if not entry.reason or all(earlier.get(name) == provenance.get(name) for name in SAME_JOB):
            yield entry.point


class Journal:
    """Appends to a journal.

    Args:
        directory: Where it lies; made if it is not there.
        resume: Points of an earlier run may be there already.

    Raises:
        JournalError: Points are there that are not to be gone on with, another run writes there, or it cannot be read.
        OSError: Nothing can be written there.
    """

    def __init__(self, directory: Path, *, resume: bool) -> None:
        self.path = directory / FILE
        directory.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self.content = self._opened(resume=resume)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._run = max(self.content.runs, default=0)

    def _opened(self, *, resume: bool) -> Content:
        """Return what is there, the file locked and its torn line cut off."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(
                self.path, None, "another run is writing here", "Wait for it, or name another directory."
            ) from None
        content = read_journal(self.path)
        if content.entries and not resume:
            raise JournalError(
                self.path,
                None,
                f"{len(content.entries)} points are here already",
                "Go on with --resume, or name another directory.",
            )
        if content.torn:
            raw = self.path.read_bytes()
            os.ftruncate(self._descriptor, raw.rfind(b"\n") + 1)
            os.fsync(self._descriptor)
        return content

    def begin(self, provenance: Mapping[str, object]) -> int:
        """Write the provenance of a new run and return its number.

        Raises:
            JournalError: The points that are there are another device's.
        """
        for earlier in self.content.runs.values():
            for name in ("device", "called"):
                if earlier.get(name) != provenance.get(name):
                    raise JournalError(
                        self.path,
                        None,
                        f"this is a profile of {earlier.get('called') or earlier.get('device')}",
                        "Name another directory for another device; `shardwright profile merge` joins those of one.",
                    )
        self._run += 1
        self._write({"type": "run", "run": self._run, "collector": COLLECTOR, **provenance})
        return self._run

    def measured(self, point: Point, result: Mapping[str, object]) -> None:
        """Write a measured point."""
        self._write({"type": "point", "run": self._run, "point": point.as_json(), "result": dict(result)})

    def failed(self, point: Point, reason: str) -> None:
        """Write a point that cannot be measured here."""
        self._write({"type": "failed", "run": self._run, "point": point.as_json(), "reason": reason})

    def conditions(self, found: Mapping[str, object]) -> None:
        """Write what the driver says of clocks, temperature and power."""
        self._write({"type": "conditions", "run": self._run, **found})

    def _write(self, data: Mapping[str, object]) -> None:
        line = json.dumps(data, ensure_ascii=True, allow_nan=False) + "\n"
        raw = line.encode("ascii")
        try:
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(
                self.path,
                None,
                f"nothing more can be written: {error.strerror}",
                "Make room, and go on with --resume: what stands there is kept.",
            ) from None

    def close(self) -> None:
        """Close the file, which frees its lock."""
        os.close(self._descriptor)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
