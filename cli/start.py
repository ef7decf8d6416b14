"""Where the process starts: `validate` at once, every other command with Typer.

Typer and what it brings load for longer than `validate` takes to judge a script.
"""

import gc
import io
import sys

from cli.exits import REFUSALS, ExitCode, guarded, report_bug, report_path, report_stream

GARBAGE_THRESHOLD = 100_000
"""Objects between two garbage collections. A command runs once and its objects hardly form cycles; Python's 700 would
have it look through them thousands of times."""

AT_ONCE = "validate"
"""The command that does without Typer."""


def run() -> None:
    """Run the command line and end the process with one of `ExitCode`."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A user's name for a model may hold characters that this terminal has no code for.
            stream.reconfigure(errors="backslashreplace")
    try:
        if sys.argv[1:2] == [AT_ONCE]:
            from cli.commands.validate import validate

            guarded(validate)(sys.argv[2:])
        else:
            from cli.main import app

            app(prog_name="shardwright")
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        # Files are named in their errors; without a name it is a stream, such as the one that help is printed to.
        if error.filename is None:
            sys.exit(report_stream(error))
        sys.exit(report_path(error) if error.errno in REFUSALS else report_bug(error))
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever reaches it is a bug, and says so
        sys.exit(report_bug(error))


if __name__ == "__main__":
    run()
