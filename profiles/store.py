"""Profiles on disk: a directory with `profile.json` and one CSV file for each kind of table.

A table's columns are the words and sizes of its kind, `latency_us`, `samples` (which may be missing), and `origin`, a
name in `profile.json`.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from pydantic import ValidationError

from profiles.catalogue import load_device
from profiles.chips import is_same_chip
from profiles.errors import ProfileFileError
from profiles.hardware import Device
from profiles.profile import Origin, Profile
from profiles.schema.profile import SCHEMA_VERSION, ProfileEntry
from profiles.tables import LARGEST, SPECS, Shape, TableKind, TableRow, TableSpec

METADATA = "profile.json"
SAMPLES = "samples"
LARGEST_US = 1e12


def _columns(spec: TableSpec) -> tuple[str, ...]:
    return (*spec.words, *spec.sizes, "latency_us", "origin")


def read_profile(directory: Path | Traversable) -> Profile:
    """Return the profile in a directory; its tables are read when they are asked for.

    Raises:
        ProfileFileError: There is no metadata that can be read.
    """
    path = directory / METADATA
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProfileFileError(
            file=str(path),
            line=None,
            message="there is no such file",
            remedy=f"Give a directory with {METADATA} and tables such as gemm.csv.",
        ) from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(path, error) from None
    except json.JSONDecodeError as error:
        raise ProfileFileError(
            file=str(path),
            line=error.lineno,
            message=f"column {error.colno}: this is not JSON: {error.msg}",
            remedy="Correct the file.",
        ) from None
    try:
        metadata = ProfileEntry.model_validate(content).to_metadata()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ProfileFileError(
            file=str(path),
            line=None,
            message=f"{place}: {first['msg']}",
            remedy=f"This version reads profiles with schema_version {SCHEMA_VERSION}.",
        ) from None

    @cache
    def read(kind: TableKind) -> tuple[TableRow, ...]:
        return _read_table(directory / f"{kind.value}.csv", SPECS[kind], metadata.origins)

    return Profile(metadata=metadata, rows=read, name=str(directory))


def _unreadable(path: Path | Traversable, error: OSError | UnicodeDecodeError | RecursionError) -> ProfileFileError:
    match error:
        case OSError():
            what = error.strerror
        case UnicodeDecodeError():
            what = "it is not UTF-8"
        case RecursionError():
            what = "it is nested too deeply"
    return ProfileFileError(
        file=str(path), line=None, message=f"the file cannot be read: {what}", remedy="Give a file of a profile."
    )


def _read_table(path: Path | Traversable, spec: TableSpec, origins: Mapping[str, Origin]) -> tuple[TableRow, ...]:
    """Return the rows of one table; none where the file is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        reader = _RowReader(spec, next(lines, []), origins)
        rows = [reader.row(cells) for cells in lines]
    except (ValueError, csv.Error) as error:
        raise ProfileFileError(
            file=str(path),
            line=max(1, lines.line_num),
            message=str(error),
            remedy="Correct the row, or measure the table again.",
        ) from None
    return tuple(rows)


class _RowReader:
    """Reads rows of one table.

    Args:
        spec: The kind of table.
        header: Its columns as they stand in the file.
        origins: Origins by name.

    Raises:
        ValueError: The columns are not those of the table.
    """

    def __init__(self, spec: TableSpec, header: Sequence[str], origins: Mapping[str, Origin]) -> None:
        expected = _columns(spec)
        if sorted(header) not in (sorted(expected), sorted((*expected, SAMPLES))):
            raise ValueError(f"the columns are {', '.join(header) or 'missing'}, not {', '.join(expected)}")
        self._spec = spec
        self._position = {name: index for index, name in enumerate(header)}
        self._implementations = {name: origin.implementation for name, origin in origins.items()}

    def row(self, cells: Sequence[str]) -> TableRow:
        """Return one row.

        Raises:
            ValueError: A cell cannot be used; the message names its column.
        """
        if len(cells) != len(self._position):
            raise ValueError(f"the row has {len(cells)} cells, the header {len(self._position)}")
        at = self._position
        shape = Shape(
            words=tuple(cells[at[name]] for name in self._spec.words),
            sizes=tuple(_whole(name, cells[at[name]]) for name in self._spec.sizes),
        )
        if self._spec.operation is not None:
            self._spec.operation(shape)  # no table may hold what no kernel is
        origin = cells[at["origin"]]
        if origin not in self._implementations:
            raise ValueError(f"origin {origin[:40]!r} is not one of {METADATA}: {', '.join(self._implementations)}")
        samples = cells[at[SAMPLES]] if SAMPLES in at else ""
        return TableRow(
            shape=shape,
            latency_us=_microseconds(cells[at["latency_us"]]),
            samples=_whole(SAMPLES, samples) if samples else None,
            implementation=self._implementations[origin],
        )


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 15 or not 1 <= int(text) <= LARGEST:
        raise ValueError(f"{name} = {text[:40]!r} is no positive whole number")
    return int(text)


def _microseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < LARGEST_US:
        raise ValueError(f"latency_us = {text[:40]!r} is no time in microseconds above 0")
    return value


def shipped_directory() -> Traversable:
    """Return where the profiles lie that come with the package."""
    return resources.files("profiles").joinpath("data", "profiles")


@cache
def shipped_devices() -> tuple[str, ...]:
    """Return the names of the GPUs whose profiles come with the package."""
    return tuple(sorted(entry.name for entry in shipped_directory().iterdir() if entry.is_dir()))


def shipped_device_like(device: Device) -> str | None:
    """Return the shipped profile's GPU whose kernels a GPU has: itself, or one with the same chip; None without any."""
    names = shipped_devices()
    alike = [name for name in names if is_same_chip(load_device(name), device)]
    return device.name if device.name in names else next(iter(alike), None)


@cache
def shipped_profile(device: str) -> Profile | None:
    """Return the profile of a GPU that comes with the package; None where there is none."""
    return read_profile(shipped_directory() / device) if device in shipped_devices() else None
