"""`shardwright offload`: inference of a model that its GPU does not hold."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.exits import ExitCode
from cli.options import ForceOption, FormatOption, OutOption, ProfileOption, StrictDataOption
from cli.output import Format, check_writable, note, print_blocks, print_json, write_files

if TYPE_CHECKING:
    from planner.experts.histogram import RoutingHistogram
    from planner.models.specs import ModelSpec
    from planner.serving_search.inputs import ServeInputs
    from profiles.hardware import Cluster

EXAMPLES = (
    "shardwright offload serve.yaml",
    "shardwright offload serve.yaml --target vllm --out run",
    "shardwright offload serve.yaml --histogram counts.json --peers 1",
    "shardwright offload serve.yaml --profile measured",
    "shardwright offload serve.yaml --cpu-flops 2TFLOPS --cpu-bandwidth 100GB/s",
)

SpecArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC",
        help="A serving spec: model, cluster, and a workload with the lengths of prompts and answers. Every request "
        "is taken to be there at the beginning.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace one field of the spec, as in --set workload.output=64; may be given again.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    Literal["any", "vllm", "deepspeed"],
    typer.Option("--target", help="Whose plan is shown first, and whose files --out writes."),
]
PeersOption = Annotated[
    int, typer.Option("--peers", min=0, max=1023, help="Other GPUs of the node that lend their memory.")
]
HistogramOption = Annotated[
    str | None,
    typer.Option(
        "--histogram",
        help="How often each expert is chosen, as of `shardwright experts`: a file, zipf:1.0 or lognormal:0.5.",
        show_default=False,
    ),
]
FlopsOption = Annotated[
    str | None,
    typer.Option("--cpu-flops", help="What products on the CPUs reach: 2TFLOPS.", show_default="by the GPUs' slots"),
]
BandwidthOption = Annotated[
    str | None,
    typer.Option(
        "--cpu-bandwidth",
        help="What attention and products on the CPUs read: 100GB/s.",
        show_default="by the GPUs' slots",
    ),
]
DriveOption = Annotated[
    str, typer.Option("--drive-path", help="Where the node's drives are mounted, for DeepSpeed's files.")
]


def offload(
    spec: SpecArgument,
    *,
    target: TargetOption = "any",
    peers: PeersOption = 0,
    histogram: HistogramOption = None,
    cpu_flops: FlopsOption = None,
    cpu_bandwidth: BandwidthOption = None,
    drive_path: DriveOption = "/local_nvme",
    overrides: SetOption = None,
    profile: ProfileOption = None,
    strict_data: StrictDataOption = False,
    out: OutOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Place weights, caches, activations and experts over GPU, peer GPUs, host and drives, with a share for the CPUs.

    For batches of prompts of which only throughput counts, on one GPU that computes. Prints the best plan at all, what
    vLLM and DeepSpeed can express of it, and what one GiB more of each memory would gain.
    """
    from cli.priced_inputs import clusters_priced_by
    from cli.render_offload import offload_blocks, offload_document
    from planner.errors import InputError
    from planner.inference_offload.decide import plan_offload
    from planner.inference_offload.emit import emit_offload
    from planner.inference_offload.request import OffloadRequest, Target
    from planner.serving_search.inputs import load_serve_inputs

    chosen = Target(target)
    if out is not None and chosen is Target.ANY:
        raise InputError("--out writes the files of one runtime.", hint="Give --target vllm or deepspeed.")
    inputs = load_serve_inputs(spec, overrides or ())
    (cluster,) = clusters_priced_by((_one_cluster(inputs, spec),), profile=profile, strict_data=strict_data)
    workload = inputs.request.workload
    request = OffloadRequest(
        served_model=inputs.request.served_model,
        prompt_tokens=workload.longest_prompt,
        output_tokens=workload.longest_output,
        num_sequences=workload.num_requests,
        peers=peers,
        cpu_flops_per_second=_rate(cpu_flops, "--cpu-flops"),
        cpu_bytes_per_second=_rate(cpu_bandwidth, "--cpu-bandwidth"),
        weights_name=workload.quantization,
        cache_name=workload.kv_cache_dtype,
    )
    counted = None if histogram is None else _histogram(histogram, inputs.model)
    plan = plan_offload(inputs.model, cluster, request, histogram=counted)
    if format_ is Format.JSON:
        print_json(offload_document(plan))
    else:
        print_blocks(offload_blocks(plan, chosen))
    if plan.of(chosen) is None:
        raise typer.Exit(ExitCode.INFEASIBLE)
    if out is not None:
        files = emit_offload(plan, chosen, drive_path=drive_path)
        check_writable(out, files, force=force)
        for path in write_files(out, files, force=force):
            note(f"{path} written")


def _one_cluster(inputs: "ServeInputs", spec: Path) -> "Cluster":
    from planner.errors import InputError, Location

    if len(inputs.clusters) > 1:
        raise InputError(
            "Offloading takes one kind of GPU, and the spec lists several clusters.",
            location=Location(file=str(spec)),
            hint="Leave one of them.",
        )
    return inputs.clusters[0]


def _rate(text: str | None, option: str) -> float | None:
    """Return what an option says of the CPUs."""
    from planner.errors import InputError, Location
    from profiles.schema.units import parse_bytes_per_second, parse_flops_per_second

    if text is None:
        return None
    parse = parse_flops_per_second if option == "--cpu-flops" else parse_bytes_per_second
    try:
        return parse(text)
    except ValueError as error:
        raise InputError(f"{error}.", location=Location(file=option)) from error


def _histogram(name: str, model: "ModelSpec") -> "RoutingHistogram":
    from planner.experts.assumed import assumed_histogram, is_assumption
    from planner.experts.histogram_files import read_histogram
    from planner.experts.of_model import routed_experts

    if not is_assumption(name):
        return read_histogram(Path(name))
    known = routed_experts(model)
    return assumed_histogram(name, num_layers=len(known.layers), num_experts=known.num_experts, seed=0)
