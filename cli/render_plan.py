"""A plan on one screen: what was planned, the best layout with its figures, the others, what was assumed."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.model_words import parameters_in_words
from cli.render import (
    Blank,
    Block,
    Facts,
    Item,
    Line,
    Style,
    Table,
    columns,
    count,
    counted,
    duration,
    energy,
    gib,
    milliseconds,
    percent,
    section,
    signed_percent,
    sources_in_words,
)
from cli.render_choices import choice_blocks
from cli.render_memory import heaviest_in_words
from cli.render_schedules import schedule_blocks
from cli.render_tokens import token_blocks
from planner.plans.comparison import Comparison, Difference, compare_all
from planner.plans.layout_words import layout_in_words, overlap_in_words, stages_in_words
from planner.plans.plan import Infeasible, Plan, PlannedLayout, SearchSummary, Status
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.plans.workload_words import documents_in_words, experts_in_words
from planner.requests.objectives import SECONDS_PER_DAY, power_assumption, watts_of
from planner.requests.request import Constraints, Objective
from planner.verification.kit import FOLDER as KIT_FOLDER
from planner.verification.kit import Kit

# These mostly follow from the others, and are named in a table only where nothing else tells layouts apart.
DERIVED_SETTINGS = ("num_microbatches", "schedule", "overlap", "layers per stage")
LEFT_OUT = "..."


def plan_blocks(plan: Plan, *, verbose: bool = False) -> tuple[Block, ...]:
    """Return what `plan` prints."""
    blocks = [*header(plan), *verdict(plan)]
    if plan.infeasible is not None:
        blocks += infeasible_blocks(plan.infeasible)
    if plan.plans:
        blocks += section("Best layout", *layout_facts(plan, plan.best))
        blocks += others_blocks(plan)
        blocks += assumption_blocks(plan, plan.best)
    if verbose:
        blocks += search_blocks(plan.search)
    return (*blocks, *choice_blocks(plan), *schedule_blocks(plan), *token_blocks(plan))


def assumption_blocks(plan: Plan, planned: PlannedLayout) -> tuple[Block, ...]:
    """Return what was assumed of a layout, and what the bands come from; nothing without any."""
    texts = [*planned.assumptions]
    if plan.whole_run is not None:
        texts.append(power_assumption(plan.cluster))
    if plan.certainty is not None:
        texts.append(f"band of a step time: {plan.certainty.source}")
        texts.append(f"band of the ratio of two layouts: {plan.certainty.ratio_source}")
    return section("Assumptions", *(Item(text) for text in texts)) if texts else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What was written.

    Args:
        directory: Where.
        names: Names of the plan and of the launch files.
        kit: Short runs to verify the plan with, if any layout can be launched.
    """

    directory: Path
    names: Sequence[str]
    kit: Kit | None


def file_blocks(saved: Saved) -> tuple[Block, ...]:
    """Return the list of the files that were written; the short runs are one line."""
    items = [Item(str(saved.directory / name)) for name in saved.names]
    kit = saved.kit
    if kit is not None:
        folder = shlex.quote(str(saved.directory / KIT_FOLDER))
        what = "the best layout" if kit.num_runs == 1 else f"the best {kit.num_runs} layouts"
        takes = duration(kit.steps_seconds / SECONDS_PER_DAY)
        items.append(
            Item(
                f"{folder}: {kit.steps} steps of {what}, {takes} by prediction and their starts; bash {folder}/run.sh,"
                f" then shardwright collect {folder}"
            )
        )
    return section("Files", *items)


def header(plan: Plan) -> tuple[Block, ...]:
    """Return model, cluster and workload in two lines."""
    cluster, workload = plan.cluster, plan.request.workload
    documents = f" ({documents_in_words(workload.documents)})" if workload.documents else ""
    nodes = ", ".join(
        f"{counted(number, 'node')} of {cluster.gpus_per_node} x {device.name}"
        for device, number in cluster.device_counts
    )
    parameters = parameters_in_words(plan.model)
    return (
        Line(
            f"{plan.model.name}, {parameters}, on {cluster.name}: {nodes}, {counted(cluster.world_size, 'GPU')}",
            Style.HEADING,
        ),
        Line(
            f"{workload.method.value}, sequences of {counted(workload.seq_len, 'token')}{documents}, global batch "
            f"{count(workload.global_batch_size)} ({counted(workload.tokens_per_step, 'token')} a step), "
            f"{workload.precision.value}, {workload.optimizer.value}, target {plan.target.value}"
        ),
    )


