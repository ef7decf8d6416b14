"""Where output goes: one document on standard output, progress on standard error, files whole or not at all."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath
from time import perf_counter

from cli.exits import ExitCode, abandon_stdout
from cli.render import Block, as_rich, as_text
from planner.errors import InputError, Location

Watch = Callable[[str, int, int], None]


class Format(StrEnum):
    """Forms of what a command prints."""

    TEXT = "text"
    JSON = "json"


def print_text(text: str) -> None:
    """Write text to standard output; end quietly when its reader has gone.

    Raises:
        InputError: When standard output takes nothing, because the disk behind it is full for example.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
        sys.exit(ExitCode.BROKEN_PIPE)
    except OSError as error:
        abandon_stdout()
        raise InputError(f"Standard output cannot be written: {error.strerror or error}.") from error


def print_blocks(blocks: Iterable[Block]) -> None:
    """Print blocks as tables on a terminal and as plain text anywhere else."""
    print_text(as_rich(blocks) if sys.stdout.isatty() else as_text(blocks))


def print_json(document: object) -> None:
    """Print one JSON document."""
    print_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def note(text: str) -> None:
    """Write one line to standard error."""
    print(text, file=sys.stderr)


class Stopwatch:
    """Wall time from lap to lap, for `--timings`; it never reaches a document."""

    def __init__(self) -> None:
        self._last = perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def lines(self) -> tuple[str, ...]:
        """Return the laps and their total, in milliseconds."""
        laps = {**self._laps, "total": sum(self._laps.values())}
        width = max(len(name) for name in laps)
        return tuple(f"{name:<{width}}  {seconds * 1e3:>10,.1f} ms" for name, seconds in laps.items())


def wants_progress() -> bool:
    """Return whether a progress display would be seen by a person and disturb nobody."""
    quiet_variables = ("CI", "NO_COLOR")
    return sys.stderr.isatty() and not any(os.environ.get(name) for name in quiet_variables)


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield what long work says it does next: a line on standard error that replaces itself, or nothing."""
    if not wants_progress():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda text: status.update(Text(text))


@contextmanager
def watching(*, show: bool) -> Iterator[Watch | None]:
    """Yield what a search reports its progress to: a display on standard error, or nothing."""
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        tasks: dict[str, TaskID] = {}

        def watch(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                # A phase may end before its total; once the next one starts, its bar has nothing more to say.
                for task in tasks.values():
                    progress.update(task, visible=False)
                tasks[phase] = progress.add_task(phase)
            progress.update(tasks[phase], completed=done, total=total)

        yield watch


def check_writable(directory: Path, names: Iterable[str], *, force: bool) -> None:
    """Raise when `directory` cannot take files of these names without overwriting something.

    Raises:
        InputError: Naming what stands in the way.
    """
    place = Location(file=str(directory), path="--out")
    if directory.exists() and not directory.is_dir():
        raise InputError("This is a file; files are written into a directory.", location=place)
    nearest = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise InputError(
            f"Nothing can be written into {nearest}.", location=place, hint="Name a directory that you may write to."
        )
    taken = sorted(name for name in names if os.path.lexists(directory / name))
    folders = [name for name in taken if (directory / name).is_dir()]
    if folders:
        raise InputError(
            f"A directory is in the way of {', '.join(folders)}.",
            location=place,
            hint="Name another directory.",
        )
    if taken and not force:
        raise InputError(
            f"There is already {', '.join(taken)}.",
            location=place,
            hint="Name another directory, or overwrite these files with --force; other files there are left alone.",
        )


def write_files(directory: Path, files: Mapping[str, str], *, force: bool) -> tuple[Path, ...]:
    """Write text files into `directory` and return their paths; scripts become executable.

    All files are first written in full beside their destination. A directory that does not exist yet then appears
    with one rename; into one that does, each file is moved with one rename. Files of other names are left alone.

    Raises:
        InputError: When something stands in the way or cannot be written. No file is ever left half written, and
            until the first rename none has changed; where a later rename fails, the earlier files are the new ones.
    """
    check_writable(directory, files, force=force)
    place = Location(file=str(directory), path="--out")
    fresh = not directory.exists()
    staging = (directory.parent if fresh else directory) / f".{directory.name or 'out'}.partial-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        try:
            for name, text in files.items():
                _write_file(staging, name, text)
            if fresh:
                staging.rename(directory)
            else:
                for name in files:
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    (staging / name).replace(directory / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"The files cannot be written: {error.strerror or error}.",
            location=place,
            hint="Name a directory that you may write to.",
        ) from error
    return tuple(directory / name for name in files)


def staged_path(path: Path) -> Path:
    """Return where `write_file` of this process writes a file in full before it takes its name."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write one text file, in full or not at all.

    Raises:
        InputError: When something stands in the way or the file cannot be written.
    """
    if path.is_dir():
        raise InputError("This is a directory.", location=Location(file=str(path)), hint="Name a file.")
    if path.exists() and not force:
        raise InputError(
            "There is already such a file.",
            location=Location(file=str(path)),
            hint="Name another file, or overwrite it with --force.",
        )
    staged = staged_path(path)
    try:
        try:
            staged.write_text(text, encoding="utf-8", newline="\n")
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"The file cannot be written: {error.strerror or error}.",
            location=Location(file=str(path)),
            hint="Name a file in a directory that is there and that you may write to.",
        ) from error


def _write_file(root: Path, name: str, text: str) -> None:
    """Write one file below `root`; one that starts with "#!" may be run by whoever may read it."""
    relative = PurePosixPath(name)
    assert not relative.is_absolute(), name
    assert ".." not in relative.parts, name
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    if text.startswith("#!"):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o444) >> 2)
