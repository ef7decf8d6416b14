"""What a plan says about itself: settings in words, memory by rank and phase, and what other layouts would cost.

Pure data for whoever prints it; nothing here measures or prices anything again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

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
from planner.models.graph import graph_parameters
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import MemoryLine, Phase, Plan, PlannedLayout, TimeLine
from planner.requests.request import Constraints
from planner.requests.routing import Routing
from planner.requests.workload import DEFAULT_ROUTING_SKEW, DocumentLengths, Precision, TrainWorkload

DENSE_AXES = ("tp", "cp", "dp", "pp")
"""Axes of the grid of everything but routed experts, fastest first in the default rank order."""

EXPERT_AXES = ("etp", "ep", "edp", "pp")
"""Axes of the grid of the routed experts, over the same ranks."""


WORTH_SAYING = 0.02
"""Smallest gain, as a share of the step, that is worth a sentence.

A choice, to keep reports short; the band around the ratio of two predictions is wider (`planner.plans.certainty`).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One setting in which a layout differs from the reference layout.

    Args:
        setting: Its name, as in `layout_settings`.
        value: The layout's own.
        reference: The reference layout's.
    """

    setting: str
    value: str
    reference: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TermChange:
    """How one term of the step time changes against the reference layout.

    Args:
        term: The term.
        seconds: In the layout.
        reference_seconds: In the reference layout.
    """

    term: str
    seconds: float
    reference_seconds: float

    @property
    def change_seconds(self) -> float:
        """Return how much longer the layout spends on the term."""
        return self.seconds - self.reference_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One layout beside the reference layout, which is the best plan.

    Args:
        index: Its place among the plans, 0 being the best; None when it is not among them.
        is_baseline: It is the rule-of-thumb layout.
        planned: The layout that is compared.
        differences: Settings that differ.
        terms: Terms of the step time that differ, largest change first.
        change_seconds: How much longer its step takes.
        change_fraction: The same as a fraction of the reference step.
        peak_change_bytes: How much more memory its heaviest rank needs.
    """

    index: int | None
    is_baseline: bool
    planned: PlannedLayout
    differences: tuple[Difference, ...]
    terms: tuple[TermChange, ...]
    change_seconds: float
    change_fraction: float
    peak_change_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """The memory of one pipeline rank, phase by phase.

    Args:
        rank: Lowest global rank of the pipeline rank.
        phase_bytes: Total of each phase.
        limit_bytes: What the rank may use.
    """

    rank: int
    phase_bytes: Mapping[Phase, int]
    limit_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Return the largest phase."""
        return max(self.phase_bytes.values())

    @property
    def peak_phase(self) -> Phase:
        """Return the phase that peaks; the earlier one of equals."""
        return max(self.phase_bytes, key=self.phase_bytes.__getitem__)

    @property
    def left_bytes(self) -> int:
        """Return what is left below the limit; negative when the rank does not fit."""
        return self.limit_bytes - self.peak_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where one global rank stands in both grids.

    Args:
        rank: The global rank.
        dense: Its coordinates along `DENSE_AXES`.
        expert: Its coordinates along `EXPERT_AXES`.
    """

    rank: int
    dense: tuple[int, ...]
    expert: tuple[int, ...]


def total_parameters(model: ModelSpec) -> int:
    """Return the parameters of the whole model, unsharded and unpadded."""
    # The shapes of the weights do not depend on the workload; any will do.
    workload = TrainWorkload(seq_len=1, global_batch_size=1, precision=Precision.BF16)
    return graph_parameters(model, build_graph(model, workload))


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


def rank_places(layout: Layout, ranks: Iterable[int]) -> tuple[RankPlace, ...]:
    """Return where ranks stand in both grids: (tp, cp, dp, pp), and (etp, ep, edp, pp) of the routed experts."""
    return tuple(
        RankPlace(
            rank=rank, dense=_coordinates(layout, DENSE_AXES, rank), expert=_coordinates(layout, EXPERT_AXES, rank)
        )
        for rank in ranks
    )


def telling_ranks(layout: Layout, *, at_most: int) -> tuple[int, ...]:
    """Return all ranks, or where these are too many the first, the next along each axis of a grid, and the last."""
    if layout.world_size <= at_most:
        return tuple(range(layout.world_size))
    steps = {stride for axes in (DENSE_AXES, EXPERT_AXES) for stride, size in strides(layout, axes) if size > 1}
    return tuple(sorted({0, *steps, layout.world_size - 1}))


