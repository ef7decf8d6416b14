"""What the README shows is what the commands print, and what it links to is there.

A `console` block is a session: each line that starts with "$ " is run, in order and in one directory, and must print
what stands below it. A line "..." stands for lines left out. `--update-golden` rewrites the blocks.
"""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.exits import MEANINGS, ExitCode
from cli.main import app
from planner.inputs.load import load_inputs

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONSOLE = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
YAML = re.compile(r"(?<=^```yaml\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
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
    assert name == "shardwright"
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


def test_the_readme_shows_what_the_commands_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("SHARDWRIGHT_")]:
        monkeypatch.delenv(variable)
    text = README.read_text(encoding="utf-8")

    def replayed(match: re.Match[str]) -> str:
        lines: list[str] = []
        for step in steps(match[0]):
            lines += [f"$ {step.command}", *shortened(printed(step.command), step.shown)]
        return "\n".join(lines) + "\n"

    actual = CONSOLE.sub(replayed, text)
    if pytestconfig.getoption("--update-golden"):
        README.write_text(actual, encoding="utf-8")
    else:
        assert text == actual


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert links
    assert missing == []


def test_the_specs_shown_can_be_read(tmp_path: Path) -> None:
    whole, cluster, unequal = YAML.findall(README.read_text(encoding="utf-8"))
    path = tmp_path / "spec.yaml"
    path.write_text(whole)
    assert load_inputs(path).cluster.world_size == 64
    path.write_text(re.sub(r"^cluster: .*\n", cluster, whole, flags=re.MULTILINE))
    assert load_inputs(path).cluster.name == "lab"
    path.write_text(re.sub(r"^cluster: .*\n", unequal, whole, flags=re.MULTILINE))
    assert load_inputs(path).cluster.unequal is not None


def test_every_exit_code_is_listed() -> None:
    text = README.read_text(encoding="utf-8")
    for code, meaning in MEANINGS.items():
        assert f"| {int(code)} | {meaning} |\n" in text
