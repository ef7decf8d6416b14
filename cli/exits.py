"""What the process ends with: one table of exit codes, and which error is which.

Every command runs under `guarded`, which turns the project's own errors into a message on standard error and a code.
Anything else is a bug of ours and reaches `report_bug`. Commands end with `SystemExit`, which any parser of command
lines lets through, so nothing here loads one.
"""

import errno
import functools
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import ParamSpec

from planner.errors import CombinedInputError, PlannerError
from profiles.errors import CatalogueError, CoverageError, ProfileFileError
from solvers.errors import SolverError

Parameters = ParamSpec("Parameters")
OwnError = PlannerError | CatalogueError | CoverageError | ProfileFileError | SolverError


class ExitCode(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    FINDINGS = 1
    BAD_INPUT = 2
    INFEASIBLE = 3
    MISSING_COST = 4
    NO_SOLUTION = 5
    BUG = 70
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FINDINGS: "findings",
    ExitCode.BAD_INPUT: "bad input or usage",
    ExitCode.INFEASIBLE: "proven: no layout fits, or none meets the deadline",
    ExitCode.MISSING_COST: "a cost that is needed has no source",
    ExitCode.NO_SOLUTION: "the solver stopped with nothing",
    ExitCode.BUG: "a bug in shardwright",
    ExitCode.INTERRUPTED: "interrupted",
}

REFUSALS = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
)
"""Errors of the system that a path leads to wherever it is first looked at, and that are no fault of this program."""

LONGEST_PATH = 120

# "\b" keeps the help formatter from joining the lines.
EXIT_CODES_HELP = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())


def exit_code(error: OwnError) -> ExitCode:
    """Return the code that an error of ours ends with."""
    match error:
        case PlannerError() | CatalogueError() | ProfileFileError():
            return ExitCode.BAD_INPUT
        case CoverageError():
            return ExitCode.MISSING_COST
        case SolverError():
            return ExitCode.NO_SOLUTION


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Return `command` with the project's own errors turned into a message and an exit code."""

    @functools.wraps(command)
    def run_command(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (PlannerError, CatalogueError, CoverageError, ProfileFileError, SolverError) as error:
            for single in error.errors if isinstance(error, CombinedInputError) else (error,):
                print(f"error: {single}", file=sys.stderr)
            sys.exit(exit_code(error))

    return run_command


def abandon_stdout() -> None:
    """Let what is left for standard output go nowhere; Python flushes it once more on its way out."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report_stream(error: OSError) -> ExitCode:
    """Say in one line that a stream of the process takes or gives nothing more."""
    abandon_stdout()
    print(f"error: Standard output cannot be written: {error.strerror or error}.", file=sys.stderr)
    return ExitCode.BAD_INPUT


def report_path(error: OSError) -> ExitCode:
    """Say in one line what the system refuses of a path: it is too long, or not for this user."""
    path = repr(os.fsdecode(error.filename))
    shown = path if len(path) <= LONGEST_PATH else f"{path[:LONGEST_PATH]}..."
    print(f"error: {shown}: {error.strerror}.\nCheck the path, and what you may do there.", file=sys.stderr)
    return ExitCode.BAD_INPUT


def report_bug(error: BaseException) -> ExitCode:
    """Print the traceback of an error that nobody expected, and whose fault it is."""
    import traceback

    traceback.print_exception(error, file=sys.stderr)
    print(
        "\nerror: this is a bug in shardwright, not in your input."
        "\nPlease report it with the traceback above and the command that led to it.",
        file=sys.stderr,
    )
    return ExitCode.BUG