def verdict(plan: Plan) -> tuple[Block, ...]:
    """Return how sure the answer is, and what the search saw."""
    search = plan.search
    seen = f"{counted(search.considered, 'layout')} searched"
    saw = f"{seen}: {count(search.legal)} legal, {count(search.simulated)} simulated."
    match plan.status:
        case Status.OPTIMAL:
            line = Line(f"Optimal by {plan.objective.value}: no layout searched is better.", Style.GOOD)
        case Status.FEASIBLE:
            line = Line(f"Feasible, not proven optimal by {plan.objective.value}{_gap(plan)}.")
        case Status.INFEASIBLE:
            missed = plan.infeasible is not None and plan.infeasible.misses_deadline
            line = Line(f"Infeasible: no layout {'meets the deadline' if missed else 'fits'}.", Style.BAD)
    return (Blank(), line, Line(saw), *_uneven(plan))


def _uneven(plan: Plan) -> tuple[Line, ...]:
    """Return what is known of interleaved stages that are less even than they could be."""
    bound_seconds = plan.search.uneven_bound_seconds
    if bound_seconds is None or not plan.plans:
        return ()
    most = percent(1.0 - bound_seconds / plan.plans[0].step_seconds)
    return (
        Line(f"Interleaved stages: as even as can be, then moved layer by layer; others may be up to {most} better."),
    )


def _gap(plan: Plan) -> str:
    if plan.gap is None or plan.bound is None:
        return ": no bound is known"
    most = f"at most {percent(plan.gap)}" if plan.gap >= 0.0005 else "less than 0.1 %"
    return f": {most} better is possible (bound {objective_in_words(plan.objective, plan.bound)})"


def objective_in_words(objective: Objective, value: float) -> str:  # noqa: PLR0911 - one for each objective
    """Return a value of the objective with its unit."""
    match objective:
        case Objective.STEP_TIME:
            return milliseconds(value)
        case Objective.TOKENS_PER_GPU:
            return f"{value:,.1f} tokens/s/GPU"
        case Objective.DAYS:
            return duration(value)
        case Objective.COST:
            return f"{value:,.2f}"
        case Objective.ENERGY:
            return energy(value)
        case Objective.FEWEST_NODES:
            return counted(round(value), "node")
        case Objective.ROBUST:
            return f"a loss of {percent(value)} in the worst case"


def layout_facts(plan: Plan, planned: PlannedLayout, *, searched: bool = True) -> tuple[Block, ...]:
    """Return a layout in words, and its key figures.

    Args:
        plan: The plan.
        planned: One of its layouts.
        searched: Its time is a search's, and simulated independently of it; else the latter alone.
    """
    check = f" (simulated independently: {milliseconds(planned.reevaluated_step_seconds)})" if searched else ""
    facts = [("layers per stage", stages_in_words(planned.layout.stages))]
    if plan.model.has_experts:
        facts.append(("routed experts", experts_in_words(planned.layout, plan.request.workload)))
    facts += [
        *_expert_order(planned),
        *_on_nodes(plan, planned),
        ("overlapped", overlap_in_words(planned.layout.overlap)),
        ("step time", f"{milliseconds(planned.step_seconds)}{check}"),
        *_band(plan, planned),
        ("throughput", f"{planned.tokens_per_second_per_gpu:,.1f} tokens/s/GPU, MFU {percent(planned.mfu)}"),
        *_useful_tokens(plan),
        *_sources(planned),
        ("peak memory", f"{peak_in_words(planned)}, of {gib(planned.memory_limit_bytes)} usable"),
    ]
    hosted = planned.host_memory
    if hosted is not None:
        facts.append(("host memory", f"{gib(hosted.num_bytes)} on the fullest node, of {gib(hosted.limit_bytes)}"))
    drives = planned.drive_memory
    if drives is not None:
        facts.append(("drives", f"{gib(drives.num_bytes)} on the fullest node, of {gib(drives.limit_bytes)}"))
    if planned is plan.best:
        facts += _whole_run(plan)
    return (Line(f"  {layout_in_words(planned.layout)}"), Facts(pairs=tuple(facts)))


def _expert_order(planned: PlannedLayout) -> list[tuple[str, str]]:
    """Return what writing the checkpoint's experts in another order gains; nothing where they stay."""
    before = planned.experts_in_order
    if before is None:
        return []
    change = signed_percent(planned.reevaluated_step_seconds / before.step_seconds - 1.0)
    saved = before.peak_memory_bytes - planned.peak_memory_bytes
    memory = f", {gib(saved)} less at the peak" if saved > 0 else ""
    return [
        ("expert order", f"{change} step time{memory}: {milliseconds(before.step_seconds)} in the checkpoint's order")
    ]


