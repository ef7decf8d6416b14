"""What updates by turns would make of a layout with states on its hosts: Deep Optimizer States."""

from cli.render import Block, Facts, Line, milliseconds, percent, section
from planner.evaluation.interleaved_updates import InterleavedUpdates, has_updates_by_turns, interleaved_updates
from planner.offloading.interleaved import SUB_GROUP_ELEMENTS
from planner.plans.plan import Plan, PlannedLayout

TITLE = "Sub-groups updated by turns (Deep Optimizer States)"
NEEDS = "a key for updates that GPU and CPUs share; the authors' fork of DeepSpeed alone has one"
NO_ROOM = "Its GPUs or their hosts have no room for a sub-group on its way."


def turn_blocks(plan: Plan, *, index: int) -> tuple[Block, ...]:
    """Return what updates by turns would make of a layout; nothing where its states are not on the hosts."""
    planned = plan.plans[index]
    if not has_updates_by_turns(planned.layout):
        return ()
    found = interleaved_updates(plan, index=index)
    if found is None:
        return section(TITLE, Line(f"  {NO_ROOM}"))
    groups = f"every {_ordinal(found.stride)} of {found.num_groups} sub-groups of {SUB_GROUP_ELEMENTS:,} elements"
    facts = Facts(
        pairs=(
            ("on the hosts", f"{percent(found.fraction)} of the optimizer states"),
            ("updated on the GPU", f"{groups}, {percent(found.gpu_fraction)} of those states"),
            ("step time", milliseconds(found.step_seconds)),
            ("it needs", NEEDS),
        )
    )
    return section(TITLE, Line(f"  {verdict_in_words(planned, found)}"), facts)


def verdict_in_words(planned: PlannedLayout, found: InterleavedUpdates) -> str:
    """Return what the layout costs against updates by turns, in a sentence."""
    cost = planned.step_seconds / found.step_seconds - 1.0
    if cost <= 0.0:
        return "Updates by turns would gain nothing."
    return f"Without updates by turns a step takes {percent(cost)} longer."


def turns_document(plan: Plan, *, index: int) -> dict[str, object] | None:
    """Return the same as a document; None where there is nothing of the kind, or no room for it."""
    found = interleaved_updates(plan, index=index)
    if found is None:
        return None
    return {
        "cost_fraction": plan.plans[index].step_seconds / found.step_seconds - 1.0,
        "step_seconds": found.step_seconds,
        "offloaded_fraction": found.fraction,
        "stride": found.stride,
        "num_sub_groups": found.num_groups,
        "gpu_fraction": found.gpu_fraction,
    }


def _ordinal(number: int) -> str:
    """Return a number's place: "2nd", "13th"."""
    last = number % 10 if number % 100 not in {11, 12, 13} else 0
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(last, 'th')}"
