"""What a run feeds its layers in words: how experts are visited, and which documents sequences hold."""

from statistics import fmean

from planner.layout import Layout
from planner.requests.routing import Routing
from planner.requests.workload import DEFAULT_ROUTING_SKEW, DocumentLengths, TrainWorkload


def experts_in_words(layout: Layout, workload: TrainWorkload) -> str:
    """Return how routed experts are laid out, and how unevenly they are assumed to be visited."""
    grid = f"etp {layout.etp} x ep {layout.ep} x edp {layout.edp}"
    routing = workload.routing
    dropped = "" if routing is None else dropped_in_words(routing)
    if layout.ep == 1:
        return f"{grid}; every rank holds all of them{dropped}"
    if routing is not None:
        return f"{grid}; load of the busiest rank over the mean {loads_in_words(routing, layout.ep)}{dropped}"
    known = "assumed" if workload.routing_skew == DEFAULT_ROUTING_SKEW else "given"
    return f"{grid}; routing skew {workload.routing_skew:g} ({known}): load of the busiest rank over the mean"


def loads_in_words(routing: Routing, ep: int) -> str:
    """Return "1.43, 1.90 in layer 17 (counts.json)"."""
    loads, least = routing.loads(ep), routing.least_loads(ep)
    if routing.reroutes:
        return (
            f"1.00 by least-loaded rerouting, {fmean(routing.moved_L(ep)):.1f} experts sent a layer ({routing.source})"
        )
    said = f"{loads.mean:.2f}, {loads.worst:.2f} in layer {loads.worst_layer} ({routing.source})"
    if routing.reorders(ep):
        before = routing.in_order.loads(ep)
        said += f", experts reordered; {before.mean:.2f} and {before.worst:.2f} in their order"
    return said if least is None else f"{said}, at least {least.mean:.2f} in any order"


def dropped_in_words(routing: Routing) -> str:
    """Return "; capacity factor 1.25 drops 7.1 % of the choices of experts: results change", where there is one."""
    if routing.capacity_factor is None:
        return ""
    padded = " and pads" if routing.pads_to_capacity else ""
    return (
        f"; capacity factor {routing.capacity_factor:g} drops {routing.dropped_fraction * 100:.1f} % of the choices of "
        f"experts{padded}: results change"
    )


def documents_in_words(documents: DocumentLengths) -> str:
    """Return "packed documents of 1,234 tokens on average"."""
    return f"{documents.packing} documents of {documents.mean(float):,.0f} tokens on average"
