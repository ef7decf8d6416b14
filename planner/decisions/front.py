"""The front of memory and time: layouts that no other beats in both, by lowering the memory limit step by step.

With T(L) the best step of a layout whose exact peak is at most L, the first point is the plan's best, at T of all
memory that may be used. From a point of peak m the next limit is m - d, d being the step: where the layout found there
takes longer, both are on the front, and what lies between them needs more than m - d (the epsilon-constraint method,
Haimes, Lasdon and Wismer 1971). It ends where it is proved that nothing fits.

Where GPUs differ in memory, L is a share of each GPU's own, and the peak of a layout the largest share that a GPU of it
uses; both are told as so many bytes of the GPU with most memory.

All searches stand on one ground: the points and their costs are those of the whole memory; bounds and splits of the
layers are anew for each limit. What is proved of a limit holds for every smaller one.
"""

from planner.evaluation.node_costs import pipeline_rank_limits
from planner.layout import Layout
from planner.memory.ledger import memory_ledger, peaks_of_ranks
from planner.plans.choices import Front, FrontPoint
from planner.plans.plan import Plan
from planner.ranks.placement import place
from planner.search.found import Watch
from planner.search.ground import Ground, ignore, prepare


def front_of(plan: Plan, *, num_steps: int, watch: Watch) -> Front:
    """Return the front of a plan's own cluster and request.

    Args:
        plan: A plan; its best layout is the first point.
        num_steps: The memory is lowered in so many steps.
        watch: Called with (activity, done, of how many) as the search goes on.

    Raises:
        profiles.errors.CoverageError: An operation has no cost.
        planner.errors.NotExpressibleError: The target has no way to say the model or the workload.
    """
    ground = prepare(plan.model, plan.cluster, plan.request)
    best = plan.best
    step_bytes = -(-ground.limit_bytes // num_steps)
    points = [
        FrontPoint(
            layout=best.layout,
            step_seconds=best.step_seconds,
            peak_memory_bytes=_peak_bytes(ground, best.layout),
            limit_bytes=ground.limit_bytes,
            bound_seconds=_proved_seconds(plan),
        )
    ]
    of_bytes = None if plan.cluster.has_one_memory else plan.cluster.most_memory_bytes
    limit = points[0].peak_memory_bytes - step_bytes
    while limit > 0:
        watch("lowering the memory", (ground.limit_bytes - limit) // step_bytes, num_steps)
        seen = ground.visit(top=1, watch=ignore, limit_bytes=limit)
        if not seen.candidates:
            undecided = seen.unsettled > 0 or seen.refusal is not None
            open_below = limit if undecided else None
            return Front(points=tuple(points), step_bytes=step_bytes, open_below_bytes=open_below, of_bytes=of_bytes)
        found = seen.candidates[0]
        bound = max(seen.any_split_bound_seconds, points[-1].bound_seconds)
        # A search that stopped with a gap may be beaten by one with less memory.
        while points and points[-1].step_seconds >= found.step_seconds:
            points.pop()
        points.append(
            FrontPoint(
                layout=found.layout,
                step_seconds=found.step_seconds,
                peak_memory_bytes=_peak_bytes(ground, found.layout),
                limit_bytes=limit,
                bound_seconds=min(bound, found.step_seconds),
            )
        )
        limit = points[-1].peak_memory_bytes - step_bytes
    return Front(points=tuple(points), step_bytes=step_bytes, open_below_bytes=None, of_bytes=of_bytes)


def _peak_bytes(ground: Ground, layout: Layout) -> int:
    """Return the peak of a layout; where GPUs differ in memory, the largest share, of the GPU with most memory."""
    cluster, workload = ground.cluster, ground.request.workload
    placed = place(ground.model, ground.scope.graph, layout, workload, ground.scope.capabilities)
    peaks_R = peaks_of_ranks(memory_ledger(placed))
    whole_R = pipeline_rank_limits(layout, cluster, headroom=0.0)
    return max(peak * cluster.most_memory_bytes // whole for peak, whole in zip(peaks_R, whole_R, strict=True))


def _proved_seconds(plan: Plan) -> float:
    """Return what no layout on the plan's nodes undercuts, however its layers are split."""
    chosen = plan.node_choice.chosen if plan.node_choice is not None else None
    if chosen is not None and chosen.bound_seconds is not None:
        return min(chosen.bound_seconds, plan.best.step_seconds)
    assert plan.gap is not None, "a plan with layouts has a gap"
    proved, uneven = plan.best.step_seconds * (1.0 - plan.gap), plan.search.uneven_bound_seconds
    return proved if uneven is None else min(proved, uneven)
