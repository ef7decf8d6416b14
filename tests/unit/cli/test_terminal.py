"""What a person at a terminal sees, and what a pipe gets."""

import os
import pty
import re
import subprocess
import sys


def run_on_terminal(*arguments: str, columns: int) -> str:
    """Return what the command line draws on a terminal of this width, styles taken off."""
    primary, secondary = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments], stdout=secondary, stderr=secondary, env=environment
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


def test_a_pipe_gets_plain_text() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cli.main", "clusters", "dgx-h100"], capture_output=True, check=True, text=True
    )
    assert result.stdout.isascii()
    assert "scalable units of 32 nodes, rail-optimised" in result.stdout
