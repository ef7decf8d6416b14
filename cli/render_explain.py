"""Why a layout: its time by term, its memory by rank and phase, and what every other layout would change."""

from cli.render import (
    Block,
    Facts,
    Item,
    Line,
    Table,
    columns,
    count,
    gib,
    milliseconds,
    numbered,
    percent,
    section,
    signed_gib,
    signed_milliseconds,
    signed_percent,
)
from cli.render_memory import heaviest_in_words, host_blocks, host_document, memory_blocks, memory_document
from cli.render_plan import (
    assumption_blocks,
    differences_in_words,
    header,
    infeasible_blocks,
    layout_facts,
    search_blocks,
    verdict,
)
from cli.render_schedules import schedule_blocks, schedules_document
from cli.render_tokens import token_blocks, tokens_document
from cli.render_turns import turn_blocks, turns_document
from planner.evaluation.more_memory import Gained, gained_by_memory
from planner.layout import Layout
from planner.plans.comparison import Comparison, compare_all, time_terms
from planner.plans.layout_words import layout_settings, stage_recomputes_in_words
from planner.plans.plan import Plan, PlannedLayout
from planner.plans.rank_memory import heaviest_rank, memory_by_rank
from planner.plans.rank_places import DENSE_AXES, EXPERT_AXES, rank_places, strides, telling_ranks

LARGEST_CHANGES = 5
GRIDS = {"dense": DENSE_AXES, "experts": EXPERT_AXES}
MOST_RANKS = 16
"""Ranks that are listed one by one."""


def explanation_blocks(plan: Plan, *, index: int) -> tuple[Block, ...]:
    """Return what `explain` prints."""
    blocks = [*header(plan), *verdict(plan)]
    if plan.infeasible is not None:
        return (*blocks, *infeasible_blocks(plan.infeasible), *search_blocks(plan.search))
    planned = plan.plans[index]
    title = "Best layout" if index == 0 else f"Layout {index}"
    blocks += section(title, *layout_facts(plan, planned))
    gained = gained_by_memory(plan, index=index)
    blocks += section("What limits it", *(Item(text) for text in (*limits(planned), *gains(planned, gained))))
    of_rank = " on the pipeline rank with most work" if planned.layout.pp > 1 else ""
    blocks += section(f"Where the time goes{of_rank}", *time_blocks(planned))
    if planned.layout.recompute.is_per_layer:
        blocks += section("Recompute of each stage", recompute_table(planned.layout))
    blocks += memory_blocks(planned.memory, limit_bytes=planned.rank_limits)
    blocks += host_blocks(planned.host_memory)
    blocks += host_blocks(planned.drive_memory, what="Drives")
    if plan.model.has_experts:
        blocks += section("Ranks in both grids", *grid_blocks(planned.layout))
    if plan.baseline is not None and plan.baseline.layout == planned.layout:
        blocks += section("Against the rule-of-thumb baseline", Line("  It is this layout."))
    for comparison in compare_all(plan, index=index):
        blocks += comparison_blocks(comparison)
    blocks += schedule_blocks(plan, every=True)
    blocks += token_blocks(plan, every=True)
    blocks += turn_blocks(plan, index=index)
    blocks += search_blocks(plan.search)
    blocks += assumption_blocks(plan, planned)
    return tuple(blocks)


def limits(planned: PlannedLayout) -> tuple[str, ...]:
    """Return what keeps the layout from being faster or larger, in sentences."""
    largest = time_terms(planned)[:2]
    ranks = memory_by_rank(planned.memory, limit_bytes=planned.rank_limits)
    heaviest = heaviest_rank(ranks)
    lightest = min(memory.peak_bytes for memory in ranks)
    terms = " and ".join(
        f"{line.term} ({milliseconds(line.seconds)}, {percent(line.seconds / planned.step_seconds)})"
        for line in largest
    )
    left = f"{gib(heaviest.left_bytes)} below the limit of {gib(heaviest.limit_bytes)}"
    sentences = [
        f"Time: most of the step is {terms}.",
        f"Memory: {heaviest_in_words(heaviest)}, {left}.",
    ]
    if lightest < heaviest.peak_bytes:
        sentences.append(f"Balance: the lightest rank peaks at {gib(lightest)}.")
    return tuple(sentences)


