"""A placement of experts: loads before and after, what slots, traffic and moves trade against them."""

from cli.render import Block, Facts, Item, Line, Style, Table, columns, counted, gib, percent, section, signed_percent
from planner.experts.decide import CLOSE, ExpertPlan
from planner.experts.placement import Placement
from planner.experts.request import MOST_EXTRA_SLOTS
from planner.units import GIB

LEAST_GAIN = 0.0005
"""Part of the load below which a slot gains nothing that a table shows."""


def ratio(value: float) -> str:
    """Return a load over the mean."""
    return f"{value:.3f}"


def experts_blocks(plan: ExpertPlan) -> tuple[Block, ...]:
    """Return what `experts` prints."""
    histogram, request = plan.histogram, plan.request
    layers = len(histogram.counted_layers)
    skipped = histogram.num_layers - layers
    where = f"{counted(request.num_gpus, 'GPU')} in {counted(request.num_nodes, 'node')}"
    return (
        Line(f"{counted(layers, 'layer')} of {histogram.num_experts} experts on {where}", Style.HEADING),
        Facts(
            pairs=(
                ("histogram", histogram.source),
                *((("left out", f"{counted(skipped, 'layer')} without any token"),) if skipped else ()),
                ("groups", _groups_in_words(plan)),
            )
        ),
        *section("Placement", _chosen(plan)),
        *section("Loads, heaviest GPU over the mean", _before_and_after(plan)),
        *(section("What one more slot a GPU gains", _slots(plan)) if len(plan.choices) > 1 else ()),
        *(section("The front of load and traffic", _front(plan)) if plan.front else ()),
        *(section("What moves gain", _moves(plan)) if plan.moves else ()),
        *section("Assumptions", *(Item(text) for text in assumptions(plan))),
    )


def _groups_in_words(plan: ExpertPlan) -> str:
    groups = plan.request.num_groups
    if groups == 1:
        return "none: experts may stand on any node"
    kept = "each within one node" if plan.request.keep_groups else "experts may stand on any node"
    return f"{groups} of {plan.histogram.num_experts // groups} experts, {kept}"


def _chosen(plan: ExpertPlan) -> Facts:
    best, request = plan.best, plan.request
    slots = f"{best.slots_per_gpu} on each GPU, {counted(best.redundant, 'redundant expert')} a layer"
    taken = plan.redundant_bytes_per_gpu(best)
    pairs = [("slots", slots if taken is None else f"{slots}, {gib(taken)} a GPU")]
    if request.redundant is None and not plan.moves:
        why = f"the fewest within {CLOSE * 100:.0f} % of the best of {len(plan.choices)} numbers looked at"
        pairs.append(("chosen as", why if len(plan.choices) > 1 else "no slot more fits"))
    if plan.front:
        weight = request.traffic_weight
        pairs.append(("traffic", f"weighs {weight:g} against the load over the mean"))
    if plan.moves:
        move = plan.moves[plan.chosen_move]
        within = "that may be moved" if request.most_moved_bytes is not None else "of all ways looked at"
        if request.move_weight is None:
            why = f"the fewest copies within {CLOSE * 100:.0f} % of the best {within}"
        else:
            why = f"the least load over the mean plus {request.move_weight:g} for a GiB moved to a GPU, {within}"
        pairs.append(("moves", f"{move.name}: {why}"))
    if plan.one_more is not None:
        pairs.append(("one more slot", _one_more(plan, plan.one_more)))
    gap = 1 - best.mean_bound / best.mean_imbalance
    pairs.append(("bound", f"{ratio(best.mean_bound)} at least, whatever the placement: {percent(gap)} below this one"))
    return Facts(pairs=tuple(pairs))


def _one_more(plan: ExpertPlan, more: Placement) -> str:
    """Return what one slot more on every GPU gains, and what that is for a GiB."""
    before = plan.choices[plan.chosen].mean_imbalance
    part = 1 - more.mean_imbalance / before
    taken = "" if plan.slot_bytes is None else f"takes {gib(plan.slot_bytes)} of every GPU and "
    if part < LEAST_GAIN:
        return f"{taken}gains nothing"
    each = "" if plan.slot_bytes is None else f": {percent(part * GIB / plan.slot_bytes)} for a GiB"
    return f"{taken}makes the mean load {ratio(more.mean_imbalance)} ({signed_percent(-part)}){each}"


def _traffic_header(plan: ExpertPlan) -> tuple[str, ...]:
    """Return the titles of the columns of traffic, where it is known."""
    headers = () if plan.best.leaves_node is None else (">leave node", ">leave GPU")
    if plan.best.traffic_L is None:
        return headers
    return (">split pairs" if plan.best.split_L is not None else ">sends a token", *headers)


def _traffic(placement: Placement) -> tuple[str, ...]:
    traffic = placement.mean_traffic
    shown = []
    if traffic is not None:
        shown.append(percent(traffic) if placement.split_L is not None else f"{traffic:.3f}")
    return (*shown, *(percent(share) for share in (placement.leaves_node, placement.leaves_gpu) if share is not None))


def _before_and_after(plan: ExpertPlan) -> Table:
    rows = [("present" if plan.moves else "in their order", plan.before), ("placed", plan.best)]
    return Table(
        columns=columns("experts", ">mean", ">worst layer", *_traffic_header(plan)),
        rows=tuple(
            (name, ratio(placement.mean_imbalance), ratio(placement.worst_imbalance), *_traffic(placement))
            for name, placement in rows
        ),
    )


