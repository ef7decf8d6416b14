"""`shardwright report`: a plan as one page of HTML."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import PlanArgument
from cli.output import note, print_text, write_file
from cli.plan_file import read_plan, read_serve_plan

EXAMPLES = ("shardwright report run --out report.html", "shardwright report run/plan.json > report.html")

PageOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", metavar="FILE", help="File to write the page to.", show_default=False),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite the file if it is there.")]


def report(plan: PlanArgument, out: PageOption = None, *, force: ForceOption = False) -> None:
    """Write a plan as one page of HTML that opens from disk, for others to look at.

    Time by term, memory by rank and phase, the pipeline drawn, ranks on nodes, the other layouts, every source. It
    loads nothing, from the network or the disk. Without --out it is printed. Of a serving plan: the engines, their
    requests by simulation, speed against throughput drawn, the files.
    """
    text = _page(plan)
    if out is None:
        print_text(text)
        return
    write_file(out, text, force=force)
    print_text(f"{out}\n")
    note("Open it in a browser.")


def _page(path: Path) -> str:
    """Return the page of a plan, of training or of servers."""
    served = read_serve_plan(path)
    if served is not None:
        from cli.report_page.serving_page import serving_page

        return serving_page(served)
    from cli.report_page.page import report_page
    from planner.evaluation.described import evaluation_of

    found = read_plan(path)
    return report_page(found, evaluation_of(found, found.best.layout) if found.plans else None)
