"""The command `shardwright`: wiring only. Heavy imports wait inside the commands, so that `--help` is fast."""

from collections.abc import Sequence
from typing import Annotated

import typer

from cli.commands import (
    accuracy,
    calibrate,
    cluster_import,
    clusters,
    collect,
    diff,
    emit,
    evaluate,
    experts,
    explain,
    init,
    mem,
    models,
    offload,
    plan,
    profile,
    profile_import,
    reconcile,
    report,
    rule,
    schema,
    trace,
    validate,
)
from cli.completion import as_typer_command, framework_versions, presets
from cli.exits import EXIT_CODES_HELP, guarded
from cli.usage import PlainCommand

app = typer.Typer(
    name="shardwright",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


app.command(
    "validate",
    help=validate.SUMMARY,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(
    guarded(
        as_typer_command(
            validate.parser({}),
            validate.validate,
            {"--cluster": presets, "--against": framework_versions},
        )
    )
)
app.command("rule", cls=PlainCommand, epilog=examples(rule.EXAMPLES))(guarded(rule.rule))
app.command("diff", cls=PlainCommand, epilog=examples(diff.EXAMPLES))(guarded(diff.diff))
app.command("mem", cls=PlainCommand, epilog=examples(mem.EXAMPLES))(guarded(mem.mem))
app.command("trace", cls=PlainCommand, epilog=examples(trace.EXAMPLES))(guarded(trace.trace))
app.command("report", cls=PlainCommand, epilog=examples(report.EXAMPLES))(guarded(report.report))
app.command("init", cls=PlainCommand, epilog=examples(init.EXAMPLES))(guarded(init.init))
app.command("schema", cls=PlainCommand, epilog=examples(schema.EXAMPLES))(guarded(schema.schema))
app.command("models", cls=PlainCommand, epilog=examples(models.EXAMPLES))(guarded(models.models))
app.command("clusters", cls=PlainCommand, epilog=examples(clusters.EXAMPLES))(guarded(clusters.clusters))
app.command("experts", cls=PlainCommand, epilog=examples(experts.EXAMPLES))(guarded(experts.experts))
app.command("offload", cls=PlainCommand, epilog=examples(offload.EXAMPLES))(guarded(offload.offload))
app.command("collect", cls=PlainCommand, epilog=examples(collect.EXAMPLES))(guarded(collect.collect))
app.command("accuracy", cls=PlainCommand, epilog=examples(accuracy.EXAMPLES))(guarded(accuracy.accuracy))
app.command("calibrate", cls=PlainCommand, epilog=examples(calibrate.EXAMPLES))(guarded(calibrate.calibrate))
app.command("reconcile", cls=PlainCommand, epilog=examples(reconcile.EXAMPLES))(guarded(reconcile.reconcile))

profiles = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=profile.SUMMARY)
profiles.command("run", cls=PlainCommand, epilog=examples(profile.RUN_EXAMPLES))(guarded(profile.run))
profiles.command("show", cls=PlainCommand, epilog=examples(profile.SHOW_EXAMPLES))(guarded(profile.show))
profiles.command("check", cls=PlainCommand, epilog=examples(profile.CHECK_EXAMPLES))(guarded(profile.check))
profiles.command("merge", cls=PlainCommand, epilog=examples(profile.MERGE_EXAMPLES))(guarded(profile.merge))
profiles.command("export", cls=PlainCommand, epilog=examples(profile.EXPORT_EXAMPLES))(guarded(profile.export))
profiles.command("import", cls=PlainCommand, epilog=examples(profile_import.EXAMPLES))(guarded(profile_import.import_))
app.add_typer(profiles, name="profile")

clusters_made = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=cluster_import.SUMMARY)
clusters_made.command("import", cls=PlainCommand, epilog=examples(cluster_import.EXAMPLES))(
    guarded(cluster_import.import_)
)
app.add_typer(clusters_made, name="cluster")
