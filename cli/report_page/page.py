"""The page of a plan: what was planned, how sure that is, the layout in figures and pictures, why not another one."""

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from cli.render import count, counted, duration, gib, milliseconds, percent
from cli.render_choices import choice_sections
from cli.render_explain import comparison_facts, limits
from cli.render_plan import (
    assumption_blocks,
    header,
    infeasible_blocks,
    layout_facts,
    objective_in_words,
    others_blocks,
    search_blocks,
    verdict,
)
from cli.render_schedules import schedule_sections
from cli.render_tokens import token_sections
from cli.report_page.frame import framed, tiles_element
from cli.report_page.layouts_plot import Point, band_elements, pareto_elements
from cli.report_page.markup import block_elements, element, folded, headed
from cli.report_page.memory_bars import memory_elements
from cli.report_page.pipeline_picture import pipeline_elements
from cli.report_page.rank_map import rank_map_elements
from cli.report_page.time_bars import time_elements
from planner.evaluation.evaluate import Evaluation
from planner.plans.comparison import Comparison, compare_all
from planner.plans.plan import Plan

SAME_TIME = 1e-9
"""Relative difference of two step times that are the same computation on two processors."""


def report_page(plan: Plan, evaluation: Evaluation | None) -> str:
    """Return the page of a plan.

    Args:
        plan: The plan.
        evaluation: Its best layout evaluated again, for the timeline; None of a plan that holds no layout.
    """
    title = f"{plan.model.name} on {plan.cluster.name}"
    lead = (
        *block_elements(header(plan)[:1], heading="p"),
        *block_elements((*header(plan)[1:], *verdict(plan))),
        *_certificate(plan),
        *_tiles(plan),
    )
    return framed(title, lead=lead, sections=_sections(plan, evaluation))


def _certificate(plan: Plan) -> Iterator[ET.Element]:
    """Yield what was compared with what, in words."""
    search = plan.search
    if plan.bound is not None and plan.gap is not None:
        bound = objective_in_words(plan.objective, plan.bound)
        yield element(
            "p",
            f"Bound: no layout searched has a {plan.objective.value} better than {bound}. Gap: {percent(plan.gap)}.",
        )
    pruned = sorted(search.pruned.items(), key=lambda entry: (-entry[1], entry[0]))
    if pruned:
        reason, number = pruned[0]
        yield element(
            "p",
            f"{counted(sum(search.pruned.values()), 'layout')} fell to {counted(len(pruned), 'reason')}, most "
            f"({count(number)}) to: {reason}. ",
            element("a", "All reasons", href="#search"),
        )


def _tiles(plan: Plan) -> Iterator[ET.Element]:
    """Yield the figures that one looks for first; none without a layout."""
    if not plan.plans:
        return
    best = plan.best
    tiles = [
        (
            "step time",
            milliseconds(best.step_seconds),
            "" if plan.certainty is None else " to ".join(map(milliseconds, plan.certainty.band_seconds(best))),
        ),
        ("throughput", f"{best.tokens_per_second_per_gpu:,.1f} tokens/s/GPU", f"MFU {percent(best.mfu)}"),
        ("peak memory", gib(best.peak_memory_bytes), f"of {gib(best.memory_limit_bytes)} usable"),
    ]
    if plan.days_to_train is not None:
        hours = plan.days_to_train * 24 * plan.cluster.world_size
        tiles.append(("whole run", duration(plan.days_to_train), f"{hours:,.0f} GPU hours"))
    yield tiles_element(tiles)


