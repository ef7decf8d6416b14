"""Every rule that a finished plan must obey; all violations are returned, not the first.

Rules of a layout stand in `layout_rules` (its shape), `offload_rules` and `request_rules` (the target, the user's
constraints); those of the plan around it, its ledgers, orders and price, stand here. All are written apart from the
search: `planner.search.space.enumeration` rules points out by arrays of degrees, here one layout is looked at and asked
again, in whole numbers. Nothing of it may import the space, its costs, its formulation or the solvers.
"""

from collections.abc import Iterator

from planner.evaluation.layout_rules import shape_violations
from planner.evaluation.node_costs import pipeline_rank_limits
from planner.evaluation.offload_rules import offload_violations
from planner.evaluation.request_rules import pin_violations, target_violations
from planner.evaluation.violation import Violation
from planner.experts.of_model import routed_experts
from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Layout
from planner.memory.ledger import peaks_of_ranks
from planner.models.graph import ModelGraph
from planner.models.layers import build_graph
from planner.models.specs import ModelSpec
from planner.plans.plan import PlannedLayout
from planner.requests.expert_orders import order_error
from planner.requests.request import PlanRequest
from profiles.hardware import Cluster

PRICE_TOLERANCE = 1e-9
"""Search and evaluator add the same numbers in another order; a larger relative gap means that one of them errs."""


def violations(
    planned: PlannedLayout, model: ModelSpec, cluster: Cluster, request: PlanRequest
) -> tuple[Violation, ...]:
    """Return every rule that `planned` breaks."""
    graph = build_graph(model, request.workload, eager=CAPABILITIES[request.target].eager)
    return (
        *layout_violations(planned.layout, model, graph, cluster, request),
        *_unequal_nodes(planned, cluster, request),
        *_expert_order(planned, model, request),
        *_price(planned),
    )


def layout_violations(
    layout: Layout, model: ModelSpec, graph: ModelGraph, cluster: Cluster, request: PlanRequest
) -> Iterator[Violation]:
    """Yield every rule that a layout breaks, whatever it takes, one after the other.

    Args:
        layout: The layout.
        model: The model.
        graph: Its operators.
        cluster: The cluster.
        request: What was asked for.
    """
    yield from shape_violations(layout, model, graph, cluster, request)
    yield from offload_violations(layout, graph, request.workload)
    yield from target_violations(layout, graph, request)
    yield from pin_violations(layout, request.constraints)


def _unequal_nodes(planned: PlannedLayout, cluster: Cluster, request: PlanRequest) -> Iterator[Violation]:
    """Yield an order of other nodes than the cluster's, and GPUs that hold more than their own memory."""
    layout = planned.layout
    count = 0 if cluster.unequal is None else cluster.num_nodes
    if layout.node_order and len(layout.node_order) != count:
        yield Violation(rule="node-order", message=f"node_order {layout.node_order} of {count} nodes that differ")
    elif count and layout.world_size == cluster.world_size:
        limits_R = pipeline_rank_limits(layout, cluster, headroom=request.memory_headroom)
        peaks_R = peaks_of_ranks(planned.memory)
        if len(peaks_R) != layout.pp:
            yield Violation(rule="memory", message=f"a ledger of {len(peaks_R)} of {layout.pp} pipeline ranks")
        for rank, (peak, limit) in enumerate(zip(peaks_R, limits_R, strict=False)):
            if peak > limit:
                yield Violation(
                    rule="memory", message=f"pipeline rank {rank}: {peak} bytes needed, {limit} allowed on its GPUs"
                )


def _expert_order(planned: PlannedLayout, model: ModelSpec, request: PlanRequest) -> Iterator[Violation]:
    """Yield an order of experts that is none, or that loads ranks less than any order can."""
    routing, ep = request.workload.routing, planned.layout.ep
    order = None if routing is None else routing.order(ep)
    if routing is None or order is None:
        return
    for layer, order_E in zip(routing.layers, order.order_LE(routing.num_experts), strict=True):
        error = order_error(
            order_E, num_experts=routing.num_experts, num_groups=routed_experts(model).router.limiting_groups
        )
        if error:
            yield Violation(rule="expert-order", message=f"the order of the experts of layer {layer} {error}")
    loads, least = routing.loads(ep).factor_L, order.least_L
    for layer, load, bound in zip(routing.layers, loads, least, strict=True):
        if load < bound:
            yield Violation(rule="expert-order", message=f"layer {layer} has a load of {load}, below {bound} at least")


def _price(planned: PlannedLayout) -> Iterator[Violation]:
    """Yield ledgers above their limits or for another layout, and a step that search and evaluator price apart."""
    if planned.peak_memory_bytes > planned.memory_limit_bytes:
        yield Violation(
            rule="memory", message=f"{planned.peak_memory_bytes} bytes needed, {planned.memory_limit_bytes} allowed"
        )
    host = planned.host_memory
    if host is not None and host.num_bytes > host.limit_bytes:
        yield Violation(
            rule="host-memory", message=f"{host.num_bytes} bytes needed on a node, {host.limit_bytes} are there"
        )
    drives = planned.drive_memory
    if drives is not None and drives.num_bytes > drives.limit_bytes:
        yield Violation(
            rule="drives", message=f"{drives.num_bytes} bytes needed on a node's drives, {drives.limit_bytes} are there"
        )
    if (drives is not None) != planned.layout.uses_drives:
        yield Violation(rule="drives", message="the ledger of the drives and the layout's offload do not agree")
    if (host is None) == planned.layout.uses_hosts:
        yield Violation(rule="host-memory", message="the ledger of the host and the layout's offload do not agree")
    gap = abs(planned.step_seconds - planned.reevaluated_step_seconds)
    if gap > PRICE_TOLERANCE * planned.reevaluated_step_seconds:
        yield Violation(
            rule="price",
            message=f"searched at {planned.step_seconds} s, evaluated at {planned.reevaluated_step_seconds} s",
        )
