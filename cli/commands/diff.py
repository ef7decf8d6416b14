"""`shardwright diff`: what changed between two plans, in time, memory and risk."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.exits import ExitCode
from cli.output import print_blocks, print_json, print_text

EXAMPLES = (
    "shardwright diff before after",
    "shardwright diff run/plan.lock.json train.sh",
    "shardwright diff before after --format markdown >> comment.md",
)


class DiffFormat(StrEnum):
    """Forms of what `diff` prints."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


OldArgument = Annotated[
    Path,
    typer.Argument(metavar="OLD", help="A plan, its lock, or the directory of either.", show_default=False),
]
NewArgument = Annotated[
    Path,
    typer.Argument(
        metavar="NEW",
        help="The same, or a launch script, which is priced with the inputs of OLD's plan.",
        show_default=False,
    ),
]
DiffFormatOption = Annotated[
    DiffFormat, typer.Option("--format", help="Tables for people, Markdown for a pull request, or one JSON document.")
]
FailOption = Annotated[bool, typer.Option("--fail", help="End with 1 where something got worse beyond doubt.")]


def diff(
    old: OldArgument, new: NewArgument, *, format_: DiffFormatOption = DiffFormat.TEXT, fail: FailOption = False
) -> None:
    """Say what changed between two plans: inputs, layout, time by term, memory, and what that risks."""
    from cli.lock_file import is_script, read_baseline, read_lock
    from cli.render_diff import diff_blocks, diff_document, diff_markdown
    from planner.lock_changes import changes
    from planner.validation.pricing import Launched, lock_of_launched
    from planner.validation.sources import text_of

    before = read_lock(old)
    after = (
        lock_of_launched(Launched(script=new, text=text_of(new)), read_baseline(old).plan)
        if is_script(new)
        else read_lock(new)
    )
    found = changes(before, after)
    match format_:
        case DiffFormat.JSON:
            print_json(diff_document(found))
        case DiffFormat.MARKDOWN:
            print_text(diff_markdown(found))
        case DiffFormat.TEXT:
            print_blocks(diff_blocks(found))
    if fail and found.is_bad:
        raise typer.Exit(ExitCode.FINDINGS)
