"""`shardwright evaluate`: the price of a layout that runs today."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import ExitCode
from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json, wants_progress, watching
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.inputs import Inputs
    from planner.running import Running

EXAMPLES = (
    "shardwright evaluate launch.sh --cluster dgx-h100",
    "shardwright evaluate launch.sh --spec spec.yaml --best",
)

ScriptArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SCRIPT",
        help="A launch script: torchrun or Slurm with Megatron-LM's arguments, or DeepSpeed's with its ds_config.json"
        " beside it.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Preset of the nodes that it runs on (`shardwright clusters`); the script says how many.",
        show_default=False,
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option(
        "--spec",
        help="Spec whose model, cluster and workload count, instead of what the script says of them.",
        show_default=False,
    ),
]
BestOption = Annotated[
    bool, typer.Option("--best", help="Search for the best layout, too, and say what it would gain and where.")
]


def evaluate(
    script: ScriptArgument,
    *,
    cluster: ClusterOption = None,
    spec: SpecOption = None,
    best: BestOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Price a layout that runs today: step time by term, memory by rank, what is wrong with it.

    Ends with 1 where it breaks a rule, such as memory that is not there.
    """
    from cli.render_evaluate import evaluation_blocks, evaluation_document
    from planner.running import priced, read_running
    from planner.search import search

    running = read_running(script)
    inputs = _inputs(script, running, cluster=cluster, spec=spec)
    plan, broken = priced(running.layout, inputs.model, inputs.cluster, inputs.request)
    found = None
    if best:
        with watching(show=wants_progress()) as watch:
            found = search(inputs.model, inputs.cluster, inputs.request, top=1, watch=watch)
    if format_ is Format.JSON:
        print_json(evaluation_document(plan, broken, found))
    else:
        print_blocks(evaluation_blocks(plan, broken, found))
    if broken:
        raise typer.Exit(ExitCode.FINDINGS)


def _inputs(script: Path, running: "Running", *, cluster: str | None, spec: Path | None) -> "Inputs":
    """Return what the layout is priced with: a spec's inputs, or what the script says on a preset's nodes."""
    from planner.inputs import Inputs, load_inputs
    from planner.running import request_of
    from profiles.catalogue import load_preset
    from profiles.errors import CatalogueError
    from profiles.schema import ClusterEntry

    if (cluster is None) == (spec is None):
        raise InputError(
            "Where the script runs is not said." if spec is None else "--cluster and --spec both name a cluster.",
            location=Location(file=str(script)),
            hint="Give --cluster dgx-h100, or --spec with a spec of model, cluster and workload.",
        )
    if spec is not None:
        inputs = load_inputs(spec)
        request = request_of(running, workload=inputs.request.workload, memory_headroom=inputs.request.memory_headroom)
        return replace(inputs, request=request)
    if running.model is None or running.workload is None:
        raise InputError(
            "A DeepSpeed script does not say which model it trains.",
            location=Location(file=str(script)),
            hint="Give --spec with a spec of model, cluster and workload.",
        )
    try:
        node = load_preset(cluster or "")
    except CatalogueError as error:
        raise InputError(f"--cluster {cluster}: {error}", hint="`shardwright clusters` lists them.") from None
    nodes, rest = divmod(running.layout.world_size, node.gpus_per_node)
    if rest:
        raise InputError(
            f"The script starts {running.layout.world_size} GPUs, and a node of {cluster} has {node.gpus_per_node}.",
            location=Location(file=str(script)),
            hint="Name the cluster that it runs on, or describe it in a spec.",
        )
    whole = ClusterEntry.model_validate({"preset": cluster, "nodes": nodes}).to_cluster()
    return Inputs(model=running.model, cluster=whole, request=request_of(running, workload=running.workload))
