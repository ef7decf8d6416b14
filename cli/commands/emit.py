"""`shardwright emit`: launch files from a plan."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.options import ForceOption, FormatOption, IndexOption, OutOption, PlanArgument
from cli.output import Format, note, print_blocks, print_json, print_text, write_files
from cli.plan_file import launch_target, pick, read_plan, read_serve_plan, read_serving_layout
from cli.render import Table, columns, count
from planner.errors import InputError, Location, NotExpressibleError
from planner.requests.request import Target

EXAMPLES = ("shardwright emit run --file launch.sh", "shardwright emit run/plan.json --index 1 --out second")


class EmitTarget(StrEnum):
    """Frameworks that files can be written for."""

    MEGATRON = "megatron"
    DEEPSPEED = "deepspeed"
    VLLM = "vllm"
    ALL = "all"


TargetOption = Annotated[
    EmitTarget | None,
    typer.Option(
        "--target",
        help="Framework to write files for; without it the plan's own, megatron for a plan for any, vllm for a serving"
        " layout. all compares them: what each cannot say of the layout, and what its own best plan costs.",
        show_default=False,
    ),
]
FileOption = Annotated[
    str | None,
    typer.Option("--file", metavar="NAME", help="Print this one file to standard output.", show_default=False),
]


def emit(
    plan: PlanArgument,
    *,
    target: TargetOption = None,
    index: IndexOption = 0,
    out: OutOption = None,
    force: ForceOption = False,
    file: FileOption = None,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Write the launch files of a plan.

    Without --out nothing is written: the files are listed, --file prints one of them, and --format json all of them.
    """
    if target is EmitTarget.ALL:
        _compare(plan, index=index, format_=format_)
        return
    framework, files = _files(plan, target=target, index=index)
    if file is not None:
        if file not in files:
            raise InputError(
                f"--file {file} is none of its launch files.",
                location=Location(file=str(plan)),
                hint=f"They are {', '.join(files)}.",
            )
        files = {file: files[file]}
    written = write_files(out, files, force=force) if out is not None else ()
    if format_ is Format.JSON:
        print_json(
            {"target": framework.value, "index": index, "written": [str(path) for path in written], "files": files}
        )
    elif written:
        print_text("".join(f"{path}\n" for path in written))
    elif file is not None:
        print_text(files[file])
    else:
        rows = tuple((name, count(text.count("\n"))) for name, text in files.items())
        print_blocks([Table(columns=columns("file", ">lines"), rows=rows)])
        note("Nothing was written: --out DIR writes these files, --file NAME prints one.")


def _files(plan: Path, *, target: EmitTarget | None, index: int) -> tuple[Target, Mapping[str, str]]:
    """Return the framework and the text of every file, of a training plan's layout or of a serving layout.

    Raises:
        InputError: The target is for the other kind of plan.
    """
    wants_serving = target is EmitTarget.VLLM
    planned = read_serve_plan(plan)
    if planned is not None and (target is None or wants_serving):
        from planner.serving_search.launch import serve_files

        if index:
            raise InputError(
                f"--index {index}: a serving plan holds one answer.",
                location=Location(file=str(plan)),
                hint="Leave it out.",
            )
        return Target.VLLM, serve_files(planned)
    serving = None if planned is not None else read_serving_layout(plan)
    if serving is not None and (target is None or wants_serving):
        from planner.serving.files import serving_files

        return Target.VLLM, serving_files(serving)
    serves = planned is not None or serving is not None
    if serves != wants_serving:
        kind = "serving" if serves else "training"
        raise InputError(
            f"This is a {kind} plan, and no files of it can be written for {target}.",
            location=Location(file=str(plan)),
            hint="Training plans are written for megatron and deepspeed, serving plans for vllm.",
        )
    found = read_plan(plan)
    pick(found, index, path=plan)
    from planner.targets.launch import launch_files

    framework = launch_target(found.target) if target is None else Target(target)
    try:
        return framework, launch_files(found, index=index, target=framework)
    except NotExpressibleError as error:
        if framework is found.target:
            raise
        hint = f"`shardwright emit {plan} --target all` compares it with the best plan for {framework}."
        raise InputError(
            f"{error.target} cannot say: {error.message.rstrip('.')}.", hint=f"{error.hint}\n{hint}"
        ) from None


def _compare(path: Path, *, index: int, format_: Format) -> None:
    """Print what each framework cannot say of a layout, and what its own best plan costs."""
    from cli.render_targets import target_blocks, target_document
    from planner.decisions.target_differences import target_differences

    if read_serve_plan(path) is not None or read_serving_layout(path) is not None:
        raise InputError("Only vLLM serves.", location=Location(file=str(path)), hint="Write its files: --target vllm")
    plan = read_plan(path)
    pick(plan, index, path=path)
    found = target_differences(plan, index=index)
    if format_ is Format.JSON:
        print_json(target_document(plan, found, index=index))
    else:
        print_blocks(target_blocks(plan, found, index=index))