def gains(planned: PlannedLayout, gained: Gained | None) -> tuple[str, ...]:
    """Return what a little more memory would gain, in a sentence, where states are on the hosts for want of it."""
    if gained is None:
        return ()
    away = f"{percent(gained.fraction)} of the optimizer states would be" if gained.fraction else "nothing would be"
    change = signed_percent(gained.step_seconds / planned.step_seconds - 1.0)
    sentence = (
        f"Hosts: with {gib(gained.more_bytes)} more of each GPU {away} there instead of"
        f" {percent(planned.layout.offloaded_fraction)}, and the step would take {milliseconds(gained.step_seconds)}"
        f" ({change})."
    )
    return (sentence,)


def time_blocks(planned: PlannedLayout) -> tuple[Block, ...]:
    """Return the terms of the step time, largest first, with their sources below."""
    terms = time_terms(planned)
    sources = numbered([line.source for line in terms])
    table = Table(
        columns=columns("term", ">time", ">share", "source"),
        rows=(
            *(
                (line.term, milliseconds(line.seconds), percent(line.seconds / planned.step_seconds), mark)
                for line, mark in zip(terms, sources.marks, strict=True)
            ),
            ("step", milliseconds(planned.step_seconds), percent(1.0), ""),
        ),
    )
    return (table, *sources.notes)


def recompute_table(layout: Layout) -> Table:
    """Return what is recomputed of the layers of each stage."""
    words = stage_recomputes_in_words(layout)
    return Table(
        columns=columns(">stage", ">layers", "recompute"),
        rows=tuple(
            (str(index), str(stage.num_layers), said)
            for index, (stage, said) in enumerate(zip(layout.stages, words, strict=True))
        ),
    )


def grid_blocks(layout: Layout) -> tuple[Block, ...]:
    """Return where ranks stand in the grid of everything but routed experts, and in the grid of these."""
    ranks = telling_ranks(layout, at_most=MOST_RANKS)
    dense, expert = (", ".join(axes) for axes in (DENSE_AXES, EXPERT_AXES))
    table = Table(
        columns=columns("rank", f"({dense})", f"routed experts ({expert})", whole=(f"({dense})",)),
        rows=(
            *((count(place.rank), _tuple(place.dense), _tuple(place.expert)) for place in rank_places(layout, ranks)),
            ("sizes", *(_tuple(tuple(size for _, size in strides(layout, axes))) for axes in GRIDS.values())),
        ),
    )
    if len(ranks) == layout.world_size:
        return (table,)
    return (
        table,
        Line(f"  {len(ranks)} of {count(layout.world_size)} ranks: the first, the next along each axis, the last."),
    )


def _tuple(values: tuple[int, ...]) -> str:
    return f"({', '.join(str(value) for value in values)})"


def comparison_blocks(comparison: Comparison) -> tuple[Block, ...]:
    """Return one other layout: what differs, and which terms of the step time change by how much."""
    names = (
        (f"layout {comparison.index}", comparison.index is not None),
        ("the rule-of-thumb baseline", comparison.is_baseline),
    )
    title = "Against " + ", ".join(name for name, applies in names if applies)
    return section(title, *comparison_facts(comparison))


