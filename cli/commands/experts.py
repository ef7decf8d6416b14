"""`shardwright experts`: which expert stands on which GPU, in how many copies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli.options import ForceOption, FormatOption, OutOption
from cli.output import Format, note, print_blocks, print_json, write_files

if TYPE_CHECKING:
    from planner.experts.histogram import Ints, RoutingHistogram
    from planner.experts.of_model import RoutedExperts
    from planner.experts.request import ExpertRequest, SlotMemory
    from planner.experts.traffic import RouterShape

EXAMPLES = (
    "shardwright experts counts.json --gpus 32 --redundant 32",
    "shardwright experts zipf:1.0 --model deepseek-v3 --gpus 32 --free 8GiB",
    "shardwright experts counts.npy --gpus 64 --redundant 64 --experts-per-token 8 --groups 8 --groups-per-token 4",
)

HistogramArgument = Annotated[
    str,
    typer.Argument(
        metavar="HISTOGRAM",
        help="Counts a layer and expert: .json (also SGLang's recording), .csv, .npy or .npz; or an assumption, "
        "zipf:1.0, lognormal:0.5 or uniform.",
        show_default=False,
    ),
]
GpusOption = Annotated[int, typer.Option("--gpus", min=1, max=4096, help="GPUs that the experts are spread over.")]
NodeOption = Annotated[
    int | None, typer.Option("--gpus-per-node", min=1, help="GPUs of a node.", show_default="8, or all of fewer")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Bundled model or config.json, for what is known of its experts.", show_default=False),
]
LayersOption = Annotated[
    int | None, typer.Option("--layers", min=1, max=4096, help="Layers of an assumption.", show_default=False)
]
ExpertsOption = Annotated[
    int | None, typer.Option("--experts", min=1, max=4096, help="Experts of an assumption.", show_default=False)
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of an assumption.")]
PerTokenOption = Annotated[
    int | None,
    typer.Option("--experts-per-token", min=1, help="Experts of a token, for traffic.", show_default=False),
]
GroupsOption = Annotated[
    int | None, typer.Option("--groups", min=1, help="Groups of experts of the router.", show_default=False)
]
GroupsPerTokenOption = Annotated[
    int | None, typer.Option("--groups-per-token", min=1, help="How many of them a token chooses.", show_default=False)
]
KeepOption = Annotated[
    bool, typer.Option("--keep-groups", help="All copies of the experts of a group stay within one node.")
]
RedundantOption = Annotated[
    int | None,
    typer.Option(
        "--redundant", min=0, help="Redundant experts a layer, instead of as many as pay.", show_default=False
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--expert-size", help="Weights of one expert of one layer: 42MiB.", show_default=False),
]
TrafficOption = Annotated[
    float | None,
    typer.Option(
        "--traffic-weight",
        min=0.0,
        max=1e6,
        help="What traffic between nodes weighs against the load over the mean; shows the front of both.",
        show_default=False,
    ),
]
FollowOption = Annotated[
    bool,
    typer.Option("--follow", help="Place by which experts follow one another from layer to layer, not by loads."),
]
PresentOption = Annotated[
    Path | None,
    typer.Option(
        "--present",
        help="Where the experts stand now: JSON with physical_to_logical_map, as SGLang has it.",
        show_default=False,
    ),
]
MovedOption = Annotated[
    str | None,
    typer.Option("--most-moved", help="Weights that may be moved from there: 20GiB.", show_default=False),
]
MoveWeightOption = Annotated[
    float | None,
    typer.Option(
        "--move-weight",
        min=0.0,
        max=1e6,
        help="What a GiB moved to a GPU, in the mean of all, weighs against the load over the mean.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    Literal["sglang", "vllm", "megatron"], typer.Option("--target", help="Whose files --out writes.")
]
FreeOption = Annotated[
    str | None, typer.Option("--free", help="Memory of a GPU left for copies: 8GiB.", show_default=False)
]


def experts(
    histogram: HistogramArgument,
    *,
    gpus: GpusOption,
    gpus_per_node: NodeOption = None,
    model: ModelOption = None,
    layers: LayersOption = None,
    num_experts: ExpertsOption = None,
    seed: SeedOption = 0,
    experts_per_token: PerTokenOption = None,
    groups: GroupsOption = None,
    groups_per_token: GroupsPerTokenOption = None,
    keep_groups: KeepOption = False,
    redundant: RedundantOption = None,
    expert_size: SizeOption = None,
    free: FreeOption = None,
    traffic_weight: TrafficOption = None,
    follow: FollowOption = False,
    present: PresentOption = None,
    most_moved: MovedOption = None,
    move_weight: MoveWeightOption = None,
    target: TargetOption = "sglang",
    out: OutOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Place the experts of a mixture-of-experts model, with copies of the busy ones, so that no GPU is overloaded."""
    from cli.named_model import read_named_model
    from cli.render_experts import experts_blocks, experts_document
    from planner.experts.decide import plan_experts
    from planner.experts.emit import Target, emit_placement, placed_in_model
    from planner.experts.of_model import routed_experts
    from planner.experts.request import ExpertRequest

    known = routed_experts(read_named_model(model, where="--model")) if model is not None else None
    counted = _histogram(histogram, known, layers=layers, num_experts=num_experts, seed=seed)
    request = ExpertRequest(
        num_gpus=gpus,
        gpus_per_node=min(8, gpus) if gpus_per_node is None else gpus_per_node,
        redundant=redundant,
        memory=_memory(known, expert_size=expert_size, free=free),
        router=_router(known, per_token=experts_per_token, groups=groups, groups_per_token=groups_per_token),
        keep_groups=keep_groups,
        traffic_weight=traffic_weight,
        follow=follow,
        move_weight=move_weight,
        most_moved_bytes=None if most_moved is None else _size(most_moved, "--most-moved"),
    )
    now = None if present is None else _present(present, known, counted, request)
    plan = plan_experts(counted, request, now)
    if out is not None:
        whole = plan.best.expert_LGS
        if known is not None:
            whole = placed_in_model(whole, known.layers, known.num_layers_of_model)
        groups = 1 if request.router is None else request.router.limiting_groups
        for path in write_files(out, emit_placement(Target(target), whole, num_groups=groups), force=force):
            note(f"{path} written")
    if format_ is Format.JSON:
        print_json(experts_document(plan))
    else:
        print_blocks(experts_blocks(plan))


