"""Megatron-LM: data, logging, checkpoints, and flags that are refused."""

from collections.abc import Iterator

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, given, on, one_of, replaced_value, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, CHECKPOINT, TRAINING
from planner.rules.rule import Found, FoundAt, Rule, listed, nearest_multiples, rule

REPLACED = {
    "batch_size": "--micro-batch-size",
    "warmup": "--lr-warmup-fraction",
    "model_parallel_size": "--tensor-model-parallel-size",
    "checkpoint_activations": "--recompute-activations",
}

SPLITS = ("train_data_path", "valid_data_path", "test_data_path")


@rule(
    id="MLM808",
    name="saved-how-often",
    framework=Framework.MEGATRON,
    prevents="AssertionError (save_interval is not None)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def saved_how_often(run: MegatronRun) -> Iterator[Found]:
    """`--save` needs `--save-interval`, above 0; `--save-retain-interval` is a multiple of it."""
    if run.said("save") is None:
        return
    interval, retained = run.number("save_interval"), run.number("save_retain_interval")
    if interval is None or interval < 1:
        message = "--save needs --save-interval." if interval is None else f"--save-interval is {interval}."
        yield Found(place=run.place("save_interval", "save"), message=message, hint="Give at least 1.")
    elif retained is not None and (retained < 1 or retained % interval):
        yield Found(
            place=run.place("save_retain_interval"),
            message=f"--save-retain-interval {retained} is not a multiple of --save-interval {interval}.",
            hint=f"{listed(nearest_multiples(interval, retained))} would do.",
        )


@rule(
    id="MLM809",
    name="weight-decay-that-changes",
    framework=Framework.MEGATRON,
    prevents="AssertionError (start_weight_decay is not None)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def weight_decay_that_changes(run: MegatronRun) -> Iterator[Found]:
    """A weight decay that changes has a start and an end; a constant one has neither."""
    constant = run.said("weight_decay_incr_style") == "constant"
    for dest in ("start_weight_decay", "end_weight_decay"):
        if (run.said(dest) is None) != constant:
            flag = f"--{dest.replace('_', '-')}"
            yield Found(
                place=run.place(dest, "weight_decay_incr_style"),
                message=f"{flag} is {'given' if constant else 'missing'} with --weight-decay-incr-style "
                f"{run.said('weight_decay_incr_style')}.",
                hint=f"{'Remove' if constant else 'Give'} {flag}, or change the style.",
            )


@rule(
    id="MLM810",
    name="one-source-of-data",
    framework=Framework.MEGATRON,
    prevents="AssertionError: A single data source must be provided in training mode, else None",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def one_source_of_data(run: MegatronRun) -> Iterator[Found]:
    """Data comes from `--mock-data`, from `--data-path`, or from a path for each split."""
    sources = [dest for dest in ("mock_data", "data_path") if run.said(dest)]
    split = next((dest for dest in SPLITS if run.said(dest)), None)
    sources += [split] if split else []
    for first, second in (("data_path", "data_args_path"), (split or "", "per_split_data_args_path")):
        if first and run.said(first) is not None and run.said(second) is not None:
            sources += [second] if first in sources else [first, second]
    if len(sources) > 1:
        flags = ", ".join(f"--{dest.replace('_', '-')}" for dest in sources)
        yield Found(place=run.place(sources[1]), message=f"{flags} all say where data is.", hint="Keep one of them.")


@rule(
    id="MLM811",
    name="replaced-flag",
    framework=Framework.MEGATRON,
    prevents="AssertionError: --batch-size argument is no longer valid, use --micro-batch-size instead",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def replaced_flag(run: MegatronRun) -> Iterator[Found]:
    """The parser still takes a few old flags, and the checks refuse them."""
    for dest, instead in REPLACED.items():
        use = run.arguments.use(dest)
        if use is not None:
            yield Found(place=use.location, message=f"{use.spelled} is refused.", hint=f"Write {instead}.")


@rule(
    id="MLM812",
    name="log-intervals",
    framework=Framework.MEGATRON,
    prevents="AssertionError (log_memory_interval % log_interval == 0)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def log_intervals(run: MegatronRun) -> Iterator[Found]:
    """`--log-memory-interval` is a multiple of `--log-interval`, which is above 0."""
    interval, memory = run.number("log_interval"), run.number("log_memory_interval")
    if memory is not None and interval is not None and (interval < 1 or memory % interval):
        yield Found(
            place=run.place("log_memory_interval", "log_interval"),
            message=f"--log-memory-interval {memory} is not a multiple of --log-interval {interval}.",
            hint=f"{listed(nearest_multiples(interval, memory))} would do." if interval > 0 else "Give at least 1.",
        )


@rule(
    id="MLM813",
    name="no-log-interval",
    framework=Framework.MEGATRON,
    prevents="ZeroDivisionError: integer modulo by zero",
    found_at=FoundAt.STEP,
    source=f"{TRAINING}: training_log",
)
def no_log_interval(run: MegatronRun) -> Iterator[Found]:
    """`--log-interval` is above 0: every step is divided by it."""
    if run.number("log_interval") == 0 and run.said("log_memory_interval") is None:
        yield Found(
            place=run.place("log_interval"),
            message="--log-interval is 0.",
            hint="Give at least 1.",
            fix=replaced_value(run, "log_interval", "1"),
        )


DEMANDS = (
    Demand(
        id="MLM816",
        name="converted-checkpoint",
        when=given("--ckpt-convert-format"),
        needs=(given("--ckpt-convert-save"), given("--load")),
        error="AssertionError (ckpt_convert_save is not None)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="A checkpoint is read from one place and written to another.",
    ),
    Demand(
        id="MLM817",
        name="kept-in-memory",
        when=given("--non-persistent-ckpt-type"),
        excludes=(one_of("--non-persistent-ckpt-type", "in_memory"),),
        error="AssertionError: Currently only global and local checkpoints are supported",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The parser takes the word already, the checks do not.",
    ),
    Demand(
        id="MLM818",
        name="local-checkpoints",
        when=one_of("--non-persistent-ckpt-type", "local"),
        needs=(given("--non-persistent-local-ckpt-dir"),),
        error="AssertionError: Tried to use local checkpointing without specifying --local-ckpt-dir!",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Each node writes to its own disk. The package nvidia_resiliency_ext does it.",
    ),
    Demand(
        id="MLM819",
        name="copies-of-local-checkpoints",
        when=on("--replication"),
        needs=(given("--replication-jump"), one_of("--non-persistent-ckpt-type", "local")),
        error="AssertionError: --replication requires the value of --replication-jump!",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="The jump says which ranks hold each other's copies.",
    ),
    Demand(
        id="MLM820",
        name="checked-checkpoints",
        when=on("--verify-integrity"),
        needs=(one_of("--ckpt-format", "torch_dist"),),
        error="AssertionError: `verify_integrity` is only supported with torch_dist checkpoint format.",
        found_at=FoundAt.BUILD,
        source=CHECKPOINT,
        why="Its files are the ones that are hashed.",
    ),
    Demand(
        id="MLM821",
        name="another-iteration",
        when=given("--override-ckpt-iteration"),
        excludes=(on("--finetune"),),
        error="AssertionError: Cannot override checkpoint iteration together with finetune flag.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.19",
        why="Fine-tuning starts at iteration 0.",
    ),
    Demand(
        id="MLM822",
        name="saved-logits",
        when=given("--logits-save-dir"),
        needs=(given("--logits-save-top-k"), on("--async-save"), on("--use-persistent-ckpt-worker")),
        error="AssertionError: --logits-save-top-k is required when --logits-save-dir is set.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.19",
        why="Logits are written beside checkpoints, by the worker that writes those.",
    ),
    Demand(
        id="MLM823",
        name="dataset-threads",
        when=given("--num-dataset-builder-threads"),
        needs=(above("--num-dataset-builder-threads", 0),),
        error="AssertionError (num_dataset_builder_threads > 0)",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Somebody has to read the data.",
    ),
    Demand(
        id="MLM824",
        name="filled-middles",
        when=on("--fim-data"),
        needs=(said("--fim-rate"), said("--fim-spm-rate")),
        excludes=(on("--mock-data"),),
        error="AssertionError: Mock dataset is not supported with FIM dataset.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Documents are cut into a beginning, a middle and an end.",
    ),
    Demand(
        id="MLM825",
        name="pipelined-inference",
        when=above("--inference-batch-times-seqlen-threshold", -1),
        needs=(above("--pipeline-model-parallel-size", 1), one_of("--cuda-graph-impl", "none")),
        error="AssertionError: --inference-batch-times-seqlen-threshold requires setting "
        "--pipeline-model-parallel-size "
        "> 1.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Large batches are cut into micro-batches, which go through a pipeline.",
    ),
    Demand(
        id="MLM826",
        name="garbage-collection",
        when=on("--manual-gc") & given("--manual-gc-interval"),
        needs=(above("--manual-gc-interval", -1),),
        error="AssertionError: Manual garbage collection interval should be larger than or equal to 0",
        found_at=FoundAt.STEP,
        source=f"{TRAINING}: train",
        why="0 collects before an evaluation only.",
    ),
    Demand(
        id="MLM834",
        name="legacy-models",
        when=on("--use-legacy-models"),
        needs=(one_of("--ckpt-format", "torch"),),
        excludes=(
            said("--mtp-num-layers"),
            on("--overlap-param-gather"),
            above("--context-parallel-size", 1),
            given("--decoupled-lr"),
            on("--rotary-interleaved"),
        ),
        error="AssertionError: legacy model format only supports the 'torch' checkpoint format.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        until="0.18",
        why="The models from before megatron-core know none of what came with it.",
    ),
)

RULES: tuple[Rule[MegatronRun], ...] = (
    saved_how_often,
    weight_decay_that_changes,
    one_source_of_data,
    replaced_flag,
    log_intervals,
    no_log_interval,
    *rules_of_demands(DEMANDS),
)
