"""What divided tokens would make of a plan's layouts: MEMO's swapping and computing again, token by token."""

from cli.render import Block, Facts, Item, Line, Table, columns, gib, milliseconds, percent, section, signed_percent
from planner.evaluation.priced_step import RECOMPUTATION
from planner.plans.choices import SwappedTokens
from planner.plans.plan import Plan
from planner.requests.request import Target

TITLE = "Tokens swapped or computed again (MEMO)"
RANKS_TITLE = "What becomes of their tokens"
NEEDS = "copies and recomputation of a part of the tokens of a tensor"


def token_blocks(plan: Plan, *, every: bool = False) -> tuple[Block, ...]:
    """Return what divided tokens would make of the plan; nothing where nobody asked.

    Args:
        plan: The plan.
        every: Show each pipeline rank too, and what was assumed.
    """
    return tuple(block for title, blocks in token_sections(plan, every=every) for block in section(title, *blocks))


def token_sections(plan: Plan, *, every: bool) -> tuple[tuple[str, tuple[Block, ...]], ...]:
    """Return the same, each part under its title."""
    swapping = plan.token_swapping
    if swapping is None:
        return ()
    reasons = [Item(f"layout {index} is not priced: {reason}") for index, reason in sorted(swapping.left_out.items())]
    if not swapping.priced:
        return ((TITLE, tuple(reasons)),)
    headers = columns(
        "layout", ">step time", ">vs layout", ">peak memory", ">on a host", ">recomputed", ">before", ">waits"
    )
    table = Table(columns=headers, rows=tuple(_row(plan, entry) for entry in swapping.priced))
    remarks: list[Block] = [Line(f"  {token_verdict_in_words(plan)}")]
    if plan.token_cost_fraction:
        remarks.append(Facts(pairs=(("it needs", NEEDS),)))
    remarks += [
        Line(f"  Another division of layout {entry.index} may take less, but no more than {100 * entry.gap:.2g} %.")
        for entry in swapping.priced
        if entry.gap
    ]
    sections: tuple[tuple[str, tuple[Block, ...]], ...] = ((TITLE, (table, *remarks, *reasons)),)
    if every:
        headers = columns("layout", ">rank", ">kept", ">swapped", ">recomputed", ">recomputed, no swap")
        rows = tuple(
            (
                str(entry.index),
                str(rank),
                percent(tokens.kept_fraction),
                percent(tokens.swapped_fraction),
                percent(tokens.again_fraction),
                percent(tokens.again_here_fraction),
            )
            for entry in swapping.priced
            for rank, tokens in enumerate(entry.ranks)
        )
        assumed = tuple(Item(text) for text in swapping.assumptions)
        sections = (*sections, (RANKS_TITLE, (Table(columns=headers, rows=rows), *assumed)))
    return sections


def tokens_document(plan: Plan) -> dict[str, object] | None:
    """Return what the target costs and what divided tokens would make of each layout; None where nobody asked."""
    if plan.token_swapping is None:
        return None
    return {
        "cost_fraction": plan.token_cost_fraction,
        "priced": [
            {
                "index": entry.index,
                "step_seconds": entry.step_seconds,
                "gap": entry.gap,
                "peak_memory_bytes": entry.peak_memory_bytes,
                "host_memory_bytes": entry.host_memory_bytes,
                "recomputed_seconds": entry.again_seconds,
                "recomputed_seconds_before": _recomputed_before(plan, entry),
                "waiting_seconds": entry.waiting_seconds,
                "ranks": [
                    {
                        "kept_fraction": tokens.kept_fraction,
                        "swapped_fraction": tokens.swapped_fraction,
                        "recomputed_fraction": tokens.again_fraction,
                        "recomputed_here_fraction": tokens.again_here_fraction,
                    }
                    for tokens in entry.ranks
                ],
            }
            for entry in plan.token_swapping.priced
        ],
        "left_out": dict(plan.token_swapping.left_out),
        "assumptions": list(plan.token_swapping.assumptions),
    }


def token_verdict_in_words(plan: Plan) -> str:
    """Return what the target costs, or that it costs nothing."""
    target = "The search's own choices" if plan.target is Target.ANY else f"Target {plan.target.value}"
    cost = "cost" if plan.target is Target.ANY else "costs"
    best = plan.token_swapping.best if plan.token_swapping is not None else None
    if best is None or not plan.token_cost_fraction:
        return f"{target} {cost} nothing: no layout is faster with divided tokens."
    return (
        f"{target} {cost} {percent(plan.token_cost_fraction)}: with divided tokens layout {best.index} would take"
        f" {milliseconds(best.step_seconds)}."
    )


def _recomputed_before(plan: Plan, entry: SwappedTokens) -> float:
    """Return what the layout's own recomputation takes in a step, on its busiest rank."""
    return sum(line.seconds for line in plan.plans[entry.index].time if line.term == RECOMPUTATION)


def _row(plan: Plan, entry: SwappedTokens) -> tuple[str, ...]:
    return (
        str(entry.index),
        milliseconds(entry.step_seconds),
        signed_percent(entry.step_seconds / plan.plans[entry.index].step_seconds - 1.0),
        gib(entry.peak_memory_bytes),
        gib(entry.host_memory_bytes),
        milliseconds(entry.again_seconds),
        milliseconds(_recomputed_before(plan, entry)),
        milliseconds(entry.waiting_seconds),
    )