def _on_nodes(plan: Plan, planned: PlannedLayout) -> list[tuple[str, str]]:
    """Return which node takes which place of the mesh, and what that gains; nothing where nodes do not differ."""
    on_nodes, nodes = planned.on_nodes, plan.cluster.unequal
    if on_nodes is None or nodes is None:
        return []
    words = " ".join(nodes.names[node] if nodes.names else str(node) for node in on_nodes.order)
    if not planned.layout.node_order:
        return [("node order", f"{words}, as listed")]
    listed = on_nodes.listed_step_seconds
    change = signed_percent(planned.reevaluated_step_seconds / listed - 1.0)
    return [("node order", words), ("against listed", f"{change}: {milliseconds(listed)} with the nodes as listed")]


def _sources(planned: PlannedLayout) -> list[tuple[str, str]]:
    """Return how much of the step's time is measured; nothing where the cluster was not."""
    if planned.source_fractions is None:
        return []
    return [("its sources", f"{sources_in_words(planned.source_fractions)}, of the busiest rank's own time")]


def _band(plan: Plan, planned: PlannedLayout) -> list[tuple[str, str]]:
    if plan.certainty is None:
        return []
    low, high = plan.certainty.band_seconds(planned)
    return [("its band", f"{milliseconds(low)} to {milliseconds(high)}, as wide as holds four of five published runs")]


def _useful_tokens(plan: Plan) -> list[tuple[str, str]]:
    """Return how many tokens are no padding, nothing where all are; the throughput counts these alone."""
    useful = plan.request.workload.useful_fraction
    if useful == 1.0:
        return []
    return [("useful tokens", f"{percent(useful)}; throughput and MFU leave out the rest, which is padding")]


def peak_in_words(planned: PlannedLayout) -> str:
    """Return the peak and where it is: "65.21 GiB on rank 0 in forward-backward"."""
    ranks = memory_by_rank(planned.memory, limit_bytes=planned.rank_limits)
    return heaviest_in_words(heaviest_rank(ranks))


def _whole_run(plan: Plan) -> list[tuple[str, str]]:
    tokens, run = plan.request.workload.tokens_to_train, plan.whole_run
    if tokens is None or run is None:
        return []
    parts = [f"{duration(run.days)} for {counted(tokens, 'token')}"]
    if run.cost is not None:
        decimals = 0 if run.cost >= 10 else 2
        parts.append(f"cost {run.cost:,.{decimals}f} at {plan.cluster.price_per_gpu_hour:,.2f} per GPU hour")
    parts.append(f"{energy(run.joules)} at {watts_of(plan.cluster):,g} W per GPU")
    return [("whole run", ", ".join(parts)), *_deadline(plan, days=run.days)]


def _deadline(plan: Plan, *, days: float) -> list[tuple[str, str]]:
    """Return what is allowed, and where the run ends by the band of its step; nothing without a deadline."""
    if plan.request.deadline_days is None:
        return []
    text = f"{plan.request.deadline_days:,g} days"
    if plan.certainty is not None:
        low, high = (seconds / plan.best.step_seconds * days for seconds in plan.certainty.band_seconds(plan.best))
        text += f"; by the band of the step the run takes {low:,.1f} to {high:,.1f}"
    return [("deadline", text)]


def others_blocks(plan: Plan) -> tuple[Block, ...]:
    """Return the runners-up and the baseline, each with what differs and how its step time compares."""
    comparisons = compare_all(plan)
    remarks = (*survival_lines(plan), Line(f"  {baseline_in_words(plan)}"))
    if not comparisons:
        return section("Runners-up and baseline", *remarks)
    short = [differences_in_words(comparison.differences) for comparison in comparisons]
    table = Table(
        columns=columns(
            "index", ">step time", ">vs best", ">peak memory", "what differs [best]", spare=("peak memory",)
        ),
        rows=tuple(
            _comparison_row(
                comparison,
                differences=words
                if short.count(words) == 1
                else differences_in_words(comparison.differences, derived=True),
            )
            for comparison, words in zip(comparisons, short, strict=True)
        ),
    )
    return section("Runners-up and baseline", table, *remarks)


