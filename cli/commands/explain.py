"""`shardwright explain`: why this layout, and not another."""

from cli.options import FormatOption, IndexOption, PlanArgument
from cli.output import Format, print_blocks, print_json
from cli.plan_file import pick, read_plan

EXAMPLES = ("shardwright explain run/plan.json", "shardwright explain run --index 1 --format json")


def explain(plan: PlanArgument, index: IndexOption = 0, format_: FormatOption = Format.TEXT) -> None:
    """Say why a plan is what it is.

    Time by term, memory by rank and phase, what limits the layout, which term makes every other layout slower,
    and the source of every figure. Of a plan that found nothing: why nothing fits, and what would.
    """
    from cli.render_explain import explanation_blocks, explanation_document

    found = read_plan(plan)
    if found.infeasible is None:
        pick(found, index, path=plan)
    if format_ is Format.JSON:
        print_json(explanation_document(found, index=index))
    else:
        print_blocks(explanation_blocks(found, index=index))
