"""`shardwright validate`: mistakes in files that a framework would start from."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import ExitCode
from cli.findings.forms import FindingsFormat, rendered
from cli.output import print_blocks, print_text
from planner.errors import InputError

if TYPE_CHECKING:
    from planner.validation.pricing import Baseline, Machine
    from planner.validation.sources import Asked

EXAMPLES = (
    "shardwright validate train.sh",
    "shardwright validate configs/ 'jobs/*.sh' --format concise",
    "shardwright validate train.sh --gpus 64 --against megatron==0.16.1",
)

FilesArgument = Annotated[
    list[str],
    typer.Argument(metavar="FILES...", help="Files, folders and patterns.", show_default=False),
]
FindingsFormatOption = Annotated[
    FindingsFormat,
    typer.Option("--format", envvar="SHARDWRIGHT_FINDINGS_FORMAT", help="The form of what is printed."),
]


class FailOn(StrEnum):
    """From which severity on the command ends with 1."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"
    NEVER = "never"


FailOnOption = Annotated[FailOn, typer.Option("--fail-on", help="The least severity that the command ends with 1 for.")]
AgainstOption = Annotated[
    list[str] | None,
    typer.Option(
        "--against",
        metavar="NAME==VERSION",
        help="The version of a framework that files are for, as megatron==0.16.1; the newest known without.",
        show_default=False,
    ),
]
GpusOption = Annotated[
    int | None, typer.Option("--gpus", min=1, help="GPUs, where a file leaves them open.", show_default=False)
]
GpusPerNodeOption = Annotated[
    int | None, typer.Option("--gpus-per-node", min=1, help="GPUs of a node, likewise.", show_default=False)
]


ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        help="A cluster preset that the runs are priced on: also judges memory.",
        show_default=False,
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", metavar="SPEC", help="A spec to price with, instead.", show_default=False),
]
AdviceOption = Annotated[
    bool, typer.Option("--advice", help="Also say how much slower than the best layout a run is, and what helps.")
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="LOCK",
        help="A plan.lock.json with its plan.json beside it: what changed since in time, memory and layout.",
        show_default=False,
    ),
]


def validate(
    files: FilesArgument,
    *,
    format_: FindingsFormatOption = FindingsFormat.TEXT,
    fail_on: FailOnOption = FailOn.ERROR,
    against: AgainstOption = None,
    gpus: GpusOption = None,
    gpus_per_node: GpusPerNodeOption = None,
    cluster: ClusterOption = None,
    spec: SpecOption = None,
    advice: AdviceOption = False,
    baseline: BaselineOption = None,
) -> None:
    """Find mistakes in launch scripts and configurations before a cluster does.

    Reads commands of Megatron-LM, DeepSpeed and vLLM without running anything. `shardwright rule ID` explains a rule;
    a comment `# shardwright: ignore[ID] reason` hides it on its line.
    """
    from cli.findings.text import blocks
    from planner.rules.rule import Severity
    from planner.validation.judge import judge

    judged = judge(
        files,
        _asked(against or [], gpus, gpus_per_node),
        machine=_machine(cluster, spec, advice=advice),
        baseline=_baseline(baseline),
    )
    if format_ is FindingsFormat.TEXT and sys.stdout.isatty():
        print_blocks(blocks(judged))
    else:
        print_text(rendered(judged, format_))
    if fail_on is not FailOn.NEVER:
        least = Severity(fail_on.value).rank
        if any(finding.severity.rank <= least for finding in judged.findings):
            raise typer.Exit(ExitCode.FINDINGS)


def _machine(cluster: str | None, spec: Path | None, *, advice: bool) -> "Machine | None":
    if cluster is None and spec is None:
        if advice:
            raise InputError(
                "--advice does not say on which GPUs.", hint="Give --cluster dgx-h100, or --spec with a spec."
            )
        return None
    from planner.validation.pricing import Machine

    return Machine(cluster=cluster, spec=spec, advice=advice)


def _baseline(path: Path | None) -> "Baseline | None":
    if path is None:
        return None
    from cli.lock_file import read_baseline

    return read_baseline(path)


def _asked(against: list[str], gpus: int | None, gpus_per_node: int | None) -> "Asked":
    from planner.readers.flag_tables import Framework, chosen_version
    from planner.validation.sources import Asked

    versions: dict[Framework, str] = {}
    for text in against:
        name, equals, version = text.partition("==")
        if not equals or name not in set(Framework):
            raise InputError(
                f"--against {text} is no framework with a version.",
                hint=f"Write one of {', '.join(Framework)} with ==VERSION.",
            )
        versions[Framework(name)] = chosen_version(Framework(name), version)
    return Asked(versions=versions, num_gpus=gpus, gpus_per_node=gpus_per_node)
