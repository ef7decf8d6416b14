"""DeepSpeed's configurations and the scripts that start programs with them: which belongs to which.

A script names its configuration, and a configuration is judged with every command that names it: in the files that
were asked about, and in the scripts that lie beside it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from planner.documents.document import Document
from planner.errors import InputError
from planner.readers.deepspeed_launch import DeepSpeedLaunch, read_deepspeed_launches
from planner.readers.deepspeed_run import known_keys, parse_deepspeed
from planner.readers.named_files import is_regular_file
from planner.readers.shell import MAX_SCRIPT_BYTES

SCRIPT_SUFFIXES = frozenset({".sh", ".bash", ".sbatch", ".slurm"})
MAX_NEIGHBOURS = 64
"""Scripts beside a configuration that are looked at: a choice, so that a folder of thousands holds nobody up."""

MAX_CHARACTERS = 128 << 10
"""Longest JSON that is taken for a configuration; they have a few kilobytes."""


def deepspeed_document(text: str, *, file: str) -> Document | None:
    """Return the JSON that names keys of DeepSpeed's, so that it may be a configuration; None for anything else.

    Raises:
        InputError: It names some, and is damaged.
    """
    return parse_deepspeed(text, file=file) if len(text) <= MAX_CHARACTERS and names_keys(text) else None


def names_keys(text: str) -> bool:
    """Return whether a text names keys of DeepSpeed's."""
    return any(f'"{key}"' in text for key in known_keys())


def named_configurations(text: str, script: Path) -> Iterator[Path]:
    """Yield the configurations that the commands of a script name, as far as they are there.

    A damaged script names none: it is reported where it is judged itself.
    """
    with suppress(InputError):
        yield from configurations_of(read_deepspeed_launches(text, file=str(script)), script)


def configurations_of(launches: Sequence[DeepSpeedLaunch], script: Path) -> Iterator[Path]:
    """Yield the configurations that commands of a script name, as far as they are there."""
    for launch in launches:
        found = next((path for path in _candidates(launch.config.text, script) if is_regular_file(path)), None)
        if found is not None:
            yield found


def launches_of(configuration: Path, named: Sequence[Path]) -> tuple[tuple[DeepSpeedLaunch, str], ...]:
    """Return the commands that name a configuration, each with the text of its hostfile.

    Args:
        configuration: The configuration.
        named: Files that were asked about.
    """
    scripts = dict.fromkeys((*(path for path in named if path.suffix.lower() != ".json"), *_neighbours(configuration)))
    found: list[tuple[DeepSpeedLaunch, str]] = []
    for script in scripts:
        text = _text(script)
        if configuration.name not in text:
            continue
        try:
            launches = read_deepspeed_launches(text, file=str(script))
        except InputError:
            continue  # A damaged script is reported where it is asked about; here it says nothing.
        ours = (launch for launch in launches if _names(launch, script, configuration))
        found.extend((launch, _hosts(launch, script)) for launch in ours)
    return tuple(found)


def _names(launch: DeepSpeedLaunch, script: Path, configuration: Path) -> bool:
    paths = (path for path in _candidates(launch.config.text, script) if is_regular_file(path))
    return is_regular_file(configuration) and any(path.samefile(configuration) for path in paths)


def _candidates(word: str, script: Path) -> Iterator[Path]:
    """Yield where a word of a script may point: as it stands, from the script's folder, or beside the script."""
    name = word.rsplit("/", 1)[-1]
    if not re.search(r"[$`]", word):
        yield Path(word)
        yield script.parent / word
    if name and not re.search(r"[$`]", name):
        yield script.parent / name


def _neighbours(configuration: Path) -> list[Path]:
    """Return the scripts in the folder of a configuration."""
    folder = configuration.parent
    found = (path for path in folder.iterdir() if path.suffix.lower() in SCRIPT_SUFFIXES and is_regular_file(path))
    return sorted(found)[:MAX_NEIGHBOURS]


def _hosts(launch: DeepSpeedLaunch, script: Path) -> str:
    """Return the text of the hostfile that a command names, as far as it is there."""
    if launch.hostfile is None:
        return ""
    return next((_text(path) for path in _candidates(launch.hostfile, script) if is_regular_file(path)), "")


def _text(path: Path) -> str:
    """Return the text of a file that was not asked about itself; nothing where it cannot be read or is too large."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_SCRIPT_BYTES + 1)
    except OSError:
        return ""
    return raw.decode("utf-8-sig", errors="replace").replace("\r\n", "\n") if len(raw) <= MAX_SCRIPT_BYTES else ""
