"""DeepSpeed: batch sizes, and what Hugging Face's Trainer is told besides."""

from collections.abc import Iterator
from dataclasses import dataclass

from planner.readers.arguments import NotSaidError
from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.readers.key_tables import number_of
from planner.rules.rule import Found, FoundAt, Rule, Severity, listed, nearest_divisors, nearest_multiples, rule

TOTAL, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
CONFIG = "deepspeed/runtime/config.py: DeepSpeedConfig"

TRAINER = (
    (("train_micro_batch_size_per_gpu",), "per-device-train-batch-size"),
    (("gradient_accumulation_steps",), "gradient-accumulation-steps"),
    (("gradient_clipping",), "max-grad-norm"),
    (("optimizer", "params", "lr"), "learning-rate"),
    (("optimizer", "params", "eps"), "adam-epsilon"),
    (("optimizer", "params", "weight_decay"), "weight-decay"),
    (("scheduler", "params", "warmup_max_lr"), "learning-rate"),
    (("scheduler", "params", "warmup_num_steps"), "warmup-steps"),
)
"""Keys that must say what flags of Hugging Face's Trainer say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The three sizes; None for one that is not given.

    Args:
        total: Sequences of a step.
        micro: Sequences of a micro-batch.
        steps: Micro-batches of a step.
    """

    total: int | None
    micro: int | None
    steps: int | None

    def completed(self, replicas: float) -> tuple[float, float, float]:
        """Return the three as DeepSpeed completes them where the first is given (`_set_batch_related_parameters`)."""
        total, micro, steps = self.total, self.micro, self.steps
        assert total is not None, "where no total is given it is what the others make, and there is nothing to compare"
        if micro is None:
            micro_, steps_ = total // replicas, 1 if steps is None else steps
            return total, micro_ // steps_ if steps_ else 0, steps_
        return total, micro, (total // micro // replicas if micro else 0) if steps is None else steps


def _is_elastic(run: DeepSpeedRun) -> bool:
    """Return whether the sizes are worked out from `elasticity`, which is there before 0.19."""
    spec = run.table.at(("elasticity",))
    return spec is not None and not spec.removed and run.is_on("elasticity", "enabled")


def _batch(run: DeepSpeedRun) -> Batch:
    if _is_elastic(run):
        return Batch(total=None, micro=None, steps=None)
    return Batch(total=run.integer(TOTAL), micro=run.integer(MICRO), steps=run.integer(STEPS))


@rule(
    id="DSP801",
    name="batch-is-a-product",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Check batch related parameters. train_batch_size is not equal to micro_batch_per_gpu * "
    "gradient_acc_step * world_size",
    found_at=FoundAt.START,
    source=f"{CONFIG}._batch_assertion",
)
def batch_is_a_product(run: DeepSpeedRun) -> Iterator[Found]:
    """`train_batch_size` is micro-batch x accumulation steps x replicas.

    Replicas are the GPUs divided by pipeline stages, tensor-parallel and sequence-parallel ranks. Of AutoTP's ranks
    DeepSpeed knows only if the program hands over its groups; without, it counts every GPU. Where one of the three is
    left out, it is worked out by division, and the remainder makes the rest wrong.
    """
    batch = _batch(run)
    if batch.total is None or min(size for size in (batch.total, batch.micro, batch.steps, 1) if size is not None) < 1:
        return
    given = (batch.micro or 1) * (batch.steps or 1)
    try:
        replicas = run.counted_replicas
    except NotSaidError:
        if batch.total % given == 0:
            raise
        yield Found(
            place=run.value_place(TOTAL),
            message=f"train_batch_size {batch.total} is no multiple of micro-batch x accumulation steps = {given}, "
            "whatever the number of GPUs.",
            hint=f"{listed(nearest_multiples(given, batch.total))} would do.",
        )
        return
    total, micro, steps = batch.completed(replicas)
    broken = run.world_size % (run.pp * run.program_tp)
    if broken or min(micro, steps) < 1 or total == micro * steps * replicas:
        return
    if run.tp > 1 and not run.makes_groups and run.launch is None:
        split = run.counted_replicas / run.tp
        other_total, other_micro, other_steps = batch.completed(split)
        if other_total == other_micro * other_steps * split:
            raise NotSaidError("whether the program hands over the groups of AutoTP")
    unit = given * replicas
    whole = unit == int(unit)
    yield Found(
        place=run.value_place(TOTAL),
        message=f"train_batch_size {total:g} is not micro-batch {micro:g} x accumulation {steps:g} x {replicas:g} "
        f"replicas = {micro * steps * replicas:g}.",
        hint=(
            f"train_batch_size {listed(nearest_multiples(int(unit), batch.total))} would do"
            if whole
            else "First make the degrees divide the GPUs"
        )
        + (
            ", or leave out gradient_accumulation_steps."
            if batch.steps is not None and batch.micro is not None
            else "."
        ),
    )


@rule(
    id="DSP802",
    name="batch-is-missing",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Either train_batch_size or train_micro_batch_size_per_gpu needs to be provided",
    found_at=FoundAt.START,
    source=f"{CONFIG}._set_batch_related_parameters",
)
def batch_is_missing(run: DeepSpeedRun) -> Iterator[Found]:
    """One of `train_batch_size` and `train_micro_batch_size_per_gpu` is given."""
    if not run.given(TOTAL) and not run.given(MICRO) and not _is_elastic(run):
        yield Found(
            place=run.document.locate(),
            message="Neither train_batch_size nor train_micro_batch_size_per_gpu is given.",
            hint="Give train_micro_batch_size_per_gpu and gradient_accumulation_steps; the rest follows.",
        )


@rule(
    id="DSP803",
    name="batch-is-positive",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: ... has to be greater than 0; ZeroDivisionError",
    found_at=FoundAt.START,
    source=f"{CONFIG}._batch_assertion",
)
def batch_is_positive(run: DeepSpeedRun) -> Iterator[Found]:
    """Batch sizes and accumulation steps are at least 1."""
    for key in (TOTAL, MICRO, STEPS):
        size = run.number(key)
        if size is not None and size < 1:
            yield Found(place=run.value_place(key), message=f"{key} is {size:g}.", hint="Use a positive number.")


@rule(
    id="DSP804",
    name="batch-counted-over-autotp-ranks",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="steps with fewer sequences than train_batch_size says",
    found_at=FoundAt.NEVER,
    source=f"{CONFIG}.__init__; deepspeed/runtime/engine.py: DeepSpeedEngine._configure_tensor_parallel_states",
)
def batch_over_autotp(run: DeepSpeedRun) -> Iterator[Found]:
    """With `autotp_size`, DeepSpeed compares the batch with all GPUs, though AutoTP's ranks read the same sequences.

    Unless the program hands over its groups, the batch is checked before they are made. A step then has
    micro-batch x accumulation x GPUs / autotp_size sequences; what DeepSpeed reports is autotp_size times that.
    """
    if run.tp == 1 or not run.given(TOTAL) or run.makes_groups or run.world_size % run.tp:
        return
    batch = _batch(run)
    if batch.total is None:
        return
    total, micro, steps = batch.completed(run.counted_replicas)
    real = micro * steps * run.counted_replicas / run.tp
    if total == micro * steps * run.counted_replicas and total > 0:
        yield Found(
            place=run.value_place("tensor_parallel", "autotp_size"),
            message=f"train_batch_size counts {total:g} sequences, a step has {real:g}: {run.tp} ranks read the same.",
            hint=f"Expect {real:g}, or hand DeepSpeed groups that know autotp_size.",
        )


@rule(
    id="DSP805",
    name="steps-per-print",
    framework=Framework.DEEPSPEED,
    prevents="ZeroDivisionError: integer modulo by zero",
    found_at=FoundAt.STEP,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._take_model_step",
)
def steps_per_print(run: DeepSpeedRun) -> Iterator[Found]:
    """`steps_per_print` is at least 1; to print nothing, leave it out, or write a number that is never reached."""
    if run.integer("steps_per_print") == 0:
        yield Found(
            place=run.value_place("steps_per_print"), message="steps_per_print is 0.", hint="Remove it, or use 1000000."
        )


@rule(
    id="DSP806",
    name="trainer-says-otherwise",
    framework=Framework.DEEPSPEED,
    prevents="ValueError: Please correct the following DeepSpeed config values that mismatch TrainingArguments values",
    found_at=FoundAt.BUILD,
    source="transformers/integrations/deepspeed.py: HfTrainerDeepSpeedConfig.fill_match",
)
def trainer_says_otherwise(run: DeepSpeedRun) -> Iterator[Found]:
    """Hugging Face's Trainer compares the JSON with its own arguments, and refuses the run where they differ.

    "auto" in the JSON takes what the Trainer is told.
    """
    if run.launch is None or not run.launch.trainer:
        return
    for path, flag in TRAINER:
        words = run.launch.program.get(flag)
        told, written = number_of(words[0].text) if words else None, run.content(*path)
        if words and told is None:
            told = _scientific(words[0].text)
        number = None if isinstance(written, str) else number_of(written)
        if told is not None and number is not None and told != number:
            yield Found(
                place=run.value_place(*path),
                message=f"{path[-1]} is {number:g} here, and --{flag.replace('-', '_')} says {told:g}.",
                hint='Write "auto".',
            )
    for section in ("bf16", "fp16"):
        words = run.launch.program.get(section)
        written = run.content(section, "enabled")
        if (
            words is not None
            and isinstance(written, bool)
            and (not words or words[0].text.lower() in {"true", "false"})
        ):
            told_on = not words or words[0].text.lower() == "true"
            if told_on is not written:
                yield Found(
                    place=run.value_place(section, "enabled"),
                    message=f"{section}.enabled is {str(written).lower()} here, and --{section} says "
                    f"{str(told_on).lower()}.",
                    hint='Write "auto".',
                )


def _scientific(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@rule(
    id="DSP807",
    name="clipping-below-zero",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="gradients that are not clipped",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine.gradient_clipping",
)
def clipping_below_zero(run: DeepSpeedRun) -> Iterator[Found]:
    """`gradient_clipping` is the largest norm; 0 switches clipping off, and so does a number below."""
    norm = run.number("gradient_clipping")
    if norm is not None and norm < 0:
        yield Found(
            place=run.value_place("gradient_clipping"),
            message=f"gradient_clipping {norm:g} clips nothing.",
            hint="Use a positive number, or 0 for none.",
        )


@rule(
    id="DSP808",
    name="micro-batches-for-the-gpus",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Micro batch size per gpu: 0 has to be greater than 0",
    found_at=FoundAt.START,
    source=f"{CONFIG}._set_batch_related_parameters",
)
def enough_sequences(run: DeepSpeedRun) -> Iterator[Found]:
    """A step has at least one micro-batch for each replica."""
    batch = _batch(run)
    if batch.total is None or batch.total < 1 or (batch.micro is not None and batch.steps is not None):
        return
    least = (batch.micro or 1) * (batch.steps or 1) * run.counted_replicas
    if min(batch.micro or 1, batch.steps or 1) > 0 and batch.total < least:
        divisors = nearest_divisors(batch.total, int(run.counted_replicas))
        yield Found(
            place=run.value_place(TOTAL),
            message=f"train_batch_size {batch.total} is less than {least:g}, one micro-batch on each of "
            f"{run.counted_replicas:g} replicas.",
            hint=f"Use {least:g} or more, or {listed(divisors)} replicas.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    batch_is_a_product,
    batch_is_missing,
    batch_is_positive,
    batch_over_autotp,
    steps_per_print,
    trainer_says_otherwise,
    clipping_below_zero,
    enough_sequences,
)
