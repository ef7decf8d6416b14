"""`shardwright profile`: measures what planning needs on the GPUs at hand, and looks after what was measured."""

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import ExitCode
from cli.options import ForceOption, FormatOption, directory
from cli.output import Format, check_writable, note, print_blocks, print_json, print_text, write_file, write_files
from cli.profile_launchers import REQUEST, SCRIPT, Launcher, collector_files, launcher_text
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from profiles.judging import Judged
    from profiles.measure.points import Wanted
    from profiles.recorded import Recording

SUMMARY = "Measure what planning needs on the GPUs at hand, and look after what was measured."

RUN_EXAMPLES = (
    "shardwright profile run --model llama-3.1-8b --budget 8m --out measured",
    "shardwright profile run spec.yaml --processes 8 --out measured --resume",
    "shardwright profile run spec.yaml --emit slurm --nodes 4 --processes 8 --out measured",
)
SHOW_EXAMPLES = ("shardwright profile show measured", "shardwright profile show measured --plot efficiency.html")
CHECK_EXAMPLES = (
    "shardwright profile check measured",
    "shardwright profile check measured --left-out",
    "shardwright profile check measured --spec spec.yaml",
)
MERGE_EXAMPLES = ("shardwright profile merge monday tuesday --out measured",)
EXPORT_EXAMPLES = ("shardwright profile export measured --out points.csv",)


class Suite(StrEnum):
    """Suites of measurements."""

    GEMM = "gemm"
    EXPERTS = "experts"
    ATTENTION = "attention"
    ELEMENTWISE = "elementwise"
    COLLECTIVES = "collectives"
    COPIES = "copies"
    OVERLAP = "overlap"
    MEMORY = "memory"
    LAUNCH = "launch"
    LAYER = "layer"


class DeviceKind(StrEnum):
    """What kernels run on."""

    CUDA = "cuda"
    CPU = "cpu"