def comparison_facts(comparison: Comparison) -> tuple[Block, ...]:
    """Return what differs in another layout, and which terms of the step time change by how much."""
    shown = len(comparison.terms) if len(comparison.terms) == LARGEST_CHANGES + 1 else LARGEST_CHANGES
    rest = comparison.terms[shown:]
    rows = [
        (
            change.term,
            milliseconds(change.reference_seconds),
            milliseconds(change.seconds),
            signed_milliseconds(change.change_seconds),
        )
        for change in comparison.terms[:shown]
    ]
    if rest:
        rows.append(
            (
                f"{len(rest)} smaller changes",
                milliseconds(sum(change.reference_seconds for change in rest)),
                milliseconds(sum(change.seconds for change in rest)),
                signed_milliseconds(sum(change.change_seconds for change in rest)),
            )
        )
    return (
        Facts(
            pairs=(
                ("differs in", differences_in_words(comparison.differences, derived=True)),
                (
                    "step time",
                    f"{signed_milliseconds(comparison.change_seconds)} ({signed_percent(comparison.change_fraction)})",
                ),
                ("peak memory", signed_gib(comparison.peak_change_bytes)),
            )
        ),
        Table(columns=columns("term", ">here", ">there", ">change"), rows=tuple(rows)),
    )


def explanation_document(plan: Plan, *, index: int) -> dict[str, object]:
    """Return the explanation as a JSON document; seconds and bytes, never rounded."""
    search = {
        "considered": plan.search.considered,
        "legal": plan.search.legal,
        "simulated": plan.search.simulated,
        "pruned": dict(plan.search.pruned),
        "dimensions": list(plan.search.dimensions),
    }
    if plan.infeasible is not None:
        return {
            "status": plan.status.value,
            "binding": plan.infeasible.binding,
            "shortfall_bytes": plan.infeasible.shortfall_bytes,
            "relaxations": [
                {"change": entry.change, "path": entry.path, "value": entry.value}
                for entry in plan.infeasible.relaxations
            ],
            "search": search,
        }
    planned = plan.plans[index]
    gained = gained_by_memory(plan, index=index)
    return {
        "status": plan.status.value,
        "index": index,
        "settings": dict(layout_settings(planned.layout)),
        "schedules": schedules_document(plan),
        "token_swaps": tokens_document(plan),
        "interleaved_updates": turns_document(plan, index=index),
        "grids": {name: grid_document(planned.layout, axes) for name, axes in GRIDS.items()},
        "step_seconds": planned.step_seconds,
        "limits": [*limits(planned), *gains(planned, gained)],
        "gained_by_memory": None
        if gained is None
        else {
            "more_bytes": gained.more_bytes,
            "offloaded_fraction": gained.fraction,
            "step_seconds": gained.step_seconds,
        },
        "time": [
            {
                "term": line.term,
                "seconds": line.seconds,
                "fraction": line.seconds / planned.step_seconds,
                "source": line.source,
            }
            for line in time_terms(planned)
        ],
        "memory": memory_document(planned.memory, limit_bytes=planned.rank_limits),
        "host_memory": host_document(planned.host_memory),
        **({} if planned.drive_memory is None else {"drive_memory": host_document(planned.drive_memory)}),
        "comparisons": [_comparison_document(comparison) for comparison in compare_all(plan, index=index)],
        "assumptions": list(planned.assumptions),
        "search": search,
    }


def grid_document(layout: Layout, axes: tuple[str, ...]) -> list[dict[str, object]]:
    """Return the axes of one grid, fastest first: a rank's coordinate is rank // stride % size."""
    return [
        {"axis": axis, "size": size, "stride": stride}
        for axis, (stride, size) in zip(axes, strides(layout, axes), strict=True)
    ]


def _comparison_document(comparison: Comparison) -> dict[str, object]:
    return {
        "index": comparison.index,
        "is_baseline": comparison.is_baseline,
        "change_seconds": comparison.change_seconds,
        "change_fraction": comparison.change_fraction,
        "peak_change_bytes": comparison.peak_change_bytes,
        "differences": [
            {"setting": entry.setting, "value": entry.value, "reference": entry.reference}
            for entry in comparison.differences
        ],
        "terms": [
            {"term": change.term, "seconds": change.seconds, "reference_seconds": change.reference_seconds}
            for change in comparison.terms
        ],
    }
