"""`shardwright trace`: the predicted step of a plan, for Perfetto."""

from typing import Annotated

import typer

from cli.options import ForceOption, IndexOption, OutOption, PlanArgument
from cli.output import note, print_text, write_files
from cli.plan_file import pick, read_plan

EXAMPLES = (
    "shardwright trace run --out run",
    "shardwright trace run --index 1 > second.json",
    "shardwright trace run --schedule ZB-V --offload > offloaded.json",
)

TRACE_FILE = "trace.json"

ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="NAME",
        help="Show the layout under a schedule that `plan --schedules` prices.",
        show_default=False,
    ),
]
OffloadOption = Annotated[
    bool, typer.Option("--offload", help="With --schedule: with activations that wait in host memory.")
]


def trace(
    plan: PlanArgument,
    index: IndexOption = 0,
    out: OutOption = None,
    *,
    schedule: ScheduleOption = None,
    offload: OffloadOption = False,
    force: ForceOption = False,
) -> None:
    """Write the predicted schedule of a plan as a trace.

    A track for each pipeline rank with its forward and backward passes, one with what it sends, arrows between ranks,
    and how many activations are alive. ui.perfetto.dev and chrome://tracing open it. Without --out it is printed.
    """
    from planner.errors import InputError
    from planner.evaluation.described import evaluation_of
    from planner.plans.layout_words import layout_in_words
    from planner.schedule_views.other_schedules import scheduled
    from planner.schedule_views.schedule_trace import schedule_trace_document
    from planner.schedule_views.trace import trace_document, trace_text

    found = read_plan(plan)
    layout = pick(found, index, path=plan).layout
    title = f"{found.model.name} on {found.cluster.name}: {layout_in_words(layout)}"
    if schedule is None:
        if offload:
            raise InputError("--offload shows a schedule that `plan --schedules` prices.", hint="Add --schedule NAME.")
        document = trace_document(evaluation_of(found, layout), layout, title=title)
    else:
        under = scheduled(found, index, schedule)
        if offload and under.offloaded is None:
            raise InputError(f"Under {schedule} no activations of layout {index} can wait in host memory.")
        document = schedule_trace_document(under, layout, title=f"{title}; {schedule}", is_offloaded=offload)
    text = trace_text(document)
    if out is None:
        print_text(text)
        return
    written = write_files(out, {TRACE_FILE: text}, force=force)
    print_text("".join(f"{path}\n" for path in written))
    note("Open it at https://ui.perfetto.dev.")
