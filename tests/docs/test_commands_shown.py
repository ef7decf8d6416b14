"""Every command that a document shows is one that the command line takes; sessions are run and print what is shown."""

import re
import shlex
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.commands import validate
from cli.main import app
from planner.errors import InputError
from tests.sessions import CONSOLE, PROGRAM, copied_lines, hold_to_sessions, steps

ROOT = Path(__file__).parents[2]
BY_HAND = (ROOT / "docs" / "README.md", ROOT / "docs" / "model.md")
DOCUMENTS = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(rf"`({PROGRAM} [^`]+)`")


USAGE_ERROR: Any = typer.BadParameter.__base__
"""What a wrong command line raises: Typer's own copy of Click has no public name for it."""

REDIRECTIONS = {">", ">>", "<", "|", "&&", "||", ";"}


@cache
def built() -> Any:
    """Return the whole command line, as Typer makes it."""
    return typer.main.get_command(app)


def split(line: str) -> list[str]:
    """Return the words of a command of a shell's line, up to where its output goes."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    return list(takewhile(lambda word: word not in REDIRECTIONS, words))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that words begin with, as Typer makes it, and the words that are left."""
    found = built()
    while hasattr(found, "commands") and words and words[0] in found.commands:
        found, words = found.commands[words[0]], words[1:]
    return found, words


def faults(line: str) -> str:
    """Return why the command line does not take a line; empty where it does. Nothing is run."""
    command, words = command_of(split(line)[1:])
    if hasattr(command, "commands"):
        return f"{line}: {words[:1]} is no command"
    try:
        if command.name == "validate":
            validate.parser({}).parse_intermixed_args(words)
        else:
            command.make_context(command.name, list(words))
    except (InputError, USAGE_ERROR) as error:
        return f"{line}: {error}"
    return ""


def unknown(line: str) -> list[str]:
    """Return the words of a command in a sentence that are no commands or options; it may leave arguments out."""
    command, words = command_of(line.split()[1:])
    if hasattr(command, "commands"):
        return [word for word in words if not word.startswith("-")][:1]
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    return [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown_are_taken(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    lines = [step.command for block in CONSOLE.findall(text) for step in steps(block)]
    lines += copied_lines(text)
    assert [fault for fault in map(faults, lines) if fault] == []
    sentences = [" ".join(line.split()) for line in INLINE.findall(FENCED.sub("", text))]
    assert [(line, words) for line in sentences if (words := unknown(line))] == []


def test_a_command_that_is_not_taken_is_found() -> None:
    assert "No such option" in faults("shardwright plan spec.yaml --no-such-option")
    assert "whole number" in faults("shardwright mem llama-3.1-8b --tp two")
    assert faults("shardwright plan")
    assert faults("shardwright plan spec.yaml other.yaml > plan.txt")
    assert faults("shardwright plan spec.yaml > plan.txt") == ""
    assert faults("shardwright planned spec.yaml")
    assert faults("shardwright validate --no-such-option train.sh")
    assert faults("shardwright validate 'jobs/*.sh' --format concise") == ""
    assert unknown("shardwright plan --no-such-option") == ["--no-such-option"]
    assert unknown("shardwright profile ran") == ["ran"]
    assert unknown("shardwright profile run --resume") == []


@pytest.mark.parametrize("path", BY_HAND, ids=lambda path: path.name)
def test_sessions_print_what_is_shown(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    hold_to_sessions(path, tmp_path, monkeypatch, update=pytestconfig.getoption("--update-golden"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", FENCED.sub("", path.read_text(encoding="utf-8")))
    assert links or path.name == "CHANGELOG.md"
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []
