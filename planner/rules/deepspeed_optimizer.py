"""DeepSpeed: optimizers, schedules of the learning rate, checkpoints and data."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from planner.errors import Location
from planner.readers.deepspeed_keys import shown
from planner.readers.deepspeed_run import AUTO, DeepSpeedRun
from planner.readers.flag_tables import Framework, version_key
from planner.rules.rule import Fix, Found, FoundAt, Rule, rule

ENGINE = "deepspeed/runtime/engine.py: DeepSpeedEngine"
OPTIMIZER, SCHEDULER, PARAMS = "optimizer", "scheduler", "params"
ZERO = "zero_optimization"

OWN = ("Adagrad", "Adam", "AdamW", "Lamb", "MuAdam", "MuAdamW", "MuSGD", "Lion", "Muon")
ONE_BIT = ("OneBitAdam", "OneBitLamb", "ZeroOneAdam")
"""DeepSpeed's own optimizers (`DEEPSPEED_OPTIMIZERS`), in any case; the second row before 0.19."""

TORCH = (
    *("ASGD", "Adadelta", "Adafactor", "Adamax", "LBFGS", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
    *("Adagrad", "Adam", "AdamW"),
)
"""Optimizers of torch.optim (2.13), exactly so."""

TESTED = frozenset({"adam", "adamw", "adagrad", "lion", "muon"})
"""What ZeRO takes without `zero_allow_untested_optimizer` (`ZERO_SUPPORTED_OPTIMIZERS`), as they are built by name."""

ADAM_PARAMS = (
    *("lr", "betas", "eps", "weight_decay", "bias_correction", "amsgrad"),
    *("torch_adam", "adam_w_mode", "fp32_optimizer_states"),
)
"""Arguments of FusedAdam and of DeepSpeedCPUAdam, and those that the engine takes out."""

GPU_ADAM_PARAMS = ("set_grad_none",)
TORCH_ADAM_PARAMS = (
    *("lr", "betas", "eps", "weight_decay", "amsgrad", "foreach", "maximize", "capturable", "differentiable", "fused"),
    *("torch_adam", "adam_w_mode", "fp32_optimizer_states"),
)

WARMUP = ("warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "warmup_type", "last_batch_iteration")
CYCLE = (
    *("cycle_min_lr", "cycle_max_lr", "decay_lr_rate", "cycle_first_step_size", "cycle_second_step_size"),
    *("cycle_first_stair_count", "cycle_second_stair_count", "decay_step_size", "cycle_momentum", "cycle_min_mom"),
    *("cycle_max_mom", "decay_mom_rate", "last_batch_iteration"),
)
COSINE = (
    *("total_num_steps", "warmup_min_ratio", "warmup_num_steps", "cos_min_ratio", "warmup_type"),
    "last_batch_iteration",
)
RANGE = ("min_lr", "step_size", "step_rate", "staircase")
SCHEDULES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "LRRangeTest": ((), (*(f"lr_range_test_{name}" for name in RANGE), "last_batch_iteration")),
    "OneCycle": (("cycle_min_lr", "cycle_max_lr"), CYCLE),
    "WarmupLR": ((), WARMUP),
    "WarmupDecayLR": (("total_num_steps",), ("total_num_steps", *WARMUP)),
    "WarmupCosineLR": (("total_num_steps",), COSINE),
}
"""Schedules of `deepspeed/runtime/lr_schedules.py`: what each needs, and all that it takes."""

TORCH_SCHEDULES = (
    *("LambdaLR", "MultiplicativeLR", "StepLR", "MultiStepLR", "ConstantLR", "LinearLR", "ExponentialLR"),
    *("SequentialLR", "CosineAnnealingLR", "ChainedScheduler", "ReduceLROnPlateau", "CyclicLR", "OneCycleLR"),
    *("CosineAnnealingWarmRestarts", "PolynomialLR"),
)
"""Schedules of torch.optim.lr_scheduler."""

LEVELS = ("debug", "info", "warning", "error", "critical")


def _name(run: DeepSpeedRun) -> str:
    """Return the optimizer's name as DeepSpeed compares it: in lower case where it is one of its own."""
    name = run.text(OPTIMIZER, "type") or ""
    return name.lower() if name.lower() in {own.lower() for own in _own(run)} else name


def _own(run: DeepSpeedRun) -> tuple[str, ...]:
    return OWN if version_key(run.version) >= (0, 19) else (*OWN, *ONE_BIT)


def _near(word: str, words: tuple[str, ...]) -> tuple[str, ...]:
    lower = {candidate.lower(): candidate for candidate in words}
    return tuple(lower[found] for found in get_close_matches(word.lower(), list(lower), n=2, cutoff=0.6))


def _renamed(place: Location, key: str, near: tuple[str, ...], *, there: tuple[str, ...]) -> Fix | None:
    """Return the change of a key that has one near name, which is not there yet."""
    certain = len(near) == 1 and near[0] not in there
    return Fix(location=place, old=f'"{key}"', new=f'"{near[0]}"') if certain else None


def _meant(near: tuple[str, ...], otherwise: str) -> str:
    return f"Did you mean {' or '.join(near)}?" if near else otherwise


@rule(
    id="DSP810",
    name="unknown-optimizer",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: ... is not a supported DeepSpeed Optimizer",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._do_sanity_check, _configure_basic_optimizer",
)
def unknown_optimizer(run: DeepSpeedRun) -> Iterator[Found]:
    """`optimizer.type` is one of DeepSpeed's, in any case, or one of torch.optim's, exactly as it is written there."""
    name = run.text(OPTIMIZER, "type")
    words = (*_own(run), *TORCH)
    if name is not None and _name(run) not in {*(own.lower() for own in _own(run)), *TORCH}:
        near = _near(name, words)
        place = run.value_place(OPTIMIZER, "type")
        one = near[:1] if near and near[0].lower() == name.lower() else near
        yield Found(
            place=place,
            message=f"There is no optimizer {name}.",
            hint=_meant(one, f"Use one of {', '.join(_own(run))}, or one of torch.optim's."),
            fix=Fix(location=place, old=f'"{name}"', new=f'"{one[0]}"') if len(one) == 1 else None,
        )


@rule(
    id="DSP811",
    name="clipping-as-an-optimizer-parameter",
    framework=Framework.DEEPSPEED,
    prevents="ValueError: 'max_grad_norm' is not supported as an optimizer parameter",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._configure_basic_optimizer",
)
def clipping_as_parameter(run: DeepSpeedRun) -> Iterator[Found]:
    """Gradients are clipped by `gradient_clipping` at the top, not by `max_grad_norm` of the optimizer."""
    if "max_grad_norm" in run.keys(OPTIMIZER, PARAMS):
        yield Found(
            place=run.document.locate((OPTIMIZER, PARAMS, "max_grad_norm"), key=True),
            message="max_grad_norm is a parameter of the optimizer.",
            hint='Remove it, and write "gradient_clipping" at the top.',
        )


@rule(
    id="DSP812",
    name="unknown-optimizer-parameter",
    framework=Framework.DEEPSPEED,
    prevents="TypeError: ... got an unexpected keyword argument",
    found_at=FoundAt.BUILD,
    source="deepspeed/ops/adam/fused_adam.py, deepspeed/ops/adam/cpu_adam.py",
)
def unknown_optimizer_parameter(run: DeepSpeedRun) -> Iterator[Found]:
    """`params` of Adam and AdamW are what DeepSpeed's Adam takes.

    Which Adam it is depends on `torch_adam` and on `offload_optimizer`: the one of the CPU has no `set_grad_none`.
    """
    if _name(run) not in {"adam", "adamw"}:
        return
    if run.content(OPTIMIZER, PARAMS, "torch_adam") is True:
        known: tuple[str, ...] = TORCH_ADAM_PARAMS
    else:
        known = ADAM_PARAMS + (GPU_ADAM_PARAMS if run.offload_device("offload_optimizer") == "none" else ())
    for key in run.keys(OPTIMIZER, PARAMS):
        if key not in known and key != "max_grad_norm":
            near = tuple(get_close_matches(key, known, n=2, cutoff=0.7))
            place = run.document.locate((OPTIMIZER, PARAMS, key), key=True)
            yield Found(
                place=place,
                message=f"{run.text(OPTIMIZER, 'type')} has no parameter `{key}`.",
                hint=_meant(near, "Remove it."),
                fix=_renamed(place, key, near, there=run.keys(OPTIMIZER, PARAMS)),
            )


@rule(
    id="DSP813",
    name="no-amsgrad",
    framework=Framework.DEEPSPEED,
    prevents="RuntimeError: FusedAdam does not support the AMSGrad variant.",
    found_at=FoundAt.BUILD,
    source="deepspeed/ops/adam/fused_adam.py: FusedAdam.__init__",
)
def no_amsgrad(run: DeepSpeedRun) -> Iterator[Found]:
    """DeepSpeed's Adam has no AMSGrad; torch's has."""
    params = (OPTIMIZER, PARAMS)
    own = _name(run) in {"adam", "adamw"} and run.content(*params, "torch_adam") is not True
    if own and run.content(*params, "amsgrad") is True:
        yield Found(
            place=run.place(*params, "amsgrad"),
            message="amsgrad with DeepSpeed's Adam.",
            hint='Remove it, or add "torch_adam": true.',
        )


@rule(
    id="DSP814",
    name="optimizer-without-a-type",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: zero stage ... requires an optimizer; elsewhere parameters that nothing reads",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/config.py: get_optimizer_name, get_scheduler_name",
)
def without_a_type(run: DeepSpeedRun) -> Iterator[Found]:
    """A section `optimizer` or `scheduler` says its `type`; without one the section is not read.

    Where the program brings no optimizer of its own, ZeRO then finds none.
    """
    for section in (OPTIMIZER, SCHEDULER):
        if run.keys(section) and not run.given(section, "type"):
            yield Found(
                place=run.place(section),
                message=f"{section} without a type is read by nothing.",
                hint='Add "type", or remove the section.',
            )


@rule(
    id="DSP815",
    name="untested-optimizer",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: You are using an untested ZeRO Optimizer.",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._do_optimizer_sanity_check; deepspeed/runtime/zero/utils.py: ZERO_SUPPORTED_OPTIMIZERS",
)
def untested_optimizer(run: DeepSpeedRun) -> Iterator[Found]:
    """With ZeRO, an optimizer beyond Adam, AdamW, Adagrad, Lion and Muon needs `zero_allow_untested_optimizer`."""
    name = _name(run)
    known = name in TORCH or name in {own.lower() for own in _own(run)}
    if known and run.stage > 0 and name.lower() not in TESTED and not run.is_on("zero_allow_untested_optimizer"):
        yield Found(
            place=run.value_place(OPTIMIZER, "type"),
            message=f"{run.text(OPTIMIZER, 'type')} is not tested with ZeRO.",
            hint='Add "zero_allow_untested_optimizer": true, or use AdamW.',
        )


@rule(
    id="DSP816",
    name="lamb-on-the-cpu",
    framework=Framework.DEEPSPEED,
    prevents="an operator of the GPU on weights of the CPU",
    found_at=FoundAt.STEP,
    source=f"{ENGINE}._configure_basic_optimizer",
)
def lamb_on_the_cpu(run: DeepSpeedRun) -> Iterator[Found]:
    """`offload_optimizer` goes with Adam, AdamW, Adagrad and Lion, which have a version for the CPU; LAMB has none."""
    if _name(run) == "lamb" and run.stage > 0 and run.offload_device("offload_optimizer") != "none":
        yield Found(
            place=run.value_place(OPTIMIZER, "type"),
            message="LAMB with offload_optimizer.",
            hint="Use AdamW, or remove offload_optimizer.",
        )


@rule(
    id="DSP817",
    name="muon-with-reduce-scatter",
    framework=Framework.DEEPSPEED,
    since="0.18",
    prevents="ValueError: Muon and reduce scatter cannot be used together",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/zero/stage3.py: DeepSpeedZeroOptimizer_Stage3.__init__",
)
def muon_with_reduce_scatter(run: DeepSpeedRun) -> Iterator[Found]:
    """Muon at ZeRO stage 3 needs `"reduce_scatter": false`; true is the default."""
    if _name(run) == "muon" and run.stage == 3 and run.is_on(ZERO, "reduce_scatter"):
        yield Found(
            place=run.value_place(OPTIMIZER, "type"),
            message="Muon with reduce_scatter at ZeRO stage 3.",
            hint='Write "reduce_scatter": false in zero_optimization.',
        )


@rule(
    id="DSP820",
    name="unknown-schedule",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: DeepSpeed does not recognize LR scheduler",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._scheduler_from_config",
)
def unknown_schedule(run: DeepSpeedRun) -> Iterator[Found]:
    """`scheduler.type` is one of DeepSpeed's or of torch's, exactly as it is written there."""
    name = run.text(SCHEDULER, "type")
    words = (*SCHEDULES, *TORCH_SCHEDULES)
    if name is not None and name not in words:
        near = _near(name, words)
        place = run.value_place(SCHEDULER, "type")
        yield Found(
            place=place,
            message=f"There is no schedule {name}.",
            hint=_meant(near, f"Use one of {', '.join(SCHEDULES)}."),
            fix=Fix(location=place, old=f'"{name}"', new=f'"{near[0]}"') if len(near) == 1 else None,
        )


@rule(
    id="DSP821",
    name="schedule-parameters",
    framework=Framework.DEEPSPEED,
    prevents="TypeError: ... missing 1 required positional argument; ... got an unexpected keyword argument",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/lr_schedules.py",
)
def schedule_parameters(run: DeepSpeedRun) -> Iterator[Found]:
    """`params` of a schedule hold what it needs, and nothing that it does not take.

    The section itself is needed too: `"params": {}` where everything is left at its default.
    """
    name = run.text(SCHEDULER, "type")
    if name is None or name not in SCHEDULES:
        return
    needed, known = SCHEDULES[name]
    given = run.keys(SCHEDULER, PARAMS)
    missing = [key for key in needed if key not in given]
    if missing or not run.given(SCHEDULER, PARAMS):
        yield Found(
            place=run.place(SCHEDULER, PARAMS if run.given(SCHEDULER, PARAMS) else "type"),
            message=f"{name} needs {', '.join(missing)}." if missing else f"{name} needs a section params.",
            hint=f"Add {', '.join(missing)} to params." if missing else 'Add "params": {}.',
        )
    for key in given:
        if key not in known:
            near = tuple(get_close_matches(key, known, n=2, cutoff=0.7))
            place = run.document.locate((SCHEDULER, PARAMS, key), key=True)
            yield Found(
                place=place,
                message=f"{name} has no parameter `{key}`.",
                hint=_meant(near, "Remove it."),
                fix=_renamed(place, key, near, there=given),
            )


@rule(
    id="DSP822",
    name="warmup-steps",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: warmup_num_steps must be a positive integer",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/lr_schedules.py: WarmupLR.__init__",
)
def warmup_steps(run: DeepSpeedRun) -> Iterator[Found]:
    """`warmup_num_steps` is a whole number above 0."""
    path = (SCHEDULER, PARAMS, "warmup_num_steps")
    steps = run.content(*path)
    warms_up = (run.text(SCHEDULER, "type") or "").startswith("Warmup")
    if warms_up and steps is not None and steps != AUTO and (not isinstance(steps, int) or steps <= 0):
        yield Found(place=run.value_place(*path), message=f"warmup_num_steps is {shown(steps)}.", hint="Use 1 or more.")


@rule(
    id="DSP823",
    name="log-level",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="ValueError: ... is not one of the valid logging levels",
    found_at=FoundAt.BUILD,
    source="deepspeed/utils/logging.py: get_log_level_from_string",
)
def log_level(run: DeepSpeedRun) -> Iterator[Found]:
    """`log_level` is debug, info, warning, error or critical."""
    level = run.content("log_level")
    if isinstance(level, str) and level.lower() not in LEVELS:
        near = _near(level, LEVELS)
        place = run.value_place("log_level")
        yield Found(
            place=place,
            message=f"There is no log_level {level}.",
            hint=_meant(near, f"Use one of {', '.join(LEVELS)}."),
            fix=Fix(location=place, old=f'"{level}"', new=f'"{near[0]}"') if len(near) == 1 else None,
        )


@rule(
    id="DSP824",
    name="metrics-of-the-curriculum",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Curriculum learning is enabled, curriculum_metrics must be specified",
    found_at=FoundAt.START,
    source="deepspeed/runtime/data_pipeline/config.py: get_curriculum_learning, get_dynamic_batching",
)
def metrics_of_the_curriculum(run: DeepSpeedRun) -> Iterator[Found]:
    """Curriculum learning says its `curriculum_metrics`, and dynamic batching its `max_tokens`."""
    sampling = ("data_efficiency", "data_sampling")
    for section, key in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        if run.content(*sampling, section, "enabled") is True and not run.given(*sampling, section, key):
            yield Found(
                place=run.place(*sampling, section), message=f"{section} is enabled without {key}.", hint=f"Add {key}."
            )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    unknown_optimizer,
    clipping_as_parameter,
    unknown_optimizer_parameter,
    no_amsgrad,
    without_a_type,
    untested_optimizer,
    lamb_on_the_cpu,
    muon_with_reduce_scatter,
    unknown_schedule,
    schedule_parameters,
    warmup_steps,
    log_level,
    metrics_of_the_curriculum,
)
