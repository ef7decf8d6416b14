"""`shardwright diff`: what changed between two plans, in time, memory and risk."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import ExitCode
from cli.output import print_blocks, print_json, print_text
from planner.errors import InputError, Location

if TYPE_CHECKING:
    from planner.locks.serve_lock import ServeLock
    from planner.validation.pricing import LaunchedLock

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
        help="The same, or a launch script, which is priced with the inputs of OLD's plan: of training, or of a pool.",
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
    """Say what changed between two plans: inputs, layout, time by term, memory, and what that risks.

    Of two serving plans: engines, requests, times of requests.
    """
    from cli.lock_file import read_lock
    from cli.render_diff import diff_blocks, diff_document, diff_markdown, shown
    from planner.locks.lock_changes import changes
    from planner.locks.plan_lock import PlanLock

    before = read_lock(old)
    if isinstance(before, PlanLock):
        after = _after(old, new)
        found = changes(before, after.lock, faults=after.faults)
        show, document, is_bad = shown(found), diff_document(found), found.is_bad
    else:
        from cli.render_serve_diff import serve_diff_document, serve_shown
        from planner.locks.serve_lock_changes import serve_changes

        served = serve_changes(before, _served_after(old, new))
        show, document, is_bad = serve_shown(served), serve_diff_document(served), served.is_bad
    match format_:
        case DiffFormat.JSON:
            print_json(document)
        case DiffFormat.MARKDOWN:
            print_text(diff_markdown(show))
        case DiffFormat.TEXT:
            print_blocks(diff_blocks(show))
    if fail and is_bad:
        raise typer.Exit(ExitCode.FINDINGS)


def _after(old: Path, new: Path) -> "LaunchedLock":
    """Return what a training plan is compared with."""
    from cli.lock_file import is_script, read_baseline, read_lock
    from planner.locks.plan_lock import PlanLock
    from planner.validation.pricing import Baseline, Launched, LaunchedLock, lock_of_launched
    from planner.validation.sources import text_of

    if is_script(new):
        baseline = read_baseline(old)
        assert isinstance(baseline, Baseline), "the lock is one of training"
        return lock_of_launched(Launched(script=new, text=text_of(new)), baseline.plan)
    found = read_lock(new)
    if not isinstance(found, PlanLock):
        raise _other_kind(new, kind="serving", other="training")
    return LaunchedLock(lock=found, faults=())


def _served_after(old: Path, new: Path) -> "ServeLock":
    """Return what a serving plan is compared with: another, or itself with a pool told as a script tells it."""
    from cli.lock_file import is_script, read_baseline, read_lock
    from planner.locks.plan_lock import PlanLock

    if is_script(new):
        from planner.validation.held_servers import ServeBaseline, lock_of_served
        from planner.validation.sources import text_of

        baseline = read_baseline(old)
        assert isinstance(baseline, ServeBaseline), "the lock is one of servers"
        return lock_of_served(text_of(new), file=new, baseline=baseline)
    found = read_lock(new)
    if isinstance(found, PlanLock):
        raise _other_kind(new, kind="training", other="serving")
    return found


def _other_kind(path: Path, *, kind: str, other: str) -> InputError:
    return InputError(
        f"This is a {kind} plan, and the other one a {other} plan.",
        location=Location(file=str(path)),
        hint="Compare plans of one kind.",
    )
