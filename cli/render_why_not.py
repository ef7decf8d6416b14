"""Answers to `--why-not`: what other settings cost, and where they lose their time, or why no layout has them."""

from cli.render import Block, Item, Line, gib, milliseconds, section, signed_percent
from cli.render_explain import comparison_facts
from cli.render_plan import peak_in_words
from cli.why_not import Answer
from planner.plans.comparison import Comparison, compare
from planner.plans.layout_words import layout_in_words
from planner.plans.plan import Infeasible, Plan
from planner.requests.request import Objective


def answer_blocks(plan: Plan, answer: Answer) -> tuple[Block, ...]:
    """Return one answer beside the plan that was found."""
    title = f"Why not {answer.question}"
    found = answer.plan
    if found is None:
        return section(title, *(Item(text) for text in answer.refusals))
    if found.infeasible is not None:
        return section(title, *_infeasible_lines(found.infeasible))
    words = Line(f"  {layout_in_words(found.best.layout)}")
    if not plan.plans:
        return section(title, words, Line(f"  {milliseconds(found.best.step_seconds)}: with these settings it fits."))
    comparison = _against(plan, found)
    if not comparison.differences:
        return section(title, Line("  The best layout has these settings."))
    verdict = f"{milliseconds(found.best.step_seconds)}, {signed_percent(comparison.change_fraction)} against the best"
    if comparison.change_seconds < 0 and plan.objective is Objective.ROBUST:
        verdict += " as predicted: the best one was chosen for its worst case"
    elif comparison.change_seconds < 0:
        verdict += ": it is faster, and the search had stopped before it came to it"
    return section(title, words, Line(f"  {verdict}."), *comparison_facts(comparison))


def _infeasible_lines(infeasible: Infeasible) -> tuple[Line, ...]:
    """Return what stands against all layouts with the settings, and how near one of them comes."""
    lines = [Line(f"  {infeasible.binding}")]
    if infeasible.shortfall_bytes:
        lines.append(Line(f"  {gib(infeasible.shortfall_bytes)} are missing on the heaviest rank."))
    if infeasible.nearest is not None:
        near = infeasible.nearest
        peak = f"{peak_in_words(near)}, of {gib(near.memory_limit_bytes)} usable"
        lines.append(Line(f"  Closest: {layout_in_words(near.layout)}; {peak}."))
    return tuple(lines)


def answer_document(plan: Plan, answer: Answer) -> dict[str, object]:
    """Return one answer as JSON; seconds and bytes, never rounded."""
    found = answer.plan
    document: dict[str, object] = {"question": answer.question, "refusals": list(answer.refusals)}
    if found is None:
        return document
    document["status"] = found.status.value
    if found.infeasible is not None:
        document["binding"] = found.infeasible.binding
        document["shortfall_bytes"] = found.infeasible.shortfall_bytes
        return document
    document["step_seconds"] = found.best.step_seconds
    document["layout"] = layout_in_words(found.best.layout)
    if plan.plans:
        comparison = _against(plan, found)
        document["change_seconds"] = comparison.change_seconds
        document["change_fraction"] = comparison.change_fraction
        document["differences"] = [
            {"setting": entry.setting, "value": entry.value, "best": entry.reference}
            for entry in comparison.differences
        ]
        document["terms"] = [
            {"term": entry.term, "seconds": entry.seconds, "best_seconds": entry.reference_seconds}
            for entry in comparison.terms
        ]
    return document


def _against(plan: Plan, found: Plan) -> Comparison:
    return compare(found.best, plan.best, index=None, is_baseline=False)
