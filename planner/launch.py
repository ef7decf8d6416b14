"""The launch files of a plan: checked before they are written down, parsed back after.

A plan file may have been edited, so the layout is held against every rule again; and what was emitted is read by the
same reader that reads users' own scripts, and must say the same layout.
"""

from collections.abc import Mapping

from planner.emit.megatron import BATCH_SCRIPT, LAUNCH_SCRIPT, LORA_PROGRAM, emit_megatron
from planner.errors import BrokenPromiseError, InputError
from planner.plan import Plan
from planner.readers.megatron import layout_of, read_megatron
from planner.validate import violations
from planner.workload import TrainWorkload


def launch_file_names(workload: TrainWorkload) -> tuple[str, ...]:
    """Return the name of every file that starts `workload`, whatever its layout turns out to be."""
    return (LAUNCH_SCRIPT, BATCH_SCRIPT) if workload.lora is None else (LAUNCH_SCRIPT, BATCH_SCRIPT, LORA_PROGRAM)


def launch_files(plan: Plan, *, index: int = 0) -> Mapping[str, str]:
    """Return the text of every file that starts one layout of `plan`, by name.

    Args:
        plan: A plan with at least `index + 1` layouts.
        index: 0 is the best layout, 1 the first runner-up.

    Raises:
        InputError: The plan breaks a rule.
        planner.errors.NotExpressibleError: Megatron-LM has no way to say it.
        BrokenPromiseError: A script says another layout than the plan.
    """
    planned = plan.plans[index]
    broken = violations(planned, plan.model, plan.cluster, plan.request)
    if broken:
        raise InputError(
            f"layout {index} of this plan breaks its own rules: {'; '.join(entry.message for entry in broken)}.",
            hint="Plan again from the spec instead of editing the plan.",
        )
    files = emit_megatron(plan, index=index)
    for name in (LAUNCH_SCRIPT, BATCH_SCRIPT):
        said = layout_of(read_megatron(files[name], file=name))
        if said != planned.layout:
            raise BrokenPromiseError(f"{name} says {said}, the plan {planned.layout}")
    return files
