"""DeepSpeed: number formats, and what recompute keeps."""

from collections.abc import Iterator

from planner.readers.deepspeed_keys import shown
from planner.readers.deepspeed_launch import TENSOR_FLAGS
from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework, version_key
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule

CONFIG = "deepspeed/runtime/config.py: DeepSpeedConfig"
ENGINE = "deepspeed/runtime/engine.py: DeepSpeedEngine"
RECOMPUTE = "activation_checkpointing"
CHECKPOINTING = "deepspeed/runtime/activation_checkpointing/checkpointing.py: configure"

NAMES = {
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
    "torch.float32": "fp32",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "torch.float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "torch.bfloat16": "bf16",
    "int8": "int8",
    "torch.int8": "int8",
}
"""Names of formats in `data_types` (`DtypeEnum`), exactly so."""

FORMATS = ("grad_accum_dtype", "param_dtype", "buffer_dtype")


def bf16_is_on(run: DeepSpeedRun) -> bool:
    """Return whether bf16 is on; the old name counts only without the new one."""
    return run.is_on("bf16", "enabled") if run.given("bf16") else run.is_on("bfloat16", "enabled")


def model_format(run: DeepSpeedRun) -> str:
    """Return the format of the weights that are computed with."""
    return "fp16" if run.is_on("fp16", "enabled") else "bf16" if bf16_is_on(run) else "fp32"


@rule(
    id="DSP701",
    name="fp16-and-bf16",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: bfloat16 and fp16 modes cannot be simultaneously enabled",
    found_at=FoundAt.START,
    source=f"{CONFIG}._initialize_params",
)
def fp16_and_bf16(run: DeepSpeedRun) -> Iterator[Found]:
    """A run is in fp16 or in bf16."""
    if run.is_on("fp16", "enabled") and bf16_is_on(run):
        yield Found(
            place=run.value_place("fp16", "enabled"),
            message="fp16 and bf16 are both enabled.",
            hint="Disable one of the two; bf16 needs no loss scale.",
        )


@rule(
    id="DSP702",
    name="precision-is-off",
    framework=Framework.DEEPSPEED,
    prevents="a run in fp32, because `enabled` is false by default",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/precision_config.py",
)
def precision_is_off(run: DeepSpeedRun) -> Iterator[Found]:
    """A section `fp16` or `bf16` says `enabled`; without it the run is in fp32."""
    for section in ("fp16", "bf16", "bfloat16"):
        if run.keys(section) and not run.given(section, "enabled"):
            yield Found(
                place=run.place(section),
                message=f"{section} without enabled is off.",
                hint='Add "enabled": true, or remove the section.',
            )


@rule(
    id="DSP703",
    name="bf16-twice",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a section that nothing reads",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/precision_config.py: get_bfloat16_config",
)
def bf16_twice(run: DeepSpeedRun) -> Iterator[Found]:
    """`bfloat16` is the old name of `bf16`; beside it, it is not read."""
    if run.given("bf16") and run.given("bfloat16"):
        yield Found(
            place=run.place("bfloat16"), message="bfloat16 beside bf16 is read by nothing.", hint="Remove bfloat16."
        )


@rule(
    id="DSP704",
    name="master-weights-need-zero",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Fp16_master_weights_and_grads is only supported with ZeRO Stage ...",
    found_at=FoundAt.START,
    source=f"{CONFIG}._do_error_check",
)
def master_weights_need_zero(run: DeepSpeedRun) -> Iterator[Found]:
    """Master weights in 16 bits need ZeRO: any stage from DeepSpeed 0.18 on, stage 2 before."""
    stages = {2} if run.version.startswith("0.17") else {1, 2, 3}
    keys = (
        ("fp16", "fp16_master_weights_and_grads"),
        ("bf16", "bf16_master_weights_and_grads"),
        ("bf16", "bf16_optimizer_states"),
    )
    for section, key in keys:
        if run.is_on(section, key) and run.stage not in stages:
            yield Found(
                place=run.place(section, key),
                message=f"{key} at ZeRO stage {run.stage}.",
                hint=f"Use stage {' or '.join(map(str, sorted(stages)))}, or remove it.",
            )


@rule(
    id="DSP705",
    name="bf16-states-need-bf16-master",
    framework=Framework.DEEPSPEED,
    since="0.18",
    prevents="AssertionError: bf16_optimizer_states requires bf16_master_weights_and_grads to be enabled.",
    found_at=FoundAt.START,
    source=f"{CONFIG}._do_error_check",
)
def bf16_states(run: DeepSpeedRun) -> Iterator[Found]:
    """`bf16_optimizer_states` needs `bf16_master_weights_and_grads`."""
    if run.is_on("bf16", "bf16_optimizer_states") and not run.is_on("bf16", "bf16_master_weights_and_grads"):
        yield Found(
            place=run.place("bf16", "bf16_optimizer_states"),
            message="bf16_optimizer_states without bf16_master_weights_and_grads.",
            hint='Add "bf16_master_weights_and_grads": true.',
        )


