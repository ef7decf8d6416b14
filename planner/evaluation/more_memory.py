"""What a GPU with a little more memory would gain where a part of the optimizer's states is on the hosts.

The same layout keeps as many states on its GPUs as then fit; the independent ledger says which part has to go, and the
independent evaluator what the step takes. Another layout might gain more: that is a plan of its own.
"""

from bisect import bisect_left
from dataclasses import dataclass, replace

from planner.evaluation.described import given_layout, placed_alone
from planner.layout import Layout
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.offloading.states import goes_whole
from planner.plans.plan import Plan
from planner.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Gained:
    """A layout with less of its states on the hosts.

    Args:
        more_bytes: Memory that each GPU has more.
        fraction: Part of the states that is on the hosts then; 0 for none.
        step_seconds: What its step takes.
    """

    more_bytes: int
    fraction: float
    step_seconds: float


def gained_by_memory(plan: Plan, *, index: int, more_bytes: int = GIB) -> Gained | None:
    """Return what a layout gains with more memory; None where no states could come back, or nothing is won by it.

    Args:
        plan: A plan with layouts.
        index: Which of them.
        more_bytes: Memory that each GPU has more.

    Raises:
        profiles.errors.CoverageError: Something has no cost.
    """
    planned = plan.plans[index]
    layout = planned.layout
    if layout.offload is None or layout.parameters_offloaded or layout.offload.drives:
        return None
    parts = [part for part in _parts(plan) if part < layout.offloaded_fraction and not (part and goes_whole(layout))]
    limit = planned.memory_limit_bytes + more_bytes

    def fits(part: float) -> int:
        placed, _ = placed_alone(_with_part(layout, part), plan.model, plan.cluster, plan.request)
        return int(peak_memory_bytes(memory_ledger(placed)) <= limit)

    least = bisect_left(parts, 1, key=fits)
    if least == len(parts):
        return None
    found = given_layout(_with_part(layout, parts[least]), plan.model, plan.cluster, plan.request)
    if found.step_seconds >= planned.step_seconds:
        return None
    return Gained(more_bytes=more_bytes, fraction=parts[least], step_seconds=found.step_seconds)


def _parts(plan: Plan) -> list[float]:
    """Return the parts that the user allows on the hosts, ascending."""
    pinned = plan.request.constraints.optimizer_offload
    return sorted(pinned) if pinned is not None else [percent / 100 for percent in range(101)]


def _with_part(layout: Layout, part: float) -> Layout:
    assert layout.offload is not None, "states are on the hosts"
    return replace(layout, offload=replace(layout.offload, optimizer_fraction=part) if part else None)
