"""The command `shardwright`: wiring only. Heavy imports wait inside the commands, so that `--help` is fast."""

import gc
import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from cli.commands import (
    accuracy,
    clusters,
    collect,
    diff,
    emit,
    evaluate,
    explain,
    init,
    mem,
    models,
    plan,
    report,
    rule,
    trace,
    validate,
)
from cli.exits import EXIT_CODES_HELP, ExitCode, guarded, report_bug, report_stream
from cli.usage import PlainCommand

app = typer.Typer(
    name="shardwright",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


GARBAGE_THRESHOLD = 100_000
"""Objects between two garbage collections. A command runs once and its objects hardly form cycles; Python's 700 would
have it look through them thousands of times."""


def show_version(requested: bool) -> None:
    """Print the version and end, when asked to."""
    if not requested:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        typer.echo(f"shardwright {version('shardwright')}")
    except PackageNotFoundError:
        typer.echo("shardwright (running from its source tree, not installed)")
    raise typer.Exit


@app.callback(epilog=EXIT_CODES_HELP)
def shardwright(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Plan how to lay a large model out on a GPU cluster.

    A model, a cluster and a training run go in; the fastest layout that fits, the reasons for it and the files
    that launch it come out.
    """


def examples(lines: Sequence[str]) -> str:
    """Return example commands as the last paragraph of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app.command("plan", cls=PlainCommand, epilog=examples(plan.EXAMPLES))(guarded(plan.plan))
app.command("emit", cls=PlainCommand, epilog=examples(emit.EXAMPLES))(guarded(emit.emit))
app.command("explain", cls=PlainCommand, epilog=examples(explain.EXAMPLES))(guarded(explain.explain))
app.command("evaluate", cls=PlainCommand, epilog=examples(evaluate.EXAMPLES))(guarded(evaluate.evaluate))
app.command("validate", cls=PlainCommand, epilog=examples(validate.EXAMPLES))(guarded(validate.validate))
app.command("rule", cls=PlainCommand, epilog=examples(rule.EXAMPLES))(guarded(rule.rule))
app.command("diff", cls=PlainCommand, epilog=examples(diff.EXAMPLES))(guarded(diff.diff))
app.command("mem", cls=PlainCommand, epilog=examples(mem.EXAMPLES))(guarded(mem.mem))
app.command("trace", cls=PlainCommand, epilog=examples(trace.EXAMPLES))(guarded(trace.trace))
app.command("report", cls=PlainCommand, epilog=examples(report.EXAMPLES))(guarded(report.report))
app.command("init", cls=PlainCommand, epilog=examples(init.EXAMPLES))(guarded(init.init))
app.command("models", cls=PlainCommand, epilog=examples(models.EXAMPLES))(guarded(models.models))
app.command("clusters", cls=PlainCommand, epilog=examples(clusters.EXAMPLES))(guarded(clusters.clusters))
app.command("collect", cls=PlainCommand, epilog=examples(collect.EXAMPLES))(guarded(collect.collect))
app.command("accuracy", cls=PlainCommand, epilog=examples(accuracy.EXAMPLES))(guarded(accuracy.accuracy))


def run() -> None:
    """Run the command line and end the process with one of `ExitCode`."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A user's name for a model may hold characters that this terminal has no code for.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="shardwright")
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except OSError as error:
        # Files are named in their errors; without a name it is a stream, such as the one that help is printed to.
        sys.exit(report_bug(error) if error.filename is not None else report_stream(error))
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever reaches it is a bug, and says so
        sys.exit(report_bug(error))


if __name__ == "__main__":
    run()