def strides(layout: Layout, axes: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Return of each axis of a grid how far apart neighbours along it are, and its size."""
    *inner, replicas, stages = axes
    outermost = layout.rank_order == REPLICAS_OUTERMOST
    found: dict[str, tuple[int, int]] = {}
    stride = 1
    for axis in (*inner, stages, replicas) if outermost else (*inner, replicas, stages):
        size: int = getattr(layout, axis)
        found[axis] = (stride, size)
        stride *= size
    return tuple(found[axis] for axis in axes)


def _coordinates(layout: Layout, axes: Iterable[str], rank: int) -> tuple[int, ...]:
    return tuple(rank // stride % size for stride, size in strides(layout, axes))


def experts_in_words(layout: Layout, workload: TrainWorkload) -> str:
    """Return how routed experts are laid out, and how unevenly they are assumed to be visited."""
    grid = f"etp {layout.etp} x ep {layout.ep} x edp {layout.edp}"
    routing = workload.routing
    dropped = "" if routing is None else dropped_in_words(routing)
    if layout.ep == 1:
        return f"{grid}; every rank holds all of them{dropped}"
    if routing is not None:
        return f"{grid}; load of the busiest rank over the mean {loads_in_words(routing, layout.ep)}{dropped}"
    known = "assumed" if workload.routing_skew == DEFAULT_ROUTING_SKEW else "given"
    return f"{grid}; routing skew {workload.routing_skew:g} ({known}): load of the busiest rank over the mean"


def loads_in_words(routing: Routing, ep: int) -> str:
    """Return "1.43, 1.90 in layer 17 (counts.json)"."""
    loads, least = routing.loads(ep), routing.least_loads(ep)
    if routing.reroutes:
        return (
            f"1.00 by least-loaded rerouting, {fmean(routing.moved_L(ep)):.1f} experts sent a layer ({routing.source})"
        )
    said = f"{loads.mean:.2f}, {loads.worst:.2f} in layer {loads.worst_layer} ({routing.source})"
    if routing.reorders(ep):
        before = routing.in_order.loads(ep)
        said += f", experts reordered; {before.mean:.2f} and {before.worst:.2f} in their order"
    return said if least is None else f"{said}, at least {least.mean:.2f} in any order"


def dropped_in_words(routing: Routing) -> str:
    """Return "; capacity factor 1.25 drops 7.1 % of the choices of experts: results change", where there is one."""
    if routing.capacity_factor is None:
        return ""
    padded = " and pads" if routing.pads_to_capacity else ""
    return (
        f"; capacity factor {routing.capacity_factor:g} drops {routing.dropped_fraction * 100:.1f} % of the choices of "
        f"experts{padded}: results change"
    )


def documents_in_words(documents: DocumentLengths) -> str:
    """Return "packed documents of 1,234 tokens on average"."""
    return f"{documents.packing} documents of {documents.mean(float):,.0f} tokens on average"


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


def is_constrained(plan: Plan) -> bool:
    """Return whether the user pinned or bounded anything; the baseline ignores it."""
    return plan.request.constraints != Constraints()


def compare(planned: PlannedLayout, reference: PlannedLayout, *, index: int | None, is_baseline: bool) -> Comparison:
    """Return `planned` beside `reference`: which settings differ, and which terms of the step time change."""
    own, other = layout_settings(planned.layout), layout_settings(reference.layout)
    own_seconds, other_seconds = seconds_by_term(planned.time), seconds_by_term(reference.time)
    changes = [
        TermChange(term=term, seconds=own_seconds.get(term, 0.0), reference_seconds=other_seconds.get(term, 0.0))
        for term in {**other_seconds, **own_seconds}
    ]
    change_seconds = planned.step_seconds - reference.step_seconds
    return Comparison(
        index=index,
        is_baseline=is_baseline,
        planned=planned,
        differences=tuple(
            Difference(setting=name, value=own[name], reference=other[name]) for name in own if own[name] != other[name]
        ),
        terms=tuple(
            sorted(
                (change for change in changes if change.change_seconds),
                key=lambda change: (-abs(change.change_seconds), change.term),
            )
        ),
        change_seconds=change_seconds,
        change_fraction=change_seconds / reference.step_seconds,
        peak_change_bytes=planned.peak_memory_bytes - reference.peak_memory_bytes,
    )


def compare_all(plan: Plan, *, index: int = 0) -> tuple[Comparison, ...]:
    """Return every other plan beside the plan at `index`, and the baseline where it is none of them."""
    reference = plan.plans[index]
    baseline_layout = plan.baseline.layout if plan.baseline is not None else None
    others = [
        compare(planned, reference, index=position, is_baseline=planned.layout == baseline_layout)
        for position, planned in enumerate(plan.plans)
        if position != index
    ]
    if plan.baseline is not None and all(planned.layout != baseline_layout for planned in plan.plans):
        others.append(compare(plan.baseline, reference, index=None, is_baseline=True))
    return tuple(others)


def memory_by_rank(lines: Iterable[MemoryLine], *, limit_bytes: int | tuple[int, ...]) -> tuple[RankMemory, ...]:
    """Return each pipeline rank's memory by phase, lowest rank first.

    Args:
        lines: A ledger.
        limit_bytes: What each GPU may use: one number, or one for each pipeline rank.
    """
    totals: dict[int, dict[Phase, int]] = {}
    for line in lines:
        phases = totals.setdefault(line.rank, {})
        phases[line.phase] = phases.get(line.phase, 0) + line.num_bytes
    limits = (limit_bytes,) * len(totals) if isinstance(limit_bytes, int) else limit_bytes
    return tuple(
        RankMemory(
            rank=rank,
            phase_bytes={phase: totals[rank][phase] for phase in Phase if phase in totals[rank]},
            limit_bytes=limit,
        )
        for rank, limit in zip(sorted(totals), limits, strict=True)
    )


def heaviest_rank(ranks: Iterable[RankMemory]) -> RankMemory:
    """Return the rank that has least left, which with one limit is the one that peaks highest; the lowest of equals."""
    return min(ranks, key=lambda memory: (memory.left_bytes, memory.rank))


def peak_terms(lines: Iterable[MemoryLine], heaviest: RankMemory) -> tuple[MemoryLine, ...]:
    """Return the ledger of one rank in its peak phase, largest term first."""
    at_peak = (line for line in lines if line.rank == heaviest.rank and line.phase is heaviest.peak_phase)
    return tuple(sorted(at_peak, key=lambda line: (-line.num_bytes, line.term)))


def time_terms(planned: PlannedLayout) -> tuple[TimeLine, ...]:
    """Return the terms of the step time, largest first."""
    return tuple(sorted(planned.time, key=lambda line: (-line.seconds, line.term)))


def seconds_by_term(lines: Iterable[TimeLine]) -> dict[str, float]:
    """Return the seconds of each term, lines of one term added up."""
    seconds: dict[str, float] = {}
    for line in lines:
        seconds[line.term] = seconds.get(line.term, 0.0) + line.seconds
    return seconds
