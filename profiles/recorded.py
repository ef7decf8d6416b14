"""A directory of measurements as planning reads it: which device, what ran, which rows, and what to beware of.

The directory holds one journal (`profiles.measure.journal`), which is the store: nothing is derived from it on disk.
Its SHA-256 names it, so that a plan says which measurements it was priced with.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from profiles.device_names import catalogue_name
from profiles.errors import ProfileFileError
from profiles.hardware import ProfileReference
from profiles.measure.journal import COLLECTOR, FILE, Content, Entry, JournalError, read_journal

LARGEST_FIGURE = 1e15
"""No time in seconds and no number of bytes is above this."""

MOST = {"world_size": 1 << 20, "gpus_per_node": 1024}
"""What a run says of its job, and no job has more of; of a node's GPUs as in a cluster file."""

BETWEEN_GPUS = ("collectives", "copies", "overlap")
"""Suites whose figures depend on how many GPUs a node has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A directory of measurements.

    Args:
        directory: Where it lies.
        content: What the journal holds.
        sha256: Of the journal.
    """

    directory: Path
    content: Content
    sha256: str

    @property
    def reference(self) -> ProfileReference:
        """Return what names it."""
        return ProfileReference(directory=str(self.directory), sha256=self.sha256)

    @property
    def newest(self) -> Mapping[str, object]:
        """Return the provenance of the last run of the collector; of imports alone, which say less, the last one's."""
        return self.content.runs[self._newest_number]

    @property
    def _newest_number(self) -> int:
        runs = self.content.runs
        return max((number for number, run in runs.items() if not _is_imported(run)), default=max(runs))

    @property
    def _between_gpus(self) -> tuple[int, ...]:
        """Return the runs that measured something between GPUs, in their order."""
        return tuple(sorted({entry.run for entry in self.measured if entry.point.suite in BETWEEN_GPUS}))

    @property
    def gpus_per_node(self) -> int:
        """Return the GPUs of the nodes that were measured, by the newest run to which they matter."""
        run = self.content.runs[self._between_gpus[-1]] if self._between_gpus else self.newest
        return int(str(run.get("gpus_per_node", 1)))

    @property
    def most_ranks(self) -> int:
        """Return the ranks of the largest job that measured something between GPUs, or of the newest run."""
        runs = [self.content.runs[number] for number in self._between_gpus] or [self.newest]
        return max(int(str(run.get("world_size", 1))) for run in runs)

    @property
    def device(self) -> str:
        """Return the device: what the user called it, its name in the catalogue, or what the driver calls it."""
        reported = str(self.newest.get("device", ""))
        return str(self.newest.get("called") or catalogue_name(reported) or reported)

    @property
    def measured(self) -> tuple[Entry, ...]:
        """Return the points that were measured, in the order of the journal."""
        return tuple(entry for entry in self.content.entries if not entry.reason)

    @property
    def failed(self) -> tuple[Entry, ...]:
        """Return the points that could not be."""
        return tuple(entry for entry in self.content.entries if entry.reason)

    @property
    def stale(self) -> tuple[str, ...]:
        """Return what in it is older than the rest, or than this version.

        Runs of the collector state everything, so any difference to the newest counts. What others have measured is
        held to what its file says of the same things: another program's version is no older version of torch. The
        number of a node's GPUs counts between runs that measured something between GPUs.
        """
        found = []
        newest, between = self._newest_number, self._between_gpus
        for number, run in sorted(self.content.runs.items()):
            if run.get("collector") != COLLECTOR:
                found.append(
                    f"stale: run {number} was measured by version {run.get('collector')} of the collector, this one is"
                    f" {COLLECTOR}"
                )
            if number == newest:
                continue
            unlike = _unlike_software(run, self.newest)
            if run.get("kind") != self.newest.get("kind"):
                unlike.append(f"kind {run.get('kind')}")
            if number in between and run.get("gpus_per_node") != self.content.runs[between[-1]].get("gpus_per_node"):
                unlike.append(f"gpus_per_node {run.get('gpus_per_node')}")
            if unlike:
                found.append(f"stale: run {number} differs from the newest: {'; '.join(unlike)}")
        return tuple(found)


