"""`shardwright evaluate`: the price of a layout that runs today."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.completion import completing, presets
from cli.exits import ExitCode
from cli.options import CalibrationOption, FormatOption
from cli.output import Format, print_blocks, print_json, wants_progress, watching

if TYPE_CHECKING:
    pass

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
        autocompletion=completing(presets),
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
    calibration: CalibrationOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Price a layout that runs today: step time by term, memory by rank, what is wrong with it.

    Ends with 1 where it breaks a rule, such as memory that is not there.
    """
    from cli.priced_inputs import priced_by
    from cli.render_evaluate import evaluation_blocks, evaluation_document
    from planner.inputs.running import inputs_of, priced, read_running
    from planner.search.search import search

    running = read_running(script)
    inputs = priced_by(inputs_of(running, script=script, cluster=cluster, spec=spec), calibration=calibration)
    plan, broken = priced(running.laid_out(inputs.model), inputs.model, inputs.cluster, inputs.request)
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
