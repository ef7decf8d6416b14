"""A given layout, priced: its time, its memory, the rules that it breaks, and what the best one would gain."""

from collections.abc import Sequence

from cli.render import Block, Item, Line, section
from cli.render_explain import comparison_facts, limits, time_blocks
from cli.render_memory import host_blocks, host_document, memory_blocks, memory_document
from cli.render_plan import assumption_blocks, header, infeasible_blocks, layout_facts
from planner.evaluation.violation import Violation
from planner.plans.comparison import compare, time_terms
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Plan


def evaluation_blocks(plan: Plan, broken: Sequence[Violation], found: Plan | None) -> tuple[Block, ...]:
    """Return what `evaluate` prints.

    Args:
        plan: The layout as a plan of one.
        broken: Rules that it breaks.
        found: The best plan for the same request; None where it was not asked for.
    """
    planned = plan.best
    blocks = [*header(plan)]
    blocks += section("Layout", *layout_facts(plan, planned, searched=False))
    if broken:
        blocks += section("What is wrong with it", *(Item(f"{entry.rule}: {entry.message}") for entry in broken))
    blocks += section("What limits it", *(Item(text) for text in limits(planned)))
    of_rank = " on the pipeline rank with most work" if planned.layout.pp > 1 else ""
    blocks += section(f"Where the time goes{of_rank}", *time_blocks(planned))
    blocks += memory_blocks(planned.memory, limit_bytes=planned.rank_limits)
    blocks += host_blocks(planned.host_memory)
    blocks += host_blocks(planned.drive_memory, what="Drives")
    blocks += assumption_blocks(plan, planned)
    if found is not None:
        blocks += _best_blocks(plan, found)
    return tuple(blocks)


def _best_blocks(plan: Plan, found: Plan) -> tuple[Block, ...]:
    """Return the best layout beside the given one."""
    if found.infeasible is not None:
        return infeasible_blocks(found.infeasible)
    comparison = compare(found.best, plan.best, index=None, is_baseline=False)
    if not comparison.differences:
        return section("Against the best layout", Line("  It is this layout."))
    words = Line(f"  {layout_in_words(found.best.layout)}")
    return section("Against the best layout", words, *comparison_facts(comparison))


def evaluation_document(plan: Plan, broken: Sequence[Violation], found: Plan | None) -> dict[str, object]:
    """Return the same as JSON; seconds and bytes, never rounded."""
    planned = plan.best
    document: dict[str, object] = {
        "layout": layout_in_words(planned.layout),
        "step_seconds": planned.step_seconds,
        "tokens_per_second_per_gpu": planned.tokens_per_second_per_gpu,
        "mfu": planned.mfu,
        "peak_memory_bytes": planned.peak_memory_bytes,
        "memory_limit_bytes": planned.memory_limit_bytes,
        "band_seconds": None if plan.certainty is None else list(plan.certainty.band_seconds(planned)),
        "violations": [{"rule": entry.rule, "message": entry.message} for entry in broken],
        "time": [{"term": line.term, "seconds": line.seconds, "source": line.source} for line in time_terms(planned)],
        "memory": memory_document(planned.memory, limit_bytes=planned.rank_limits),
        "host_memory": host_document(planned.host_memory),
        **({} if planned.drive_memory is None else {"drive_memory": host_document(planned.drive_memory)}),
        "assumptions": list(planned.assumptions),
    }
    if found is not None:
        document["best"] = (
            {"infeasible": found.infeasible.binding}
            if found.infeasible is not None
            else {"layout": layout_in_words(found.best.layout), "step_seconds": found.best.step_seconds}
        )
    return document
