"""Megatron-LM: batches, and how long a run is."""

from collections.abc import Iterator
from itertools import pairwise

from planner.readers.flag_tables import Framework
from planner.readers.megatron_run import MegatronRun
from planner.rules.conditions import fact, given, nearest_fix, on, replaced_value
from planner.rules.demands import Demand, rules_of_demands
from planner.rules.megatron_sources import ARGUMENTS, BATCHES, TRAINING
from planner.rules.rule import Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

SCHEDULER = "megatron/core/optimizer_param_scheduler.py: OptimizerParamScheduler"


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
            fix=nearest_fix(run, "global_batch_size", run.global_batch_size, batches),
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
            place=run.place("micro_batch_size"),
            message=f"The micro-batch is {number}.",
            hint="Give at least 1.",
            fix=replaced_value(run, "micro_batch_size", "1"),
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
)

RULES: tuple[Rule[MegatronRun], ...] = (
    batch_divisible,
    micro_batch,
    batch_that_grows,
    length_said_once,
    no_length,
    learning_rates,
    learning_rate_schedule,
    schedule_of_batches,
    ramp_of_the_batch,
    *rules_of_demands(DEMANDS),
)
