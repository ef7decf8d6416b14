"""What each framework cannot say of a layout, and what the nearest plan that it can say costs."""

from collections.abc import Sequence

from cli.render import Block, Item, Line, Style, Table, columns, milliseconds, section, signed_percent
from planner.decisions.target_differences import TargetDifference
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Plan


def target_blocks(plan: Plan, found: Sequence[TargetDifference], *, index: int) -> tuple[Block, ...]:
    """Return the frameworks beside a layout."""
    step = plan.plans[index].step_seconds
    rows = tuple(
        (
            entry.target.value,
            "no" if entry.refusal else "yes",
            _best(entry),
            _cost(entry, step),
        )
        for entry in found
    )
    blocks: list[Block] = [
        Line(f"Layout {index}: {layout_in_words(plan.plans[index].layout)}", Style.HEADING),
        Line(f"Its step takes {milliseconds(step)}, planned for {plan.target}."),
    ]
    blocks += section(
        "Frameworks", Table(columns=columns("target", "can say it", ">its best plan", ">cost"), rows=rows)
    )
    for entry in found:
        lines = []
        if entry.refusal:
            lines.append(f"It cannot say: {entry.refusal}")
        if entry.nearest is not None:
            lines.append(f"Its best plan: {layout_in_words(entry.nearest.layout)}.")
        else:
            lines.append(f"{'None found' if entry.is_open else 'No plan'}: {entry.why_none}")
        blocks += section(entry.title, *(Item(line) for line in lines))
    return tuple(blocks)


def _best(entry: TargetDifference) -> str:
    if entry.nearest is None:
        return "not found" if entry.is_open else "none"
    return milliseconds(entry.nearest.step_seconds)


def _cost(entry: TargetDifference, step_seconds: float) -> str:
    cost = entry.cost_fraction(step_seconds)
    return "" if cost is None else signed_percent(cost)


def target_document(plan: Plan, found: Sequence[TargetDifference], *, index: int) -> dict[str, object]:
    """Return the same as JSON."""
    planned = plan.plans[index]
    return {
        "layout": layout_in_words(planned.layout),
        "step_seconds": planned.step_seconds,
        "planned_for": plan.target.value,
        "targets": [
            {
                "target": entry.target.value,
                "title": entry.title,
                "refusal": entry.refusal,
                "nearest": None if entry.nearest is None else layout_in_words(entry.nearest.layout),
                "nearest_step_seconds": None if entry.nearest is None else entry.nearest.step_seconds,
                "cost_fraction": entry.cost_fraction(planned.step_seconds),
                "why_none": entry.why_none,
                "is_open": entry.is_open,
            }
            for entry in found
        ],
    }
