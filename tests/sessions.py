"""Commands that a Markdown document shows: sessions with what they print, and lines to copy.

A `console` block is a session: each line that starts with "$ " is a command, and below it stands what it prints, with a
line "..." for lines left out. A `bash` block holds lines to copy, a comment behind some of them.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exits import ExitCode
from cli.main import app

ROOT = Path(__file__).parents[1]
PROGRAM = "shardwright"
CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
BASH = re.compile(r"(?<=^```bash\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
LEFT_OUT = "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of a session and what is shown below it."""

    command: str
    shown: tuple[str, ...]


def steps(block: str) -> tuple[Step, ...]:
    """Return the commands of a block with what is shown below each."""
    parts = re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
    return tuple(Step(command=lines[0], shown=tuple(lines[1:])) for lines in (part.splitlines() for part in parts))


def printed(command: str) -> tuple[str, ...]:
    """Return the lines that a command prints, in the working directory."""
    name, *arguments = shlex.split(command)
    assert name == PROGRAM
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in {ExitCode.OK, ExitCode.FINDINGS, ExitCode.INFEASIBLE}, (
        command,
        result.output,
        result.exception,
    )
    return tuple(result.output.splitlines())


def shortened(lines: tuple[str, ...], like: tuple[str, ...]) -> tuple[str, ...]:
    """Return `lines` with the same number left out in the middle as in `like`."""
    if LEFT_OUT not in like:
        return lines
    head = like.index(LEFT_OUT)
    tail = len(like) - head - 1
    return (*lines[:head], LEFT_OUT, *lines[len(lines) - tail :])


def replayed(text: str) -> str:
    """Return a document with what its sessions print today, run in order and in the working directory."""

    def session(match: re.Match[str]) -> str:
        lines: list[str] = []
        for step in steps(match[0]):
            lines += [f"$ {step.command}", *shortened(printed(step.command), step.shown)]
        return "\n".join(lines) + "\n"

    return CONSOLE.sub(session, text)


def hold_to_sessions(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, update: bool) -> None:
    """Check that a document's sessions print what it shows, run in a folder with the examples; or rewrite them."""
    (folder / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(folder)
    for variable in [name for name in os.environ if name.startswith("SHARDWRIGHT_")]:
        monkeypatch.delenv(variable)
    text = path.read_text(encoding="utf-8")
    actual = replayed(text)
    if update:
        path.write_text(actual, encoding="utf-8")
    else:
        assert text == actual


def copied_lines(text: str) -> tuple[str, ...]:
    """Return the lines of `bash` blocks that run the program, their comments left out."""
    lines = (line for block in BASH.findall(text) for line in block.splitlines())
    words = ((line, shlex.split(line, comments=True)) for line in lines if PROGRAM in line)
    return tuple(line.partition(" #")[0].rstrip() for line, split in words if split and split[0] == PROGRAM)
