"""Layouts beside the best one that the space leaves out, because they seldom pay and there are many of them.

The space has hybrid sharding at the fast domain's size only, and experts whose tensor-parallel degree is 1 or tp.
Around the best layout that was found every other number of groups and every other degree is priced, with its layers
where they are and whatever is recomputed of them, until none is better: ranks that hold less have room to keep more.
Nothing is proved of these layouts.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from planner.layout import STAGES_OUTERMOST, Granularity, Layout, Recompute
from planner.search.space.dimensions import divisors, partial_recompute_layers
from planner.search.space.enumeration import broken_rules
from planner.search.space.points import Scope, point_of_layout
from planner.search.splits.candidates import Candidate, PointBound, Pricer
from planner.search.splits.layer_choices import LayerChooser
from planner.search.splits.uneven import least_seconds

MOST_ROUNDS = 4
"""Times that neighbours of a better layout are looked at again. A choice, as nothing is proved of them anyway."""


def best_neighbour(pricer: Pricer, best: Candidate, scope: Scope) -> Candidate:
    """Return the best layout that moves along the dimensions which the space cuts short lead to from `best`."""
    for _ in range(MOST_ROUNDS):
        better = min(
            (
                candidate
                for neighbour in _neighbours(best.layout, scope)
                for layout in _recomputed(pricer, neighbour, scope)
                if (candidate := _priced_below(pricer, layout, best.step_seconds)) is not None
            ),
            key=lambda candidate: candidate.merit,
            default=best,
        )
        if better.step_seconds >= best.step_seconds:
            return best
        best = better
    return best


def _neighbours(layout: Layout, scope: Scope) -> Iterator[Layout]:
    """Yield legal layouts that shard in another number of groups, or whose experts have another degree of tp."""
    capabilities, has_experts = scope.capabilities, scope.graph.has_experts
    found: list[Layout] = []
    if capabilities.hybrid_sharding and layout.zero_stage and layout.secondary_shard == 1:
        *fewer, _ = divisors(layout.dp * layout.cp)  # groups of one rank would shard nothing
        found += [replace(layout, state_replicas=groups) for groups in fewer]
    if has_experts and "etp" not in scope.constraints.degrees and layout.rank_order == STAGES_OUTERMOST:
        found += [replace(layout, etp=etp) for etp in divisors(layout.stage_ranks // layout.ep)]
    found = [
        neighbour
        for neighbour in found
        if not has_experts
        or (neighbour.edp % neighbour.state_replicas == 0 and neighbour.edp > neighbour.state_replicas)
    ]
    for neighbour in found:
        if neighbour != layout and not broken_rules(point_of_layout(neighbour), scope):
            yield neighbour


def _recomputed(pricer: Pricer, layout: Layout, scope: Scope) -> Iterator[Layout]:
    """Yield a layout under every choice of what is recomputed that the user allows.

    Of some layers that are recomputed whole it is the fewest that fit. Where each layer has a choice of its own, it is
    made anew when the layout is priced (`_priced_below`). What waits on the hosts stays with what was recomputed beside
    it.
    """
    if layout.recompute.is_per_layer or layout.offloaded_layers or layout.offloaded_modules:
        yield layout
        return
    allowed = scope.constraints.recompute
    for choice in pricer.table.recomputes:
        if not choice.is_per_layer and (allowed is None or choice.granularity.value in allowed):
            yield replace(layout, recompute=choice)
    if scope.capabilities.partial_recompute and (allowed is None or Granularity.FULL.value in allowed):
        most = min(stage.num_layers for stage in layout.stages)
        counts = partial_recompute_layers(scope.model, num_stages=len(layout.stages))
        some = [
            replace(layout, recompute=Recompute(granularity=Granularity.FULL, num_layers=count))
            for count in counts
            if count <= most
        ]
        # The more are recomputed, the less room they take.
        first = bisect_left(
            some, -pricer.limit_bytes, key=lambda with_some: -pricer.prices(with_some).peak_bytes(with_some)
        )
        yield from some[first : first + 1]


def _priced_below(pricer: Pricer, layout: Layout, ceiling_seconds: float) -> Candidate | None:
    """Return a layout with its price, and what no split of its point undercuts on nodes in its order.

    None where it does not fit, or takes no less than `ceiling_seconds` by the work of its ranks alone. Layers that
    choose what they recompute do so anew.
    """
    prices = pricer.prices(layout)
    if layout.recompute.is_per_layer:
        layout = LayerChooser(prices, limit_bytes=pricer.limit_bytes).chosen(layout) or layout
    if prices.peak_bytes(layout) > pricer.limit_bytes or not pricer.hosts_hold(prices, layout):
        return None
    if prices.least_pipeline_seconds(layout) + prices.tail_seconds(layout) >= ceiling_seconds:
        return None
    candidate = pricer.candidate(layout, lower_bound_seconds=0.0)
    point, step_seconds = candidate.point, candidate.step_seconds
    if layout.pp == 1:
        bound_seconds = step_seconds
    elif layout.vpp > 1:
        nothing = PointBound(pipeline_seconds=0.0, tail_seconds=0.0)
        bound_seconds = least_seconds(pricer, point, bound=nothing, ceiling_seconds=step_seconds)
    else:
        prices = pricer.prices(point)
        bound_seconds = pricer.longest_path(pricer.problem(prices, generous=True), prices).least_seconds()
    return replace(candidate, lower_bound_seconds=min(bound_seconds, step_seconds))
