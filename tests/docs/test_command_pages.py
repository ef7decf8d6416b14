"""Every command has a page that says what the command line says, and no page is left of a command that is gone."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from cli.main import app
from tests.docs.command_pages import INDEX, commands, pages, with_parts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "commands"
ALL = tuple(with_parts(commands()))
HELP = {"-h", "--help"}


def built(words: tuple[str, ...]) -> Any:
    """Return what Typer makes of a command of the app."""
    found: Any = typer.main.get_command(app)
    for word in words:
        found = found.commands[word]
    return found


def test_the_pages_are_what_the_command_line_says(pytestconfig: pytest.Config) -> None:
    made = pages((ROOT / "README.md").read_text(encoding="utf-8"))
    there = {path.name for path in FOLDER.iterdir()}
    if pytestconfig.getoption("--update-golden"):
        for name in there - set(made):
            (FOLDER / name).unlink()
        for name, text in made.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        there = set(made)
    assert there == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name} is not what the command line says"


def test_there_is_a_page_for_every_command_that_typer_makes() -> None:
    def walk(group: Any, before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found = {(*before, name) for name in group.commands}
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                found |= walk(command, (*before, name))
        return found

    assert {command.words for command in ALL} == walk(built(()))
    assert {command.page for command in ALL} | {INDEX} == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("words", [command.words for command in ALL if not command.parts], ids=" ".join)
def test_a_page_has_the_options_that_are_accepted(words: tuple[str, ...]) -> None:
    (command,) = (one for one in ALL if one.words == words)
    text = (FOLDER / command.page).read_text(encoding="utf-8")
    section = text.partition("## Options\n")[2].partition("\n## ")[0]
    shown = {name for row in section.splitlines() for name in re.findall(r"`(--?[a-z][\w-]*)", row.split(" | ")[0])}
    accepted = {name for one in built(words).params for name in (*one.opts, *one.secondary_opts) if name[0] == "-"}
    assert shown - HELP == accepted - HELP


def test_pages_do_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before = pages(readme)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("SHARDWRIGHT_FORMAT", "json")
    monkeypatch.setenv("SHARDWRIGHT_FINDINGS_FORMAT", "json")
    assert pages(readme) == before
    assert not any("\x1b" in text for text in before.values())
