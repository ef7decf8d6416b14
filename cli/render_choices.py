"""What a plan says beside its layouts: numbers of nodes, the front of memory and time, lost nodes, slow operations."""

from itertools import groupby

from cli.render import (
    Block,
    Line,
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
)
from planner.plans.choices import Degraded, Front, NodeChoice, NodeCount, NodeVerdict, Robustness, SlowCase, Spare
from planner.plans.layout_words import layout_in_words, stages_in_words
from planner.plans.plan import Plan

NUMBERLESS = (NodeVerdict.NO_LAYOUT, NodeVerdict.REFUSED, NodeVerdict.NOT_NEEDED)
"""Verdicts of which a run of numbers is one line."""


def choice_blocks(plan: Plan) -> tuple[Block, ...]:
    """Return all that was asked beside the layouts; nothing where nothing was."""
    return tuple(block for title, blocks in choice_sections(plan) for block in section(title, *blocks))


def choice_sections(plan: Plan) -> tuple[tuple[str, tuple[Block, ...]], ...]:
    """Return each answer beside the layouts under its title."""
    sections: list[tuple[str, tuple[Block, ...]]] = []
    if plan.robustness is not None:
        sections.append(("If some operations are slower than predicted", _robust_blocks(plan, plan.robustness)))
    if plan.node_choice is not None:
        sections.append(("Numbers of nodes", _node_blocks(plan, plan.node_choice)))
    if plan.front is not None:
        sections.append(("The front of memory and time", _front_blocks(plan.front)))
    if plan.spare is not None:
        sections.append((f"With {counted(plan.spare.num_lost, 'node')} lost", _spare_blocks(plan, plan.spare)))
    return tuple(sections)


def _node_blocks(plan: Plan, choice: NodeChoice) -> tuple[Block, ...]:
    """Return every number of nodes with its best step, what it is worth, and why it is not the best."""
    has_run = plan.request.workload.tokens_to_train is not None
    has_price = has_run and plan.cluster.price_per_gpu_hour is not None
    headers = [
        ">nodes",
        ">GPUs",
        ">step time",
        *((">whole run",) if has_run else ()),
        *((">cost",) if has_price else ()),
        *((">energy",) if has_run else ()),
        ">no less than",
        "verdict",
    ]
    rows: list[tuple[str, ...]] = []
    blanks = ("",) * (len(headers) - 3)
    for key, run in groupby(choice.counts, key=_of_one_line):
        counts = list(run)
        if key is None:
            rows += [_node_row(plan, entry, has_run=has_run, has_price=has_price) for entry in counts]
            continue
        first, last = counts[0].num_nodes, counts[-1].num_nodes
        per_node = plan.cluster.gpus_per_node
        numbers = str(first) if first == last else f"{first} to {last}"
        gpus = count(first * per_node) if first == last else f"{count(first * per_node)} to {count(last * per_node)}"
        rows.append((numbers, gpus, *blanks, key.value))
    table = Table(columns=columns(*headers, spare=("GPUs", "no less than", "energy")), rows=tuple(rows))
    return (table, Line(f"  {_proof_in_words(plan, choice)}"))


def _of_one_line(entry: NodeCount) -> NodeVerdict | None:
    return entry.verdict if entry.verdict in NUMBERLESS else None


def _node_row(plan: Plan, entry: NodeCount, *, has_run: bool, has_price: bool) -> tuple[str, ...]:
    seconds = entry.step_seconds
    run = None if seconds is None else plan.run_with(seconds, num_nodes=entry.num_nodes)
    cells = [
        str(entry.num_nodes),
        count(entry.num_nodes * plan.cluster.gpus_per_node),
        "" if seconds is None else milliseconds(seconds),
    ]
    if has_run:
        cells.append("" if run is None else duration(run.days))
    if has_price:
        cells.append("" if run is None or run.cost is None else f"{run.cost:,.0f}")
    if has_run:
        cells.append("" if run is None else energy(run.joules))
    cells.append("" if entry.bound_seconds is None else milliseconds(entry.bound_seconds))
    return (*cells, entry.verdict.value)


