"""`shardwright validate`: mistakes in files that a framework would start from.

Its command line is read by the standard library and not by Typer, so that the command starts at once.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cli.exits import ExitCode
from cli.findings.forms import FindingsFormat, rendered
from cli.output import note, print_blocks, print_text, write_file
from cli.plain_parser import PlainParser, at_least_one
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.validation.held_servers import ServeBaseline
    from planner.validation.judge import Judged
    from planner.validation.pricing import Baseline, Machine
    from planner.validation.source import Asked

EXAMPLES = (
    "shardwright validate train.sh",
    "shardwright validate configs/ 'jobs/*.sh' --format concise",
    "shardwright validate train.sh --gpus 64 --against megatron==0.16.1",
    "shardwright validate --command 'vllm serve model --tensor-parallel-size 3' --gpus 8",
    "shardwright validate configs/ --format sarif --output findings.sarif",
)

SUMMARY = """Find mistakes in launch scripts and configurations before a cluster does.

Reads commands of Megatron-LM, DeepSpeed and vLLM without running anything.
`shardwright rule ID` explains a rule; a comment
`# shardwright: ignore[ID] reason` hides it on its line."""

FORMAT_VARIABLE = "SHARDWRIGHT_FINDINGS_FORMAT"
SUMMARY_VARIABLE = "GITHUB_STEP_SUMMARY"
"""File that the summary of a GitHub Actions step is appended to."""


class FailOn(StrEnum):
    """From which severity on the command ends with 1."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    NEVER = "never"


def parser(environment: Mapping[str, str]) -> PlainParser:
    """Return the parser of the command's options.

    Args:
        environment: Where defaults of options come from.
    """
    made = PlainParser("validate", summary=SUMMARY, usage="[OPTIONS] [FILES ...] [--command TEXT]", examples=EXAMPLES)
    add = made.take
    add("files", nargs="*", metavar="FILES", help="files, folders and patterns")
    add("--command", metavar="TEXT", help="a command line to judge, given as text")
    add(
        "--format",
        dest="form",
        metavar="FORM",
        choices=[form.value for form in FindingsFormat],
        default=environment.get(FORMAT_VARIABLE) or FindingsFormat.TEXT.value,
        help=f"{', '.join(FindingsFormat)} (default: text, or the variable {FORMAT_VARIABLE})",
    )
    add(
        "--skip-unknown",
        action="store_true",
        help="pass over files that start nothing that is known, as in folders; for lists of files that others make",
    )
    add("--output", metavar="FILE", type=Path, help="write it into a file, in full or not at all")
    add(
        "--fail-on",
        metavar="SEVERITY",
        choices=[severity.value for severity in FailOn],
        default=FailOn.ERROR.value,
        help=f"the least severity that the command ends with 1 for: {', '.join(FailOn)} (default: error)",
    )
    add(
        "--against",
        metavar="NAME==VERSION",
        action="append",
        default=[],
        help="the version of a framework that files are for, as megatron==0.16.1; the newest known without",
    )
    add("--gpus", metavar="N", type=at_least_one, help="GPUs, where a file leaves them open")
    add(
        "--gpus-per-node",
        metavar="N",
        type=at_least_one,
        help="GPUs of a node, likewise; those of --cluster where that is given",
    )
    add("--cluster", metavar="NAME", help="a cluster preset that the runs are priced on: also judges memory")
    add("--spec", metavar="SPEC", type=Path, help="a spec to price with, instead")
    add(
        "--advice",
        action="store_true",
        help="also say how much slower than the best layout a run is, and what helps",
    )
    add(
        "--baseline",
        metavar="LOCK",
        type=Path,
        help="a plan.lock.json with its plan.json beside it: what changed since in time, memory and layout",
    )
    return made


