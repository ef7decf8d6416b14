"""`shardwright plan`: from a spec file to the best layout, its runners-up and its launch files."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import ExitCode
from cli.options import (
    CalibrationOption,
    ForceOption,
    FormatOption,
    OutOption,
    ProfileOption,
    StrictDataOption,
)
from cli.output import (
    Format,
    Stopwatch,
    check_writable,
    note,
    print_blocks,
    print_json,
    print_text,
    wants_progress,
    watching,
    write_files,
)
from cli.plan_file import PLAN_FILE, launch_target
from cli.serving import Printed, plan_server, refuse
from planner.errors import NotExpressibleError
from planner.plans.plan import Plan
from planner.requests.request import Target

if TYPE_CHECKING:
    from cli.render_plan import Saved
    from cli.why_not import Answer

EXAMPLES = (
    "shardwright plan spec.yaml",
    "shardwright plan spec.yaml --set cluster.nodes=16 --out run",
    "shardwright plan spec.yaml --why-not tp=8,pp=2",
    "shardwright plan spec.yaml --objective fewest-nodes --set deadline_days=30",
    "shardwright plan spec.yaml --schedules",
    "shardwright plan spec.yaml --token-swaps",
    "shardwright plan spec.yaml --profile measured",
)

SpecArgument = Annotated[
    Path,
    typer.Argument(metavar="SPEC", help="YAML or JSON file with model, cluster and workload.", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace one field of the spec, as in --set cluster.nodes=16; may be given again.",
        show_default=False,
    ),
]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many layouts to keep, the best included.")]


class PlanTarget(StrEnum):
    """Frameworks that can be planned for."""

    MEGATRON = "megatron"
    DEEPSPEED = "deepspeed"
    VLLM = "vllm"
    ANY = "any"


class PlanObjective(StrEnum):
    """What training plans optimise, and what serving plans do; a spec says which of the two it is."""

    STEP_TIME = "step-time"
    TOKENS_PER_GPU = "tokens-per-gpu"
    DAYS = "days"
    COST = "cost"
    ENERGY = "energy"
    FEWEST_NODES = "fewest-nodes"
    ROBUST = "robust"
    GOODPUT = "goodput"
    FEWEST_GPUS = "fewest-gpus"


ObjectiveOption = Annotated[
    PlanObjective | None,
    typer.Option(
        "--objective",
        help="What to optimise; replaces the spec's own. goodput, fewest-gpus and cost are of serving plans.",
        show_default=False,
    ),
]
TargetOption = Annotated[
    PlanTarget | None,
    typer.Option(
        "--target", help="Framework that must be able to run the plan; replaces the spec's own.", show_default=False
    ),
]
WhyNotOption = Annotated[
    list[str] | None,
    typer.Option(
        "--why-not",
        metavar="SETTINGS",
        help="Ask of other settings, as in --why-not tp=8,pp=2: the rule that they break, the memory that is missing,"
        " or the time that they lose, and where; may be given again.",
        show_default=False,
    ),
]
ParetoOption = Annotated[
    int | None,
    typer.Option(
        "--pareto",
        metavar="STEPS",
        min=2,
        max=1000,
        help="Also show the front of memory and time: the best layout as the memory shrinks in so many steps.",
        show_default=False,
    ),
]
SpareOption = Annotated[
    int | None,
    typer.Option(
        "--spare",
        metavar="NODES",
        min=1,
        help="Also show what is left when so many nodes are lost: a new plan for the rest, and the plan's layouts with"
        " fewer replicas.",
        show_default=False,
    ),
]
SchedulesOption = Annotated[
    bool,
    typer.Option(
        "--schedules",
        help="Also price the best pipelines under schedules that the target does not have (zero-bubble, V-shaped,"
        " bidirectional, within memory): what the target costs. Takes some seconds.",
    ),
]
TokenSwapsOption = Annotated[
    bool,
    typer.Option(
        "--token-swaps",
        help="Also price the best layouts with the tokens of their activations divided between the GPU, the host and"
        " recomputation, as MEMO does, which no target can: what the target costs. Takes some seconds.",
    ),
]
TimingsOption = Annotated[bool, typer.Option("--timings", help="Say on standard error where the time went.")]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar="SHARDWRIGHT_QUIET", help="No progress and no notes on standard error."),
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also every reason for pruning, with its number of layouts.")
]


def plan(
    spec: SpecArgument,
    *,
    set_: SetOption = None,
    top: TopOption = 5,
    objective: ObjectiveOption = None,
    target: TargetOption = None,
    why_not: WhyNotOption = None,
    pareto: ParetoOption = None,
    spare: SpareOption = None,
    schedules: SchedulesOption = False,
    token_swaps: TokenSwapsOption = False,
    profile: ProfileOption = None,
    strict_data: StrictDataOption = False,
    calibration: CalibrationOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    format_: FormatOption = Format.TEXT,
    timings: TimingsOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find the best layout and what launches it: of a training run, or of servers (workload: {kind: serve}).

    Prints the plan with its runners-up; with --out also writes it, and the files that start the run.
    When nothing fits, or nothing meets the deadline, says what is missing and which changes would do, writes nothing
    and exits with 3.
    """
    from cli.priced_inputs import priced_by
    from cli.render_plan import file_blocks
    from cli.why_not import answer, settings_of
    from planner.decisions.decide import decide
    from planner.inputs.load import SERVE, kind_of, load_inputs, spec_document
    from planner.locks.plan_lock import LOCK_FILE
    from planner.schedule_views.other_schedules import with_other_schedules
    from planner.schema.plan import plan_to_text
    from planner.targets.launch import launch_file_names
    from planner.token_swaps.token_swapping import with_token_swapping
    from planner.verification.kit import KIT_FILES

    stopwatch = Stopwatch()
    named = {"objective": objective, "target": target}
    options = {name: value.value for name, value in named.items() if value is not None}
    if kind_of(spec_document(spec, set_ or (), options)) == SERVE:
        of_training = {
            "--why-not": why_not,
            "--pareto": pareto,
            "--spare": spare,
            "--schedules": schedules or None,
            "--token-swaps": token_swaps or None,
            "--calibration": calibration,
        }
        refuse(of_training, spec)
        plan_server(
            spec,
            set_ or (),
            options,
            Printed(top=top, out=out, force=force, format_=format_, timings=timings, quiet=quiet, verbose=verbose),
            profile=profile,
            strict_data=strict_data,
        )
        return
    read = load_inputs(spec, set_ or (), options=options)
    inputs = priced_by(read, profile=profile, strict_data=strict_data, calibration=calibration)
    questions = {question: settings_of(question) for question in why_not or ()}
    if out is not None:
        names = launch_file_names(inputs.request.workload, inputs.cluster, target=launch_target(inputs.request.target))
        check_writable(out, (PLAN_FILE, LOCK_FILE, *names, *KIT_FILES), force=force)
    stopwatch.lap("read inputs")
    with watching(show=wants_progress() and not quiet) as watch:
        found = decide(
            inputs.model,
            inputs.cluster,
            inputs.request,
            top=top,
            front_steps=pareto,
            lost_nodes=spare,
            watch=watch,
        )
    stopwatch.lap("search")
    for is_asked, asked, what in (
        (schedules, with_other_schedules, "other schedules"),
        (token_swaps, with_token_swapping, "token swaps"),
    ):
        if is_asked:
            found = asked(found)
            stopwatch.lap(what)
    answers = []
    for question, settings in questions.items():
        answers.append(answer(question, settings, on=found.cluster, spec=spec, overrides=set_ or (), options=options))
        stopwatch.lap(f"search with {question}")
    document = plan_to_text(found)
    # Each is tried whatever becomes of the other: a full disk does not cost the answer, nor a closed pipe the files.
    try:
        show(found, document, answers, format_=format_, verbose=verbose)
    finally:
        stopwatch.lap("print")
        saved = save(found, document, directory=out, force=force)
        stopwatch.lap("write")
    if saved is not None and format_ is Format.TEXT:
        print_blocks(file_blocks(saved))
    if timings:
        note("\n".join(stopwatch.lines()))
    if not found.plans:
        raise no_layout(found, out=out, quiet=quiet)


