"""DeepSpeed: what a `ratio` of `offload_optimizer` below 1 does at stage 3 (Twin-Flow of ZeRO-Offload++)."""

import math
from collections.abc import Iterator

from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import Found, FoundAt, Rule, Severity, rule

PLACE = ("zero_optimization", "offload_optimizer", "ratio")
OPTIMIZER = ("optimizer", "type")
STAGE_3 = "deepspeed/runtime/zero/stage3.py: DeepSpeedZeroOptimizer_Stage3"


def _ratio(run: DeepSpeedRun, *devices: str) -> float | None:
    """Return the ratio where it leaves a part of the states on the GPU, the others going to one of `devices`."""
    if not run.given(*PLACE) or run.stage != 3 or run.offload_device("offload_optimizer") not in devices:
        return None
    ratio = run.number(*PLACE)
    return ratio if ratio is not None and ratio < 1 else None


@rule(
    id="DSP531",
    name="ratio-of-large-sub-groups",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="states that are all on the host after all, or all but a few",
    found_at=FoundAt.UNNOTICED,
    source=f"{STAGE_3}._create_fp32_partitions, _create_fp16_sub_groups; issue 4775",
)
def ratio_of_large_sub_groups(run: DeepSpeedRun) -> Iterator[Found]:
    """A `ratio` below 1 comes with a `sub_group_size`: whole sub-groups are dealt, of a billion elements by default.

    Of a rank's n sub-groups int((1 - ratio) n) stay on the GPU: none, where n is below 1 / (1 - ratio).
    """
    ratio = _ratio(run, "cpu")
    if not ratio or run.given("zero_optimization", "sub_group_size"):
        return
    size = run.integer("zero_optimization", "sub_group_size") or 0
    fewest = math.ceil(1 / (1 - ratio) - 1e-9)
    yield Found(
        place=run.value_place(*PLACE),
        message=f"ratio {ratio:g} deals whole sub-groups of {size:,} elements of a rank's share, and keeps none on the"
        f" GPU where it has fewer than {fewest}.",
        hint="Add a sub_group_size of a twentieth of a rank's share of the parameters, or less.",
    )


@rule(
    id="DSP532",
    name="schedule-of-a-part",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a part of the weights that is updated with the learning rate of the start, in every step",
    found_at=FoundAt.NEVER,
    source=f"{STAGE_3}.__init__: backup_optimizer; _optimizer_step; deepspeed/runtime/lr_schedules.py",
)
def schedule_of_a_part(run: DeepSpeedRun) -> Iterator[Found]:
    """A `ratio` below 1 goes without a `scheduler`.

    What stays on the GPU is updated by a second optimizer, made with the learning rate of the start. Schedulers change
    the rate of the first one, and nothing hands it on, but where parameters come in groups: those behind the first
    group are of both.
    """
    ratio = _ratio(run, "cpu")
    if ratio is not None and run.given("scheduler"):
        yield Found(
            place=run.place("scheduler"),
            message=f"The states that ratio {ratio:g} keeps on the GPU are not told of the scheduler's learning rates.",
            hint="Use ratio 1.0 or no scheduler.",
        )


@rule(
    id="DSP533",
    name="ratio-with-nvme",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="moments that stay in the host's memory, and slower updates there",
    found_at=FoundAt.UNNOTICED,
    source=f"{STAGE_3}._optimizer_step; deepspeed/runtime/swap_tensor/partitioned_optimizer_swapper.py",
)
def ratio_with_nvme(run: DeepSpeedRun) -> Iterator[Found]:
    """A `ratio` below 1 goes with `device: cpu`.

    With nvme every sub-group is brought to the CPUs; those that the ratio deals to the GPU are updated there too, by
    torch's AdamW, whose moments the swapper does not know.
    """
    ratio = _ratio(run, "nvme")
    if ratio is not None:
        yield Found(
            place=run.value_place(*PLACE),
            message=f"ratio {ratio:g} with device nvme leaves no states on the GPU, and some moments on the host.",
            hint="Use ratio 1.0, or device cpu.",
        )


@rule(
    id="DSP534",
    name="ratio-without-cpu-adam",
    framework=Framework.DEEPSPEED,
    prevents="AssertionError: Hybrid Optimizer Only Supports DeepSpeedCPUAdam",
    found_at=FoundAt.BUILD,
    source=f"{STAGE_3}.__init__; deepspeed/runtime/engine.py: DeepSpeedEngine.get_optimizer_configuration",
)
def ratio_without_cpu_adam(run: DeepSpeedRun) -> Iterator[Found]:
    """A `ratio` below 1 goes with DeepSpeed's Adam of the CPU: Adam or AdamW without `torch_adam`."""
    name = (run.text(*OPTIMIZER) or "").lower()
    is_torch = run.content("optimizer", "params", "torch_adam") is True
    ratio = _ratio(run, "cpu", "nvme")
    if ratio is not None and name and (name not in {"adam", "adamw"} or is_torch):
        used = f"torch's {run.text(*OPTIMIZER)}" if is_torch else run.text(*OPTIMIZER)
        yield Found(
            place=run.value_place(*OPTIMIZER),
            message=f"ratio {ratio:g} with {used}: states in parts are updated by DeepSpeedCPUAdam alone.",
            hint="Use AdamW without torch_adam, or ratio 1.0.",
        )


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    ratio_of_large_sub_groups,
    schedule_of_a_part,
    ratio_with_nvme,
    ratio_without_cpu_adam,
)