def _histogram(
    name: str, known: "RoutedExperts | None", *, layers: int | None, num_experts: int | None, seed: int
) -> "RoutingHistogram":
    from planner.errors import InputError
    from planner.experts.assumed import assumed_histogram, is_assumption
    from planner.experts.histogram_files import read_histogram

    if not is_assumption(name):
        if layers is not None or num_experts is not None:
            raise InputError(f"{name} says its layers and experts: --layers and --experts are for assumptions.")
        found = read_histogram(Path(name))
        if known is not None and found.num_experts != known.num_experts:
            raise InputError(f"{name} counts {found.num_experts} experts; the model has {known.num_experts}.")
        return found
    layers = layers if layers is not None or known is None else len(known.layers)
    num_experts = num_experts if num_experts is not None or known is None else known.num_experts
    if layers is None or num_experts is None:
        raise InputError(
            f"{name}: of how many layers and experts is not known.", hint="Give --model, or --layers and --experts."
        )
    return assumed_histogram(name, num_layers=layers, num_experts=num_experts, seed=seed)


def _present(
    path: Path, known: "RoutedExperts | None", histogram: "RoutingHistogram", request: "ExpertRequest"
) -> "Ints":
    from planner.errors import InputError
    from planner.experts.histogram_files import read_json
    from planner.experts.moving import present_map

    found = read_json(path)
    values = found.get("physical_to_logical_map") if isinstance(found, dict) else None
    if values is None:
        raise InputError(f"{path}: There is no physical_to_logical_map here.")
    if known is not None and isinstance(values, list) and len(values) == known.num_layers_of_model:
        # Layers without experts have rows too, where they were not counted.
        values = values if histogram.num_layers == len(values) else [values[layer] for layer in known.layers]
    return present_map(values, histogram, request, file=str(path))


def _memory(known: "RoutedExperts | None", *, expert_size: str | None, free: str | None) -> "SlotMemory | None":
    from planner.errors import InputError
    from planner.experts.request import SlotMemory

    assumed = ""
    if expert_size is not None:
        expert_bytes = _size(expert_size, "--expert-size")
    elif known is not None:
        expert_bytes = known.expert_bytes
        assumed = "its matrices in bf16; --expert-size says otherwise"
    elif free is not None:
        raise InputError("What an expert takes is not known.", hint="Give --expert-size, or --model for bf16.")
    else:
        return None
    free_bytes = None if free is None else _size(free, "--free")
    return SlotMemory(expert_bytes=expert_bytes, free_bytes=free_bytes, assumed=assumed)


def _size(text: str, option: str) -> int:
    from planner.errors import InputError, Location
    from profiles.schema.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InputError(f"{error}.", location=Location(file=option)) from error


def _router(
    known: "RoutedExperts | None", *, per_token: int | None, groups: int | None, groups_per_token: int | None
) -> "RouterShape | None":
    from planner.errors import InputError
    from planner.experts.traffic import RouterShape

    if per_token is None and groups is None and groups_per_token is None:
        return known.router if known is not None else None
    if known is not None:
        raise InputError("The model says how a token chooses.", hint="Leave out --experts-per-token and --groups.")
    if per_token is None or (groups is None) != (groups_per_token is None):
        raise InputError(
            "How a token chooses is half said.",
            hint="Give --experts-per-token, and --groups with --groups-per-token where the router has groups.",
        )
    return RouterShape(experts_per_token=per_token, num_groups=groups or 1, groups_per_token=groups_per_token or 1)
