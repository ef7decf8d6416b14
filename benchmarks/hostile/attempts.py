"""One damaged input against one command, and what was wrong with how the command took it.

A command may end with any of its exit codes but the one of a bug. It prints no traceback, ends in time, changes none of
the files that it reads and nothing outside its folder. If it ends with an error, its folder is as it was; if not, every
file in it is whole: documents can be parsed, and nothing is left that was only begun.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from benchmarks.hostile.damages import hostile, hostile_word
from benchmarks.hostile.targets import OUT, TARGETS, Target
from benchmarks.hostile.watch import Ended, ended
from cli.exits import ExitCode
from cli.output import staged_path

INPUTS = 10_000
"""Damaged inputs of a run."""

MOST_SECONDS = 20.0
"""Processor seconds of a usual core that no input may take: the slowest undamaged one takes two or three."""

WROTE = frozenset({ExitCode.OK, ExitCode.FINDINGS})
CODES = frozenset(ExitCode) - {ExitCode.BUG, ExitCode.INTERRUPTED, ExitCode.BROKEN_PIPE}
OLD = b"written before\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one damaged input.

    Args:
        case: Its number, from which it can be made again.
        target: What was tried.
        words: The command line.
        code: What it ended with; None where it hung.
        cpu_seconds: Processor time that it took.
        faults: What was wrong.
    """

    case: int
    target: str
    words: tuple[str, ...]
    code: int | None
    cpu_seconds: float
    faults: tuple[str, ...]


class Ground:
    """Where attempts are made: a folder with the undamaged files of every target.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._sound: dict[str, Path] = {}

    def sound(self, target: Target) -> Path:
        """Return the folder with the undamaged files of a target, written when it is first asked for."""
        if target.name not in self._sound:
            folder = self.folder / "sound" / str(len(self._sound))

            def made(words: tuple[str, ...], at: Path) -> int:
                code = ended(words, at=at, into=(self.folder,), most_seconds=MOST_SECONDS).code
                return -1 if code is None else code

            target.write_into(folder, made)
            self._sound[target.name] = folder
        return self._sound[target.name]

    def undamaged(self, target: Target) -> Attempt:
        """Return what comes of a target that nothing was done to."""
        return self.tried(target, target.words, None, case=-1)

    def attempt(self, case: int) -> Attempt:
        """Return what comes of a case: the target and what is done to it follow from its number."""
        target, random = TARGETS[case % len(TARGETS)], Random(case)
        if not target.damaged:
            return self.tried(target, hostile_word(target.words, random), None, case=case)
        sound = self.sound(target)
        names = [str(path.relative_to(sound)) for path in sorted(sound.rglob("*")) if path.is_file()]
        name = random.choice([name for name in names if fnmatch(name, target.damaged)])
        raw = hostile((sound / name).read_bytes(), name, random)
        return self.tried(target, target.words, (name, raw), case=case)

    def tried(self, target: Target, words: tuple[str, ...], damaged: tuple[str, bytes] | None, *, case: int) -> Attempt:
        """Return what comes of a command line.

        Args:
            target: Whose files it reads.
            words: The command line.
            damaged: Name and content of the file that is damaged; None where none is.
            case: The number of the case; -1 where nothing is damaged.
        """
        box = self.folder / "box"
        shutil.rmtree(box, ignore_errors=True)
        out = box / "out"
        shutil.copytree(self.sound(target), box / "in")
        out.mkdir()
        (out / "old.txt").write_bytes(OLD)
        if damaged is not None:
            (box / "in" / damaged[0]).write_bytes(damaged[1])
        before = _files(box)
        words = tuple(word.replace(OUT, str(out)) for word in words)
        beside = tuple(path for name in target.beside for path in (box / "in" / name, staged_path(box / "in" / name)))
        end = ended(words, at=box / "in", into=(out, *beside), most_seconds=MOST_SECONDS)
        allowed = {f"in/{name}" for name in target.beside}
        faults = (*_faults_of_end(end), *_faults_of_files(before, _files(box), end, allowed=allowed))
        if case < 0 and end.code not in target.codes:
            faults = (*faults, f"undamaged it ends with {end.code}: {end.errors.strip()[-500:]}")
        return Attempt(
            case=case, target=target.name, words=words, code=end.code, cpu_seconds=end.cpu_seconds, faults=faults
        )


def attempts(cases: Sequence[int]) -> list[Attempt]:
    """Return what came of some cases."""
    with TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        return [ground.attempt(case) for case in cases]


def undamaged(indices: Sequence[int]) -> list[Attempt]:
    """Return what comes of targets that nothing is done to; the second time, when all is loaded."""
    with TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        return [[ground.undamaged(TARGETS[index]) for _ in range(2)][-1] for index in indices]


def _files(folder: Path) -> Mapping[str, bytes]:
    """Return the content of all files below a folder; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            found[str(path.relative_to(folder))] = b"" if path.is_symlink() else path.read_bytes()
    return found


def _faults_of_end(end: Ended) -> tuple[str, ...]:
    """Return what is wrong with how a command ended."""
    faults = [f"astray: {what}" for what in end.astray]
    if end.code is None:
        faults.append(f"still at work after {end.cpu_seconds:.0f} processor seconds")
    elif end.code not in CODES:
        faults.append(f"ended with {end.code}: {end.errors.strip()[-800:]}")
    if "Traceback (most recent call last)" in end.errors + end.output:
        faults.append("printed a traceback")
    if end.code not in {ExitCode.OK, None} and not end.errors.strip() and not end.output.strip():
        faults.append("ended without a word")
    return tuple(faults)


def _faults_of_files(
    before: Mapping[str, bytes], after: Mapping[str, bytes], end: Ended, *, allowed: set[str]
) -> tuple[str, ...]:
    """Return what is wrong with the files that a command left."""
    faults = []
    for name in sorted({*before, *after}):
        was, is_now = before.get(name), after.get(name)
        if was == is_now or name in allowed:
            continue
        if not name.startswith("out/") or was is not None:
            faults.append(f"{name} was changed")
        elif end.code is not None and end.code not in WROTE:
            faults.append(f"{name} was written, and it ended with {end.code}")
        elif is_now is not None and (fault := _fault_within(name, is_now)) is not None:
            faults.append(f"{name} {fault}")
    return tuple(faults)


def _fault_within(name: str, raw: bytes) -> str | None:
    """Return what is wrong with a file that was written; None where nothing is."""
    if not raw:
        return "is empty"
    if ".tmp" in name or ".part" in name:
        return "was only begun"
    try:
        text = raw.decode()
        if name.endswith(".json"):
            json.loads(text)
        elif name.endswith(".yaml"):
            YAML(typ="safe", pure=True).load(text)
    except (ValueError, YAMLError) as error:
        return f"cannot be read: {error}"
    return None if text.endswith("\n") else "does not end with a line"
