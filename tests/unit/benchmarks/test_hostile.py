"""Damaged inputs against every command: the watch sees what is done, faults are named, and none is found."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import typer
from typer.core import TyperGroup

from benchmarks.hostile.attempts import MOST_SECONDS, Ground
from benchmarks.hostile.damages import hostile, hostile_word
from benchmarks.hostile.targets import TARGETS
from benchmarks.hostile.watch import HangError, ended, no_hang, watched
from cli.main import app

QUICK = tuple(
    index for index, target in enumerate(TARGETS) if target.words[0] in {"models", "mem", "accuracy", "cluster", "rule"}
)


def test_the_watch_sees_what_is_done_outside(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with watched(tmp_path / "in") as found:
        (tmp_path / "in" / "file").write_text("x")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "file").write_text("x")
        (tmp_path / "in" / "file").rename(tmp_path / "moved")
        (tmp_path / "inside").write_text("beside the folder, not in it")
        folder = os.open(tmp_path, os.O_RDONLY)
        os.rmdir("in", dir_fd=folder)
        os.close(folder)
    (tmp_path / "later").write_text("x")
    assert [what.split()[0] for what in found] == ["os.mkdir", "open", "os.rename", "open"]
    assert str(tmp_path / "moved") in found[2]


def work_on() -> None:
    """Work until somebody stops it."""
    with no_hang(0.1):
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.01)
        while True:
            pass


def test_the_hang_guard_rings() -> None:
    with pytest.raises(HangError):
        work_on()


def test_an_end_is_told_with_what_was_printed(tmp_path: Path) -> None:
    fine = ended(("rule", "MLM101"), at=tmp_path, into=(), most_seconds=MOST_SECONDS)
    assert fine.code == 0
    assert fine.output.startswith("MLM101")
    assert fine.errors == ""
    refused = ended(("rule", "no such rule"), at=tmp_path, into=(), most_seconds=MOST_SECONDS)
    assert refused.code == 2
    assert refused.output == ""
    assert "no such rule" in refused.errors


def test_what_is_written_elsewhere_is_told(tmp_path: Path) -> None:
    end = ended(("init", "spec.yaml"), at=tmp_path, into=(tmp_path / "out",), most_seconds=MOST_SECONDS)
    assert end.code == 0
    assert any("spec.yaml" in what for what in end.astray)


@pytest.mark.parametrize("index", QUICK, ids=lambda index: TARGETS[index].name)
def test_commands_take_what_is_undamaged_and_what_is_damaged(tmp_path: Path, index: int) -> None:
    ground = Ground(tmp_path)
    assert ground.undamaged(TARGETS[index]).faults == ()
    for round_ in range(5):
        attempt = ground.attempt(index + round_ * len(TARGETS))
        assert attempt.target == TARGETS[index].name
        assert attempt.faults == (), attempt.case


def test_a_fault_is_named(tmp_path: Path) -> None:
    target = next(target for target in TARGETS if target.name == "init, words")
    astray = type(target)(name=target.name, words=("init", "spec.yaml"), files={})
    (fault, *others) = Ground(tmp_path).tried(astray, astray.words, None, case=0).faults
    assert fault.startswith("astray: ")
    assert "in/spec.yaml was changed" in others


def commands(within: TyperGroup, *names: str) -> Iterator[tuple[str, ...]]:
    """Yield every command of a group, those of groups within it too."""
    for name, command in within.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


def test_every_command_has_a_target() -> None:
    every = set(commands(typer.main.get_group(app)))
    assert {command for command in every if any(target.words[: len(command)] == command for target in TARGETS)} == every


def test_the_same_number_does_the_same() -> None:
    words = TARGETS[0].words
    assert hostile_word(words, Random(7)) == hostile_word(words, Random(7))
    raw = b'{"a": [1, 2, {"b": "c"}]}'
    assert hostile(raw, "x.json", Random(7)) == hostile(raw, "x.json", Random(7))
    assert any(hostile(raw, "x.json", Random(seed)) != raw for seed in range(3))
