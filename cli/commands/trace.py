"""`shardwright trace`: the predicted step of a plan, for Perfetto."""

from cli.options import ForceOption, IndexOption, OutOption, PlanArgument
from cli.output import note, print_text, write_files
from cli.plan_file import pick, read_plan

EXAMPLES = ("shardwright trace run --out run", "shardwright trace run --index 1 > second.json")

TRACE_FILE = "trace.json"


def trace(plan: PlanArgument, index: IndexOption = 0, out: OutOption = None, *, force: ForceOption = False) -> None:
    """Write the predicted schedule of a plan as a trace.

    A track for each pipeline rank with its forward and backward passes, one with what it sends, arrows between ranks,
    and how many activations are alive. ui.perfetto.dev and chrome://tracing open it. Without --out it is printed.
    """
    from planner.described import evaluation_of
    from planner.report import layout_in_words
    from planner.trace import trace_document, trace_text

    found = read_plan(plan)
    layout = pick(found, index, path=plan).layout
    title = f"{found.model.name} on {found.cluster.name}: {layout_in_words(layout)}"
    text = trace_text(trace_document(evaluation_of(found, layout), layout, title=title))
    if out is None:
        print_text(text)
        return
    written = write_files(out, {TRACE_FILE: text}, force=force)
    print_text("".join(f"{path}\n" for path in written))
    note("Open it at https://ui.perfetto.dev.")