def no_layout(found: Plan, *, out: Path | None, quiet: bool) -> typer.Exit:
    """Return the end of a command that found no layout, after saying that nothing was written."""
    if out is not None and not quiet:
        what = "meets the deadline" if found.infeasible and found.infeasible.misses_deadline else "fits"
        note(f"{out}: nothing was written, because no layout {what}.")
    return typer.Exit(ExitCode.INFEASIBLE)


def show(found: Plan, document: str, answers: "Sequence[Answer]", *, format_: Format, verbose: bool) -> None:
    """Print a plan, and the answers to questions about other settings behind it."""
    from cli.render_plan import plan_blocks
    from cli.render_why_not import answer_blocks, answer_document
    from planner.schema.plan import WHY_NOT, plan_to_json

    if format_ is Format.TEXT:
        blocks = [*plan_blocks(found, verbose=verbose)]
        for entry in answers:
            blocks += answer_blocks(found, entry)
        print_blocks(blocks)
    elif answers:
        print_json({**plan_to_json(found), WHY_NOT: [answer_document(found, entry) for entry in answers]})
    else:
        print_text(document)


def save(plan: Plan, document: str, *, directory: Path | None, force: bool) -> "Saved | None":
    """Write the plan, the launch files of its best layout and short runs of the best ones; None without any or a place.

    A plan for any target is kept even where no launch files can be written of it.
    """
    if directory is None or not plan.plans:
        return None
    from cli.render_plan import Saved
    from planner.locks.plan_lock import LOCK_FILE
    from planner.schema.plan_lock import lock_to_text
    from planner.targets.launch import launch_files
    from planner.validation.locked import lock_of
    from planner.verification.kit import verification_kit

    target = launch_target(plan.target)
    files: Mapping[str, str] = {}
    try:
        files = launch_files(plan, target=target)
    except NotExpressibleError as error:
        if plan.target is not Target.ANY:
            raise
        note(f"No launch files: {error}")
    kit = verification_kit(plan, target=target)
    main = {PLAN_FILE: document, LOCK_FILE: lock_to_text(lock_of(plan, files=files)), **files}
    write_files(directory, {**main, **(kit.files if kit is not None else {})}, force=force)
    return Saved(directory=directory, names=tuple(main), kit=kit)
