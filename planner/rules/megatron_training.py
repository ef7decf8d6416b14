"""Megatron-LM: batches, how long a run is, data and checkpoints."""

from collections.abc import Iterator
from itertools import pairwise

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import above, fact, given, on, one_of, said
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, BATCHES, CHECKPOINT
from planner.rules.rule import Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

SCHEDULER = "megatron/core/optimizer_param_scheduler.py: OptimizerParamScheduler"
TRAINING = "megatron/training/training.py"
REPLACED = {
    "batch_size": "--micro-batch-size",
    "warmup": "--lr-warmup-fraction",
    "model_parallel_size": "--tensor-model-parallel-size",
    "checkpoint_activations": "--recompute-activations",
}
SPLITS = ("train_data_path", "valid_data_path", "test_data_path")


@rule(
    id="MLM801",
    name="batch-divisible",
    framework=Framework.MEGATRON,
    prevents="AssertionError: eval_global_batch_size (...) must be divisible by eval_micro_batch_size (...) * "
    "data_parallel_size (...)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def batch_divisible(run: MegatronRun) -> Iterator[Found]:
    """The global batch is a multiple of the micro-batch x dp: each replica gets whole micro-batches.

    The batch of the evaluation is as well; without flags of its own it is that of the training.
    """
    one_round = run.micro_batch_size * run.dp
    rounds_down = run.arguments.is_on("decrease_batch_size_if_needed") and not run.is_from("0.18")
    if rounds_down and run.global_batch_size >= one_round:
        return
    if run.global_batch_size < 1 or run.global_batch_size % one_round:
        batches = nearest_multiples(one_round, run.global_batch_size)
        per_replica = run.global_batch_size // run.dp if run.global_batch_size % run.dp == 0 else 0
        sizes = nearest_divisors(per_replica, run.micro_batch_size) if per_replica else ()
        yield Found(
            place=run.place("global_batch_size", "micro_batch_size"),
            message=f"A global batch of {run.global_batch_size} is not a multiple of micro-batch "
            f"{run.micro_batch_size} "
            f"x dp {run.dp} = {one_round}.",
            hint=f"{listed(batches)} would do" + (f", or a micro-batch of {listed(sizes)}." if sizes else "."),
        )
        return
    batch, micro = run.number("eval_global_batch_size"), run.number("eval_micro_batch_size")
    total = run.global_batch_size if batch is None else batch
    round_size = (run.micro_batch_size if micro is None else micro) * run.dp
    if (batch is not None or micro is not None) and (round_size < 1 or total % round_size):
        yield Found(
            place=run.place("eval_global_batch_size", "eval_micro_batch_size"),
            message=f"The evaluation's global batch of {total} is not a multiple of its micro-batch x dp = "
            f"{round_size}.",
            hint=f"{listed(nearest_multiples(round_size, total))} would do." if round_size > 0 else "Give at least 1.",
        )


@rule(
    id="MLM802",
    name="micro-batch",
    framework=Framework.MEGATRON,
    prevents="AssertionError (micro_batch_size > 0)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def micro_batch(run: MegatronRun) -> Iterator[Found]:
    """A micro-batch has at least one sequence."""
    number = run.number_said("micro_batch_size")
    if number is not None and number < 1:
        yield Found(
            place=run.place("micro_batch_size"), message=f"The micro-batch is {number}.", hint="Give at least 1."
        )


@rule(
    id="MLM803",
    name="batch-that-grows",
    framework=Framework.MEGATRON,
    severity=Severity.WARNING,
    prevents="rampup_batch_size is deprecated and will be removed in a future release.",
    found_at=FoundAt.NEVER,
    source=BATCHES,
    since="0.18",
)
def batch_that_grows(run: MegatronRun) -> Iterator[Found]:
    """`--rampup-batch-size` counts for nothing: `--step-batch-size-schedule` says how the batch grows."""
    if run.said("rampup_batch_size") is not None:
        yield Found(
            place=run.place("rampup_batch_size"),
            message=f"--rampup-batch-size counts for nothing in Megatron-LM {run.version}.",
            hint="Write --step-batch-size-schedule, as '0:256 250B:512' (tokens and batch).",
        )


@rule(
    id="MLM833",
    name="ramp-of-the-batch",
    framework=Framework.MEGATRON,
    prevents="AssertionError: expected global batch size interval (...) to be divisible by global batch size increment",
    found_at=FoundAt.BUILD,
    source=f"{BATCHES}: RampupBatchsizeNumMicroBatchesCalculator",
    until="0.18",
)
def ramp_of_the_batch(run: MegatronRun) -> Iterator[Found]:
    """`--rampup-batch-size START STEP SAMPLES` leads in whole steps to the global batch, in a run said in samples."""
    ramp = run.said("rampup_batch_size")
    if not isinstance(ramp, list) or len(ramp) != 3:
        return
    start, step, samples = (int(part) for part in ramp)
    place = run.place("rampup_batch_size")
    if run.said("train_iters") and not run.arguments.is_on("skip_train"):
        yield Found(
            place=place, message="--rampup-batch-size with --train-iters.", hint="Say the length in --train-samples."
        )
    elif start < 1 or step < 1 or samples < 0:
        yield Found(place=place, message=f"{start} {step} {samples} is no ramp.", hint="Give positive numbers.")
    elif run.global_batch_size < start or (run.global_batch_size - start) % step:
        yield Found(
            place=place,
            message=f"Steps of {step} do not lead from {start} to the global batch of {run.global_batch_size}.",
            hint=f"Steps of {listed(nearest_divisors(max(run.global_batch_size - start, 1), step))} would.",
        )


@rule(
    id="MLM804",
    name="length-said-once",
    framework=Framework.MEGATRON,
    prevents="AssertionError: expected iteration-based training",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def length_said_once(run: MegatronRun) -> Iterator[Found]:
    """Training, decay and warm-up are all said in iterations, or all in samples."""
    if run.arguments.is_on("skip_train"):
        return
    iterations, samples = run.said("train_iters"), run.said("train_samples")
    wrong: list[str] = []
    unit = "iters" if iterations else "samples" if samples else None
    if unit is None:
        return
    if unit == "iters":
        wrong += [dest for dest in ("train_samples", "lr_decay_samples") if run.said(dest) is not None]
        wrong += ["lr_warmup_samples"] if run.said("lr_warmup_samples") != 0 else []
    else:
        wrong += [dest for dest in ("train_iters", "lr_decay_iters") if run.said(dest) is not None]
        wrong += ["lr_warmup_iters"] if run.said("lr_warmup_iters") != 0 else []
    for dest in wrong:
        yield Found(
            place=run.place(dest),
            message=f"--{dest.replace('_', '-')} with --train-{unit}.",
            hint=f"Say it in {'iterations' if unit == 'iters' else 'samples'}.",
        )
    same = f"lr_warmup_{unit}"
    if run.said("lr_warmup_fraction") is not None and run.said(same) != 0:
        yield Found(
            place=run.place(same),
            message=f"--lr-warmup-fraction and --{same.replace('_', '-')} say the same thing.",
            hint="Keep one of them.",
        )


@rule(
    id="MLM805",
    name="no-length",
    framework=Framework.MEGATRON,
    prevents="Exception: either train-iters or train-samples should be provided.",
    found_at=FoundAt.BUILD,
    source=f"{TRAINING}: get_optimizer_param_scheduler",
)
def no_length(run: MegatronRun) -> Iterator[Found]:
    """A training run has a length: `--train-iters` or `--train-samples`, above 0."""
    if run.arguments.is_on("skip_train") or run.said("train_iters") or run.said("train_samples"):
        return
    run.check_whole()
    yield Found(
        place=run.place("train_iters", "train_samples"),
        message="Neither --train-iters nor --train-samples is given.",
        hint="Give one of them.",
    )


@rule(
    id="MLM806",
    name="learning-rates",
    framework=Framework.MEGATRON,
    prevents="AssertionError (min_lr <= lr)",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def learning_rates(run: MegatronRun) -> Iterator[Found]:
    """The smallest learning rate is at most the largest."""
    most, least = run.said("lr"), run.said("min_lr")
    if isinstance(most, float) and isinstance(least, float) and least > most:
        yield Found(
            place=run.place("min_lr", "lr"), message=f"--min-lr {least:g} is above --lr {most:g}.", hint="Swap them."
        )


@rule(
    id="MLM807",
    name="learning-rate-schedule",
    framework=Framework.MEGATRON,
    prevents="AssertionError (lr_warmup_steps < lr_decay_steps)",
    found_at=FoundAt.BUILD,
    source=SCHEDULER,
)
def learning_rate_schedule(run: MegatronRun) -> Iterator[Found]:
    """There is a learning rate, its warm-up starts below it and ends before the decay does.

    The decay takes as long as the training unless `--lr-decay-iters` says otherwise.
    """
    if run.arguments.is_on("skip_train"):
        return
    rate, initial, least = run.said("lr"), run.said("lr_warmup_init"), run.said("min_lr")
    if rate is None:
        run.check_whole()
        yield Found(place=run.arguments.start, message="--lr is missing.", hint="Give a learning rate.")
    elif isinstance(rate, float) and isinstance(initial, float) and initial > rate:
        yield Found(
            place=run.place("lr_warmup_init"),
            message=f"The warm-up starts at {initial:g}, above {rate:g}.",
            hint="Swap.",
        )
    if isinstance(least, float) and least < 0:
        yield Found(place=run.place("min_lr"), message=f"--min-lr is {least:g}.", hint="Give at least 0.")
    unit = "iters" if run.said("train_iters") else "samples"
    length, decay = run.number(f"train_{unit}"), run.number(f"lr_decay_{unit}")
    steps = length if decay is None else decay
    fraction, warmup = run.said("lr_warmup_fraction"), run.number(f"lr_warmup_{unit}") or 0
    taken = fraction * steps if isinstance(fraction, float) and steps else warmup
    if length and steps is not None and taken >= steps:
        yield Found(
            place=run.place("lr_warmup_fraction", f"lr_warmup_{unit}", f"lr_decay_{unit}"),
            message=f"The warm-up takes {taken:g} {unit}, the decay ends after {steps}.",
            hint="Shorten the warm-up.",
        )
    if run.said("lr_decay_style") == "WSD" and run.said(f"lr_wsd_decay_{unit}") is None:
        yield Found(
            place=run.place("lr_decay_style"),
            message=f"--lr-decay-style WSD needs --lr-wsd-decay-{unit}.",
            hint="Say how long the last decay takes.",
        )


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
        yield Found(place=run.place("log_interval"), message="--log-interval is 0.", hint="Give at least 1.")


@rule(
    id="MLM814",
    name="schedule-of-batches",
    framework=Framework.MEGATRON,
    prevents="AssertionError: first schedule entry must have threshold 0",
    found_at=FoundAt.BUILD,
    source=f"{BATCHES}: StepBatchsizeNumMicroBatchesCalculator",
)
def schedule_of_batches(run: MegatronRun) -> Iterator[Found]:
    """`--step-batch-size-schedule` is a list of THRESHOLD:BATCH that starts at 0 and rises: "0:256 250B:512"."""
    text = run.said("step_batch_size_schedule")
    if text is None:
        return
    steps: list[tuple[float, float]] = []
    for entry in str(text).replace(",", " ").split():
        numbers = [_amount(part) for part in entry.split(":", 1)]
        if len(numbers) != 2 or None in numbers:
            yield Found(
                place=run.place("step_batch_size_schedule"),
                message=f"`{entry}` is no THRESHOLD:BATCH.",
                hint="Write numbers, as 250B:512; K, M, B and T are thousands, millions and so on.",
            )
            return
        steps.append((numbers[0] or 0, numbers[1] or 0))
    steps.sort()
    rising = all(before[0] < after[0] for before, after in pairwise(steps))
    if not steps or steps[0][0] != 0 or not rising or any(batch < 1 for _, batch in steps):
        yield Found(
            place=run.place("step_batch_size_schedule"),
            message="The schedule does not start at 0 and rise, with a batch of at least 1.",
            hint="Write it as '0:256 250B:512'.",
        )


def _amount(text: str) -> float | None:
    """Return a number with a suffix; None for anything else."""
    text = text.strip().upper()
    factors = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    factor = factors.get(text[-1:], 1)
    try:
        number = float(text[:-1] if text[-1:] in factors else text) * factor
    except ValueError:
        return None
    return number if number == number and abs(number) < 1e300 else None  # noqa: PLR0124 - not a number


RL = on("--perform-rl-step")

DEMANDS = (
    Demand(
        id="MLM815",
        name="batch-said-once",
        when=given("--step-batch-size-schedule"),
        excludes=(
            fact("--global-batch-size", lambda run: run.said("global_batch_size") is not None, "global_batch_size"),
            on("--decrease-batch-size-if-needed"),
        ),
        error="ValueError: Cannot specify both --step-batch-size-schedule and --global-batch-size",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        since="0.18",
        why="The schedule says the batch of every step.",
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
        id="MLM827",
        name="reinforcement-graphs",
        when=RL & (on("--rl-persist-cuda-graphs") | on("--rl-training-cuda-graphs")),
        needs=(~one_of("--cuda-graph-impl", "none"),),
        error="AssertionError: --rl-persist-cuda-graphs is set but no CUDA graphs are being built.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="--cuda-graph-impl says which graphs there are.",
    ),
    Demand(
        id="MLM828",
        name="reinforcement-cache",
        when=RL & one_of("--rl-kv-cache-management-mode", "offload"),
        needs=(on("--rl-persist-cuda-graphs"),),
        excludes=(above("--inference-dynamic-batching-unified-memory-level", 0),),
        error="AssertionError: --rl-kv-cache-management-mode=offload requires --rl-persist-cuda-graphs",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Graphs that are captured again would run over the cache that was put away.",
    ),
    Demand(
        id="MLM829",
        name="reinforcement-rollouts",
        when=RL & (above("--rl-generation-lag", 0) | one_of("--rl-submission-granularity", "R")),
        needs=(on("--rl-partial-rollouts"),),
        error="AssertionError: --rl-generation-lag requires --rl-partial-rollouts.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="Rollouts that are behind are not finished in their step.",
    ),
    Demand(
        id="MLM830",
        name="reinforcement-granularity",
        when=RL,
        excludes=(
            one_of("--rl-consumption-granularity", "R"),
            one_of("--rl-submission-granularity", "B") & one_of("--rl-consumption-granularity", "G"),
        ),
        error="AssertionError: --rl-consumption-granularity R is not currently supported.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="What is submitted as a batch is consumed as one.",
    ),
    Demand(
        id="MLM831",
        name="reinforcement-packing",
        when=RL & on("--rl-use-sequence-packing"),
        needs=(one_of("--micro-batch-size", 1),),
        error="AssertionError: micro_batch_size must be 1 when using sequence packing.",
        found_at=FoundAt.START,
        source=ARGUMENTS,
        why="A packed sequence holds several.",
    ),
)


@rule(
    id="MLM832",
    name="reinforcement-batches",
    framework=Framework.MEGATRON,
    prevents="AssertionError: grpo_group_size * grpo_prompts_per_step * grpo_iterations should be divisible by "
    "global_batch_size",
    found_at=FoundAt.START,
    source=ARGUMENTS,
)
def reinforcement_batches(run: MegatronRun) -> Iterator[Found]:
    """What is generated at a time makes whole batches, and intervals are whole numbers of generations."""
    if not run.arguments.is_on("perform_rl_step") or run.global_batch_size < 1:
        return
    sizes = [run.number(f"grpo_{name}") or 0 for name in ("group_size", "prompts_per_step", "iterations")]
    samples = sizes[0] * sizes[1] * sizes[2]
    if samples % run.global_batch_size:
        yield Found(
            place=run.place("global_batch_size", "grpo_group_size"),
            message=f"{samples} generated samples are not a multiple of the global batch of {run.global_batch_size}.",
            hint=f"A global batch of {listed(nearest_divisors(max(samples, 1), run.global_batch_size))} would do.",
        )
        return
    steps = samples // run.global_batch_size
    for dest in ("exit_interval", "save_interval"):
        interval = run.number(dest)
        if steps and interval is not None and interval % steps:
            yield Found(
                place=run.place(dest),
                message=f"--{dest.replace('_', '-')} {interval} is not a multiple of the {steps} batches of a "
                f"generation.",
                hint=f"{listed(nearest_multiples(steps, interval))} would do.",
            )


RULES: tuple[Rule[MegatronRun], ...] = (
    batch_divisible,
    micro_batch,
    batch_that_grows,
    ramp_of_the_batch,
    length_said_once,
    no_length,
    learning_rates,
    learning_rate_schedule,
    saved_how_often,
    weight_decay_that_changes,
    one_source_of_data,
    replaced_flag,
    log_intervals,
    no_log_interval,
    schedule_of_batches,
    reinforcement_batches,
    *rules_of_demands(DEMANDS),
)
