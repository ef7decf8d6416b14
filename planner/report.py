"""What a plan says about itself: settings in words, memory by rank and phase, and what other layouts would cost.

Pure data for whoever prints it; nothing here measures or prices anything again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

from planner.graph import graph_parameters
from planner.layers import build_graph
from planner.layout import Granularity, Layout, Overlap, Recompute, Schedule, Stage
from planner.plan import MemoryLine, Phase, Plan, PlannedLayout, TimeLine
from planner.request import Constraints
from planner.specs import ModelSpec
from planner.workload import Precision, TrainWorkload


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
        "cp": str(layout.cp),
        "cp_kind": layout.cp_kind or "none",
        "ep": str(layout.ep),
        "etp": str(layout.etp),
        "dp": str(layout.dp),
        "zero_stage": str(layout.zero_stage),
        "micro_batch_size": str(layout.micro_batch_size),
        "num_microbatches": str(layout.num_microbatches),
        "schedule": layout.schedule.value,
        "recompute": recompute_in_words(layout.recompute),
        "overlap": overlap_in_words(layout.overlap),
        "rank_order": layout.rank_order,
        "layers per stage": stages_in_words(layout.stages),
    }


def layout_in_words(layout: Layout) -> str:
    """Return one line that names a layout: its degrees, batch, schedule and recompute."""
    degrees = [f"tp {layout.tp}" + (" with sequence parallelism" if layout.sequence_parallel else "")]
    degrees.append(f"pp {layout.pp}" + (f", vpp {layout.vpp}" if layout.vpp > 1 else ""))
    if layout.cp > 1:
        degrees.append(f"cp {layout.cp}")
    if layout.ep > 1:
        degrees.append(f"ep {layout.ep}")
    degrees.append(f"dp {layout.dp}")
    batches = "micro-batch" if layout.num_microbatches == 1 else "micro-batches"
    parts = [
        ", ".join(degrees),
        f"zero_stage {layout.zero_stage}",
        f"{layout.num_microbatches} {batches} of {layout.micro_batch_size}",
    ]
    if layout.schedule is not Schedule.NO_PIPELINE:
        parts.append(layout.schedule.value)
    parts.append(f"recompute {recompute_in_words(layout.recompute)}")
    return "; ".join(parts)


def recompute_in_words(recompute: Recompute) -> str:
    """Return "none", "selective (core_attn)", "full" or "full for the first 2 layers of each stage"."""
    match recompute.granularity:
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
    own_seconds, other_seconds = _seconds_by_term(planned.time), _seconds_by_term(reference.time)
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


def memory_by_rank(lines: Iterable[MemoryLine], *, limit_bytes: int) -> tuple[RankMemory, ...]:
    """Return each pipeline rank's memory by phase, lowest rank first."""
    totals: dict[int, dict[Phase, int]] = {}
    for line in lines:
        phases = totals.setdefault(line.rank, {})
        phases[line.phase] = phases.get(line.phase, 0) + line.num_bytes
    return tuple(
        RankMemory(
            rank=rank,
            phase_bytes={phase: totals[rank][phase] for phase in Phase if phase in totals[rank]},
            limit_bytes=limit_bytes,
        )
        for rank in sorted(totals)
    )


def heaviest_rank(ranks: Iterable[RankMemory]) -> RankMemory:
    """Return the rank whose largest phase is the largest of all; the lowest rank of equals."""
    return max(ranks, key=lambda memory: (memory.peak_bytes, -memory.rank))


def peak_terms(lines: Iterable[MemoryLine], heaviest: RankMemory) -> tuple[MemoryLine, ...]:
    """Return the ledger of one rank in its peak phase, largest term first."""
    at_peak = (line for line in lines if line.rank == heaviest.rank and line.phase is heaviest.peak_phase)
    return tuple(sorted(at_peak, key=lambda line: (-line.num_bytes, line.term)))


def time_terms(planned: PlannedLayout) -> tuple[TimeLine, ...]:
    """Return the terms of the step time, largest first."""
    return tuple(sorted(planned.time, key=lambda line: (-line.seconds, line.term)))


def _seconds_by_term(lines: Iterable[TimeLine]) -> dict[str, float]:
    """Return the seconds of each term, lines of one term added up."""
    seconds: dict[str, float] = {}
    for line in lines:
        seconds[line.term] = seconds.get(line.term, 0.0) + line.seconds
    return seconds