class GridFormat(StrEnum):
    """Number formats of products."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    FP32 = "fp32"


ProfileArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Directory that `profile run` wrote.", show_default=False)
]
SpecsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[SPEC]...", help="Specs whose shapes are measured first.", show_default=False),
]
OutDirectory = Annotated[
    Path,
    typer.Option("--out", "-o", parser=directory, metavar="DIR", help="Directory of the profile.", show_default=False),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", help="Also measure the shapes of this model; may be given again.", show_default=False),
]
ClusterOption = Annotated[
    str, typer.Option("--cluster", help="Cluster preset that --model is planned for, to know its shapes.")
]
SeqLenOption = Annotated[int, typer.Option("--seq-len", min=1, help="Sequence length that --model is planned for.")]
SuiteOption = Annotated[
    list[Suite] | None,
    typer.Option("--suite", help="Measure only this suite; may be given again.", show_default=False),
]
DtypeOption = Annotated[
    list[GridFormat] | None,
    typer.Option("--dtype", help="Format of the grid's products; may be given again.", show_default=False),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Begin no point after so long, as in 480, 8m or 1h; what matters most to the plan comes first.",
        show_default=False,
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with what is in the directory.")]
NoGridOption = Annotated[
    bool, typer.Option("--no-grid", help="Only what the specs and models need, without the logarithmic grid.")
]
DeviceOption = Annotated[
    DeviceKind | None, typer.Option("--device", help="Left out, a GPU if there is one.", show_default=False)
]
CalledOption = Annotated[
    str,
    typer.Option(
        "--called", help="Name of the GPU as a cluster file has it, where the catalogue does not know its driver's."
    ),
]
ProcessesOption = Annotated[int, typer.Option("--processes", min=1, max=1024, help="Processes of a node, one a GPU.")]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Nodes of the job that --emit writes for.")]
SecondsOption = Annotated[
    float, typer.Option("--seconds", min=0.001, max=600, help="Time that the samples of one point take.")
]
PythonOption = Annotated[
    str, typer.Option("--python", help="Interpreter that has torch.", show_default="the one that runs this")
]
EmitOption = Annotated[
    Launcher | None,
    typer.Option(
        "--emit",
        help="Measure nothing here; write the collector, the points and what starts it into the directory.",
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", envvar="SHARDWRIGHT_QUIET", help="No progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Also every point that is left out, or failed.")]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", help="Also write a page with what is achieved by shape.", show_default=False
    ),
]
SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", metavar="SPEC", help="Also hold it against the cluster of this spec.", show_default=False),
]
LeftOutOption = Annotated[
    bool,
    typer.Option("--left-out", help="Also predict each point from the others: how far interpolation is off."),
]
ExportOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="Write into this file instead.", show_default=False),
]


def run(
    specs: SpecsArgument = None,
    *,
    out: OutDirectory,
    model: ModelOption = None,
    cluster: ClusterOption = "dgx-h100",
    seq_len: SeqLenOption = 8192,
    suite: SuiteOption = None,
    dtype: DtypeOption = None,
    no_grid: NoGridOption = False,
    budget: BudgetOption = None,
    resume: ResumeOption = False,
    device: DeviceOption = None,
    called: CalledOption = "",
    processes: ProcessesOption = 1,
    nodes: NodesOption = 1,
    seconds: SecondsOption = 0.25,
    python: PythonOption = sys.executable,
    emit: EmitOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
    quiet: QuietOption = False,
) -> None:
    """Measure kernels, collectives, copies and what they cost beside one another.

    Every point is on disk as soon as it is measured; what was stopped goes on with --resume.
    """
    from cli.measuring import Launch, collect_on, left_open, require_torch
    from profiles.measure.points import request_text

    if nodes > 1 and emit is None:
        raise InputError(
            f"--nodes {nodes} needs a launcher that reaches all of them.",
            hint="Write one with --emit slurm or torchrun.",
        )
    budget_seconds = None if budget is None else _seconds_of(budget)
    wanted = _wanted(
        specs or [],
        model or [],
        cluster=cluster,
        seq_len=seq_len,
        suites=[entry.value for entry in suite or Suite],
        dtypes=[entry.value for entry in dtype or (GridFormat.BF16,)],
        grid=not no_grid,
        processes=processes,
        nodes=nodes,
        on_cpu=device is DeviceKind.CPU,
        known=out if resume else None,
    )
    words = ["--seconds", f"{seconds:g}", *_option("--called", called)]
    words += _option("--device", None if device is None else device.value)
    if emit is not None:
        in_time = shlex.join([*words, *_option("--budget", budget)])
        script = launcher_text(emit, nodes=nodes, processes=processes, words=in_time)
        files = {REQUEST: request_text(wanted), SCRIPT[emit.value]: script, **collector_files()}
        write_files(out, files, force=force)
        note(f"{out / SCRIPT[emit.value]} measures {len(wanted)} points, on {nodes} x {processes} processes.")
        return
    require_torch(python)
    check_writable(out, (), force=False)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / REQUEST, request_text(wanted), force=True)
    words += ["--request", str(out / REQUEST), "--out", str(out), "--progress", "json"]
    launch = Launch(python=python, processes=processes, words=tuple(words))
    code = collect_on(launch, out, budget_seconds=budget_seconds, resume=resume, quiet=quiet)
    if code != 0:
        raise InputError(
            f"The collector ended with {code}; what it said stands above.",
            location=Location(file=str(out)),
            hint="What was measured is kept: go on with --resume.",
        )
    left = left_open(out, wanted)
    if left and not quiet:
        note(f"{left:,} of {len(wanted):,} points are not measured yet; go on with --resume, and more time.")
    show(out, format_=format_)


def _seconds_of(budget: str) -> float:
    from profiles.measure.__main__ import seconds_of

    try:
        return seconds_of(budget)
    except ValueError:
        raise InputError(f"--budget {budget} is no time.", hint="Write seconds, or 8m or 1h.") from None


def _option(name: str, value: str | None) -> list[str]:
    return [name, value] if value else []


def _wanted(
    specs: list[Path],
    models: list[str],
    *,
    cluster: str,
    seq_len: int,
    suites: list[str],
    dtypes: list[str],
    grid: bool,
    processes: int,
    nodes: int,
    on_cpu: bool,
    known: Path | None,
) -> "tuple[Wanted, ...]":
    """Return what is to be measured; of a directory that is gone on with, also what plans with it ask the price of."""
    from cli.measuring import inputs_of_model, priced_again, request
    from planner.inputs.load import SERVE, kind_of, load_inputs, spec_document
    from planner.serving_search.inputs import load_serve_inputs

    of_servers = [spec for spec in specs if kind_of(spec_document(spec)) == SERVE]
    runs = [load_inputs(spec) for spec in specs if spec not in of_servers]
    runs += [inputs_of_model(name, cluster=cluster, nodes=nodes, seq_len=seq_len) for name in models]
    wanted = request(
        [*runs, *(() if known is None else priced_again(runs, known))],
        servers=[load_serve_inputs(spec) for spec in of_servers],
        suites=suites,
        dtypes=dtypes,
        grid=grid,
        world_size=nodes * processes,
        per_node=processes,
        on_cpu=on_cpu,
    )
    if not wanted:
        raise InputError("There is nothing to measure.", hint="Name a spec or a model, or leave out --no-grid.")
    return wanted


def _read(path: Path, spec: Path | None = None) -> "tuple[Recording, Judged]":
    from planner.inputs.load import load_inputs
    from profiles.judging import judge
    from profiles.recorded import read_recording

    recording = read_recording(path)
    return recording, judge(recording, None if spec is None else load_inputs(spec).cluster)


def show(
    path: ProfileArgument,
    *,
    plot: PlotOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
    verbose: VerboseOption = False,
) -> None:
    """Show where a profile comes from, what it holds and what the GPU achieves."""
    from cli.render_profile import profile_blocks, profile_document
    from profiles.judging import measured_device

    recording, judged = _read(path)
    device = measured_device(recording)
    blocks = profile_blocks(recording, judged, device, verbose=verbose)
    if plot is not None:
        from cli.report_page.efficiency_page import efficiency_page

        write_file(plot, efficiency_page(recording, judged, device, blocks=blocks), force=force)
    if format_ is Format.JSON:
        print_json(profile_document(recording, judged, device, recording.stale))
    else:
        print_blocks(blocks)


def check(
    path: ProfileArgument,
    *,
    spec: SpecOption = None,
    left_out: LeftOutOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Name every point that planning leaves out, and what is stale or of other hardware; 1 where there is any.

    Whole layers that were measured are held against the sum of their parts; a gap is a finding too.
    """
    from cli.render_layers import layer_blocks, layer_document
    from cli.render_profile import check_blocks, left_out_blocks, left_out_document, profile_document
    from planner.inputs.load import load_inputs
    from planner.profiling.whole_layers import whole_layers
    from profiles.judging import measured_device
    from profiles.profiled import left_out_errors, remarks

    recording, judged = _read(path, spec)
    cluster = None if spec is None else load_inputs(spec).cluster
    found = recording.stale if cluster is None else remarks(recording, cluster)
    errors = left_out_errors(recording, cluster) if left_out else {}
    layers = whole_layers(recording, cluster)
    if format_ is Format.JSON:
        document = profile_document(recording, judged, measured_device(recording), found)
        beside = {"layers": layer_document(layers), **({"left_out": left_out_document(errors)} if left_out else {})}
        print_json({**document, **beside})
    else:
        print_blocks((*check_blocks(recording, judged, found), *layer_blocks(layers), *left_out_blocks(errors)))
    if judged.excluded or found or any(layer.gaps for layer in layers):
        raise typer.Exit(ExitCode.FINDINGS)


def merge(
    paths: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Profiles of one device.", show_default=False)],
    *,
    out: OutDirectory,
    force: ForceOption = False,
) -> None:
    """Join profiles of one device, later ones counting where a point was measured twice."""
    from profiles.measure.journal import FILE
    from profiles.recorded import merged_text, read_recording

    write_files(out, {FILE: merged_text([read_recording(path) for path in paths])}, force=force)
    show(out)


def export(path: ProfileArgument, *, out: ExportOption = None, force: ForceOption = False) -> None:
    """Write every measured point as a line of CSV, with the fault of those that planning leaves out."""
    from cli.render_profile import export_text

    text = export_text(*_read(path))
    if out is None:
        print_text(text)
    else:
        write_file(out, text, force=force)
