"""What a person at a terminal sees, and what a pipe gets."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.render import hanging
from planner.models.bundled import model_names
from profiles.catalogue import device_names, preset_names
from tests.unit.cli.findings.samples import ONE_LINE


def run_on_terminal(*arguments: str, columns: int) -> str:
    """Return what the command line draws on a terminal of this width, styles taken off."""
    primary, secondary = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.start", *arguments], stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    drawn = b""
    while True:
        try:
            chunk = os.read(primary, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not chunk:
            break
        drawn += chunk
    os.close(primary)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", drawn.decode())


def test_a_terminal_gets_tables_that_fit_it() -> None:
    drawn = run_on_terminal("clusters", "dgx-h100", columns=80)
    assert "─" in drawn
    assert max(len(line.rstrip("\r")) for line in drawn.split("\n")) <= 80
    # Long sources are wrapped, not cut off.
    assert "…" not in drawn


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["clusters", "models"])
def test_names_are_never_folded(command: str, columns: int) -> None:
    drawn = run_on_terminal(command, columns=columns)
    lines = [line.rstrip("\r") for line in drawn.split("\n")]
    assert max(len(line) for line in lines) <= columns
    names = {word for line in lines for word in line.split()}
    known = model_names() if command == "models" else (*preset_names(), *device_names())
    assert set(known) <= names


def test_findings_on_a_terminal_are_those_in_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.sh").write_text(ONE_LINE)
    words = ("validate", "train.sh", "--fail-on", "never")
    drawn = run_on_terminal(*words, columns=80)
    piped = subprocess.run([sys.executable, "-m", "cli.start", *words], capture_output=True, check=True, text=True)
    assert "^^^^^^^^^^^^^^^^^^" in piped.stdout
    assert max(len(line) for line in piped.stdout.splitlines()) <= 80
    assert [line.rstrip() for line in drawn.splitlines()] == [line.rstrip() for line in piped.stdout.splitlines()]


def test_what_has_no_room_is_left_out_and_said() -> None:
    drawn = run_on_terminal("models", columns=60)
    assert "Left out to fit 60 columns: active, kind, " in drawn
    assert "Left out" not in run_on_terminal("models", columns=200)


def test_long_lines_are_folded_with_a_hanging_indent() -> None:
    assert hanging("  one two three", width=10) == "  one two\n    three"
    assert hanging("one two three", width=8) == "one two\n  three"


def test_a_pipe_gets_plain_text() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cli.start", "clusters", "dgx-h100"], capture_output=True, check=True, text=True
    )
    assert result.stdout.isascii()
    assert "scalable units of 32 nodes, rail-optimised" in result.stdout