def _sections(plan: Plan, evaluation: Evaluation | None) -> Iterator[ET.Element]:
    """Yield the sections in reading order."""
    gpu_bytes = plan.cluster.most_memory_bytes
    if plan.infeasible is not None:
        why = "Why none meets the deadline" if plan.infeasible.misses_deadline else "Why nothing fits"
        yield headed(why, *block_elements(infeasible_blocks(plan.infeasible)[2:]), anchor="infeasible")
        nearest = plan.infeasible.nearest
        if nearest is not None:
            memory = memory_elements(nearest.memory, limit_bytes=nearest.rank_limits, gpu_bytes=gpu_bytes)
            yield headed(
                "Memory of the fastest layout" if plan.infeasible.misses_deadline else "Memory of the closest attempt",
                *memory,
                anchor="memory",
            )
    if plan.plans:
        assert evaluation is not None, "a plan with a layout comes with its timeline"
        yield from _best_sections(plan, evaluation)
    beside = (*choice_sections(plan), *schedule_sections(plan, every=True), *token_sections(plan, every=True))
    for number, (title, blocks) in enumerate(beside):
        yield headed(title, *block_elements(blocks), anchor=f"beside-{number}")
    yield headed("Search", *block_elements(search_blocks(plan.search)[2:]), anchor="search")
    if plan.plans:
        assumed = assumption_blocks(plan, plan.best)[2:]
        if assumed:
            yield headed("Assumptions", *block_elements(assumed), anchor="assumptions")


def _best_sections(plan: Plan, evaluation: Evaluation) -> Iterator[ET.Element]:
    """Yield what is said of the best layout, and of those beside it."""
    best, points = plan.best, layout_points(plan)
    limiting = element("ul", *(element("li", text) for text in limits(best)))
    yield headed("Best layout", *block_elements(layout_facts(plan, best)), limiting, anchor="best")
    yield headed("Step time and its band", *band_elements(points, plan.certainty), anchor="band")
    yield headed("Where the time goes", *time_elements(best), anchor="time")
    memory = memory_elements(best.memory, limit_bytes=best.rank_limits, gpu_bytes=plan.cluster.most_memory_bytes)
    yield headed("Memory by rank and phase", *memory, anchor="memory")
    drawn = pipeline_elements(evaluation, best.layout)
    yield headed("The step, drawn", *_drift(plan, evaluation), *drawn, anchor="pipeline")
    nodes = rank_map_elements(best.layout, gpus_per_node=plan.cluster.gpus_per_node, has_experts=plan.model.has_experts)
    yield headed("Ranks on nodes", *_places(plan), *nodes, anchor="ranks")
    others = [_comparison(comparison) for comparison in compare_all(plan)]
    yield headed("Runners-up and baseline", *block_elements(others_blocks(plan)[2:]), *others, anchor="others")
    yield headed("Memory against time", *pareto_elements(points, limit_bytes=best.memory_limit_bytes), anchor="pareto")


def _places(plan: Plan) -> Iterator[ET.Element]:
    """Yield what the numbers of nodes mean where nodes differ."""
    if plan.best.on_nodes is not None:
        yield element("p", "Nodes are numbered by their place in the node order of the layout, from 0 on.")


def _comparison(comparison: Comparison) -> ET.Element:
    """Return one other layout, to open: what differs, and which terms change by how much."""
    title = "Against the " + _name(comparison)
    return folded(title, *block_elements(comparison_facts(comparison)))


def _name(comparison: Comparison) -> str:
    """Return "runner-up 1", "baseline" or both."""
    names = [f"runner-up {comparison.index}"] if comparison.index is not None else []
    return ", ".join([*names, *(["baseline"] * comparison.is_baseline)])


def layout_points(plan: Plan) -> tuple[Point, ...]:
    """Return every layout of a plan as a point, the best first."""
    points = [Point(label="best", seconds=plan.best.step_seconds, num_bytes=plan.best.peak_memory_bytes)]
    for comparison in compare_all(plan):
        planned = comparison.planned
        points.append(Point(label=_name(comparison), seconds=planned.step_seconds, num_bytes=planned.peak_memory_bytes))
    return tuple(points)


def _drift(plan: Plan, evaluation: Evaluation) -> Iterator[ET.Element]:
    """Yield a warning when the plan was made with other costs than those of today."""
    planned = plan.best.reevaluated_step_seconds
    if abs(evaluation.step_seconds - planned) > SAME_TIME * planned:
        yield element(
            "p",
            f"The picture is simulated with today's costs and takes {milliseconds(evaluation.step_seconds)}; the plan, "
            f"made with others, says {milliseconds(planned)}. Plan again.",
            class_="bad",
        )