def _is_imported(run: Mapping[str, object]) -> bool:
    return "imported" in run


def _unlike_software(run: Mapping[str, object], newest: Mapping[str, object]) -> list[str]:
    """Return the software of a run where it differs from the newest's."""
    own, other = run.get("software"), newest.get("software")
    if not isinstance(own, Mapping) or not isinstance(other, Mapping):
        return [] if own == other else [f"software {own}"]
    if _is_imported(run) or _is_imported(newest):
        named = [name for name in own if name in other and own[name] != other[name]]
        return [f"software {', '.join(f'{name} {own[name]}' for name in named)}"] if named else []
    return [] if own == other else [f"software {', '.join(f'{name} {version}' for name, version in own.items())}"]


def read_recording(directory: Path) -> Recording:
    """Return the measurements in a directory.

    Raises:
        ProfileFileError: There is no journal, it cannot be read, or nothing was measured.
    """
    path = directory / FILE
    if not path.is_file():
        raise ProfileFileError(
            file=str(path),
            line=None,
            message="there is no such file",
            remedy="Give a directory that `shardwright profile run --out DIR` has written.",
        )
    try:
        content = read_journal(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except JournalError as error:
        raise ProfileFileError(file=str(path), line=error.line, message=error.message, remedy=error.remedy) from None
    for number, run in content.runs.items():
        for name, most in MOST.items():
            value = run.get(name, 1)
            if type(value) is not int or not 1 <= value <= most:
                raise ProfileFileError(
                    file=str(path),
                    line=None,
                    message=f"run {number} has {name} {str(value)[:40]}, no whole number from 1 to {most}",
                    remedy="Correct the line of the run, or measure again into another directory.",
                )
    for entry in content.entries:
        missing = _missing_figure(entry)
        if missing:
            raise ProfileFileError(
                file=str(path),
                line=entry.line,
                message=f"result.{missing} is no number above 0",
                remedy="Remove the line, or measure again into another directory.",
            )
    if not any(not entry.reason for entry in content.entries):
        raise ProfileFileError(
            file=str(path), line=None, message="nothing was measured", remedy="Measure with `shardwright profile run`."
        )
    return Recording(directory=directory, content=content, sha256=sha256)


FIGURES = {"overlap": ("alone", "beside", "other_alone", "other_beside"), "memory": ("bytes",)}
"""What results of suites hold that do not have seconds alone."""


def _missing_figure(entry: Entry) -> str:
    """Return the first figure that a result ought to have and has not; empty where there is none."""
    if entry.reason:
        return ""
    for name in FIGURES.get(entry.point.suite, ("seconds",)):
        value = entry.result.get(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (0 < float(str(value)) < LARGEST_FIGURE or (name == "bytes" and value == 0)):
            return name
    return ""


@cache
def recording_of(reference: ProfileReference) -> Recording:
    """Return the measurements that a plan was priced with.

    Raises:
        ProfileFileError: They are not there, cannot be read, or have changed since.
    """
    found = read_recording(Path(reference.directory))
    if found.sha256 != reference.sha256:
        raise ProfileFileError(
            file=str(found.directory / FILE),
            line=None,
            message="the profile has changed since the plan was made with it",
            remedy="Plan again with --profile, or bring back the file.",
        )
    return found


def merged_text(recordings: Sequence[Recording]) -> str:
    """Return the journal that holds all of several, their runs numbered anew in this order.

    A point that several have measured stays in each: the newest run counts (`profiles.gates`).

    Raises:
        ProfileFileError: They are of several devices.
    """
    devices = {recording.device for recording in recordings}
    if len(devices) > 1:
        raise ProfileFileError(
            file=str(recordings[-1].directory / FILE),
            line=None,
            message=f"profiles of several devices cannot be one: {', '.join(sorted(devices))}",
            remedy="Merge those of one device.",
        )
    lines: list[str] = []
    before = 0
    for recording in recordings:
        for line in (recording.directory / FILE).read_text(encoding="utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                data = json.loads(line)
                lines.append(json.dumps({**data, "run": data["run"] + before}) + "\n")
        before += max(recording.content.runs)
    return "".join(lines)
