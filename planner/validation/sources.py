"""What a file is and which runs it starts.

A file is read by what it holds, not by its name: a shell script by the programs that it starts, a mapping by the
framework whose flags or keys its own keys are.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError, Location
from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import read_megatron_runs
from planner.readers.named_files import MAX_YAML_BYTES
from planner.readers.shell import MAX_SCRIPT_BYTES
from planner.validation.source import Asked, Run, Source

if TYPE_CHECKING:
    from planner.readers.deepspeed_launch import DeepSpeedLaunch

SUFFIXES = frozenset({".sh", ".bash", ".sbatch", ".slurm", ".txt", ".args", ".json", ".yaml", ".yml"})
"""Files that are looked at in a directory."""

SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "site-packages"})

MAX_BYTES = 4 << 20
"""Largest JSON that is read: a choice; the plans of the examples have up to 0.3 MB."""

MAX_RUNS = 500
"""Most runs that one file may start."""

MAPPING = re.compile(r"\.(json|ya?ml)$", re.IGNORECASE)
"""Names of files that are read as YAML or JSON."""


CONFIGURATION = ".json"
"""What a script holds that names a configuration of DeepSpeed's."""


def files_named(names: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """Yield the files that paths, folders and patterns name, each once, and whether it was named itself.

    Raises:
        InputError: There is no such file, or a pattern or a folder names none.
    """
    seen: set[Path] = set()
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [(file, False) for file in _files_below(path)]
        elif has_magic(name) and not path.exists():
            found = [(match, True) for match in _matching(name)]
        elif path.exists():
            found = [(path, True)]
        else:
            raise InputError("There is no such file.", location=Location(file=name), hint="Check the path.")
        if not found:
            raise InputError(
                "No file is found here.",
                location=Location(file=name),
                hint=f"Looked for {', '.join(sorted(SUFFIXES))}.",
            )
        for file, named in found:
            if file not in seen:
                seen.add(file)
                yield file, named


def with_configurations(files: Sequence[tuple[Path, bool]]) -> Iterator[tuple[Path, bool]]:
    """Yield files, and behind each script the configurations that its commands name, each file once."""
    seen = {path.resolve() for path, _ in files}
    for path, named in files:
        yield path, named
        if MAPPING.search(str(path)):
            continue
        try:
            text = text_of(path)
        except InputError:
            continue  # Said where the script itself is judged.
        if CONFIGURATION not in text:
            continue
        from planner.validation.deepspeed_files import named_configurations  # noqa: PLC0415 - few scripts name one

        for configuration in named_configurations(text, path):
            if configuration.resolve() not in seen:
                seen.add(configuration.resolve())
                yield configuration, named


def _matching(pattern: str) -> Iterator[Path]:
    """Yield the files that a pattern names, from the folder on in which its first wildcard stands."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if has_magic(part))
    base = Path(*parts[:fixed])
    yield from (path for path in sorted(base.glob(str(Path(*parts[fixed:])))) if path.is_file())


def _files_below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in SKIPPED_FOLDERS:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files_below(path)
        elif path.is_file() and path.suffix.lower() in SUFFIXES:
            yield path


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: It cannot be read, is too large, or is no text.
    """
    location = Location(file=str(path))
    is_json = path.name.lower().endswith(".json")
    most = MAX_BYTES if is_json else MAX_YAML_BYTES if MAPPING.search(path.name) else MAX_SCRIPT_BYTES
    try:
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"The file cannot be read: {reason}.", location=location, hint="Check the path.") from None
    if len(raw) > most:
        raise InputError(
            f"The file is larger than {most >> 10:,} KiB.",
            location=location,
            hint="Check that it is a configuration.",
        )
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise InputError("The file is no UTF-8 text.", location=location, hint="Save it as UTF-8.") from None


def read_source(text: str, *, file: str, asked: Asked, named: Sequence[Path] = ()) -> Source:
    """Return what a file starts; no runs where it starts nothing that is known.

    Args:
        text: The file.
        file: What messages call it.
        asked: What the user says beside the files.
        named: All files that are judged, for those that belong together.

    Raises:
        InputError: It is damaged: a quote that is never closed, a mapping that is none.
    """
    if MAPPING.search(file):
        from planner.validation.mappings import read_mapping  # noqa: PLC0415 - scripts need no reader of YAML

        return read_mapping(text, file=file, asked=asked, named=named)
    readers: list[tuple[Framework, Callable[..., Sequence[Run]]]] = [(Framework.MEGATRON, read_megatron_runs)]
    if Framework.VLLM in text:
        from planner.readers.vllm_run import read_vllm_runs  # noqa: PLC0415 - most scripts start no server

        readers.append((Framework.VLLM, read_vllm_runs))
    runs = (
        run
        for framework, read in readers
        for run in read(
            text,
            file=file,
            version=asked.version(framework),
            num_gpus=asked.num_gpus,
            gpus_per_node=asked.gpus_per_node,
        )
    )
    found = tuple(islice(runs, MAX_RUNS + 1))
    launches: tuple[DeepSpeedLaunch, ...] = ()
    if CONFIGURATION in text:
        from planner.readers.deepspeed_launch import read_deepspeed_launches  # noqa: PLC0415 - as above

        launches = read_deepspeed_launches(text, file=file)
    if len(found) > MAX_RUNS:
        raise InputError(
            f"The file starts more than {MAX_RUNS} runs.", location=found[-1].start, hint="Split it into several."
        )
    if not found and not launches:
        from planner.readers.megatron_lists import read_megatron_list  # noqa: PLC0415 - most are commands

        found = read_megatron_list(
            text,
            file=file,
            version=asked.version(Framework.MEGATRON),
            num_gpus=asked.num_gpus,
            gpus_per_node=asked.gpus_per_node,
        )
    return Source(file=file, text=text, runs=found, launches=launches)