def survival_lines(plan: Plan) -> tuple[Line, ...]:
    """Return whether the best layout survives the band of its ratio to the runners-up; nothing without any."""
    certainty = plan.certainty
    if certainty is None or len(plan.plans) < 2:
        return ()
    width = f"{100 * certainty.ratio_half_width:g} %"
    swaps = certainty.could_swap(plan.plans)
    if not swaps:
        return (Line(f"  The best layout survives: no runner-up is within {width} of it."),)
    if len(swaps) == 1:
        text = f"Runner-up {swaps[0]} is within {width} of the best: the two could swap"
    else:
        named = f"{', '.join(str(index) for index in swaps[:-1])} and {swaps[-1]}"
        text = f"Runners-up {named} are within {width} of the best: any could swap with it"
    return (Line(f"  {text}; run verify/, which --out writes."),)


def baseline_in_words(plan: Plan) -> str:
    """Return how the best layout compares with the rule-of-thumb layout, which knows no constraints."""
    if plan.baseline is None:
        return "No rule-of-thumb layout fits, so there is no baseline."
    if plan.baseline.layout == plan.best.layout:
        return "The rule-of-thumb layout is the best one."
    ratio = plan.baseline.step_seconds / plan.best.step_seconds
    remark = " The baseline ignores your constraints." if plan.request.constraints != Constraints() else ""
    if f"{ratio:.2f}" == "1.00":
        return f"The best layout is as fast as the rule-of-thumb baseline.{remark}"
    if ratio < 1:
        return f"The best layout takes {1 / ratio:.2f} times as long as the rule-of-thumb baseline.{remark}"
    return f"The best layout is {ratio:.2f} times as fast as the rule-of-thumb baseline.{remark}"


def _comparison_row(comparison: Comparison, *, differences: str) -> tuple[str, ...]:
    planned = comparison.planned
    names = (("" if comparison.index is None else str(comparison.index)), "baseline" if comparison.is_baseline else "")
    return (
        " = ".join(name for name in names if name),
        milliseconds(planned.step_seconds),
        signed_percent(comparison.change_fraction),
        gib(planned.peak_memory_bytes),
        differences,
    )


def differences_in_words(differences: Sequence[Difference], *, derived: bool = False) -> str:
    """Return "pp 8 [4]; dp 1 [2]; ...": each setting that differs, the reference's own in brackets.

    Args:
        differences: What differs.
        derived: Name also what mostly follows from the rest, instead of "...".
    """
    chosen = [entry for entry in differences if derived or entry.setting not in DERIVED_SETTINGS] or differences
    words = [f"{entry.setting} {entry.value} [{entry.reference}]" for entry in chosen]
    if len(chosen) < len(differences):
        words.append(LEFT_OUT)
    return "; ".join(words) or "nothing"


def search_blocks(search: SearchSummary) -> tuple[Block, ...]:
    """Return what was searched, and how many layouts fell to which rule."""
    return section(
        "Search",
        Line(f"  over {', '.join(search.dimensions)}"),
        Table(
            columns=columns("reason", ">layouts"),
            rows=(
                *((reason, count(number)) for reason, number in sorted(search.pruned.items(), key=_most_first)),
                ("simulated", count(search.simulated)),
                ("considered", count(search.considered)),
            ),
        ),
    )


def _most_first(entry: tuple[str, int]) -> tuple[int, str]:
    reason, number = entry
    return -number, reason


def infeasible_blocks(infeasible: Infeasible) -> tuple[Block, ...]:
    """Return why nothing fits, by how much, and changes that would fit."""
    missed = infeasible.misses_deadline
    why = "Why none meets the deadline" if missed else "Why nothing fits"
    blocks: list[Block] = [*section(why, Line(f"  {infeasible.binding}"))]
    if infeasible.shortfall_bytes:
        blocks.append(Line(f"  {gib(infeasible.shortfall_bytes)} are missing on the heaviest rank."))
    if infeasible.nearest is not None:
        nearest = infeasible.nearest
        facts = [("layers per stage", stages_in_words(nearest.layout.stages))]
        if missed:
            facts.append(("step time", milliseconds(nearest.step_seconds)))
        facts.append(("peak memory", f"{peak_in_words(nearest)}, of {gib(nearest.memory_limit_bytes)} usable"))
        blocks += section(
            "Fastest layout" if missed else "Closest attempt",
            Line(f"  {layout_in_words(nearest.layout)}"),
            Facts(pairs=tuple(facts)),
        )
    if infeasible.relaxations:
        blocks += section(
            f"Changes that {'meet it' if missed else 'fit'}, each by itself",
            Table(
                columns=columns("change", "try"),
                rows=tuple((entry.change, f"--set {entry.path}={entry.value}") for entry in infeasible.relaxations),
            ),
        )
    else:
        blocks += section("No change of one setting was found that fits.")
    return tuple(blocks)