@rule(
    id="DSP706",
    name="master-weights-need-offload",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Master weights feature requires ... Offload with DeepSpeedCPUAdam.",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/base_optimizer.py: ZeROOptimizer._configure_master_weights",
)
def master_weights_need_offload(run: DeepSpeedRun) -> Iterator[Found]:
    """Master weights in 16 bits need `offload_optimizer`; in bf16 they do not with `bf16_optimizer_states`."""
    fp16 = run.is_on("fp16", "fp16_master_weights_and_grads")
    bf16 = run.is_on("bf16", "bf16_master_weights_and_grads") and not run.is_on("bf16", "bf16_optimizer_states")
    if run.stage > 0 and (fp16 or bf16) and run.offload_device("offload_optimizer") == "none":
        section, key = ("fp16", "fp16_master_weights_and_grads") if fp16 else ("bf16", "bf16_master_weights_and_grads")
        yield Found(
            place=run.place(section, key),
            message=f"{key} without offload_optimizer.",
            hint='Add "offload_optimizer": {"device": "cpu"}' + ("." if fp16 else ", or bf16_optimizer_states."),
        )


@rule(
    id="DSP707",
    name="gradients-in-another-format",
    framework=Framework.DEEPSPEED,
    prevents="NotImplementedError: unsupported mix of model_dtype=... and grad_accum_dtype=...",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._do_optimizer_sanity_check",
)
def gradients_in_another_format(run: DeepSpeedRun) -> Iterator[Found]:
    """Without ZeRO, gradients are accumulated in the format of the weights."""
    gradients = NAMES.get(run.text("data_types", "grad_accum_dtype") or "")
    if gradients is not None and run.stage == 0 and gradients != model_format(run):
        yield Found(
            place=run.value_place("data_types", "grad_accum_dtype"),
            message=f"grad_accum_dtype {gradients} with weights in {model_format(run)} and without ZeRO.",
            hint=f"Use ZeRO stage 1, 2 or 3, or {model_format(run)}.",
        )


@rule(
    id="DSP708",
    name="weights-in-another-format",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents="AssertionError: data_types.param_dtype=... conflicts with the enabled precision mode",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._assert_valid_mixed_precision_config",
)
def weights_in_another_format(run: DeepSpeedRun) -> Iterator[Found]:
    """`param_dtype` is the format that `fp16` or `bf16` enables, or absent."""
    weights = NAMES.get(run.text("data_types", "param_dtype") or "")
    if weights is not None and weights != model_format(run):
        yield Found(
            place=run.value_place("data_types", "param_dtype"),
            message=f"param_dtype {weights} where the run is in {model_format(run)}.",
            hint=f"Write {model_format(run)}, or remove it.",
        )


@rule(
    id="DSP709",
    name="names-of-formats",
    framework=Framework.DEEPSPEED,
    prevents="ValueError: ... is not a valid DtypeEnum",
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/config.py: DtypeEnum",
)
def names_of_formats(run: DeepSpeedRun) -> Iterator[Found]:
    """`data_types` takes fp32, fp16, bf16 or int8, or torch's names of them, in lower case."""
    for key in FORMATS:
        content = run.content("data_types", key)
        known = run.table.at(("data_types", key)) is not None
        if known and isinstance(content, str) and content not in NAMES:
            yield Found(
                place=run.value_place("data_types", key),
                message=f"{key} is {shown(content)}, which is no format.",
                hint="Use fp32, fp16 or bf16.",
            )


@rule(
    id="DSP710",
    name="loss-scale",
    framework=Framework.DEEPSPEED,
    since="0.18",
    prevents="ValidationError: ... fp16.loss_scale must be ...; "
    "ValidationError: ... fp16.loss_scale_window must be > 0 ...",
    found_at=FoundAt.PARSE,
    source="deepspeed/runtime/precision_config.py: DeepSpeedFP16Config",
)
def loss_scale(run: DeepSpeedRun) -> Iterator[Found]:
    """`loss_scale` is a number from 0 on; where it is 0, the scale is dynamic, and its window and least value positive.

    These keys take no truth values. DeepSpeed checks the window and the least value from 0.19 on.
    """
    for key in ("loss_scale", "loss_scale_window", "min_loss_scale"):
        checked = key == "loss_scale" or version_key(run.version) >= (0, 19)
        if checked and isinstance(run.content("fp16", key), bool):
            yield Found(place=run.value_place("fp16", key), message=f"{key} is a truth value.", hint="Write a number.")
            return
    scale = run.number("fp16", "loss_scale") or 0
    if scale < 0:
        yield Found(
            place=run.value_place("fp16", "loss_scale"),
            message=f"loss_scale is {scale:g}.",
            hint="Use 0 for a dynamic scale, or a positive number.",
        )
    if scale != 0 or not run.is_on("fp16", "enabled") or version_key(run.version) < (0, 19):
        return
    for key in ("loss_scale_window", "min_loss_scale"):
        number = run.integer("fp16", key)
        if number is not None and number <= 0:
            yield Found(
                place=run.value_place("fp16", key),
                message=f"{key} is {number} with a dynamic loss scale.",
                hint="Use a positive number.",
            )


