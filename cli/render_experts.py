"""A placement of experts: loads before and after, what a slot more would gain, what it sends between nodes."""

from cli.render import Block, Facts, Item, Line, Style, Table, columns, counted, gib, section, signed_percent
from planner.experts.decide import CLOSE, ExpertPlan, Placement
from planner.experts.request import MOST_EXTRA_SLOTS


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
        *section("Placement", *_chosen(plan)),
        *section("Loads, heaviest GPU over the mean", _before_and_after(plan)),
        *(section("What one more slot a GPU gains", _slots(plan)) if len(plan.choices) > 1 else ()),
        *section("Assumptions", *(Item(text) for text in assumptions(plan))),
    )


def _groups_in_words(plan: ExpertPlan) -> str:
    groups = plan.request.num_groups
    if groups == 1:
        return "none: experts may stand on any node"
    kept = "each within one node" if plan.request.keep_groups else "experts may stand on any node"
    return f"{groups} of {plan.histogram.num_experts // groups} experts, {kept}"


def _chosen(plan: ExpertPlan) -> tuple[Block, ...]:
    best, request = plan.best, plan.request
    slots = f"{best.slots_per_gpu} on each GPU, {counted(best.redundant, 'redundant expert')} a layer"
    taken = plan.slot_bytes(best.redundant)
    if taken is not None:
        slots += f", {gib(taken / request.num_gpus)} a GPU"
    pairs = [("slots", slots)]
    if request.redundant is None:
        why = f"the fewest within {CLOSE:.0%} of the best of {len(plan.choices)} numbers looked at"
        pairs.append(("chosen as", why if len(plan.choices) > 1 else "no slot more fits"))
    gap = best.scores.mean_imbalance / best.mean_bound - 1
    pairs.append(("bound", f"{ratio(best.mean_bound)} at least, whatever the placement: {gap:.1%} below this one"))
    return (Facts(pairs=tuple(pairs)),)


def _before_and_after(plan: ExpertPlan) -> Table:
    sends = plan.best.scores.sends_L is not None
    rows = [("in their order", plan.before), ("placed", plan.best)]
    return Table(
        columns=columns("experts", ">mean", ">worst layer", *((">sends a token",) if sends else ())),
        rows=tuple(
            (
                name,
                ratio(placement.scores.mean_imbalance),
                ratio(placement.scores.worst_imbalance),
                *_sends(placement),
            )
            for name, placement in rows
        ),
    )


def _sends(placement: Placement) -> tuple[str, ...]:
    sends = placement.scores.mean_sends
    return () if sends is None else (f"{sends:.2f}",)


def _slots(plan: ExpertPlan) -> Table:
    rows = []
    last: float | None = None
    for index, placement in enumerate(plan.choices):
        mean = placement.scores.mean_imbalance
        taken = plan.slot_bytes(placement.redundant)
        rows.append(
            (
                f"{placement.slots_per_gpu}{' *' if index == plan.chosen else ''}",
                str(placement.redundant),
                "" if taken is None else gib(taken / plan.request.num_gpus),
                ratio(mean),
                ratio(placement.mean_bound),
                "" if last is None else signed_percent(mean / last - 1),
            )
        )
        last = mean
    return Table(
        columns=columns("slots a GPU", ">redundant", ">memory a GPU", ">mean load", ">bound", ">gain"),
        rows=tuple(rows),
    )


def assumptions(plan: ExpertPlan) -> tuple[str, ...]:
    """Return what the figures rest on."""
    found = ["copies of an expert are taken evenly, and every layer counts the same"]
    if plan.histogram.assumed:
        found.append(f"the histogram is no recording; {plan.histogram.source}")
    if plan.best.scores.sends_L is not None:
        found.append(
            "sends: to how many other nodes a token goes a layer, once to each (DeepSeek-V3, arXiv 2412.19437, 3.2.2); "
            "groups, and experts within them, drawn independently by their loads"
        )
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
        "before": _scores(plan, plan.before),
        "chosen": {
            **_scores(plan, best),
            "layers": [
                {"layer": layer, "load_over_mean": imbalance, "load_over_mean_bound": bound}
                for layer, imbalance, bound in zip(
                    histogram.counted_layers.tolist(),
                    best.scores.imbalance_L.tolist(),
                    best.bound_L.tolist(),
                    strict=True,
                )
            ],
            "physical_to_logical_map": best.expert_LGS.reshape(histogram.num_layers, -1).tolist(),
        },
        "choices": [_scores(plan, choice) for choice in plan.choices],
        "assumptions": list(assumptions(plan)),
    }


def _scores(plan: ExpertPlan, placement: Placement) -> dict[str, object]:
    taken = plan.slot_bytes(placement.redundant)
    return {
        "slots_per_gpu": placement.slots_per_gpu,
        "num_redundant_experts": placement.redundant,
        "redundant_bytes_per_gpu": None if taken is None else taken // plan.request.num_gpus,
        "mean_load_over_mean": placement.scores.mean_imbalance,
        "worst_load_over_mean": placement.scores.worst_imbalance,
        "mean_load_over_mean_bound": placement.mean_bound,
        "mean_sends_per_token": placement.scores.mean_sends,
    }
