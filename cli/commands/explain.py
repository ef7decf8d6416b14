"""`shardwright explain`: why this layout, and not another."""

from typing import TYPE_CHECKING

from cli.options import FormatOption, IndexOption, PlanArgument
from cli.output import Format, print_blocks, print_json, print_text
from cli.plan_file import pick, read_plan, read_serve_plan

if TYPE_CHECKING:
    from planner.serving_plans.plan import ServePlan

EXAMPLES = ("shardwright explain run/plan.json", "shardwright explain run --index 1 --format json")


def explain(plan: PlanArgument, index: IndexOption = 0, format_: FormatOption = Format.TEXT) -> None:
    """Say why a plan is what it is.

    Time by term, memory by rank and phase, what limits the layout, which term makes every other layout slower,
    and the source of every figure. Of a plan that found nothing: why nothing fits, and what would.
    """
    from cli.render_explain import explanation_blocks, explanation_document

    serving = read_serve_plan(plan)
    if serving is not None:
        _explain_serving(serving, format_=format_)
        return
    found = read_plan(plan)
    if found.infeasible is None:
        pick(found, index, path=plan)
    if format_ is Format.JSON:
        print_json(explanation_document(found, index=index))
    else:
        print_blocks(explanation_blocks(found, index=index))


def _explain_serving(plan: "ServePlan", *, format_: Format) -> None:
    """Print a serving plan with every reason for pruning, or the plan file itself, which holds them."""
    from cli.render_serve import serve_blocks
    from planner.schema.serve_plan_file import serve_plan_to_text

    if format_ is Format.JSON:
        print_text(serve_plan_to_text(plan))
    else:
        print_blocks(serve_blocks(plan, verbose=True))
