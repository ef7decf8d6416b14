"""What is left of a plan when nodes are lost: a new plan for the rest, or its own layouts with fewer replicas.

A new plan may take any number of the nodes that are left, since a batch that does not split over all of them runs
faster on fewer; the number is chosen by `planner.decisions.nodes`. It needs a checkpoint that another layout can load.

A layout that is kept gives up data-parallel replicas and nothing else: as many as it takes to fit the rest, to split
the batch and to fill whole nodes. Each is checked against every rule, memory included (fewer replicas hold larger
shards), and priced by the independent evaluator.

Where nodes differ it matters which are lost: every loss is planned for (`planner.decisions.losses`), and the worst one
is the answer. Layouts are not kept then: with fewer replicas they could take any of the nodes that are left.
"""

from dataclasses import replace

from planner.decisions.losses import losses_of
from planner.decisions.nodes import part_of, plan_nodes
from planner.errors import NotExpressibleError
from planner.evaluation.described import given_layout
from planner.evaluation.validate import violations
from planner.frameworks.capabilities import CAPABILITIES
from planner.inputs.contradictions import MOST_NODE_COUNTS
from planner.layout import Layout, Overlap
from planner.plans.choices import Degraded, KeptLayout, Spare
from planner.plans.plan import Plan, Status
from planner.requests.request import Bounds, Constraints, Objective
from planner.search.found import Watch
from planner.search.space.dimensions import zero_stage_alone
from planner.targets.registry import framework_of
from planner.units import GIB
from solvers.errors import SolverError


def spare_of(plan: Plan, *, num_lost: int, watch: Watch) -> Spare:
    """Return what is left of a plan when so many of its nodes are lost.

    Args:
        plan: A plan with layouts.
        num_lost: Nodes that are lost.
        watch: Called with (activity, done, of how many) as the search goes on.

    Raises:
        profiles.errors.CoverageError: An operation has no cost on fewer nodes.
    """
    if plan.cluster.unequal is not None:
        losses = losses_of(plan, num_lost=num_lost, watch=watch)
        worst = losses[0]
        return Spare(
            num_lost=num_lost,
            replanned=worst.replanned,
            reason=worst.reason,
            proven=worst.proven,
            kept=(),
            losses=losses,
        )
    left = plan.cluster.num_nodes - num_lost
    kept = tuple(_kept(plan, index, left=left) for index in range(len(plan.plans)))
    if left < 1:
        return Spare(num_lost=num_lost, replanned=None, reason="no node is left", proven=True, kept=kept)
    request = replace(
        plan.request,
        objective=Objective.STEP_TIME,
        deadline_days=None,
        node_counts=Bounds(minimum=max(1, left - MOST_NODE_COUNTS + 1)),
    )
    try:
        again = plan_nodes(plan.model, part_of(plan.cluster, left), request, top=1, watch=watch)
    except NotExpressibleError as error:
        return Spare(num_lost=num_lost, replanned=None, reason=error.message, proven=False, kept=kept)
    except SolverError as error:
        return Spare(num_lost=num_lost, replanned=None, reason=str(error), proven=False, kept=kept)
    all_counts = left <= MOST_NODE_COUNTS
    if again.infeasible is not None:
        reason = again.infeasible.binding
        return Spare(num_lost=num_lost, replanned=None, reason=reason, proven=all_counts, kept=kept)
    return Spare(
        num_lost=num_lost,
        replanned=_degraded(plan, again.best.layout, again.best.step_seconds, num_nodes=again.cluster.num_nodes),
        reason="",
        proven=again.status is Status.OPTIMAL and again.search.uneven_bound_seconds is None and all_counts,
        kept=kept,
    )


def _degraded(plan: Plan, layout: Layout, step_seconds: float, *, num_nodes: int) -> Degraded:
    return Degraded(
        num_nodes=num_nodes,
        layout=layout,
        step_seconds=step_seconds,
        lost_fraction=1.0 - plan.best.step_seconds / step_seconds,
    )


def _kept(plan: Plan, index: int, *, left: int) -> KeptLayout:
    """Return one layout of a plan with the most replicas that the nodes that are left can run."""
    layout = plan.plans[index].layout
    gpus = left * plan.cluster.gpus_per_node
    replica = layout.world_size // layout.dp
    most = min(layout.dp, gpus // replica)
    if most < 1:
        return KeptLayout(
            index=index, degraded=None, reason=f"one replica takes {replica} GPUs, {max(gpus, 0)} are left"
        )
    uneven = refused = ""
    for dp in range(most, 0, -1):
        reason = _indivisible(plan, layout, dp)
        if reason:
            uneven = uneven or reason
            continue
        found = _with_replicas(plan, layout, dp)
        if isinstance(found, Degraded):
            return KeptLayout(index=index, degraded=found)
        refused = refused or found
    return KeptLayout(index=index, degraded=None, reason=refused or uneven)


def _with_replicas(plan: Plan, layout: Layout, dp: int) -> Degraded | str:
    """Return a layout with another number of replicas, which comes out even, priced, or why it cannot be."""
    alone, capabilities = dp * layout.cp == 1, CAPABILITIES[plan.request.target]
    overlap = Overlap(grad_reduce=False, param_gather=False, p2p=layout.overlap.p2p) if alone else layout.overlap
    # States stay split over as many ranks in each group where these come out even, else over all.
    group = layout.dp * layout.cp // layout.state_replicas
    fewer = replace(
        layout,
        dp=dp,
        state_replicas=dp * layout.cp // group if dp * layout.cp % group == 0 else 1,
        num_microbatches=plan.request.workload.global_batch_size // (dp * layout.micro_batch_size),
        zero_stage=zero_stage_alone(plan.request.workload, capabilities) if alone else layout.zero_stage,
        overlap=overlap,
    )
    nodes = fewer.world_size // plan.cluster.gpus_per_node
    cluster = part_of(plan.cluster, nodes)
    request = replace(plan.request, constraints=Constraints())
    framework = framework_of(request.target)
    try:
        if framework is not None:
            framework.require_expressible(plan.model, request.workload, fewer, cluster)
    except NotExpressibleError as error:
        return error.message
    planned = given_layout(fewer, plan.model, cluster, request)
    if planned.peak_memory_bytes > planned.memory_limit_bytes:
        needed, allowed = planned.peak_memory_bytes / GIB, planned.memory_limit_bytes / GIB
        return f"dp {dp} needs {needed:,.2f} GiB a GPU, of {allowed:,.2f} GiB usable"
    broken = violations(planned, plan.model, cluster, request)
    if broken:
        return f"dp {dp}: {broken[0].message}"
    return _degraded(plan, fewer, planned.step_seconds, num_nodes=nodes)


def _indivisible(plan: Plan, layout: Layout, dp: int) -> str:
    """Return what so many replicas do not divide, or do not fill; nothing where all comes out even."""
    if layout.world_size // layout.dp * dp % plan.cluster.gpus_per_node:
        return f"dp {dp} does not fill whole nodes"
    if plan.request.workload.global_batch_size % (dp * layout.micro_batch_size):
        return f"dp {dp} does not split the batch"
    if layout.tp * layout.cp * dp % (layout.ep * layout.etp):
        return f"dp {dp} does not split the experts"
    return ""