def _slots(plan: ExpertPlan) -> Table:
    rows = []
    last: float | None = None
    for index, placement in enumerate(plan.choices):
        mean, taken = placement.mean_imbalance, plan.redundant_bytes_per_gpu(placement)
        rows.append(
            (
                f"{placement.slots_per_gpu}{' *' if index == plan.chosen else ''}",
                str(placement.redundant),
                "" if taken is None else gib(taken),
                ratio(mean),
                ratio(placement.mean_bound),
                "" if last is None else signed_percent(mean / last - 1),
            )
        )
        last = mean
    return Table(
        columns=columns("slots a GPU", ">redundant", ">memory a GPU", ">mean load", ">bound", ">change"),
        rows=tuple(rows),
    )


def _front(plan: ExpertPlan) -> Table:
    split = plan.best.split_L is not None
    return Table(
        columns=columns("weight", ">mean load", ">least", ">worst layer", *_traffic_header(plan), ">traffic at least"),
        rows=tuple(
            (
                f"{point.weight:g}",
                ratio(point.placement.mean_imbalance),
                ratio(point.placement.mean_bound),
                ratio(point.placement.worst_imbalance),
                *_traffic(point.placement),
                percent(point.least_traffic) if split else f"{point.least_traffic:.3f}",
            )
            for point in plan.front
        ),
    )


def _moves(plan: ExpertPlan) -> Table:
    rows = []
    for index, move in enumerate(plan.moves):
        taken = plan.copies_bytes(move.copies)
        rows.append(
            (
                f"{move.name}{' *' if index == plan.chosen_move else ''}",
                f"{move.copies:,}",
                "" if taken is None else gib(taken),
                ratio(move.placement.mean_imbalance),
                ratio(move.placement.worst_imbalance),
                *_traffic(move.placement),
            )
        )
    return Table(
        columns=columns("way", ">copies", ">moved", ">mean load", ">worst layer", *_traffic_header(plan)),
        rows=tuple(rows),
    )


def assumptions(plan: ExpertPlan) -> tuple[str, ...]:
    """Return what the figures rest on."""
    found = ["copies of an expert are taken evenly, and every layer counts the same"]
    if plan.histogram.assumed:
        found.append("the histogram is drawn, not recorded")
    memory = plan.request.memory
    if memory is not None and memory.assumed:
        found.append(f"an expert of one layer takes {memory.expert_bytes:,} bytes: {memory.assumed}")
    if plan.best.split_L is not None:
        found.append("split pairs: pairs of a token's experts that stand in two nodes, of all pairs counted")
    elif plan.best.sends_L is not None:
        found.append(
            "sends: to how many other nodes a token goes a layer, once to each (DeepSeek-V3, arXiv 2412.19437, 3.2.2); "
            "groups, and experts within them, drawn independently by their loads"
        )
    if plan.best.leaves_node is not None:
        found.append(
            "leave node, leave GPU: tokens whose experts of two neighbouring layers stand in two, of all counted"
        )
    if plan.front:
        found.append("traffic at least: of every placement in which no GPU carries more than in the point's")
    if len(plan.choices) > MOST_EXTRA_SLOTS:
        found.append(f"at most {MOST_EXTRA_SLOTS} slots a GPU more than the fewest are looked at")
    return tuple(found)


def experts_document(plan: ExpertPlan) -> dict[str, object]:
    """Return the same as JSON."""
    histogram, request, best = plan.histogram, plan.request, plan.best
    return {
        "histogram": histogram.source,
        "num_layers": histogram.num_layers,
        "num_experts": histogram.num_experts,
        "num_gpus": request.num_gpus,
        "num_nodes": request.num_nodes,
        "keep_groups": request.keep_groups,
        "traffic_weight": request.traffic_weight,
        "before": _scores(plan, plan.before),
        "chosen": {
            **_scores(plan, best),
            "layers": [
                {"layer": layer, "load_over_mean": imbalance, "load_over_mean_bound": bound}
                for layer, imbalance, bound in zip(
                    histogram.counted_layers.tolist(), best.imbalance_L.tolist(), best.bound_L.tolist(), strict=True
                )
            ],
            "physical_to_logical_map": best.expert_LGS.reshape(histogram.num_layers, -1).tolist(),
        },
        "one_more_slot": None
        if plan.one_more is None
        else {"taken_bytes_per_gpu": plan.slot_bytes, **_scores(plan, plan.one_more)},
        "choices": [_scores(plan, choice) for choice in plan.choices],
        "front": [
            {
                "traffic_weight": point.weight,
                "least_mean_traffic": point.least_traffic,
                **_scores(plan, point.placement),
            }
            for point in plan.front
        ],
        "moves": [
            {
                "name": move.name,
                "copies": move.copies,
                "moved_bytes": plan.copies_bytes(move.copies),
                "chosen": index == plan.chosen_move,
                **_scores(plan, move.placement),
            }
            for index, move in enumerate(plan.moves)
        ],
        "assumptions": list(assumptions(plan)),
    }


def _scores(plan: ExpertPlan, placement: Placement) -> dict[str, object]:
    return {
        "slots_per_gpu": placement.slots_per_gpu,
        "num_redundant_experts": placement.redundant,
        "redundant_bytes_per_gpu": plan.redundant_bytes_per_gpu(placement),
        "mean_load_over_mean": placement.mean_imbalance,
        "worst_load_over_mean": placement.worst_imbalance,
        "mean_load_over_mean_bound": placement.mean_bound,
        "mean_sends_per_token": placement.mean_sends,
        "leaves_node_fraction": placement.leaves_node,
        "leaves_gpu_fraction": placement.leaves_gpu,
        "mean_split_pairs_fraction": None if placement.split_L is None else float(placement.split_L.mean()),
    }