def _proof_in_words(plan: Plan, choice: NodeChoice) -> str:
    """Return what is known of the numbers that were not chosen."""
    chosen = choice.chosen
    if chosen is None:
        return "Each number was ruled out by a bound of all its layouts, or searched."
    nodes = counted(chosen.num_nodes, "node")
    if choice.proven:
        return f"{nodes}, proven: every other number is ruled out by a bound of all its layouts, or by its own best."
    return (
        f"{nodes}, not proven: on some other number a better layout is not ruled out (best {plan.objective.value} by"
        " what was found)."
    )


def _front_blocks(front: Front) -> tuple[Block, ...]:
    """Return the front of memory and time, the fastest layout first."""

    def memory(num_bytes: int) -> str:
        """Return bytes, or where GPUs differ the share of each GPU's own memory."""
        return gib(num_bytes) if front.of_bytes is None else percent(num_bytes / front.of_bytes)

    best = front.points[0].step_seconds
    table = Table(
        columns=columns(
            ">peak memory" if front.of_bytes is None else ">share of memory",
            ">step time",
            ">vs best",
            ">gap",
            "layout",
            "layers per stage",
            spare=("layers per stage", "gap"),
        ),
        rows=tuple(
            (
                memory(point.peak_memory_bytes),
                milliseconds(point.step_seconds),
                signed_percent(point.step_seconds / best - 1.0),
                percent(point.gap),
                layout_in_words(point.layout),
                stages_in_words(point.layout.stages),
            )
            for point in front.points
        ),
    )
    below = front.open_below_bytes
    nothing_bytes = front.points[-1].peak_memory_bytes - front.step_bytes
    if below is not None:
        end = f" What fits into {memory(below)} is not decided."
    else:
        end = f" Nothing fits into {memory(nothing_bytes)}." if nothing_bytes > 0 else ""
    return (
        table,
        Line(
            f"  No layout searched needs less memory and is faster, up to its gap; others may lie between two of them,"
            f" within {memory(front.step_bytes)} of the upper one.{end}"
        ),
        *(() if front.of_bytes is None else (Line("  Shares are of each GPU's own memory; the tightest GPU counts."),)),
    )


def _spare_blocks(plan: Plan, spare: Spare) -> tuple[Block, ...]:
    """Return what a plan goes on as when nodes are lost."""
    if spare.losses:
        return _loss_blocks(plan, spare)
    again = "planned anew"
    rows = [_degraded_row(again, spare.replanned, spare.reason)]
    rows += [_degraded_row(f"layout {entry.index} kept", entry.degraded, entry.reason) for entry in spare.kept]
    table = Table(columns=columns("restart", ">nodes", ">step time", ">lost", "layout"), rows=tuple(rows))
    best = min(
        (entry for entry in spare.kept if entry.degraded is not None),
        key=lambda entry: entry.degraded.step_seconds if entry.degraded is not None else 0.0,
        default=None,
    )
    lines = [Line("  Lost: of layout 0's tokens a second on all nodes. A layout that is kept has fewer replicas.")]
    if best is not None and best.degraded is not None:
        nominal = plan.plans[best.index].step_seconds / plan.best.step_seconds - 1.0
        certainty = plan.certainty
        alike = best.index > 0 and certainty is not None and best.index in certainty.could_swap(plan.plans)
        lines.append(
            Line(
                f"  Layout {best.index} loses least without a new layout: {percent(best.degraded.lost_fraction)}; with"
                f" all nodes it takes {signed_percent(nominal)} against the best"
                f"{', within the band of their ratio' if alike else ''}."
            )
        )
    else:
        lines.append(Line("  None of the layouts can go on with fewer replicas: a restart needs a new one."))
    if spare.replanned is not None and not spare.proven:
        lines.append(Line("  That no layout on the nodes left is faster is not proved."))
    return (table, *lines)


