"""What other pipeline schedules would make of a plan: the best that fits, and the fastest beside it."""

from cli.render import Block, Facts, Item, Line, Table, columns, gib, milliseconds, percent, section, signed_percent
from planner.plans.plan import OffloadedSchedule, OtherSchedules, Plan, PricedSchedule
from planner.requests.request import Target

MOST_LINES = 4
TITLE = "Other pipeline schedules"
OFFLOADED_TITLE = "With activations in host memory"
OFFLOADED = "activations copied to host memory and back beside the passes"


def schedule_blocks(plan: Plan, *, every: bool = False) -> tuple[Block, ...]:
    """Return what other schedules would make of the plan; nothing where nobody asked.

    Args:
        plan: The plan.
        every: Show every schedule with every layout, and why others are left out; else each once, the fastest.
    """
    return tuple(block for title, blocks in schedule_sections(plan, every=every) for block in section(title, *blocks))


def schedule_sections(plan: Plan, *, every: bool) -> tuple[tuple[str, tuple[Block, ...]], ...]:
    """Return the same, each part under its title."""
    schedules = plan.schedules
    if schedules is None:
        return ()
    if not schedules.priced:
        none = "No layout of this plan has a pipeline that another schedule could run."
        reasons = [f"Not priced: {reason}." for reason in sorted(set(schedules.left_out.values()))]
        return ((TITLE, tuple(Line(f"  {text}") for text in reasons or (none,))),)
    shown = list(schedules.priced) if every else _fastest_of_each(schedules)[:MOST_LINES]
    best = schedules.best
    if best is not None and best not in shown:
        shown.append(best)
    table = Table(
        columns=columns("schedule", "layout", ">step time", ">vs best", ">peak memory", "fits"),
        rows=tuple(_row(plan, entry) for entry in shown),
    )
    remarks: list[Block] = [Line(f"  {verdict_in_words(plan)}")]
    if best is not None and plan.schedule_cost_fraction:
        needs = (*best.needs, *((OFFLOADED,) if not best.fits else ()))
        remarks.append(Facts(pairs=(("it needs", ", ".join(needs) or "nothing else"),)))
    if every:
        remarks += [Item(f"{name} is not priced: {reason}") for name, reason in sorted(schedules.left_out.items())]
    rows = tuple(_offloaded_row(entry, entry.offloaded) for entry in shown if entry.offloaded is not None)
    headers = columns("schedule", "layout", ">step time", ">peak memory", ">on a host", "fits")
    hosted = ((OFFLOADED_TITLE, (Table(columns=headers, rows=rows),)),) if rows else ()
    return ((TITLE, (table, *remarks)), *hosted)


def schedules_document(plan: Plan) -> dict[str, object] | None:
    """Return what the target costs and what every schedule would make of the plan; None where nobody asked."""
    if plan.schedules is None:
        return None
    return {
        "cost_fraction": plan.schedule_cost_fraction,
        "priced": [
            {
                "schedule": entry.schedule,
                "index": entry.index,
                "step_seconds": entry.step_seconds,
                "peak_memory_bytes": entry.peak_memory_bytes,
                "fits": entry.fits,
                "needs": list(entry.needs),
                "offloaded": _offloaded_document(entry.offloaded),
            }
            for entry in plan.schedules.priced
        ],
        "left_out": dict(plan.schedules.left_out),
    }


def _offloaded_document(offloaded: OffloadedSchedule | None) -> dict[str, object] | None:
    if offloaded is None:
        return None
    return {
        "step_seconds": offloaded.step_seconds,
        "peak_memory_bytes": offloaded.peak_memory_bytes,
        "host_memory_bytes": offloaded.host_memory_bytes,
        "moved_fraction": offloaded.moved_fraction,
        "fits": offloaded.fits,
    }


def verdict_in_words(plan: Plan) -> str:
    """Return what the target costs, or that it costs nothing."""
    target = "the search's own schedules" if plan.target is Target.ANY else f"target {plan.target.value}"
    schedules, cost = plan.schedules, plan.schedule_cost_fraction
    best = schedules.best if schedules is not None else None
    seconds = best.fitting_seconds if best is not None else None
    if best is None or seconds is None or cost is None:
        return f"{_upper(target)} costs nothing: no other schedule fits."
    if not cost:
        return f"{_upper(target)} costs nothing: no other schedule that fits is faster."
    verb = "cost" if plan.target is Target.ANY else "costs"
    host = "" if best.fits else ", with activations in host memory,"
    return (
        f"{_upper(target)} {verb} {percent(cost)}: with {best.schedule} layout {best.index}{host} would take"
        f" {milliseconds(seconds)}."
    )


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _fastest_of_each(schedules: OtherSchedules) -> list[PricedSchedule]:
    """Return each schedule once, with the layout that it runs fastest."""
    found: dict[str, PricedSchedule] = {}
    for entry in schedules.priced:
        found.setdefault(entry.schedule, entry)
    return list(found.values())


def _row(plan: Plan, entry: PricedSchedule) -> tuple[str, ...]:
    return (
        entry.schedule,
        str(entry.index),
        milliseconds(entry.step_seconds),
        signed_percent(entry.step_seconds / plan.best.step_seconds - 1.0),
        gib(entry.peak_memory_bytes),
        "yes" if entry.fits else "no",
    )


def _offloaded_row(entry: PricedSchedule, offloaded: OffloadedSchedule) -> tuple[str, ...]:
    return (
        entry.schedule,
        str(entry.index),
        milliseconds(offloaded.step_seconds),
        gib(offloaded.peak_memory_bytes),
        gib(offloaded.host_memory_bytes),
        "yes" if offloaded.fits else "no",
    )