@rule(
    id="DSP711",
    name="lamb-needs-a-dynamic-scale",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: DeepSpeed lamb optimizer requires dynamic loss scaling",
    found_at=FoundAt.BUILD,
    source=f"{ENGINE}._do_sanity_check",
)
def lamb_scale(run: DeepSpeedRun) -> Iterator[Found]:
    """LAMB needs a dynamic loss scale: `loss_scale` 0."""
    scale = run.number("fp16", "loss_scale") or 0
    if (run.text("optimizer", "type") or "").lower() == "lamb" and scale != 0:
        yield Found(
            place=run.value_place("fp16", "loss_scale"), message=f"loss_scale {scale:g} with LAMB.", hint="Write 0."
        )


@rule(
    id="DSP712",
    name="modules-in-fp32",
    framework=Framework.DEEPSPEED,
    since="0.19",
    prevents='DeepSpeedConfigError: data_types.keep_in_fp32_modules must be "auto" or a list of name patterns',
    found_at=FoundAt.START,
    source=f"{CONFIG}._initialize_params",
)
def modules_in_fp32(run: DeepSpeedRun) -> Iterator[Found]:
    """`keep_in_fp32_modules` is "auto" or a list of texts."""
    content = run.content("data_types", "keep_in_fp32_modules")
    texts = isinstance(content, list) and all(isinstance(part, str) for part in content)
    if content is not None and content != "auto" and not texts:
        yield Found(
            place=run.value_place("data_types", "keep_in_fp32_modules"),
            message=f"keep_in_fp32_modules is {shown(content)}.",
            hint='Write "auto" or a list of texts.',
        )


@rule(
    id="DSP601",
    name="contiguous-needs-partitions",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Contiguous Checkpointing is only available with partitioned activations.",
    found_at=FoundAt.BUILD,
    source=CHECKPOINTING,
)
def contiguous_needs_partitions(run: DeepSpeedRun) -> Iterator[Found]:
    """`contiguous_memory_optimization` needs `partition_activations`."""
    section = RECOMPUTE
    if run.is_on(section, "contiguous_memory_optimization") and not run.is_on(section, "partition_activations"):
        yield Found(
            place=run.place(section, "contiguous_memory_optimization"),
            message="contiguous_memory_optimization without partition_activations.",
            hint='Add "partition_activations": true, or remove it.',
        )


@rule(
    id="DSP602",
    name="contiguous-needs-a-number",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Must specify the number of layers with contiguous memory checkpointing",
    found_at=FoundAt.BUILD,
    source=CHECKPOINTING,
)
def contiguous_needs_number(run: DeepSpeedRun) -> Iterator[Found]:
    """`contiguous_memory_optimization` needs `number_checkpoints`, the layers that keep their inputs."""
    if run.is_on(RECOMPUTE, "contiguous_memory_optimization") and not run.given(RECOMPUTE, "number_checkpoints"):
        yield Found(
            place=run.place(RECOMPUTE, "contiguous_memory_optimization"),
            message="contiguous_memory_optimization without number_checkpoints.",
            hint='Add "number_checkpoints" with the layers of the model.',
        )


@rule(
    id="DSP603",
    name="partitions-of-one",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="kept inputs that are as large as before",
    found_at=FoundAt.NEVER,
    source=f"{CHECKPOINTING}, partition_activations",
)
def partitions_of_one(run: DeepSpeedRun) -> Iterator[Found]:
    """`partition_activations` splits kept inputs over tensor-parallel ranks; without them there is nothing to split."""
    told = run.launch is not None and any(flag in run.launch.program for flag in TENSOR_FLAGS)
    if run.launch is not None and not told and run.tp == 1 and run.is_on(RECOMPUTE, "partition_activations"):
        yield Found(
            place=run.place(RECOMPUTE, "partition_activations"),
            message="partition_activations without tensor parallelism does nothing.",
            hint="Remove it, or use cpu_checkpointing to move kept inputs to the host.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    contiguous_needs_partitions,
    contiguous_needs_number,
    partitions_of_one,
    fp16_and_bf16,
    precision_is_off,
    bf16_twice,
    master_weights_need_zero,
    bf16_states,
    master_weights_need_offload,
    gradients_in_another_format,
    weights_in_another_format,
    names_of_formats,
    loss_scale,
    lamb_scale,
    modules_in_fp32,
)
