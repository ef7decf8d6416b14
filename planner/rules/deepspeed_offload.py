"""DeepSpeed: what offload of weights and optimizer states needs, and what it ignores."""

from collections.abc import Iterator

from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, rule

ZERO = "zero_optimization"
MODEL = "deepspeed/runtime/zero/config.py: DeepSpeedZeroConfig"
STAGE_2 = "deepspeed/runtime/zero/stage_1_and_2.py: DeepSpeedZeroOptimizer.__init__"
CHOICE = "deepspeed/runtime/engine.py: DeepSpeedEngine._configure_zero_optimizer"


@rule(
    id="DSP502",
    name="offload-param-below-stage-3",
    framework=Framework.DEEPSPEED,
    prevents="weights that stay on the GPU, and then do not fit",
    found_at=FoundAt.NEVER,
    source=f"{CHOICE}; deepspeed/runtime/zero/config.py: offload_param, valid only with stage 3",
)
def offload_param_below_3(run: DeepSpeedRun) -> Iterator[Found]:
    """`offload_param` needs stage 3.

    Below it every GPU holds all weights, and the section is read by nothing.
    """
    device = run.offload_device("offload_param")
    if device != "none" and run.stage < 3:
        yield Found(
            place=run.place(ZERO, "offload_param"),
            message=f"offload_param to {device} at ZeRO stage {run.stage} is ignored.",
            hint="Use stage 3, or remove offload_param.",
        )


@rule(
    id="DSP503",
    name="offload-optimizer-at-stage-0",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: CPUAdam param is on cuda:0 and must be 'cpu'",
    found_at=FoundAt.STEP,
    source="deepspeed/runtime/engine.py: DeepSpeedEngine._configure_optimizer; deepspeed/ops/adam/cpu_adam.py: step",
)
def offload_optimizer_at_0(run: DeepSpeedRun) -> Iterator[Found]:
    """`offload_optimizer` needs ZeRO.

    At stage 0 the optimizer of the CPU is made all the same, and nothing moves its weights there.
    """
    device = run.offload_device("offload_optimizer")
    if device != "none" and run.stage == 0:
        yield Found(
            place=run.place(ZERO, "offload_optimizer"),
            message=f"offload_optimizer to {device} at ZeRO stage 0.",
            hint="Use stage 1, 2 or 3, or remove offload_optimizer.",
        )


@rule(
    id="DSP504",
    name="nvme-path",
    framework=Framework.DEEPSPEED,
    prevents='AssertionError: "nvme_path" in DeepSpeed Config cannot be None if remote device is ...',
    found_at=FoundAt.BUILD,
    source="deepspeed/runtime/zero/stage3.py: _configure_tensor_swapping; "
    "deepspeed/runtime/swap_tensor/partitioned_param_swapper.py",
)
def nvme_path(run: DeepSpeedRun) -> Iterator[Found]:
    """Offload to NVMe says where: `nvme_path`."""
    for section in ("offload_param", "offload_optimizer"):
        if run.stage == 3 and run.offload_device(section) == "nvme" and not run.given(ZERO, section, "nvme_path"):
            yield Found(
                place=run.place(ZERO, section, "device"),
                message=f"{section} to nvme without nvme_path.",
                hint='Add "nvme_path": "/a/folder/on/a/local/disk".',
            )


@rule(
    id="DSP505",
    name="nvme-below-stage-3",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="optimizer states in the host's memory in the place of the disk",
    found_at=FoundAt.NEVER,
    source=STAGE_2,
)
def nvme_below_3(run: DeepSpeedRun) -> Iterator[Found]:
    """`offload_optimizer` to NVMe needs stage 3; stages 1 and 2 take every device but none for the CPU."""
    if run.stage in {1, 2} and run.offload_device("offload_optimizer") == "nvme":
        place = run.value_place(ZERO, "offload_optimizer", "device")
        yield Found(
            place=place,
            message=f"offload_optimizer to nvme at ZeRO stage {run.stage} goes to the host's memory.",
            hint="Use stage 3, or write cpu.",
            fix=Fix(location=place, old='"nvme"', new='"cpu"'),
        )


@rule(
    id="DSP506",
    name="partial-offload-below-stage-3",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Partial offloading only supported for ZeRO Stage 3.",
    found_at=FoundAt.PARSE,
    source=f"{MODEL}.offload_ratio_check",
)
def partial_offload(run: DeepSpeedRun) -> Iterator[Found]:
    """`ratio` of `offload_optimizer` below 1 needs stage 3."""
    ratio = run.number(ZERO, "offload_optimizer", "ratio")
    if run.given(ZERO, "offload_optimizer", "ratio") and ratio is not None and ratio < 1 and run.stage != 3:
        yield Found(
            place=run.value_place(ZERO, "offload_optimizer", "ratio"),
            message=f"ratio {ratio:g} at ZeRO stage {run.stage}.",
            hint="Use stage 3, or remove ratio.",
        )


@rule(
    id="DSP508",
    name="super-offload",
    framework=Framework.DEEPSPEED,
    since="0.18",
    severity=Severity.WARNING,
    prevents="settings that nothing reads",
    found_at=FoundAt.NEVER,
    source=CHOICE,
)
def super_offload(run: DeepSpeedRun) -> Iterator[Found]:
    """`super_offload` needs stage 3, and `cpuadam_cores_perc` needs `super_offload`."""
    section = (ZERO, "offload_optimizer")
    on = run.is_on(*section, "super_offload")
    if on and run.stage != 3:
        yield Found(
            place=run.place(*section, "super_offload"),
            message=f"super_offload at ZeRO stage {run.stage} does nothing.",
            hint="Use stage 3, or remove it.",
        )
    elif not on and run.given(*section, "cpuadam_cores_perc"):
        yield Found(
            place=run.place(*section, "cpuadam_cores_perc"),
            message="cpuadam_cores_perc without super_offload does nothing.",
            hint="Add super_offload, or remove it.",
        )


@rule(
    id="DSP509",
    name="keys-of-nvme",
    framework=Framework.DEEPSPEED,
    severity=Severity.NOTE,
    prevents="settings that nothing reads",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/zero/offload_config.py",
)
def keys_of_nvme(run: DeepSpeedRun) -> Iterator[Found]:
    """`nvme_path`, buffers and pipelined reads and writes of an offload section count only with `device: nvme`."""
    only = {
        "offload_param": ("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"),
        "offload_optimizer": ("nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init"),
    }
    for section, keys in only.items():
        found = [key for key in keys if run.given(ZERO, section, key) and run.content(ZERO, section, key) is not False]
        if found and run.offload_device(section) != "nvme":
            yield Found(
                place=run.place(ZERO, section, found[0]),
                message=f"{', '.join(found)} of {section} counts only with device nvme.",
                hint="Remove it, or write nvme.",
            )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    offload_param_below_3,
    offload_optimizer_at_0,
    nvme_path,
    nvme_below_3,
    partial_offload,
    super_offload,
    keys_of_nvme,
)
