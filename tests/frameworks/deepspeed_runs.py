"""Plans that are trained for a few steps on the CPU, in DeepSpeed's environment."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from planner.emit.deepspeed import CONFIG_FILE, emit_deepspeed
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.plans.plan import Plan
from planner.requests.workload import AttentionKernel, DType
from tests.emitted.deepspeed_plans import deepspeed_plan, layout_with
from tests.frameworks.deepspeed_environment import (
    Trained,
    program_arguments,
    run_beside_deepspeed,
    trained,
    write_files,
)

STEPS = 3
TOLERANCE = 2e-6
"""Of loss and norm in fp32; sums in another order differ in the seventh digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A plan that is trained for a few steps.

    Args:
        plan: The plan.
        exact: Train in fp32, where the order of sums alone makes a difference; else as emitted.
        stage: Zero stage to put in place of the plan's.
    """

    plan: Plan
    exact: bool = True
    stage: int | None = None

    def changes(self) -> dict[str, object]:
        """Return what of the configuration is changed: formats, an optimizer for the CPU, sizes for a small model."""
        plan, zero_stage = self.plan, self.plan.best.layout.zero_stage
        config = json.loads(emit_deepspeed(plan)[CONFIG_FILE])
        zero = config["zero_optimization"] | {"stage": self.stage or zero_stage, "reduce_bucket_size": 10_000}
        if zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = 10
        if self.stage == 0:
            zero = {"stage": 0}
        # A large epsilon lets the size of the gradients be seen in Adam's steps.
        parameters = config["optimizer"]["params"] | {"lr": 1e-2, "eps": 1e-3}
        if plan.best.layout.offload is None:
            parameters["torch_adam"] = True  # DeepSpeed's own runs on a GPU; the one for states on the host on a CPU
        changed: dict[str, object] = {"zero_optimization": zero, "optimizer": {"type": "AdamW", "params": parameters}}
        if self.exact:
            changed |= dict.fromkeys(("bf16", "data_types", "communication_data_type"))
            changed["seq_parallel_communication_data_type"] = None
        return changed


def run_of(model: ModelSpec, layout: Layout, *, exact: bool = True, gradient_dtype: DType = DType.FP32) -> Run:
    kernel = AttentionKernel.UNFUSED
    return Run(plan=deepspeed_plan(model, layout, attention_kernel=kernel, gradient_dtype=gradient_dtype), exact=exact)


halves = partial(layout_with, (4,), dp=2, num_microbatches=2)
"""Two data-parallel processes that train the batch of one."""


ALONE = layout_with((4,))


def trained_runs(runs: Mapping[tuple[str, str], Run], folder: Path) -> Mapping[tuple[str, str], Trained]:
    """Return what every run printed, its files in a folder below the given one."""
    cases = []
    for index, run in enumerate(runs.values()):
        write_files(run.plan, folder / str(index), run.changes())
        arguments = [*program_arguments(run.plan), "--steps", str(STEPS)]
        world = run.plan.best.layout.world_size
        cases.append({"folder": str(folder / str(index)), "arguments": arguments, "world": world})
    outputs = run_beside_deepspeed("tests.frameworks.deepspeed_steps", cases, jobs=len(cases))
    return dict(zip(runs, (trained(output) for output in outputs), strict=True))
