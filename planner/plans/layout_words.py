"""A layout in words: each setting as text, and one line that names it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from planner.layout import (
    REPLICAS_OUTERMOST,
    STAGES_OUTERMOST,
    ContextKind,
    Granularity,
    Layout,
    Offload,
    Overlap,
    Recompute,
    Schedule,
    Stage,
)


def layout_settings(layout: Layout) -> Mapping[str, str]:
    """Return every setting of a layout as text, in reading order."""
    return {
        "tp": str(layout.tp),
        "sequence_parallel": "yes" if layout.sequence_parallel else "no",
        "pp": str(layout.pp),
        "vpp": str(layout.vpp),
        "cp": context_in_words(layout),
        "state_exchange": "yes" if layout.state_exchange else "no",
        "ep": str(layout.ep),
        "etp": str(layout.etp),
        "dp": str(layout.dp),
        "zero_stage": str(layout.zero_stage),
        "state_replicas": str(layout.state_replicas),
        "secondary_shard": str(layout.secondary_shard),
        "micro_batch_size": str(layout.micro_batch_size),
        "num_microbatches": str(layout.num_microbatches),
        "schedule": layout.schedule.value,
        "recompute": recompute_in_words(layout.recompute),
        "offload": offload_in_words(layout.offload),
        "offloaded_layers": str(layout.offloaded_layers),
        "offloaded_modules": " ".join(layout.offloaded_modules) or "none",
        "overlap": overlap_in_words(layout.overlap),
        "rank_order": layout.rank_order,
        "node_order": " ".join(map(str, layout.node_order)) or "as listed",
        "layers per stage": stages_in_words(layout.stages),
    }


def layout_in_words(layout: Layout) -> str:
    """Return one line that names a layout: its degrees, sharding, batch, schedule and recompute."""
    degrees = [f"tp {layout.tp}" + (" with sequence parallelism" if layout.sequence_parallel else "")]
    degrees.append(f"pp {layout.pp}" + (f", vpp {layout.vpp}" if layout.vpp > 1 else ""))
    if layout.cp > 1:
        degrees.append(f"cp {context_in_words(layout)}" + (", exchanging states" if layout.state_exchange else ""))
    if layout.ep > 1:
        degrees.append(f"ep {layout.ep}")
    if layout.etp > 1:
        degrees.append(f"etp {layout.etp}")
    degrees.append(f"dp {layout.dp}")
    batches = "micro-batch" if layout.num_microbatches == 1 else "micro-batches"
    parts = [
        ", ".join(degrees),
        sharding_in_words(layout),
        f"{layout.num_microbatches} {batches} of {layout.micro_batch_size}",
    ]
    if layout.schedule is not Schedule.NO_PIPELINE:
        parts.append(layout.schedule.value)
    parts.append(f"recompute {recompute_in_words(layout.recompute)}")
    if layout.offload is not None:
        parts.append(f"offload {offload_in_words(layout.offload)}")
    if layout.offloaded_layers:
        parts.append(f"activations of {layers_in_words(layout.offloaded_layers)} to the host")
    if layout.offloaded_modules:
        parts.append(f"activations of {', '.join(layout.offloaded_modules)} to the host")
    if layout.rank_order != STAGES_OUTERMOST:
        parts.append(f"ranks in order {layout.rank_order}")
    return "; ".join(parts)


def gpus_in_words(layout: Layout, pipeline_rank: int) -> str:
    """Return the GPUs of one pipeline rank: "GPU 3", "GPUs 8 to 15", or with replicas outermost one run a replica."""
    first, run = layout.first_global_rank(pipeline_rank), layout.stage_ranks
    if layout.rank_order == REPLICAS_OUTERMOST:
        run = layout.replica_distance // layout.pp
    words = f"GPU {first}" if run == 1 else f"GPUs {first} to {first + run - 1}"
    if run == layout.stage_ranks:
        return words
    return f"{words}, and so on every {layout.replica_distance}"


def context_in_words(layout: Layout) -> str:
    """Return "1", "8 ring", "8 ulysses" or "16 ulysses 8 x ring 2"."""
    match layout.cp_kind:
        case None:
            return str(layout.cp)
        case ContextKind.ULYSSES_RING:
            return f"{layout.cp} ulysses {layout.ulysses} x ring {layout.ring}"
        case kind:
            return f"{layout.cp} {kind}"


def sharding_in_words(layout: Layout) -> str:
    """Return what is split over data-parallel ranks, "zero_stage 1", with the groups of hybrid sharding."""
    words = f"zero_stage {layout.zero_stage}"
    if layout.state_replicas > 1:
        ranks = layout.dp * layout.cp // layout.state_replicas
        words += f" in {layout.state_replicas} groups of {ranks} ranks (hybrid sharding)"
    if layout.secondary_shard > 1:
        words += f", a second copy of the weights over {layout.secondary_shard} ranks"
    return words


def recompute_in_words(recompute: Recompute) -> str:
    """Return "none", "selective (core_attn)", "full", "full for the first 2 layers of each stage", or runs of layers.

    Layer by layer: "full for layers 0-11, selective (mlp) for layers 12-30, none for the rest".
    """
    match recompute.granularity:
        case Granularity.PER_LAYER:
            return _layers_in_words(recompute.layers, first_layer=0)
        case Granularity.NONE:
            return "none"
        case Granularity.SELECTIVE:
            return f"selective ({', '.join(recompute.modules)})"
        case Granularity.FULL if recompute.num_layers is None:
            return "full"
        case Granularity.FULL if recompute.num_layers == 1:
            return "full for the first layer of each stage"
        case Granularity.FULL:
            return f"full for the first {recompute.num_layers} layers of each stage"


def stage_recomputes_in_words(layout: Layout) -> tuple[str, ...]:
    """Return what is recomputed of the decoder layers of each stage, where each layer has a choice of its own."""
    return tuple(
        _layers_in_words(
            layout.recompute.layers[stage.first_layer : stage.first_layer + stage.num_layers],
            first_layer=stage.first_layer,
        )
        for stage in layout.stages
    )


def _layers_in_words(choices: Sequence[Recompute], *, first_layer: int) -> str:
    """Return which layers have which choice; the commonest one is that of the rest, or of all."""
    of_choice: dict[Recompute, list[int]] = {}
    for layer, choice in enumerate(choices, start=first_layer):
        of_choice.setdefault(choice, []).append(layer)
    if not of_choice:
        return "no layers"
    commonest = max(reversed(of_choice), key=lambda choice: len(of_choice[choice]))
    parts = [
        f"{recompute_in_words(choice)} for {_runs_in_words(layers)}"
        for choice, layers in of_choice.items()
        if choice != commonest
    ]
    return ", ".join([*parts, f"{recompute_in_words(commonest)} for {'the rest' if parts else 'each layer'}"])


def _runs_in_words(layers: Sequence[int]) -> str:
    """Return "layer 3", or "layers 0-3, 10 and 12-13"."""
    ends = [
        (run[0][1], run[-1][1])
        for _, group in groupby(enumerate(layers), key=lambda entry: entry[1] - entry[0])
        for run in (list(group),)
    ]
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ends]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{'layer' if len(layers) == 1 else 'layers'} {listed}"


def offload_in_words(offload: Offload | None) -> str:
    """Return "none", or which part of the optimizer's states lies in host memory or on drives, and the weights too."""
    if offload is None:
        return "none"
    waits = "" if offload.overlapped else ", copied and updated in turn"
    if offload.drives:
        waits = (
            ", read ahead and written behind updates" if offload.overlapped else ", read, updated and written in turn"
        )
    states = f"{100 * offload.optimizer_fraction:.4g} % of optimizer states"
    of_states = "to the drives" if offload.drives else "to the host"
    if not offload.parameters:
        return f"{states} {of_states}{waits}"
    of_weights = "to the drives" if offload.parameter_drives else "to the host"
    apart = "" if of_states == of_weights else f" {of_states}"
    return f"{states}{apart} and the weights {of_weights}{waits}"


def layers_in_words(count: int) -> str:
    """Return so many of the first layers in words."""
    return "the first layer" if count == 1 else f"the first {count} layers"


def overlap_in_words(overlap: Overlap) -> str:
    """Return which communication runs beside computation."""
    named = (
        ("gradient reduction", overlap.grad_reduce),
        ("parameter gather", overlap.param_gather),
        ("pipeline transfers", overlap.p2p),
    )
    return ", ".join(name for name, used in named if used) or "none"


def stages_in_words(stages: Iterable[Stage]) -> str:
    """Return the decoder layers of each stage, equal neighbours collapsed: "19, 20 x 6, 21"."""
    runs = ((count, len(list(run))) for count, run in groupby(stage.num_layers for stage in stages))
    return ", ".join(str(count) if length == 1 else f"{count} x {length}" for count, length in runs)