def _loss_blocks(plan: Plan, spare: Spare) -> tuple[Block, ...]:
    """Return what is planned anew for each loss of nodes that differ."""
    rows = []
    for loss in spare.losses:
        name = _nodes_in_words(plan, loss.nodes)
        alike = f", or {loss.num_alike - 1} like it" if loss.num_alike > 1 else ""
        rows.append(_degraded_row(f"{name}{alike}", loss.replanned, loss.reason))
    table = Table(columns=columns("lost", ">nodes", ">step time", ">lost speed", "layout"), rows=tuple(rows))
    lines = [
        Line("  Lost speed: of layout 0's tokens a second on all nodes. Each row is planned anew on the nodes left."),
        Line(f"  The worst loss is that of {_nodes_in_words(plan, spare.losses[0].nodes)}."),
    ]
    if not all(loss.proven for loss in spare.losses):
        lines.append(Line("  That no layout on the nodes left is faster is not proved of every loss."))
    return (table, *lines)


def _nodes_in_words(plan: Plan, nodes: tuple[int, ...]) -> str:
    """Return nodes by their names, or by their numbers: "gpu01 gpu03", "node 0", "nodes 0 2"."""
    unequal = plan.cluster.unequal
    if unequal is not None and unequal.names:
        return " ".join(unequal.names[node] for node in nodes)
    return f"{'node' if len(nodes) == 1 else 'nodes'} {' '.join(map(str, nodes))}"


def _degraded_row(name: str, degraded: Degraded | None, reason: str) -> tuple[str, ...]:
    if degraded is None:
        return (name, "", "", "100.0 %", reason)
    return (
        name,
        str(degraded.num_nodes),
        milliseconds(degraded.step_seconds),
        percent(degraded.lost_fraction),
        layout_in_words(degraded.layout),
    )


def _robust_blocks(plan: Plan, robustness: Robustness) -> tuple[Block, ...]:
    """Return what the chosen layout takes and loses in each case, and what the fastest one would."""
    same = robustness.fastest == plan.best.layout
    headers = ["slower", ">by", ">best then", ">layout 0", ">loses", *(() if same else (">the fastest loses",))]
    rows = []
    for case in robustness.cases:
        cells = [
            case.slow or "nothing",
            f"{100 * (case.factor - 1.0):.0f} %" if case.slow else "",
            milliseconds(case.best_seconds),
            milliseconds(case.seconds_P[0]),
            percent(case.loss_P[0]),
        ]
        rows.append((*cells, *(() if same else (percent(case.fastest_loss),))))
    table = Table(columns=columns(*headers, spare=("best then",)), rows=tuple(rows))
    worst, longest = robustness.worst(0), max(robustness.cases, key=lambda case: case.seconds_P[0])
    loss = worst.loss_P[0]
    if loss > 0.0:
        lines = [Line(f"  Layout 0 loses at most {percent(loss)} against the best layout, {_case_in_words(worst)}.")]
    else:
        lines = [Line("  Layout 0 is the best in every case.")]
    lines.append(Line(f"  It takes at most {milliseconds(longest.seconds_P[0])}, {_case_in_words(longest)}."))
    if not same:
        other = robustness.fastest_worst
        lines.append(
            Line(
                f"  The fastest as predicted loses up to {percent(other.fastest_loss)}, {_case_in_words(other)}:"
                f" {layout_in_words(robustness.fastest)}; layers per stage"
                f" {stages_in_words(robustness.fastest.stages)}."
            )
        )
    elif loss > 0.0:
        lines.append(Line("  It is also the fastest as predicted."))
    uneven = robustness.uneven_least_loss
    if uneven is not None:
        lines.append(
            Line(
                "  Interleaved stages: as even as can be, and the best of each case; others may do up to"
                f" {percent((loss - uneven) / (1.0 + loss))} better in their worst case."
            )
        )
    if any(case.bound_seconds < case.best_seconds * (1.0 - PROVEN) for case in robustness.cases):
        lines.append(Line("  Best then: the best that was found; that it is the best is not proved in every case."))
    return (table, *lines)


PROVEN = 1e-6
"""A best step within so much of its bound is proved."""


def _case_in_words(case: SlowCase) -> str:
    if not case.slow:
        return "as predicted"
    return f"with {case.slow} slower by {100 * (case.factor - 1.0):.0f} %"
