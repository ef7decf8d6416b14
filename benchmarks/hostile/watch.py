"""A command line run inside this process, and all that it does watched: its end, its time, what it writes and where.

Python tells its audit hooks of every file that is opened for writing, made, moved or removed, and of every process that
is started. Hooks are never taken off, so there is one.
"""

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from types import FrameType

from cli.start import run

STEPS_A_SECOND = 50_000_000
"""Steps of an empty loop that a second stands for; a core that is slow or shared takes longer for them."""

CHANGES = {
    "os.mkdir": (0, 2), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.rename": (1, 3), "os.link": (1, 3),
    "os.symlink": (1, 2),
}  # fmt: skip
"""Events that change a file or folder: which of their arguments names it, and which the open folder that it is in."""

STARTS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"})


class HangError(BaseException):
    """A command took far longer than it should; nothing that catches errors may catch it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command line ended.

    Args:
        code: What the process would have ended with; None where it was stopped because it hung.
        output: What it printed.
        errors: What it printed on standard error.
        cpu_seconds: Processor time that it took.
        astray: What it wrote outside the folders that it may write into, and what it started.
    """

    code: int | None
    output: str
    errors: str
    cpu_seconds: float
    astray: tuple[str, ...]


class _Watch:
    """What this process changes outside some folders while it is watched."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.found: list[str] = []
        self.watching = False
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """Note an event of the interpreter."""
        if not self.watching:
            return
        if event in STARTS:
            self.found.append(f"{event} {args[0]!r}")
        elif event == "open" and _writes(args):
            self._note(event, args[0], -1)
        elif event in CHANGES:
            path, folder = CHANGES[event]
            self._note(event, args[path], args[folder])

    def _note(self, event: str, path: object, folder: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        base = Path(f"/proc/self/fd/{folder}").readlink() if isinstance(folder, int) and folder >= 0 else Path()
        whole = os.path.abspath(base / os.fsdecode(path))  # noqa: PTH100 - links stay what they are called
        # Python itself writes modules that it compiled.
        inside = whole in self.allowed or any(whole.startswith(path) for path in self.allowed if path.endswith(os.sep))
        if whole != os.devnull and "__pycache__" not in whole and not inside:
            self.found.append(f"{event} {whole!r}")


def _writes(args: tuple[object, ...]) -> bool:
    """Return whether a file is opened to be written: by its mode, or by its flags where it has none."""
    _, mode, flags = args
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


_WATCH = _Watch()


@contextmanager
def watched(*into: Path) -> Iterator[list[str]]:
    """Yield what this process changes outside some folders or files, and what it starts, as it does so."""
    _WATCH.found = []
    _WATCH.allowed = tuple(path for folder in into for path in (str(folder), f"{folder}{os.sep}"))
    _WATCH.watching = True
    try:
        yield _WATCH.found
    finally:
        _WATCH.watching = False


@contextmanager
def no_hang(cpu_seconds: float) -> Iterator[None]:
    """Raise once this process has worked for too long; what others do on the machine does not count.

    How slow the core is counts when the time is up: one that got slower since has done less in it.
    """
    start = process_time()

    def stop(_number: int, _frame: FrameType | None) -> None:
        left = cpu_seconds * slowness() - (process_time() - start)
        if left <= 0:
            raise HangError
        signal.setitimer(signal.ITIMER_VIRTUAL, left)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def slowness() -> float:
    """Return how many seconds the steps of a second take just now."""
    steps, start = STEPS_A_SECOND // 1000, process_time()
    for _ in range(steps):
        pass
    return (process_time() - start) * STEPS_A_SECOND / steps


def ended(words: tuple[str, ...], *, at: Path, into: tuple[Path, ...], most_seconds: float) -> Ended:
    """Run a command line.

    Args:
        words: What stands behind `shardwright`.
        at: The folder that it runs in.
        into: Folders that it may write into.
        most_seconds: Processor seconds of a usual core after which it is taken to hang.
    """
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    before, home = sys.argv, Path.cwd()
    code: int | None = 0
    astray: list[str] = []
    os.chdir(at)
    sys.argv = ["shardwright", *words]
    start = process_time()
    try:
        with (
            redirect_stdout(output),
            redirect_stderr(errors),
            watched(*into) as astray,
            no_hang(most_seconds),
        ):
            run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except HangError:
        code = None
    finally:
        taken = process_time() - start
        sys.argv = before
        os.chdir(home)
    texts = []
    for stream in (output, errors):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(errors="replace"))
    return Ended(code=code, output=texts[0], errors=texts[1], cpu_seconds=taken, astray=tuple(astray))
