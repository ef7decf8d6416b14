"""Every error of ours has its code; anything else is a bug and says so."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.exits import ExitCode, exit_code, guarded
from cli.main import app
from planner.errors import CombinedInputError, InputError, Location, NotExpressibleError
from profiles.errors import CatalogueError, CoverageError
from solvers.errors import SolverError


def test_the_codes_are_the_published_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "FINDINGS": 1,
        "BAD_INPUT": 2,
        "INFEASIBLE": 3,
        "MISSING_COST": 4,
        "NO_SOLUTION": 5,
        "BUG": 70,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), ExitCode.BAD_INPUT),
        (CombinedInputError([InputError("x")]), ExitCode.BAD_INPUT),
        (NotExpressibleError("x", target="megatron"), ExitCode.BAD_INPUT),
        (CatalogueError("x"), ExitCode.BAD_INPUT),
        (CoverageError(operation="x", missing="y", remedy="z"), ExitCode.MISSING_COST),
        (SolverError(solver="x", status="y", limit="z"), ExitCode.NO_SOLUTION),
    ],
)
def test_each_error_has_its_code(error: InputError, code: ExitCode) -> None:
    assert exit_code(error) is code


def failing(error: Exception) -> typer.Typer:
    """Return an app whose only command raises `error`."""
    small = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    def fail() -> None:
        raise error

    small.command()(guarded(fail))
    return small


def test_every_message_of_several_is_printed() -> None:
    first = InputError("Unknown key.", location=Location(file="spec.yaml", line=3, column=1, path="modle"))
    second = InputError("Expected an integer.", hint="Give a whole number.")
    result = CliRunner().invoke(failing(CombinedInputError([first, second])))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == (
        "error: spec.yaml:3:1: modle: Unknown key.\nerror: Expected an integer.\nGive a whole number.\n"
    )


def test_a_missing_cost_is_printed_with_its_remedy() -> None:
    error = CoverageError(operation="gemm 1x2x3 in fp8", missing="v100 has no fp8 rate", remedy="Use fp16.")
    result = CliRunner().invoke(failing(error))
    assert result.exit_code == 4
    assert result.stderr == "error: gemm 1x2x3 in fp8 cannot be priced: v100 has no fp8 rate\nUse fp16.\n"


def test_help_lists_the_exit_codes() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "      3  proven: no layout fits, or none meets the deadline\n" in result.stdout


def run_start(setup: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, after `setup`."""
    code = f"import sys\nfrom cli import start\n{setup}\nsys.argv = ['shardwright', *{list(arguments)!r}]\nstart.run()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_bug_of_ours_ends_with_70_and_says_so() -> None:
    result = run_start("import planner.models.bundled\ndel planner.models.bundled.bundled_models", "models")
    assert result.returncode == 70
    assert "Traceback (most recent call last):" in result.stderr
    assert result.stderr.endswith(
        "\nerror: this is a bug in shardwright, not in your input."
        "\nPlease report it with the traceback above and the command that led to it.\n"
    )


def test_an_interrupt_ends_with_130_and_no_traceback() -> None:
    result = run_start(
        "from planner.models import bundled\ndef stop():\n    raise KeyboardInterrupt\nbundled.bundled_models = stop",
        "models",
    )
    assert result.returncode == 130
    assert "Traceback" not in result.stderr


def test_a_reader_that_leaves_causes_no_traceback() -> None:
    code = "import sys\nfrom cli import start\nsys.argv = ['shardwright', 'clusters', '--format', 'json']\nstart.run()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert errors == ""


@pytest.mark.parametrize("arguments", [["models"], ["--help"], ["--version"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "cli.start", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    assert result.stderr == "error: Standard output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("command", [("validate",), ("explain",), ("profile", "show")])
def test_what_the_system_refuses_of_a_path_is_one_message(command: tuple[str, ...]) -> None:
    result = run_start("", *command, "a" * 5000)
    assert result.returncode == 2
    assert result.stderr == f"error: '{'a' * 119}...: File name too long.\nCheck the path, and what you may do there.\n"


def test_a_file_of_our_own_that_is_not_there_is_a_bug() -> None:
    result = run_start("import cli.main\ncli.main.app = lambda **_: open('/no/such/file')")
    assert result.returncode == 70
    assert "this is a bug in shardwright" in result.stderr


def test_a_usage_error_ends_with_2() -> None:
    result = run_start("", "plan", "spec.yaml", "--top", "0")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Invalid value for '--top'" in result.stderr