def validate(words: Sequence[str]) -> None:
    """Judge what the words of the command line name, print what was found and end with 1 if that is asked.

    Raises:
        InputError: An option or a file is wrong.
    """
    made = parser(os.environ)
    options = made.parse_intermixed_args(words)
    if options.form not in list(FindingsFormat):  # argparse takes a default as it is
        raise InputError(f"{FORMAT_VARIABLE}={options.form} is no form.", hint=f"Known: {', '.join(FindingsFormat)}.")
    if not options.files and options.command is None:
        made.error("no file and no --command is given")
    if options.command is not None and options.baseline:
        made.error("--baseline holds files against a lock, and --command is none")
    from planner.validation.judge import judge

    judged = judge(
        options.files,
        _asked(options),
        command=options.command,
        machine=_machine(options.cluster, options.spec, advice=options.advice),
        baseline=_baseline(options.baseline),
    )
    form = FindingsFormat(options.form)
    _show(judged, form, options)
    if form is FindingsFormat.GITHUB and os.environ.get(SUMMARY_VARIABLE):
        _append_summary(judged, Path(os.environ[SUMMARY_VARIABLE]))
    if _fails(judged, FailOn(options.fail_on)):
        sys.exit(ExitCode.FINDINGS)


def _show(judged: "Judged", form: FindingsFormat, options: Namespace) -> None:
    if options.output is not None:
        from cli.findings.text import summary_line

        write_file(options.output, rendered(judged, form), force=True)
        note(f"{options.output} written. {summary_line(judged)}")
    elif form is FindingsFormat.TEXT and sys.stdout.isatty():
        from cli.findings.text import blocks

        print_blocks(blocks(judged))
    else:
        print_text(rendered(judged, form))


def _append_summary(judged: "Judged", path: Path) -> None:
    """Append the findings to the summary of the step that this runs in."""
    from cli.findings.github import summary

    try:
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(summary(judged))
    except OSError as error:
        raise InputError(
            f"The summary cannot be written: {error.strerror or error}.",
            location=Location(file=str(path)),
            hint=f"Unset {SUMMARY_VARIABLE}, or name a file that you may write to.",
        ) from error


def _fails(judged: "Judged", fail_on: FailOn) -> bool:
    if fail_on is FailOn.NEVER:
        return False
    from planner.rules.rule import Severity

    least = Severity(fail_on.value).rank
    return any(finding.severity.rank <= least for finding in judged.findings)


def _machine(cluster: str | None, spec: Path | None, *, advice: bool) -> "Machine | None":
    if cluster is None and spec is None:
        if advice:
            raise InputError(
                "--advice does not say on which GPUs.", hint="Give --cluster dgx-h100, or --spec with a spec."
            )
        return None
    from planner.inputs.running import preset_named
    from planner.validation.pricing import Machine

    if cluster is not None:
        preset_named(cluster)
    return Machine(cluster=cluster, spec=spec, advice=advice)


def _baseline(path: Path | None) -> "Baseline | ServeBaseline | None":
    if path is None:
        return None
    from cli.lock_file import read_baseline

    return read_baseline(path)


def _gpus_per_node(cluster: str | None) -> int | None:
    """Return the GPUs of a node of the cluster that runs are priced on."""
    if cluster is None:
        return None
    from planner.inputs.running import preset_named

    return preset_named(cluster).gpus_per_node


def _asked(options: Namespace) -> "Asked":
    from planner.readers.flag_tables import Framework, chosen_version
    from planner.validation.source import Asked

    versions: dict[Framework, str] = {}
    for text in options.against:
        name, equals, version = text.partition("==")
        if not equals or name not in set(Framework):
            raise InputError(
                f"--against {text} is no framework with a version.",
                hint=f"Write one of {', '.join(Framework)} with ==VERSION.",
            )
        versions[Framework(name)] = chosen_version(Framework(name), version)
    return Asked(
        versions=versions,
        num_gpus=options.gpus,
        gpus_per_node=options.gpus_per_node or _gpus_per_node(options.cluster),
        skip_unknown=options.skip_unknown,
    )
